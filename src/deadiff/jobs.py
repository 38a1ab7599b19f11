"""What to draw, checked: a Job is one prompt with its own references and seeds. A mistake is one line, before any work begins."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from PIL import Image

from deadiff.errors import ConfigError, ReferenceError
from deadiff.recipe import Source
from deadiff.references import Reference, check_weight

MAX_SEED = 2**63 - 1
MAX_SIDE = 8192  # pixels


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt and all that may differ from prompt to prompt. What is None is taken from the call.

    style, content: a picture (path, PIL image, array, bytes, Reference), Tokens from `Stylizer.encode`, or a list of them or of
    (picture, weight), mixed by weighted mean; () for none even where the call names one.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    style: Any = None
    content: Any = None
    strength: float | None = None
    content_strength: float | None = None
    seed: int | Sequence[int] | None = None  # the first picture's; the following ones count on. Or one for each picture
    num_images: int | None = None
    image: Any = None  # the photo of img2img and inpaint
    mask_image: Any = None  # white is drawn, black is kept
    control_image: Any = None  # what the ControlNet reads

    def or_else(self, call: "Job") -> "Job":
        """This job, with the call's values where it has none."""
        names = [f.name for f in fields(self) if f.name != "prompt" and getattr(self, f.name) is None]
        return replace(self, **{name: getattr(call, name) for name in names})


def as_jobs(prompt: Any) -> list[Job]:
    """A prompt, a Job, or a list of either -> Jobs."""
    items = [prompt] if isinstance(prompt, (str, Job)) else prompt
    if not isinstance(items, Iterable) or isinstance(items, (bytes, dict)):
        raise ConfigError(f"prompt is {type(prompt).__name__}: expected text, a Job, or a list of them")
    jobs = [Job(prompt=item) if isinstance(item, str) else item for item in items]
    if wrong := [item for item in jobs if not isinstance(item, Job)]:
        raise ConfigError(f"the list of prompts holds {type(wrong[0]).__name__}: expected texts or Jobs")
    if not jobs:
        raise ConfigError("the list of prompts is empty: expected at least one")
    for job in jobs:
        check_text("prompt", job.prompt)
    return jobs


def check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ConfigError(f"{name} is {type(text).__name__}: expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} {text[:40]!a} is not valid text: expected UTF-8") from None


def number(name: str, value: Any, least: float = 0, most: float = math.inf) -> float:
    """A finite number within bounds. Raises ConfigError."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}: expected a number {bounds(least, most)}")
    return float(value)


def whole(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}: expected a whole number {bounds(least, most)}")
    return value


def bounds(least: float, most: float) -> str:
    return f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:.0f}"


def seeds_of(job: Job, count: int, start: int) -> list[int]:
    """A seed for each of `count` pictures: `start`, start + 1, ... unless the job names one for each."""
    if job.seed is None or isinstance(job.seed, int):
        first = start if job.seed is None else whole("seed", job.seed, 0, MAX_SEED)
        return [(first + i) % (MAX_SEED + 1) for i in range(count)]
    seeds = [whole("seed", seed, 0, MAX_SEED) for seed in job.seed]
    if len(seeds) != count:
        raise ConfigError(
            f"there are {len(seeds)} seeds for {count} pictures of a prompt: expected one seed, or one for each picture"
        )
    return seeds


def references(given: Any, role: str) -> list[Any]:
    """What a caller may give as style or content -> [Reference or (Tokens, weight)]. Raises ReferenceError."""
    if given is None:
        return []
    if hasattr(given, "_fields"):  # Tokens, a named tuple
        return [(given, 1.0)]
    if isinstance(given, tuple) and len(given) == 2 and is_weight(given[1]):
        return [weighted(*given)]
    if not isinstance(given, (list, tuple)):
        return [given if isinstance(given, Reference) else Reference(given)]
    found = []
    for item in given:
        if isinstance(item, (list, tuple)) and not hasattr(item, "_fields"):
            if len(item) != 2 or not is_weight(item[1]):
                raise ReferenceError(f"a {role} reference is {str(item)[:80]}: expected a picture or (picture, weight)")
            found.append(weighted(*item))
        else:
            found.extend(references(item, role))
    if found and not sum(weight_of(item) for item in found) > 0:
        raise ReferenceError(f"all {role} references have weight 0: expected at least one above, or no reference")
    return found


def is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def weighted(picture: Any, weight: float) -> Any:
    check_weight(weight)
    return (picture, float(weight)) if hasattr(picture, "_fields") else Reference(picture, float(weight))


def weight_of(item: Any) -> float:
    return item.weight if isinstance(item, Reference) else item[1]


def sources(items: list[Any]) -> tuple[Source, ...]:
    """What a recipe keeps of references; cached tokens are not pictures and leave nothing."""
    kept = [item for item in items if isinstance(item, Reference)]
    return tuple(Source(path=item.path, sha256=item.sha256, weight=float(item.weight)) for item in kept)


def source(item: Reference | None) -> Source | None:
    return None if item is None else Source(path=item.path, sha256=item.sha256)


def open_picture(given: Any, what: str) -> Reference | None:
    """A photo, mask or control image, which are read as carefully as references."""
    if given is None:
        return None
    try:
        return given if isinstance(given, Reference) else Reference(given)
    except ReferenceError as error:
        raise ReferenceError(str(error).replace("reference picture", what, 1)) from error


def mask_of(picture: Image.Image) -> Image.Image:
    """Black and white: grey is cut at the middle, as diffusers does."""
    return picture.convert("L").point([0] * 128 + [255] * 128)
