"""What the page asks for: the values of its form, checked, and the same values read back out of a picture's recipe."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import Job
from deadiff.recipe import Recipe, Source
from deadiff.references import Reference
from deadiff.style_library import SavedStyle
from deadiff.web.folder import STYLE_PREFIX, Folder, source_name

MOST_REFERENCES = 6  # of one role: as many weights as the page has room for
MOST_PICTURES = 64  # of one request


@dataclass(frozen=True, kw_only=True)
class Given:
    """One reference of the form: a picture's file, or a saved style's name."""

    path: str | None = None
    style: str | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        return self.style or source_name(self.path or "")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The form. None: what the model does by itself, or a random seed."""

    prompt: str
    style: tuple[Given, ...] = ()
    content: tuple[Given, ...] = ()
    strength: float = 1.0
    content_strength: float = 1.0
    model: str = "icons"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    negative_prompt: str | None = None
    style_window: tuple[float, float] = (0.0, 1.0)
    seed: int | None = None
    num_images: int = 1

    def __post_init__(self) -> None:
        if not self.prompt.strip() and not self.style and not self.content:
            raise ConfigError("there is nothing to draw yet: say what, or give a reference")
        for role, given in (("style", self.style), ("content", self.content)):
            if len(given) > MOST_REFERENCES:
                raise ConfigError(f"there are {len(given)} {role} references: expected at most {MOST_REFERENCES}; remove some")
        if not 1 <= self.num_images <= MOST_PICTURES:
            raise ConfigError(f"number of pictures is {self.num_images}: expected 1 to {MOST_PICTURES}")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a Stylizer call that hold for every job."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "style_window": self.style_window,
        }


@dataclass(frozen=True, kw_only=True)
class Opened:
    """References of one role, opened: what the Stylizer takes, and what the recipes shall say."""

    items: tuple[Any, ...]  # Reference, or (Tokens, weight)
    sources: tuple[Source, ...]


def open_given(given: Sequence[Given], folder: Folder, stylizer: Any) -> Opened:
    """Files and saved styles of the form. Raises ReferenceError or ConfigError."""
    items: list[Any] = []
    sources: list[Source] = []
    for one in given:
        if one.style is not None:
            saved = folder.styles.get(one.style)
            items.append((saved.tokens_for(stylizer), one.weight))
            sources.append(Source(path=STYLE_PREFIX + saved.name, sha256=tokens_sha256(saved), weight=one.weight))
        else:
            reference = folder.keep_reference(one.path or "", one.weight)
            items.append(reference)
            sources.append(Source(path=reference.path, sha256=reference.sha256, weight=one.weight))
    if items and not any(source.weight > 0 for source in sources):
        raise ReferenceError("all weights are 0: give at least one reference more than that, or remove them")
    return Opened(items=tuple(items), sources=tuple(sources))


def job_of(request: Request, style: Opened, content: Opened) -> Job:
    return Job(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        style=list(style.items),
        content=list(content.items),
        strength=request.strength,
        content_strength=request.content_strength,
        seed=request.seed,
        num_images=request.num_images,
    )


def tokens_sha256(style: SavedStyle) -> str:
    return hashlib.sha256(style.tokens.contiguous().numpy().tobytes()).hexdigest()


def with_sources(recipe: Recipe, style: Opened, content: Opened) -> Recipe:
    """The recipe with saved styles named among its references: they are cached tokens, which the Stylizer cannot name."""
    return replace(recipe, style=style.sources, content=content.sources)


# ---- from a picture back to the form ----


def request_of(recipe: Recipe, folder: Folder) -> Request:
    """What the form held when the picture was drawn. Raises ReferenceError where a reference is not to be found any more."""
    if recipe.image or recipe.mask_image or recipe.control_image:
        raise ConfigError("this picture was drawn from a photo, which the page cannot: use deadiff stylize --again FILE")
    return Request(
        prompt=recipe.prompt,
        style=tuple(find(source, folder) for source in recipe.style),
        content=tuple(find(source, folder) for source in recipe.content),
        strength=recipe.strength,
        content_strength=recipe.content_strength,
        model=recipe.model or "icons",
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        scheduler=recipe.scheduler,
        negative_prompt=recipe.negative_prompt,
        style_window=recipe.style_window,
        seed=recipe.seed,
        num_images=1,
    )


def find(source: Source, folder: Folder) -> Given:
    """The reference that a recipe names: our copy of it, its old place, or the saved style, also under a new name."""
    if source.path is not None and source.path.startswith(STYLE_PREFIX):
        for style in folder.styles.styles():
            if tokens_sha256(style) == source.sha256:
                return Given(style=style.name, weight=source.weight)
        raise ReferenceError(f"the saved style '{source_name(source.path)}' is gone: bring its file back under Styles")
    kept = sorted(folder.references.glob(f"{source.sha256[:16]}-*"))
    for place in [*map(str, kept), *([source.path] if source.path else [])]:
        try:
            if Reference(place).sha256 == source.sha256:
                return Given(path=place, weight=source.weight)
        except ReferenceError:
            continue
    name = f"'{source_name(source.path)}'" if source.path else "from memory"
    raise ReferenceError(f"a reference of this picture, {name}, is not there any more: add it again by hand")
