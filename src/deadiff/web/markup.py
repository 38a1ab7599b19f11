"""Pieces of HTML that the page shows: status lines, progress, pictures in the making. All text that comes in is escaped."""

import base64
import io
from collections.abc import Mapping
from html import escape

from PIL import Image

from deadiff.recipe import Recipe
from deadiff.web.drawing import Event
from deadiff.web.folder import names_of

PREVIEW_SIDE = 256  # pixels of a picture in the making; the finished one is in the gallery, whole


def said(text: str) -> str:
    return f'<p class="said" role="status">{escape(text)}</p>' if text else ""


def wrong(text: str) -> str:
    """A mistake, in one line; screen readers speak it at once."""
    return f'<p class="wrong" role="alert">{escape(" ".join(text.split()))}</p>'


def drawing_now(event: Event, text: str) -> str:
    """The progress bar and the pictures so far."""
    value = f' value="{event.done}"' if event.total else ""
    bar = f'<progress aria-label="Steps done" max="{event.total or 1}"{value}></progress>'
    return f"{said(text)}{bar}{looks(event.looks, 'so far')}"


def drawn(event: Event, text: str) -> str:
    return f"{said(text)}{looks(event.looks, 'finished')}"


def looks(pictures: Mapping[int, Image.Image], state: str) -> str:
    images = (
        f'<img alt="Picture {index + 1}, {state}" src="{data_url(picture)}">' for index, picture in sorted(pictures.items())
    )
    return f'<div class="looks {"made" if state == "finished" else ""}">{"".join(images)}</div>' if pictures else ""


def data_url(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG" if max(small.size) <= 96 else "JPEG")
    kind = "png" if max(small.size) <= 96 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def told_recipe(name: str, recipe: Recipe) -> str:
    """What a picture was made from, as a short list."""
    facts = {
        "Prompt": recipe.prompt or "(none)",
        "Style": names_of(recipe.style),
        "Content": names_of(recipe.content),
        "Strength": f"{recipe.strength:g}" if recipe.style else "",
        "Seed": str(recipe.seed),
        "Steps": f"{recipe.num_inference_steps} ({recipe.scheduler}), guidance {recipe.guidance_scale:g}",
        "Model": recipe.model or "",
        "File": name,
    }
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items() if value)
    return f'<dl class="recipe">{rows}</dl>'


EMPTY = """<div class="lesson"><h2>Nothing drawn yet</h2>
<ol><li><b>Give a style.</b> Drop a picture whose look you like, or press an example.</li>
<li><b>Say what.</b> A few plain words: <i>a cat</i>, <i>a heart</i>, <i>a robot</i>.</li>
<li><b>Draw.</b> You see it come step by step; what is finished stays here.</li></ol>
<p>The reference gives colours, lines and texture. What is drawn comes from your words. To keep a subject too, add a content
reference.</p></div>"""
