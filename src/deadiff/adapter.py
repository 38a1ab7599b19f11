"""DEADiffAdapter: extractors, image keys and values and a route table, which turn a base text-to-image model into DEADiff.

B batch, S picture side in pixels, V vision tokens, W vision width, T text tokens, I image tokens of one role, C token width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from deadiff.attention import ImageKV, JointAttnProcessor, TextOnlyAttnProcessor
from deadiff.config import CONFIG_NAME, VISION_KEYS, AdapterConfig, read_config
from deadiff.errors import ConfigError
from deadiff.extractor import Places, RoleExtractor
from deadiff.hub import adapter_folder
from deadiff.routes import Role, cross_attention_layers, match_routes
from deadiff.weights import WEIGHTS_NAME, check_weights, read_weights, write_whole

CARD_NAME = "README.md"


class Tokens(NamedTuple):
    """What references turn into: (B, I, C) per role, or None for an idle role."""

    style: Tensor | None = None
    content: Tensor | None = None


class DEADiffAdapter(nn.Module):
    """One adapter, many bases. `state_dict()` holds what is trained and, once, the frozen eye; the U-Net is never a child.

    >>> adapter.inject(pipe.unet)
    >>> tokens = adapter.encode(style=picture)
    >>> pipe(prompt_embeds=adapter.embed(text, *tokens), negative_prompt_embeds=adapter.embed(negative, *adapter.idle(tokens)))
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        if not config.vision or not config.image_kv:
            raise ConfigError("the config has no vision or image_kv sizes: use DEADiffAdapter.from_base(unet, vision, config)")
        self.config = config
        try:
            self.vision = _headless(CLIPVisionModel(CLIPVisionConfig(**config.vision)))
            if config.two_eyes:
                self.content_vision = _headless(CLIPVisionModel(CLIPVisionConfig(**config.vision)))
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
                        places=self._places() if role in config.placed else None,
                    )
                    for role in Role
                }
            )
        except (ValueError, TypeError, StrictDataclassError) as error:  # transformers refuses impossible sizes in its own words
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(f"the config's vision or qformer sizes cannot be built: {reason}") from error
        self.image_kv = nn.ModuleDict({_key(path): ImageKV(config.token_dim, dim) for path, dim in config.image_kv.items()})
        self._injected: list[
            tuple[Attention, Any, Any]
        ] = []  # (layer, original processor, ours); in a list nothing is registered

    def _places(self) -> Places:
        eye, config = self.vision.config, self.config
        assert isinstance(eye.image_size, int) and isinstance(eye.patch_size, int)
        return Places(eye.hidden_size, eye.image_size // eye.patch_size, config.num_tokens, config.token_dim)

    @classmethod
    def from_base(cls, unet: nn.Module, vision: CLIPVisionModel, config: AdapterConfig, seed: int = 0) -> "DEADiffAdapter":
        """An untrained adapter: image K/V start as copies of the text's, the eye is `vision` up to hidden_states[-2].

        The paper starts the Q-Formers from BLIP-Diffusion's; here they start at random (seed): load others into `.extractors`.
        """
        layers = match_routes(unet, config.route_table)
        shapes = {path: _kv_shape(layer) for path, layer in layers.items()}
        widths = {width for width, _ in shapes.values()}
        if widths != {config.token_dim}:
            raise ConfigError(f"token_dim is {config.token_dim}, but this U-Net reads tokens of width {sorted(widths)}")
        sizes = {k: v for k, v in vision.config.to_dict().items() if k in VISION_KEYS}
        sizes["num_hidden_layers"] -= 1
        config = replace(config, vision=sizes, image_kv={path: dim for path, (_, dim) in shapes.items()})

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = cls(config)
        eye = adapter.vision.state_dict()
        adapter.vision.load_state_dict({k: v for k, v in vision.state_dict().items() if k in eye})
        with torch.no_grad():
            for path, layer in layers.items():
                kv = adapter.kv(path)
                kv.to_k.weight.copy_(layer.to_k.weight)  # pyright: ignore[reportOptionalMemberAccess]
                kv.to_v.weight.copy_(layer.to_v.weight)  # pyright: ignore[reportOptionalMemberAccess]
        return adapter

    def kv(self, path: str) -> ImageKV:
        """The image K/V of one layer, by its route path."""
        module = self.image_kv[_key(path)]
        assert isinstance(module, ImageKV)
        return module

    # ---- the U-Net ----

    def inject(self, unet: nn.Module, controlnet: nn.Module | Sequence[nn.Module] | None = None) -> None:
        """Give every cross-attention layer of `unet` its joint processor; a ControlNet's layers will see the text alone.

        The adapter's weights keep their dtype and device: where the U-Net's differ, K/V weights are cast at each use, so load the
        adapter in the U-Net's to save that. Raises ConfigError, leaving the U-Net as it was, when the adapter does not fit.
        """
        if self._injected:
            raise ConfigError("this adapter is injected already: call eject() first")
        layers = match_routes(unet, self.config.route_table)
        for path, layer in layers.items():
            got, expected = _kv_shape(layer), (self.config.token_dim, self.config.image_kv[path])
            if got != expected:
                raise ConfigError(
                    f"K/V of {path} are {got} in this U-Net, {expected} in the adapter: was it made for another base?"
                )
        control = [layer for net in _nets(controlnet) for layer in cross_attention_layers(net).values()]
        for layer in (*layers.values(), *control):
            taken = type(layer.processor).__name__
            if isinstance(layer.processor, JointAttnProcessor | TextOnlyAttnProcessor) or "IPAdapter" in taken:
                raise ConfigError(f"the U-Net or ControlNet already carries an adapter ({taken}): eject or unload it first")

        layout, table = self.config.layout, self.config.route_table
        for path, layer in layers.items():
            self._replace(layer, JointAttnProcessor(self.kv(path), table[path], layout, layer.processor, self.config.attention))
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

    def see(self, pixels: Float[Tensor, "B 3 S S"], role: str = Role.STYLE) -> Float[Tensor, "B V W"]:
        """The frozen eye, the same for both roles: preprocessed pixels -> penultimate hidden states, without gradients."""
        eye = self.content_vision if self.config.two_eyes and role == Role.CONTENT else self.vision
        with torch.no_grad():
            return eye(pixels.to(self.device, self.dtype)).last_hidden_state

    def forward(self, style: Float[Tensor, "B 3 S S"] | None = None, content: Float[Tensor, "B 3 S S"] | None = None) -> Tokens:
        """Preprocessed pixels -> tokens, with gradients to the extractors: the way in training."""
        seen = None if style is None else self.see(style)
        style_tokens = None if seen is None else self.extractors["style"](seen)
        if content is None:
            return Tokens(style_tokens, None)
        if seen is None or content is not style or self.config.two_eyes:
            seen = self.see(content, Role.CONTENT)
        return Tokens(style_tokens, self.extractors["content"](seen))

    @torch.no_grad()
    def encode(self, style: Any = None, content: Any = None) -> Tokens:
        """Reference pictures -> tokens, for inference (eval mode is the caller's; from_pretrained gives it).

        Each role takes a picture (PIL, uint8 array, tensor in [-1, 1]), a batch (list of pictures, 4-D array or tensor: one row
        each), or a mixture [(picture, weight), ...], the weighted mean of their tokens: one row.
        """
        same = content is style  # one look at the picture serves both roles
        pixels, weights = self._pixels(style)
        content_pixels, content_weights = (pixels, weights) if same else self._pixels(content)
        tokens = self(style=pixels, content=content_pixels)
        return Tokens(_mix(tokens.style, weights), _mix(tokens.content, content_weights))

    def _pixels(self, pictures: Any) -> tuple[Tensor | None, list[float] | None]:
        if pictures is None:
            return None, None
        if isinstance(pictures, list) and pictures and all(isinstance(p, tuple) and len(p) == 2 for p in pictures):
            return self.config.preprocess([picture for picture, _ in pictures]), [float(weight) for _, weight in pictures]
        return self.config.preprocess(pictures), None

    def embed(
        self,
        text_embeds: Float[Tensor, "B T C"],
        style_tokens: Tensor | None = None,
        content_tokens: Tensor | None = None,
        strength: float | Tensor = 1.0,
        content_strength: float | Tensor = 1.0,
    ) -> Float[Tensor, "B U C"]:
        """[text | strength*style | content_strength*content], the prompt_embeds of any pipeline; without tokens: text_embeds.

        Tokens are (B, I, C) or (1, I, C) for the whole batch; strengths (official img_weight) are numbers, or one per sample.
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
                raise ConfigError(f"{role} tokens are {tuple(tokens.shape)}: expected {(batch, *expected)} for these text_embeds")
            weight = torch.as_tensor(weight, device=tokens.device, dtype=torch.float32)
            if weight.ndim > 1 or weight.numel() not in (1, batch):
                raise ConfigError(f"strength has {weight.numel()} numbers: expected one, or one for each of the {batch} prompts")
            image[:, self.config.layout.image_slice(role)] = (tokens * weight.to(tokens.dtype).view(-1, 1, 1)).to(image)
        return torch.cat([text_embeds, image], dim=1)

    def idle(self, tokens: Tokens) -> Tokens:
        """Zero tokens for the unconditional half (official: uc), as long as the conditional half; nothing for nothing."""
        return Tokens(*(None if t is None else torch.zeros_like(t) for t in tokens))

    @property
    def device(self) -> torch.device:
        return next(self.extractors.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.extractors.parameters()).dtype

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
        """A folder (an adapter's, or a model's with deadiff/ in it) or a hub id -> the adapter, in eval mode and its dtype.

        Runs no code from the source. Raises CheckpointError (missing, unknown, misshapen weights), ConfigError for a bad config.
        """
        folder = adapter_folder(source, revision)
        adapter = cls.from_weights(read_config(folder), read_weights(folder / WEIGHTS_NAME), str(folder / WEIGHTS_NAME))
        return adapter.to(device=device, dtype=dtype).eval()

    @classmethod
    def from_weights(cls, config: AdapterConfig, weights: Mapping[str, Tensor], source: str = "memory") -> "DEADiffAdapter":
        """Built without initialising anything: the given tensors become the parameters. Raises CheckpointError."""
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
        self,
        repo_id: str,
        *,
        dtype: torch.dtype | None = None,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload DEADiff adapter",
    ) -> str:
        """Save and upload to the Hugging Face hub, with a card that repeats the provenance. Returns the commit's address."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype)
            Path(folder, CARD_NAME).write_text(self._card(repo_id))
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
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
    vision.add_module("post_layernorm", nn.Identity())
    return vision.requires_grad_(False).eval()


def _kv_shape(layer: Any) -> tuple[int, int]:
    """(width of a token, width of keys and values) of a diffusers Attention, LoRA or not."""
    return layer.to_k.in_features, layer.to_k.out_features


def _nets(controlnet: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """One ControlNet, several, or diffusers' MultiControlNetModel -> a list."""
    if controlnet is None:
        return []
    nets = getattr(controlnet, "nets", controlnet)
    return [nets] if isinstance(nets, nn.Module) and not isinstance(nets, nn.ModuleList) else list(nets)


def _mix(tokens: Tensor | None, weights: list[float] | None) -> Tensor | None:
    """(B, I, C) -> (1, I, C), the weighted mean; without weights the batch as it is."""
    if tokens is None or weights is None:
        return tokens
    if min(weights) < 0 or sum(weights) <= 0 or sum(weights) == float("inf") or any(w != w for w in weights):
        raise ConfigError(f"reference weights are {weights}: expected numbers of at least 0, not all 0")
    share = tokens.new_tensor(weights) / sum(weights)
    return (tokens * share.view(-1, 1, 1)).sum(0, keepdim=True)
