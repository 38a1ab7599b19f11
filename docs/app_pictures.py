"""The pictures of docs/app.md, taken of the real page with the embedded model in a headless Chromium: `make app-pictures`."""

import tempfile
from pathlib import Path
from shutil import which

from playwright.sync_api import Page, sync_playwright

from deadiff.web.server import start

DOCS = Path(__file__).parent
REFERENCES = DOCS.parent / "examples" / "references"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def said(page: Page, part: str, words: str) -> None:
    page.wait_for_function("([part, words]) => document.querySelector('#' + part)?.innerText.includes(words)", arg=[part, words])


def taken(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # thumbnails and transitions
    page.screenshot(path=DOCS / f"app-{name}.png")


def ask(page: Page, prompt: str, seed: int, *references: str) -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#seed textarea, #seed input", str(seed))
    page.set_input_files("#style-references input[type=file]", [REFERENCES / f"{name}.png" for name in references])
    page.wait_for_function(f"document.querySelectorAll('#style-references img').length === {len(references)}")
    page.wait_for_timeout(500)


def draw(page: Page) -> None:
    page.click("#draw")
    said(page, "now", "pictures in")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = start(Path(folder), ["icons"], port=0)
        browser = playwright.chromium.launch(executable_path=which("chromium"), args=["--no-sandbox", "--disable-gpu"])

        def opened(size: dict[str, int]) -> Page:
            page = browser.new_page(viewport=size)  # pyright: ignore[reportArgumentType]
            page.set_default_timeout(120_000)
            page.goto(app.url)
            page.wait_for_selector("#draw")
            page.wait_for_timeout(1500)  # the lists of pictures and styles
            return page

        page = opened(WIDE)
        taken(page, "empty")
        ask(page, "a cat", 7, "neon-camera")
        draw(page)
        page.locator("#gallery .thumbnail-item").first.click()
        said(page, "details", "Prompt")
        taken(page, "drawn")

        page.get_by_role("tab", name="Styles").click()
        page.fill("#style-name textarea, #style-name input", "neon sign")
        page.click("#style-save")
        said(page, "style-said", "Saved the style")
        taken(page, "styles")

        page = opened(WIDE)
        ask(page, "a cat", 7, "neon-camera", "vaporwave-dolphin", "paper-cut-rose")
        page.get_by_role("tab", name="Compare").click()
        page.fill("#strengths textarea, #strengths input", "0.5, 1, 1.5")
        page.click("#compare")
        page.wait_for_selector("#sheet img")
        said(page, "now", "pictures in")
        taken(page, "compare")

        page = opened(PHONE)
        ask(page, "a robot", 7, "paper-cut-rose")
        draw(page)
        taken(page, "phone")
        browser.close()
        app.close()


if __name__ == "__main__":
    main()
