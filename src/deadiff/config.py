"""AdapterConfig: all that is needed to build a DEADiff adapter without its weights, and its config.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deadiff.attention import ATTENTION, TokenLayout
from deadiff.errors import CheckpointError, ConfigError
from deadiff.extractor import Preprocess
from deadiff.routes import Role, resolve_routes

CONFIG_NAME = "config.json"

VISION_KEYS = {  # CLIPVisionConfig fields that shape the tower; num_hidden_layers counts those that run: without the last block
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps"),
}
QFORMER_KEYS = {  # InstructBlipQFormerConfig fields; encoder_hidden_size is the vision tower's
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"),
    *("hidden_act", "layer_norm_eps", "cross_attention_frequency", "hidden_dropout_prob", "attention_probs_dropout_prob"),
}


@dataclass(frozen=True, kw_only=True)
class LookConfig:
    """What a drawing takes from its style reference's own latents (deadiff.reference_look). The paper: nothing, the defaults."""

    shared: Sequence[str] = ()  # attention blocks of the U-Net whose self-attention also reads the reference
    weight: float = 1.0  # how often each of the reference's keys counts there, beside the drawing's own
    tone: float = 0.0  # share of the reference's mean and spread that the finished latents take, channel by channel
    tokens: float = 1.0  # strength of the style tokens, where the reference itself says much of what they would
    sketch: float = 1.0  # how much louder the prompt's sketch is told beside a style reference (deadiff.sketch)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared", tuple(self.shared))
        for name, least, most in (("weight", 0, 100), ("tone", 0, 1), ("tokens", 0, 10), ("sketch", 0, 10)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ConfigError(f"look {name} is {value!r}: expected a number from {least} to {most}")

    @property
    def used(self) -> bool:
        """Whether the reference's latents are needed at all."""
        return bool(self.shared) or self.tone > 0


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """All that is needed to build the adapter without its weights. Defaults are the released model's."""

    base: str = "sd15"  # the base model it belongs to: a name, for people and for loaders
    routes: str | dict[str, str] = "sd15"  # a table's name (routes.ROUTES), or layer path -> "style" | "content" | "both"
    attention: str = "joint"  # joint (DEADiff: one softmax) | separate (IP-Adapter's, for the ablation)
    num_tokens: int = 16  # tokens of one role
    token_dim: int = 768  # width of a token = the U-Net's cross_attention_dim
    text_length: int = 77  # tokens of one chunk of the text encoder
    vision: dict[str, Any] = field(default_factory=dict)  # VISION_KEYS; filled in by from_base
    two_eyes: bool = False  # the content reader has a vision tower of its own: for checkpoints whose two copies differ
    qformer: dict[str, Any] = field(default_factory=lambda: {"vocab_size": 30523})  # QFORMER_KEYS
    projection_dim: int = 3072  # hidden width of the projection
    dropout: float = 0.1  # of the projection, in training
    placed: Sequence[str] = ()  # roles whose tokens also say what the eye sees at their place (deadiff.canvas); released: none
    look: LookConfig = field(default_factory=LookConfig)  # what is taken from the style reference's latents; released: nothing
    instructions: dict[str, list[int]] = field(  # role -> token ids of "[CLS] word [SEP]"; empty lists: no instruction
        default_factory=lambda: {"style": [101, 2806, 102], "content": [101, 4180, 102]}
    )
    preprocess: Preprocess = field(default_factory=Preprocess)
    image_kv: dict[str, int] = field(default_factory=dict)  # layer path -> width of its keys and values; filled in by from_base
    provenance: dict[str, str] = field(default_factory=dict)  # whose weights, from where, which terms: for `deadiff inspect`

    def __post_init__(self) -> None:
        if isinstance(self.preprocess, Mapping):
            object.__setattr__(self, "preprocess", _build(Preprocess, self.preprocess, "preprocess"))
        if isinstance(self.look, Mapping):
            object.__setattr__(self, "look", _build(LookConfig, self.look, "look"))
        if self.attention not in ATTENTION:
            raise ConfigError(f"attention is {self.attention!r}: expected one of {', '.join(ATTENTION)}")
        for name, given, allowed in (("vision", self.vision, VISION_KEYS), ("qformer", self.qformer, QFORMER_KEYS)):
            if unknown := sorted(given.keys() - allowed):
                raise ConfigError(f"unknown {name} keys {', '.join(unknown)}: expected some of {', '.join(sorted(allowed))}")
        if set(self.instructions) != {str(role) for role in Role}:
            raise ConfigError(f"instructions are for {sorted(self.instructions)}: expected style and content")
        for role, ids in self.instructions.items():
            vocabulary = self.qformer.get("vocab_size", 30522)
            if any(not 0 <= i < vocabulary for i in ids):
                raise ConfigError(f"instruction {role} has token ids {ids}: expected numbers below vocab_size {vocabulary}")
        for name in ("token_dim", "projection_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: expected a probability below 1")
        object.__setattr__(self, "placed", tuple(self.placed))
        if unknown := sorted(set(self.placed) - {str(role) for role in Role}):
            raise ConfigError(f"placed names {unknown[0]!r}: expected some of style and content")
        routes = self.route_table
        if self.image_kv and set(self.image_kv) != set(routes):
            raise ConfigError("image_kv and routes name different layers: expected the same paths in both")
        _ = self.layout

    @property
    def route_table(self) -> dict[str, str]:
        """Layer path -> "style" | "content" | "both"."""
        return resolve_routes(self.routes)

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens lie in prompt_embeds."""
        return TokenLayout(text_length=self.text_length, num_tokens=self.num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to config.json."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AdapterConfig":
        """The inverse of to_dict. Unknown keys raise ConfigError."""
        return _build(cls, data, "adapter config")


def _build(cls: type, data: Mapping[str, Any], what: str) -> Any:
    names = {f.name for f in fields(cls)}
    if unknown := sorted(data.keys() - names):
        raise ConfigError(f"unknown keys in {what}: {', '.join(unknown)}: expected some of {', '.join(sorted(names))}")
    try:
        return cls(**data)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{what} cannot be used: {error}") from error


def read_config(folder: Path) -> AdapterConfig:
    """DIR/config.json -> AdapterConfig. Raises CheckpointError when it is no adapter's, ConfigError when it cannot be used."""
    path = folder / CONFIG_NAME
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}': {error}: expected the config.json of a DEADiff adapter") from error
    if not isinstance(data, dict) or "routes" not in data:
        raise CheckpointError(f"'{path}' is not the config of a DEADiff adapter: expected keys such as routes and num_tokens")
    try:
        return AdapterConfig.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from error
