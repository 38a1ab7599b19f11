"""DEADiffAdapter: the extractors, the image keys and values and the route table that turn a base text-to-image model into DEADiff.

B batch, S picture side in pixels, V vision tokens, W vision width, T text tokens, I image tokens of one role, C token width.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkstemp
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from deadiff.attention import ATTENTION, ImageKV, JointAttnProcessor, TextOnlyAttnProcessor, TokenLayout
from deadiff.errors import CheckpointError, ConfigError
from deadiff.extractor import Picture, Preprocess, RoleExtractor
from deadiff.hub import adapter_folder
from deadiff.routes import Role, cross_attention_layers, match_routes, resolve_routes

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
CARD_NAME = "README.md"

VISION_KEYS = {  # CLIPVisionConfig fields that shape the tower; its layers are those that run, without the last block of the original
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps"),
}
QFORMER_KEYS = {  # InstructBlipQFormerConfig fields; encoder_hidden_size is the vision tower's
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"),
    *("hidden_act", "layer_norm_eps", "cross_attention_frequency", "hidden_dropout_prob", "attention_probs_dropout_prob"),
}


class Tokens(NamedTuple):
    """What references turn into: (B, I, C) per role, or None for an idle role."""

    style: Tensor | None = None
    content: Tensor | None = None


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
    qformer: dict[str, Any] = field(default_factory=lambda: {"vocab_size": 30523})  # QFORMER_KEYS
    projection_dim: int = 3072  # hidden width of the projection
    dropout: float = 0.1  # of the projection, in training
    instructions: dict[str, list[int]] = field(  # role -> token ids of "[CLS] word [SEP]"; empty lists: no instruction
        default_factory=lambda: {"style": [101, 2806, 102], "content": [101, 4180, 102]}
    )
    preprocess: Preprocess = field(default_factory=Preprocess)
    image_kv: dict[str, int] = field(default_factory=dict)  # layer path -> width of its keys and values; filled in by from_base
    provenance: dict[str, str] = field(default_factory=dict)  # whose weights, from where, under which terms: shown by `deadiff inspect`

    def __post_init__(self) -> None:
        if isinstance(self.preprocess, Mapping):
            object.__setattr__(self, "preprocess", _build(Preprocess, self.preprocess, "preprocess"))
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


class DEADiffAdapter(nn.Module):
    """One adapter, many bases. `state_dict()` holds what is trained and, once, the frozen vision tower; the U-Net is never a child.

    >>> adapter.inject(pipe.unet)
    >>> tokens = adapter.encode(style=picture)
    >>> pipe(prompt_embeds=adapter.embed(text, *tokens), negative_prompt_embeds=adapter.embed(negative, *adapter.idle(tokens)))
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        if not config.vision or not config.image_kv:
            raise ConfigError("the adapter's config has no vision or image_kv sizes: make it with DEADiffAdapter.from_base(unet, vision, config)")
        self.config = config
        try:
            self.vision = _headless(CLIPVisionModel(CLIPVisionConfig(**config.vision)))
            self.extractors = nn.ModuleDict(
                {
                    str(role): RoleExtractor(
                        qformer=config.qformer,
                        vision_dim=self.vision.config.hidden_size,
                        num_tokens=config.num_tokens,
                        token_dim=config.token_dim,
                        projection_dim=config.projection_dim,
                        dropout=config.dropout,
                        instruction=config.instructions[str(role)],
                    )
                    for role in Role
                }
            )
        except (ValueError, TypeError) as error:  # transformers refuses impossible sizes in its own words
            raise ConfigError(f"the adapter's vision or qformer sizes cannot be built: {str(error).splitlines()[-1].strip()}") from error
        self.image_kv = nn.ModuleDict({_key(path): ImageKV(config.token_dim, dim) for path, dim in config.image_kv.items()})
        self._injected: list[tuple[Attention, Any, Any]] = []  # (layer, original processor, ours); a list, so that no Module is registered

    @classmethod
    def from_base(cls, unet: nn.Module, vision: CLIPVisionModel, config: AdapterConfig, seed: int = 0) -> "DEADiffAdapter":
        """An untrained adapter for training: image K/V are copies of the text's, the eye is `vision` without its last block (hidden_states[-2]).

        The paper starts the Q-Formers from BLIP-Diffusion's; here they start at random (seed), load your own into `.extractors` if you have any.
        """
        layers = match_routes(unet, config.route_table)
        widths = {layer.to_k.in_features for layer in layers.values()}
        if widths != {config.token_dim}:
            raise ConfigError(f"token_dim is {config.token_dim}, this U-Net reads tokens of width {sorted(widths)}: set token_dim to that")
        sizes = {k: v for k, v in vision.config.to_dict().items() if k in VISION_KEYS}
        sizes["num_hidden_layers"] -= 1
        config = replace(config, vision=sizes, image_kv={path: layer.to_k.out_features for path, layer in layers.items()})

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = cls(config)
        eye = adapter.vision.state_dict()
        adapter.vision.load_state_dict({k: v for k, v in vision.state_dict().items() if k in eye})
        with torch.no_grad():
            for path, layer in layers.items():
                kv = adapter.image_kv[_key(path)]
                kv.to_k.weight.copy_(layer.to_k.weight)
                kv.to_v.weight.copy_(layer.to_v.weight)
        return adapter

    # ---- the U-Net ----

    def inject(self, unet: nn.Module, controlnet: nn.Module | Sequence[nn.Module] | None = None) -> None:
        """Give every cross-attention layer of `unet` its joint processor; a ControlNet's layers will see the text alone.

        Weights stay in their own precision and place: where those differ from the U-Net's, the K/V weights are cast at each use.
        Load the adapter in the U-Net's dtype to avoid that. Raises ConfigError, leaving the U-Net as it was, when the adapter does not fit.
        """
        if self._injected:
            raise ConfigError("this adapter is injected already: call eject() first")
        layers = match_routes(unet, self.config.route_table)
        for path, layer in layers.items():
            got, expected = (layer.to_k.out_features, layer.to_k.in_features), (self.config.image_kv[path], self.config.token_dim)
            if got != expected:
                raise ConfigError(f"layer {path} of this U-Net has K/V of {got}, the adapter of {expected} (out, in): was it made for another base?")
        nets = [] if controlnet is None else list(getattr(controlnet, "nets", controlnet if isinstance(controlnet, Sequence) else [controlnet]))
        control = [layer for net in nets for layer in cross_attention_layers(net).values()]
        for layer in (*layers.values(), *control):
            taken = type(layer.processor).__name__
            if isinstance(layer.processor, JointAttnProcessor | TextOnlyAttnProcessor) or "IPAdapter" in taken:
                raise ConfigError(f"the U-Net or ControlNet already carries an adapter ({taken}): eject or unload it first")

        layout, table = self.config.layout, self.config.route_table
        for path, layer in layers.items():
            kv = self.image_kv[_key(path)]
            self._replace(layer, JointAttnProcessor(kv, table[path], layout, layer.processor, self.config.attention))
        for layer in control:
            self._replace(layer, TextOnlyAttnProcessor(layout, layer.processor))

    def eject(self) -> None:
        """Put back the very processors that inject() found; a layer that was given another processor since keeps that one."""
        for layer, original, ours in self._injected:
            if layer.processor is ours:
                layer.set_processor(original)
        self._injected = []

    def _replace(self, layer: Attention, processor: Any) -> None:
        self._injected.append((layer, layer.processor, processor))
        layer.set_processor(processor)

    # ---- references -> tokens -> prompt_embeds ----

    def see(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B V W"]:
        """The frozen eye: preprocessed pixels -> hidden states of the penultimate layer, without gradients."""
        with torch.no_grad():
            return self.vision(pixels.to(self.device, self.dtype)).last_hidden_state

    def forward(self, style: Float[Tensor, "B 3 S S"] | None = None, content: Float[Tensor, "B 3 S S"] | None = None) -> Tokens:
        """Preprocessed pixels -> tokens, with gradients to the extractors: the way in training."""
        seen = None if style is None else self.see(style)
        style_tokens = None if seen is None else self.extractors["style"](seen)
        if content is None:
            return Tokens(style_tokens, None)
        seen = seen if content is style and seen is not None else self.see(content)
        return Tokens(style_tokens, self.extractors["content"](seen))

    @torch.no_grad()
    def encode(self, style: Any = None, content: Any = None) -> Tokens:
        """Reference pictures -> tokens, for inference (eval mode is the caller's; from_pretrained gives it).

        Each role takes a picture (PIL, uint8 array, tensor in [-1, 1]), a batch (list of pictures, 4-D array or tensor: one row each), or a
        mixture [(picture, weight), ...], the weighted mean of their tokens: one row.
        """
        same = content is style  # one look at the picture serves both roles
        pixels, weights = self._pixels(style)
        content_pixels, content_weights = (pixels, weights) if same else self._pixels(content)
        tokens = self(style=pixels, content=content_pixels)
        return Tokens(_mix(tokens.style, weights), _mix(tokens.content, content_weights))

    def _pixels(self, pictures: Any) -> tuple[Tensor | None, list[float] | None]:
        if pictures is None:
            return None, None
        mixture = isinstance(pictures, Sequence) and len(pictures) > 0 and all(isinstance(p, tuple) and len(p) == 2 for p in pictures)
        weights = [float(weight) for _, weight in pictures] if mixture else None
        batch: Picture | list[Picture] = [picture for picture, _ in pictures] if mixture else pictures
        return self.config.preprocess(batch), weights

    def embed(
        self,
        text_embeds: Float[Tensor, "B T C"],
        style_tokens: Tensor | None = None,
        content_tokens: Tensor | None = None,
        strength: float | Tensor = 1.0,
        content_strength: float | Tensor = 1.0,
    ) -> Float[Tensor, "B U C"]:
        """[text | strength*style | content_strength*content], the prompt_embeds of any pipeline; text_embeds themselves where no role is live.

        Tokens are (B, I, C), or (1, I, C) for the whole batch; strengths are numbers or one per sample (B,), the official img_weight.
        An idle role is zeros, which still take part in the softmax (official); for the unconditional half use idle().
        """
        if style_tokens is None and content_tokens is None:
            return text_embeds
        batch, _, width = text_embeds.shape
        image = text_embeds.new_zeros(batch, self.config.layout.image_length, width)
        for role, tokens, weight in ((Role.STYLE, style_tokens, strength), (Role.CONTENT, content_tokens, content_strength)):
            if tokens is None:
                continue
            expected = (self.config.num_tokens, width)
            if tokens.ndim != 3 or tokens.shape[1:] != expected or len(tokens) not in (1, batch):
                raise ConfigError(f"{role} tokens are {tuple(tokens.shape)}: expected ({batch}, {expected[0]}, {width}) for these text_embeds")
            weight = torch.as_tensor(weight, device=tokens.device, dtype=torch.float32)
            if weight.ndim > 1 or weight.numel() not in (1, batch):
                raise ConfigError(f"strength has {weight.numel()} numbers: expected one, or one for each of the {batch} prompts")
            image[:, self.config.layout.image_slice(role)] = (tokens * weight.to(tokens.dtype).view(-1, 1, 1)).to(image)
        return torch.cat([text_embeds, image], dim=1)

    def idle(self, tokens: Tokens) -> Tokens:
        """Zero tokens for the unconditional half (official: uc): same length as the conditional half, or nothing where that has nothing."""
        return Tokens(*(None if t is None else torch.zeros_like(t) for t in tokens))

    @property
    def device(self) -> torch.device:
        return self.extractors["style"].query_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.extractors["style"].query_tokens.dtype

    # ---- files ----

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """config.json + model.safetensors, both whole or neither; in `dtype` if given. Nothing else in the folder is touched."""
        weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in self.state_dict().items()}
        write_whole(
            Path(directory),
            {
                WEIGHTS_NAME: lambda path: save_file(weights, path, metadata={"format": "pt"}),
                CONFIG_NAME: lambda path: path.write_text(json.dumps(self.config.to_dict(), indent=2) + "\n"),
            },
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> "DEADiffAdapter":
        """A folder (an adapter's, or a model's with a deadiff/ folder in it) or a hub id -> the adapter in eval mode, in the file's dtype.

        Runs no code from the source. Raises CheckpointError for missing, unknown or misshapen weights, ConfigError for a bad config.
        """
        folder = adapter_folder(source, revision)
        adapter = cls._from_weights(read_config(folder), read_weights(folder / WEIGHTS_NAME), str(folder / WEIGHTS_NAME))
        return adapter.to(device=device, dtype=dtype).eval()

    @classmethod
    def _from_weights(cls, config: AdapterConfig, weights: Mapping[str, Tensor], source: str) -> "DEADiffAdapter":
        """Built without initialising anything: the given tensors become the parameters."""
        with torch.device("meta"):
            adapter = cls(config)
        check_weights(adapter.state_dict(), weights, source)
        adapter.load_state_dict(weights, assign=True)
        for module in adapter.modules():
            for name, buffer in module.named_buffers(recurse=False):
                assert name == "position_ids", f"unexpected buffer {name}"  # the only ones these networks have: 0, 1, 2, ...
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(1, -1), persistent=False)
        return adapter

    def push_to_hub(
        self, repo_id: str, *, dtype: torch.dtype | None = None, private: bool | None = None, token: str | None = None, message: str | None = None
    ) -> str:
        """Save and upload to the Hugging Face hub, with a card that repeats the provenance. Returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype)
            Path(folder, CARD_NAME).write_text(self._card(repo_id))
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message or "Upload DEADiff adapter")
        return commit.commit_url

    def _card(self, repo_id: str) -> str:
        lines = [f"- {key}: {value}" for key, value in self.config.provenance.items()]
        header = ["---", "library_name: deadiff", "tags: [deadiff, style-transfer, text-to-image, diffusers]", "---"]
        usage = ["```python", "import deadiff", f'stylizer = deadiff.load("{repo_id}", base=...)', "```"]
        return "\n".join([*header, f"# {repo_id}", "", f"A DEADiff adapter for {self.config.base}.", "", *lines, "", *usage, ""])


def _key(path: str) -> str:
    """A ModuleDict's key cannot hold dots."""
    return path.replace(".", "_")


def _headless(vision: CLIPVisionModel) -> CLIPVisionModel:
    """Frozen, and without the final norm, which only the unused class embedding goes through."""
    vision.post_layernorm = nn.Identity()
    return vision.requires_grad_(False).eval()


def _mix(tokens: Tensor | None, weights: list[float] | None) -> Tensor | None:
    """(B, I, C) -> (1, I, C), the weighted mean; without weights the batch as it is."""
    if tokens is None or weights is None:
        return tokens
    if min(weights) < 0 or sum(weights) <= 0 or sum(weights) == float("inf") or any(w != w for w in weights):
        raise ConfigError(f"reference weights are {weights}: expected numbers of at least 0, not all 0")
    share = tokens.new_tensor(weights) / sum(weights)
    return (tokens * share.view(-1, 1, 1)).sum(0, keepdim=True)


def write_whole(directory: Path, writers: Mapping[str, Any]) -> None:
    """Files are written under temporary names and renamed when all are complete: a full disk leaves the folder as it was."""
    existed = directory.is_dir()
    written: list[tuple[Path, Path]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            handle, temporary = mkstemp(prefix=".", suffix=f".{name}", dir=directory)
            os.close(handle)
            written.append((Path(temporary), directory / name))
            write(Path(temporary))
        for temporary, final in written:
            os.chmod(temporary, 0o644)
            os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
        if not existed and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        raise CheckpointError(f"cannot write {', '.join(writers)} into '{directory}': {error}: nothing was written") from error


def read_config(folder: Path) -> AdapterConfig:
    """DIR/config.json -> AdapterConfig. Raises CheckpointError when it is not an adapter's, ConfigError when it is but cannot be used."""
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file -> tensors, mapped. Raises CheckpointError when it is missing, truncated or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read '{path}' as safetensors: {error}: download or convert it again") from error


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Strict loading with readable errors: the same keys, the same shapes. Raises CheckpointError."""
    if missing := [k for k in expected if k not in weights]:
        raise CheckpointError(f"{len(missing)} of {len(expected)} weights are missing in '{source}', first {missing[0]}: is the file complete?")
    if unknown := [k for k in weights if k not in expected]:
        raise CheckpointError(f"{len(unknown)} weights of '{source}' are unknown, first {unknown[0]}: does its config.json belong to it?")
    for key, tensor in expected.items():
        if tensor.shape != weights[key].shape:
            got = tuple(weights[key].shape)
            raise CheckpointError(f"{key} in '{source}' has shape {got}: expected {tuple(tensor.shape)} by its config.json")
