"""DEADiff inside ComfyUI's own U-Net: the tokens travel behind the text, and sixteen layers read them.

B batch, L latent tokens, T text tokens, I image tokens of one role, N heads, D head width, C = N*D. Needs no ComfyUI to import.
"""

from typing import Any

import torch
from torch import Tensor

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.attention import ATTENTION
from deadiff.errors import ConfigError

IMAGE = "deadiff_image_tokens"  # of extra_options: from the patch that sees the context to the one that attends

# Route path of diffusers -> (block, number) of ComfyUI's U-Net, for Stable Diffusion 1.x.
BLOCKS: dict[str, tuple[str, int]] = {
    "down_blocks.0.attentions.0": ("input", 1),
    "down_blocks.0.attentions.1": ("input", 2),
    "down_blocks.1.attentions.0": ("input", 4),
    "down_blocks.1.attentions.1": ("input", 5),
    "down_blocks.2.attentions.0": ("input", 7),
    "down_blocks.2.attentions.1": ("input", 8),
    "mid_block.attentions.0": ("middle", 0),
    "up_blocks.1.attentions.0": ("output", 3),
    "up_blocks.1.attentions.1": ("output", 4),
    "up_blocks.1.attentions.2": ("output", 5),
    "up_blocks.2.attentions.0": ("output", 6),
    "up_blocks.2.attentions.1": ("output", 7),
    "up_blocks.2.attentions.2": ("output", 8),
    "up_blocks.3.attentions.0": ("output", 9),
    "up_blocks.3.attentions.1": ("output", 10),
    "up_blocks.3.attentions.2": ("output", 11),
}


class SplitContext:
    """attn2_patch, called before a layer's keys and values are made: takes the image tokens off the text, for every layer."""

    def __init__(self, adapter: DEADiffAdapter) -> None:
        self.layout = adapter.config.layout

    def __call__(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        text = self.layout.text_tokens(context.shape[1])
        if text == context.shape[1]:  # a conditioning without tokens: as it was
            extra_options.setdefault(IMAGE, None)  # or taken off already, where the node was applied twice
            return n, context, value
        extra_options[IMAGE] = context[:, text:]
        return n, context[:, :text].contiguous(), value[:, :text].contiguous()


class JointReplace:
    """attn2 replacement of one layer: one softmax over the text's keys and those of the layer's own role."""

    def __init__(self, adapter: DEADiffAdapter, path: str) -> None:
        self.image_kv = adapter.kv(path)
        self.image_slice = adapter.config.layout.image_slice(adapter.config.route_table[path])
        self.attend = ATTENTION[adapter.config.attention]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """q (B, L, C), k and v (B, T, C), already projected -> (B, L, C), before the layer's output projection."""
        heads = extra_options["n_heads"]
        image = extra_options.get(IMAGE)
        if image is None:
            image_k, image_v = k[:, :0], v[:, :0]
            attend = ATTENTION["joint"]  # with no image key: the text's attention alone
        else:
            image_k, image_v = self.image_kv(image[:, self.image_slice].contiguous().to(k))
            attend = self.attend
        split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v, image_k, image_v)]  # (B, N, ., D)
        return attend(*split).transpose(1, 2).flatten(2)


def patch_model(model: Any, adapter: DEADiffAdapter) -> Any:
    """A clone of ComfyUI's MODEL whose cross-attention reads tokens; the given one is not touched. Raises ConfigError.

    Conditionings without tokens draw as before. Other nodes that replace attn2 in these layers (IPAdapter) exclude this one.
    """
    check_fits(model, adapter)
    patched = model.clone()
    patched.set_model_attn2_patch(SplitContext(adapter))
    for path in adapter.config.route_table:
        block, number = BLOCKS[path]
        patched.set_model_attn2_replace(JointReplace(adapter, path), block, number)
    return patched


def check_fits(model: Any, adapter: DEADiffAdapter) -> None:
    config = adapter.config
    if set(config.route_table) != set(BLOCKS):
        raise ConfigError(
            f"the adapter belongs to '{config.base}': ComfyUI's own models can take one made for Stable Diffusion 1.x; "
            "for others use DEADiff Stylise"
        )
    unet = model.model.diffusion_model
    for path, (block, number) in BLOCKS.items():
        part = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}[block]
        blocks = getattr(unet, part, None)
        home = blocks if block == "middle" else blocks[number] if blocks is not None and number < len(blocks) else None
        layers = [m for name, m in home.named_modules() if name.endswith("attn2")] if home is not None else []
        got = [tuple(reversed(layer.to_k.weight.shape)) for layer in layers]
        expected = (config.token_dim, config.image_kv[path])
        if got != [expected]:
            raise ConfigError(
                f"layer {block} {number} of this MODEL has keys {got}: expected [{expected}], as in Stable Diffusion 1.x"
            )


def with_tokens(
    conditioning: list[Any], adapter: DEADiffAdapter, tokens: Tokens, strength: float, content_strength: float
) -> list[Any]:
    """ComfyUI's CONDITIONING [[(B, T, C), options], ...] with the image tokens behind each text.

    A ControlNet goes on seeing the text alone: ComfyUI takes what it shall see from `cross_attn_controlnet`.
    """
    result = []
    for text, options in conditioning:
        width = text.shape[-1]
        if width != adapter.config.token_dim or text.shape[1] % adapter.config.text_length:
            raise ConfigError(
                f"this conditioning is {tuple(text.shape)}: expected a multiple of {adapter.config.text_length} tokens of width "
                f"{adapter.config.token_dim}, as Stable Diffusion 1.x reads"
            )
        moved = Tokens(*(None if t is None else t.to(text) for t in tokens))
        longer = adapter.embed(text, *moved, strength=strength, content_strength=content_strength)
        seen = options.get("cross_attn_controlnet", text)
        result.append([longer, {**options, "cross_attn_controlnet": seen}])
    return result


def without_image(conditioning: list[Any], adapter: DEADiffAdapter, tokens: Tokens) -> list[Any]:
    """The unconditional half: zero tokens, which still take their part of the softmax (as in the released code)."""
    return with_tokens(conditioning, adapter, adapter.idle(tokens), 1.0, 1.0)


def mixed(tokens: list[tuple[Tokens, float]]) -> Tokens:
    """The weighted mean of each role, over those that have it. Raises ConfigError when all weights of a role are 0."""

    def mean(role: str) -> Tensor | None:
        live = [(getattr(t, role), weight) for t, weight in tokens if getattr(t, role) is not None]
        if not live:
            return None
        total = sum(weight for _, weight in live)
        if total <= 0:
            raise ConfigError(f"all {role} weights are 0: give at least one more than that")
        return torch.stack([t * (weight / total) for t, weight in live]).sum(dim=0)

    return Tokens(mean("style"), mean("content"))
