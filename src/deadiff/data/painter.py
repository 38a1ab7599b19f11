"""Who draws a data set: the embedded model, any model that deadiff loads, or any diffusers text-to-image pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.errors import CheckpointError, ConfigError

Painted = np.ndarray | str  # (H, W, 3) uint8 RGB, or why there is none
Painter = Callable[[Sequence[str], Sequence[int]], list[Painted]]  # prompts and seeds -> pictures
BLANK = 2.0  # standard deviation of the pixels, of 255, below which a picture shows nothing


@dataclass(frozen=True, kw_only=True)
class PainterSpec:
    """Which model draws, and how: plain data that a worker on another machine opens. What is None is the model's own."""

    model: str = "icons"  # icons, sd15, a folder or a hub id: a model of deadiff's, or any diffusers text-to-image pipeline
    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    width: int | None = None  # pixels
    height: int | None = None
    dtype: str | None = None  # fp32, fp16, bf16; default fp32 on a CPU, else fp16
    device: str | None = None
    safety_checker: bool = False  # the model's own; a flagged picture counts as failed

    def __post_init__(self) -> None:
        for name in ("steps", "width", "height"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}: expected at least 1")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 1000:
            raise ConfigError(f"guidance_scale is {self.guidance_scale}: expected 0 to 1000")

    @property
    def name(self) -> str:
        """What its pictures are called after: 'sd-turbo' for 'stabilityai/sd-turbo'."""
        return Path(self.model).name or self.model


@lru_cache(maxsize=1)
def open_painter(spec: PainterSpec) -> Painter:
    """Loads the model, once a process. Raises CheckpointError or ConfigError."""
    path = Path(spec.model).expanduser()
    plain = (path / "model_index.json").is_file() and not (path / "deadiff").is_dir()
    is_hub_id = not path.exists() and spec.model.count("/") == 1 and not spec.model.startswith((".", "~", "/"))
    if plain or is_hub_id:
        return _pipeline_painter(spec, path if plain else _fetched(spec.model))
    return _stylizer_painter(spec)


def _fetched(model: str) -> Path:
    from deadiff.hub import fetch
    from deadiff.loading import PIPELINE_FILES

    folder = fetch(model, PIPELINE_FILES, purpose="the text-to-image model")
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"'{model}' has no model_index.json: expected a diffusers text-to-image pipeline")
    return folder


def _stylizer_painter(spec: PainterSpec) -> Painter:
    """A model of deadiff's without any reference: the plain base."""
    from deadiff.loading import load
    from deadiff.stylizer import Job

    stylizer = load(spec.model, device=spec.device, dtype=spec.dtype, safety_checker=spec.safety_checker)

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Painted]:
        output = stylizer(
            [Job(prompt=prompt, seed=seed, num_images=1) for prompt, seed in zip(prompts, seeds, strict=True)],
            negative_prompt=spec.negative_prompt,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            width=spec.width,
            height=spec.height,
            batch_size=len(prompts),
        )
        return [checked(image, flag) for image, flag in zip(output.images, output.flagged, strict=True)]

    return paint


def _pipeline_painter(spec: PainterSpec, folder: Path) -> Painter:
    from deadiff.loading import find_device, find_dtype, pipeline_folder

    place = find_device(spec.device)
    pipe = pipeline_folder(folder, find_dtype(spec.dtype, place), spec.safety_checker).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipeline_painter(pipe, spec)


def pipeline_painter(pipe: Any, spec: PainterSpec) -> Painter:
    """Any diffusers pipeline that takes `prompt` and `generator`. Raises ConfigError for one that does not."""
    import torch

    accepted = inspect.signature(pipe.__call__).parameters
    if "prompt" not in accepted or "generator" not in accepted:
        raise ConfigError(f"'{spec.model}' is a {type(pipe).__name__}: expected a pipeline that draws pictures from prompts")
    given = {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance_scale,
        "width": spec.width,
        "height": spec.height,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if refused := sorted(name for name in options if name not in accepted):
        raise ConfigError(f"'{spec.model}' takes no {', '.join(refused)}: leave it out")

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Painted]:
        negative = {"negative_prompt": [spec.negative_prompt] * len(prompts)} if spec.negative_prompt else {}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipe(prompt=list(prompts), generator=generators, output_type="pil", **options, **negative)
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(prompts)
        return [checked(image, flag) for image, flag in zip(output.images, flags, strict=True)]

    return paint


def checked(image: Any, flagged: bool) -> Painted:
    """A PIL image -> its pixels, or why it is of no use."""
    if flagged:
        return "flagged by the safety checker"
    pixels = np.asarray(image.convert("RGB"))
    if pixels.std() < BLANK:
        return "the picture is blank"
    return pixels
