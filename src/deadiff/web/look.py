"""How the page looks: system fonts, no file from elsewhere, readable in light and dark, one column on a phone."""

from typing import Any

STYLE = """
.gradio-container, .gradio-container > .main, .gradio-container .wrap:has(> .contain) {width: 100% !important;}
.gradio-container {max-width: 1280px !important; margin: 0 auto !important;}
.title h1 {margin: 0; font-size: 1.4rem;} .title p {margin: 0; opacity: .75;}
.said {margin: .4rem 0;}
.wrong {margin: .4rem 0; padding: .6rem .8rem; border-left: 4px solid #c62828; background: rgba(198, 40, 40, .12);
  overflow-wrap: anywhere;}
progress {width: 100%; height: .6rem; appearance: none; border: 0; border-radius: 4px; background: rgba(128, 128, 128, .25);}
progress::-webkit-progress-bar {background: transparent;}
progress::-webkit-progress-value {background: #3b6fd4; border-radius: 4px;}
progress::-moz-progress-bar {background: #3b6fd4; border-radius: 4px;}
.looks {display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 8px; margin-top: .5rem;}
.looks img {width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: rgba(128, 128, 128, .12);}
.recipe {display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; margin: .4rem 0; font-size: .9rem;}
.recipe dt {opacity: .7;} .recipe dd {margin: 0; overflow-wrap: anywhere;}
.lesson {padding: .4rem .2rem;} .lesson h2 {margin: 0 0 .4rem; font-size: 1.1rem;}
.lesson ol {padding-left: 1.3rem; list-style: decimal;} .lesson li {margin: .25rem 0;}
#example-buttons {display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 6px;}
.example img {width: 40px !important; height: 40px !important; border-radius: 6px;}
.example {display: flex; flex-direction: row; justify-content: flex-start !important; text-align: left; font-size: .85rem;
  line-height: 1.15; gap: 6px;}
button:focus-visible, input:focus-visible, textarea:focus-visible, [tabindex]:focus-visible
  {outline: 3px solid #3b6fd4 !important; outline-offset: 2px;}
.grid-wrap {padding-top: 30px !important;}
#gallery .grid-wrap, #style-gallery .grid-wrap {min-height: 0 !important; height: auto !important;}
.grid-wrap .grid-container {grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)) !important;}
.grid-wrap .caption-label {max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;}
.references .grid-wrap .grid-container {grid-template-columns: repeat(auto-fill, 92px) !important;}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important;}
  #sides {flex-direction: column;}
  #sides > .column {min-width: 0 !important; width: 100%;}
  .grid-wrap:not(.references *) .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important;}
  #go {position: fixed; left: 0; right: 0; bottom: 0; z-index: 1000; padding: 8px 12px; background: var(--body-background-fill);
    border-top: 1px solid var(--border-color-primary); flex-wrap: nowrap;}
  #sides {padding-bottom: 72px;}
  #now {scroll-margin-bottom: 80px;}
}
"""

# On a phone the place where pictures come may be out of sight when Draw is pressed.
SHOW_PROGRESS = """() => {
  const block = innerWidth <= 640 ? 'center' : 'nearest';
  document.querySelector('#now').scrollIntoView({block, behavior: 'smooth'});
  return [];
}"""

# The browser itself holds the page to what is promised: nothing is loaded from, or sent to, anywhere but this app.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page starts inline and builds its handlers at run time
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "form-action 'self'",
        "base-uri 'self'",
        "object-src 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def theme() -> Any:
    """Gradio's plainest theme in the system's own fonts: GoogleFont would fetch them."""
    from gradio import themes

    sans = [themes.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
    mono = [themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    return themes.Base(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono)


class SafeHeaders:
    """ASGI middleware: HEADERS on every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
