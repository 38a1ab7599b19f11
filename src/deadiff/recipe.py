"""The recipe of a picture: everything it was made from, carried in the PNG itself, so that it can be made again."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from deadiff.errors import ConfigError
from deadiff.references import one_line, read_bytes

KEY = "deadiff"  # of the PNG text that holds the JSON
FORMAT = 1
PACKAGES = ("deadiff", "torch", "diffusers", "transformers")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture that went in: enough to find it again and to know that it is the same."""

    path: str | None  # as it was given; None for pictures that came from memory
    sha256: str  # of the file's bytes, or of the RGB pixels where there was no file
    weight: float = 1.0  # among the references of its role


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one picture was made from. JSON round trip through `to_json` and `from_json`."""

    prompt: str
    negative_prompt: str = ""
    style: tuple[Source, ...] = ()
    content: tuple[Source, ...] = ()
    strength: float = 1.0  # of the style tokens
    content_strength: float = 1.0
    style_window: tuple[float, float] = (0.0, 1.0)  # fractions of the steps
    resize: str = "squash"  # of the references
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str  # a name of `deadiff.schedulers`, or "model" for the model's own
    width: int | None = None  # pixels, as asked for; None: the model's or the photo's own
    height: int | None = None
    image: Source | None = None  # the photo of img2img and inpaint
    image_strength: float | None = None
    mask_image: Source | None = None
    control_image: Source | None = None
    place: tuple[int, int] = (0, 1)  # (row, rows) of its batch: matrix products differ in their last bits between batch sizes
    model: str | None = None  # as given to load(); None: a pipeline of one's own
    base: str | None = None
    controlnet: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    safety_checker: bool = False
    fingerprint: str = ""  # of the weights, see fingerprint()
    dtype: str = "float32"
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)  # other arguments of the diffusers pipeline
    unrecorded: tuple[str, ...] = ()  # names of what a recipe cannot hold (latents, callbacks): the picture cannot be made again

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=True, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Raises ConfigError for anything but a recipe of a known format."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise ConfigError(f"the recipe is not of format {FORMAT}: it was written by another version of deadiff")
            if unknown := sorted(values.keys() - {f.name for f in fields(cls)}):
                raise ConfigError(
                    f"the recipe has unknown entries {', '.join(unknown)}: it was written by another version of deadiff"
                )
            for name in ("style", "content"):
                values[name] = tuple(Source(**item) for item in values.get(name, ()))
            for name in ("image", "mask_image", "control_image"):
                values[name] = Source(**values[name]) if values.get(name) else None
            for name in ("style_window", "place", "unrecorded"):
                values[name] = tuple(values.get(name, getattr(cls, name)))
            values["loras"] = tuple((path, scale) for path, scale in values.get("loras", ()))
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"the recipe cannot be read: {one_line(error)}") from error

    def summary(self) -> str:
        """For people and for other tools: the prompt, the negative prompt, one line of options (the usual "parameters" text)."""

        def named(sources: tuple[Source, ...]) -> str:
            return " + ".join(f"{Path(s.path).name if s.path else s.sha256[:8]}:{s.weight:g}" for s in sources)

        options = {
            "Steps": self.num_inference_steps,
            "Sampler": self.scheduler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}" if self.width and self.height else None,
            "Model": self.model,
            "Model hash": self.fingerprint[:10],
            "Style": named(self.style),
            "Style strength": f"{self.strength:g}" if self.style else None,
            "Content": named(self.content),
            "Content strength": f"{self.content_strength:g}" if self.content else None,
            "Denoising strength": self.image_strength,
            "Version": f"deadiff {self.versions.get('deadiff', '?')}",
        }
        lines = [self.prompt, f"Negative prompt: {self.negative_prompt}" if self.negative_prompt else ""]
        lines.append(", ".join(f"{name}: {value}" for name, value in options.items() if value not in (None, "")))
        return "\n".join(line for line in lines if line)


def png_bytes(image: Image.Image, recipe: Recipe) -> bytes:
    """The picture as a PNG that carries its recipe. The same picture and recipe give the same bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, recipe.to_json())
    text.add_itxt("parameters", recipe.summary().replace("\0", ""))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a PNG drawn by deadiff. Raises ReferenceError (unreadable file) or ConfigError (no recipe in it)."""
    data = read_bytes(path, "picture")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            text = getattr(image, "text", {}).get(KEY)
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"'{path}' is not a PNG drawn by deadiff: {one_line(error)}") from error
    if text is None:
        raise ConfigError(
            f"'{path}' carries no recipe: expected a PNG drawn by deadiff (editors and messengers strip a PNG's text)"
        )
    return Recipe.from_json(text)


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


def fingerprint(parts: Mapping[str, Any], settings: str = "") -> str:
    """A sha256 over name, shape and 16 values of every parameter of {name: module}: tells models apart in milliseconds.

    settings: what else decides how they draw.

    It is no protection against someone who hides a change; the values are read in float32, so fp16 and fp32 copies agree.
    """
    digest = hashlib.sha256(settings.encode())
    for part, module in sorted(parts.items()):
        for name, parameter in module.state_dict(keep_vars=True).items():
            values = parameter.detach().reshape(-1)
            chosen = values[:: max(1, len(values) // 16)].float().cpu().numpy()
            digest.update(f"{part}.{name} {tuple(parameter.shape)} ".encode() + chosen.tobytes())
    return digest.hexdigest()
