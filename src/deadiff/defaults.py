"""What a model draws with when nothing is said: steps, guidance, solver, size. Kept in defaults.json beside the weights."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from deadiff.errors import CheckpointError, ConfigError

DEFAULTS_NAME = "defaults.json"
# Of the released app and script, exactly.
OFFICIAL_NEGATIVE_PROMPT = (
    "over-exposure, under-exposure, saturated, duplicate, out of frame, lowres, cropped, worst quality, low quality, "
    "jpeg artifacts, morbid, mutilated, out of frame, ugly, bad anatomy, bad proportions, deformed, blurry, duplicate"
)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The values that a call leaves open."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    scheduler: str = "model"  # a name of schedulers.py, or "model": the one in the model's folder
    negative_prompt: str = ""
    width: int | None = None  # pixels; None: what the U-Net was trained at
    height: int | None = None
    image_strength: float = 0.6  # how far a photo is redrawn (img2img): 0 not at all, 1 entirely
    batch_size: int = 4  # pictures at once

    def __post_init__(self) -> None:
        for name, least in {"num_inference_steps": 1, "guidance_scale": 0, "image_strength": 0, "batch_size": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
                raise ConfigError(f"default {name} is {value!r}: expected a number of at least {least}")

    @classmethod
    def read(cls, folder: Path, base: str = "") -> "Defaults":
        """FOLDER/defaults.json; without one, what is right for that base. Unknown keys are errors."""
        path = folder / DEFAULTS_NAME
        if not path.is_file():
            return FOR_BASE.get(base, cls())
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read '{path}': {error}") from error
        if not isinstance(values, dict) or (unknown := sorted(values.keys() - {f.name for f in fields(cls)})):
            got = f"unknown keys {', '.join(unknown)}" if isinstance(values, dict) else "no table"
            raise ConfigError(f"'{path}' has {got}: expected some of {', '.join(f.name for f in fields(cls))}")
        return cls(**values)

    def write(self, folder: Path) -> None:
        (folder / DEFAULTS_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


FOR_BASE = {
    # The released app: DDIM 50, scale 8 (its script: 7.5).
    "sd15": Defaults(num_inference_steps=50, guidance_scale=8.0, scheduler="ddim", negative_prompt=OFFICIAL_NEGATIVE_PROMPT),
    "icons": Defaults(num_inference_steps=12, guidance_scale=3.0, batch_size=8),  # docs/results.md, speed against quality
    "sdxl": Defaults(num_inference_steps=30, guidance_scale=5.0, batch_size=1),
}
