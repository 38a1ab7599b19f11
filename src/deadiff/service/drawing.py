"""One micro-batch: jobs of one kind, each with its own references, drawn in one call and put into the store as PNGs."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from deadiff.adapter import Tokens
from deadiff.jobs import Job
from deadiff.recipe import Recipe, Source, png_bytes
from deadiff.references import Reference
from deadiff.service.intake import PHOTOS, SHARED
from deadiff.service.metrics import Metrics
from deadiff.service.queue import Drawn
from deadiff.service.store import Store
from deadiff.service.styles import Styles
from deadiff.service.tables import JobRow
from deadiff.stylizer import Stylizer

MOST_TOKENS = 256  # references whose tokens are remembered: a few kilobytes each


class Drawing:
    """Draws rows of the queue. Holds nothing of a batch between calls but the tokens of references seen lately."""

    def __init__(self, stylizer: Stylizer, references: Store, styles: Styles, pictures: Store, metrics: Metrics) -> None:
        self.stylizer, self.references, self.styles, self.pictures = stylizer, references, styles, pictures
        self.metrics = metrics
        self._tokens: OrderedDict[tuple[str, str, str], Tokens] = OrderedDict()  # by sha256, role, resize
        self._lock = threading.Lock()

    def draw(self, rows: Sequence[JobRow], most: int, progress: Callable[[int, int], None]) -> list[list[Drawn]]:
        """Each job's pictures, in the order of the rows; all are on the disk. Raises DEADiffError, DiskError."""
        requests = [json.loads(row.request) for row in rows]
        owner = [(i, position) for i, row in enumerate(rows) for position in range(row.images)]
        made: list[list[Drawn]] = [[] for _ in rows]

        def keep(index: int, picture: Any, recipe: Recipe) -> None:
            i, position = owner[index]
            data = png_bytes(picture, self._complete(recipe, requests[i]))
            width, height = picture.size
            made[i].append(
                Drawn(
                    position=position,
                    seed=recipe.seed,
                    sha256=self.pictures.put(data),
                    bytes=len(data),
                    width=width,
                    height=height,
                    flagged=False,
                )
            )

        output = self.stylizer(
            [self._job(request) for request in requests],
            batch_size=most,
            progress=progress,
            on_picture=keep,
            **{name: requests[0][name] for name in SHARED},
        )
        for flagged, (i, position) in zip(output.flagged, owner, strict=True):
            if flagged:
                made[i] = [replace(d, flagged=True) if d.position == position else d for d in made[i]]
        return [sorted(pictures, key=lambda d: d.position) for pictures in made]

    def _job(self, request: dict[str, Any]) -> Job:
        return Job(
            prompt=request["prompt"],
            negative_prompt=request["negative_prompt"],
            style=[(self._encoded(item, "style", request["resize"]), item["weight"]) for item in request["style"]],
            content=[(self._encoded(item, "content", request["resize"]), item["weight"]) for item in request["content"]],
            strength=request["strength"],
            content_strength=request["content_strength"],
            seed=request["seed"],
            num_images=request["num_images"],
            **{name: Reference(self.references.get(request[name])) for name in PHOTOS if request[name]},
        )

    def _encoded(self, item: dict[str, Any], role: str, resize: str) -> Tokens:
        """The tokens of one reference; the same picture is read once for many jobs."""
        if item["style"] is not None:
            return self.styles.open(item["sha256"]).tokens_for(self.stylizer)
        key = item["sha256"], role, resize
        with self._lock:
            known = self._tokens.get(key)
            if known is not None:
                self._tokens.move_to_end(key)
        self.metrics.tokens.labels("yes" if known is not None else "no").inc()
        if known is None:
            known = self.stylizer.encode(**{role: self.references.get(item["sha256"])}, resize=resize)
            with self._lock:
                self._tokens[key] = known
                while len(self._tokens) > MOST_TOKENS:
                    self._tokens.popitem(last=False)
        return known

    def _complete(self, recipe: Recipe, request: dict[str, Any]) -> Recipe:
        """With the references' sha256s, which the Stylizer cannot know of cached tokens: the picture can be made again."""
        unrecorded, sources = list(recipe.unrecorded), {}
        for role in ("style", "content"):
            found = self._sources(request[role], request["resize"])
            if found is not None and f"cached {role} tokens" in unrecorded:
                sources[role] = found
                unrecorded = [what for what in unrecorded if what != f"cached {role} tokens"]
        return replace(recipe, unrecorded=tuple(unrecorded), **sources)

    def _sources(self, items: list[dict[str, Any]], resize: str) -> tuple[Source, ...] | None:
        """References and, for a saved style, the pictures it was made of; None where those were squared in another way."""
        found: list[Source] = []
        for item in items:
            if item["style"] is None:
                found.append(Source(path=None, sha256=item["sha256"], weight=float(item["weight"])))
                continue
            style = self.styles.open(item["sha256"])
            total = sum(source.weight for source in style.sources)
            if style.resize != resize or total <= 0:
                return None
            found += [replace(source, weight=item["weight"] * source.weight / total) for source in style.sources]
        return tuple(found)
