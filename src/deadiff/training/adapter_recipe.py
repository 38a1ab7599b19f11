"""The recipe of an adapter's training on a real base: `stage = "deadiff"` and tables whose keys are those of the dataclasses."""

import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from deadiff.errors import ConfigError
from deadiff.toml_tables import build
from deadiff.training.adapter import AdapterTrainingConfig
from deadiff.training.bases import BaseChoice
from deadiff.training.objectives import LOSS_WEIGHTS
from deadiff.training.run_folder import to_toml

STAGE = "deadiff"


@dataclass(frozen=True, kw_only=True)
class StartChoice:
    """From which weights."""

    adapter: str = ""  # go on from this adapter: a folder or hub id; "icons"
    qformer: str = ""  # else both Q-Formers start from BLIP-Diffusion's: its folder qformer/, or its weights file
    seed: int = 0  # of whatever starts at random


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How to optimise, on one process or on many."""

    steps: int  # optimiser steps in all
    global_batch: int  # samples per optimiser step, over all processes and accumulations
    batch_size: int  # samples at once on one device; global_batch / (batch_size * processes) draws are accumulated
    learning_rate: float = 1e-4  # peak
    warmup_steps: int = 10_000  # linear, from zero
    decay_steps: int = 0  # linear to zero over the last so many steps; 0 keeps the rate constant
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of the whole gradient; 0 switches it off
    ema_decay: float = 0.9999  # of the weights' moving average, ramped up as (1 + t) / (10 + t)
    precision: str = "bf16"  # bf16: frozen models in bf16, autocast over fp32 trained weights; fp32: everything in fp32
    gradient_checkpointing: bool = True  # of the U-Net: a third more time, a fraction of the memory
    train_ln_vision: bool = True  # the LayerNorm between eye and Q-Former
    loss_weighting: str = "plain"  # plain (the paper) | min_snr
    seed: int = 0
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int = 0  # besides, every so many steps; 0 = by minutes alone
    keep_checkpoints: int = 2
    log_steps: int = 50  # steps between lines of the curve
    validate_steps: int = 1000  # steps between validations; 0 = none
    validation_draws: int = 4  # draws of batch_size for each task
    preview_steps: int = 0  # steps between previews; 0 = none
    trackers: tuple[str, ...] = ("tensorboard",)  # of accelerate; curve.jsonl is always written

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "batch_size", "keep_checkpoints", "log_steps", "validation_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        for name, allowed in {"precision": ("bf16", "fp32"), "loss_weighting": tuple(LOSS_WEIGHTS)}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is unknown; expected one of {', '.join(allowed)}")
        if self.global_batch % self.batch_size:
            raise ConfigError(f"global_batch = {self.global_batch} must be a multiple of batch_size = {self.batch_size}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay = {self.ema_decay} must be at least 0 and below 1")

    @property
    def draws(self) -> int:
        """Draws of batch_size in an optimiser step, over all processes."""
        return self.global_batch // self.batch_size

    def accumulated(self, processes: int) -> int:
        """Draws that each process accumulates. Raises ConfigError where they cannot be shared out evenly."""
        if self.draws % processes:
            shares = f"{self.draws} draws of {self.batch_size}, not a multiple of the {processes} processes"
            raise ConfigError(f"global_batch {self.global_batch} is {shares}: choose a multiple of {self.batch_size * processes}")
        return self.draws // processes


@dataclass(frozen=True, kw_only=True)
class AdapterRecipe:
    """All of a run but its folders."""

    loop: ScaleConfig
    base: BaseChoice = field(default_factory=BaseChoice)
    start: StartChoice = field(default_factory=StartChoice)
    adapter: dict[str, Any] = field(default_factory=dict)  # changes to the adapter's config (config.AdapterConfig)
    model: AdapterTrainingConfig = field(default_factory=AdapterTrainingConfig)
    preview_prompts: tuple[str, ...] = ()  # instead of the captions of the validation draws

    def __post_init__(self) -> None:
        if self.start.adapter and (self.start.qformer or self.adapter):
            raise ConfigError("[start] adapter brings its own Q-Formers and config: leave out [start] qformer and [adapter]")

    def to_dict(self) -> dict[str, Any]:
        return {"stage": STAGE, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}

    def to_toml(self) -> str:
        return to_toml(self.to_dict())


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


TABLES = {"loop": ScaleConfig, "base": BaseChoice, "start": StartChoice, "model": AdapterTrainingConfig}


def parse_recipe(table: dict[str, Any], where: str, changes: dict[str, str] | None = None) -> AdapterRecipe:
    """Plain data, with `changes` ({"loop.steps": "50"}, values in TOML or as bare text), as a recipe. Raises ConfigError."""
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items() if key != "stage"}
    for name, text in (changes or {}).items():
        head, _, key = name.partition(".")
        place = table.setdefault(head, {}) if key else table
        if not isinstance(place, dict):
            raise ConfigError(
                f"--set {name}: {head!r} is no table of a recipe; expected loop.steps=50, base.model=FOLDER or the like"
            )
        place[key or head] = _toml_value(text)
    for name, kind in TABLES.items():
        if name in table:
            table[name] = build(kind, table[name], f"[{name}] of {where}")
    return build(AdapterRecipe, table, where)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
