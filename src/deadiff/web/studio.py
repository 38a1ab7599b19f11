"""What the page can do, without the page: draw, draw again, vary, compare, and look after references and styles."""

import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from deadiff.contact_sheet import Row, contact_sheet
from deadiff.errors import ConfigError
from deadiff.jobs import Job
from deadiff.recipe import Recipe
from deadiff.references import Reference
from deadiff.style_library import SavedStyle, make_style
from deadiff.web.drawing import Event, Watcher, told
from deadiff.web.folder import Folder
from deadiff.web.models import Models
from deadiff.web.request import Given, Opened, Request, job_of, open_given, request_of, with_sources

MOST_CELLS = 64  # pictures of one comparison


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a request came to."""

    paths: tuple[Path, ...]
    seconds: float
    sheet: Path | None = None  # of a comparison


class Studio:
    """A folder, its models, and one drawing at a time."""

    def __init__(self, folder: Folder, models: Models) -> None:
        self.folder, self.models = folder, models
        self._turn = threading.Lock()

    # ---- drawing: each gives events, the last with a Drawn as its result ----

    def draw(self, request: Request, cancel: threading.Event) -> Iterator[Event]:
        def work(watcher: Watcher) -> Drawn:
            stylizer = self._stylizer(request.model, watcher)
            style, content = (open_given(given, self.folder, stylizer) for given in (request.style, request.content))
            return self._call(stylizer, [job_of(request, style, content)], [style], content, request, watcher)

        return told(work, cancel, self._turn)

    def again(self, path: str | Path, cancel: threading.Event) -> Iterator[Event]:
        """The picture once more, byte for byte (the same weights, versions and machine given), as a new file."""

        def work(watcher: Watcher) -> Drawn:
            recipe = self.folder.recipe(path)
            request = request_of(recipe, self.folder)
            stylizer = self._stylizer(request.model, watcher)
            style, content = (open_given(given, self.folder, stylizer) for given in (request.style, request.content))
            known = tuple(name for name in recipe.unrecorded if not name.startswith("cached "))  # we do have those tokens
            started = time.monotonic()
            references = {"style": list(style.items), "content": list(content.items)}
            output = stylizer.again(replace(recipe, unrecorded=known), progress=watcher.progress, **references)
            made = replace(with_sources(output.recipes[0], style, content), place=recipe.place)
            saved = self.folder.save_picture(output.images[0], made)
            watcher.finished(0, output.images[0])
            return Drawn(paths=(saved,), seconds=time.monotonic() - started)

        return told(work, cancel, self._turn)

    def compare(self, request: Request, strengths: Sequence[float], cancel: threading.Event) -> Iterator[Event]:
        """One prompt, one seed: a column for each style reference alone, a row for each strength."""

        def work(watcher: Watcher) -> Drawn:
            columns = request.style or (None,)
            if len(columns) * len(strengths) > MOST_CELLS:
                got = f"{len(columns)} references x {len(strengths)} strengths"
                raise ConfigError(f"the grid would have {got}: expected at most {MOST_CELLS} pictures")
            if not request.style:
                raise ConfigError("a comparison needs style references: add one or more, or tick saved styles")
            stylizer = self._stylizer(request.model, watcher)
            content = open_given(request.content, self.folder, stylizer)
            styles = [open_given([replace(one, weight=1.0)], self.folder, stylizer) for one in request.style]
            alone = replace(request, num_images=1)
            if request.seed is None:
                alone = replace(alone, seed=int(time.time()) % 2**31)  # one seed for the whole grid
            cells = [(strength, style) for strength in strengths for style in styles]
            jobs = [job_of(replace(alone, strength=strength), style, content) for strength, style in cells]
            drawn = self._call(stylizer, jobs, [style for _, style in cells], content, alone, watcher)
            rows = []
            for number, (strength, _) in enumerate(cells):
                at = number % len(styles)
                label = request.style[at].name
                with Image.open(drawn.paths[number]) as picture:
                    cell = picture.convert("RGB")
                prompt = f"{request.prompt or '(no prompt)'}, strength {strength:g}, seed {alone.seed}"
                rows.append(Row(prompt=prompt, references=[(self._face(request.style[at]), label)], pictures=[(cell, "")]))
            buffer = io.BytesIO()
            contact_sheet(rows).save(buffer, "PNG")
            return replace(drawn, sheet=self.folder.save_sheet(buffer.getvalue()))

        return told(work, cancel, self._turn)

    def _stylizer(self, model: str, watcher: Watcher) -> Any:
        if not self.models.loaded(model):
            watcher.note(f"Loading the model {model}")
        return self.models.get(model)

    def _call(
        self, stylizer: Any, jobs: list[Job], styles: list[Opened], content: Opened, request: Request, watcher: Watcher
    ) -> Drawn:
        """Every picture is saved the moment it is drawn. One of `styles` a job."""
        paths: dict[int, Path] = {}
        started = time.monotonic()

        def save(index: int, picture: Image.Image, recipe: Recipe) -> None:
            style = styles[index // request.num_images]
            paths[index] = self.folder.save_picture(picture, with_sources(recipe, style, content))
            watcher.finished(index, picture)

        stylizer(jobs, progress=watcher.progress, on_picture=save, on_preview=watcher.preview, **request.options())
        return Drawn(paths=tuple(paths[i] for i in sorted(paths)), seconds=time.monotonic() - started)

    # ---- styles ----

    def save_style(self, name: str, given: Sequence[Given], model: str) -> SavedStyle:
        """The style references of the form under a name. Raises ConfigError or ReferenceError."""
        if any(one.style is not None for one in given):
            raise ConfigError("a style is made of pictures: untick the saved styles, then save")
        if not given:
            raise ConfigError("there is no style reference to save: add one or more pictures first")
        references: list[Reference] = [self.folder.keep_reference(one.path or "", one.weight) for one in given]
        with self._turn:
            style = make_style(self.models.get(model), name, references)
        self.folder.styles.save(style)
        return style

    def _face(self, given: Given) -> Image.Image:
        if given.style is not None:
            return self.folder.styles.get(given.style).thumbnail
        return self.folder.keep_reference(given.path or "").picture


def read_strengths(text: str) -> list[float]:
    """ "0.5, 1, 1.5" -> numbers. Raises ConfigError."""
    try:
        found = [float(word) for word in text.replace(";", ",").replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or any(not 0 <= number <= 100 for number in found):
        raise ConfigError(f"strengths are {text[:40]!r}: expected numbers from 0 to 100, such as 0.5, 1, 1.5")
    return list(dict.fromkeys(found))
