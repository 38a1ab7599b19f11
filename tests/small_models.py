"""Bare U-Nets and adapters of the real ones' make, milliseconds on a CPU. Weights are random but the same each time."""

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.config import AdapterConfig
from deadiff.extractor import Preprocess

WIDTH, TEXT = 24, 20  # width of a token, tokens of a prompt
_THREE_LEVELS = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}
_SHAPES = {
    "icons": _THREE_LEVELS,
    "sd15": {"block_out_channels": (8, 8, 16, 16)},
    "sdxl": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
    },
}
_ATTENTION = {"cross_attention_dim": WIDTH, "attention_head_dim": 2, "norm_num_groups": 4}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
_QFORMER = {"vocab_size": 8, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def seeded(make, seed: int = 0):
    """make() under a seed that leaves the global random state alone, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(kind: str = "icons", **changes) -> UNet2DConditionModel:
    """A U-Net with the cross-attention layers of icons (16), sd15 (16) or sdxl (70)."""
    return seeded(lambda: UNet2DConditionModel(**{"sample_size": 8, **_ATTENTION, **_SHAPES[kind], **changes}))


def controlnet() -> ControlNetModel:
    """A ControlNet for unet("icons") whose output is not zero."""
    shape = {key: value for key, value in _THREE_LEVELS.items() if key != "up_block_types"}
    net = seeded(lambda: ControlNetModel(**_ATTENTION, **shape, conditioning_embedding_out_channels=(4, 4, 4, 4)))
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.ones_(block.weight)
    return net


def vision() -> CLIPVisionModel:
    return seeded(lambda: CLIPVisionModel(CLIPVisionConfig(**_VISION, image_size=28, patch_size=14)))


def config(base: str = "icons", **changes) -> AdapterConfig:
    given = {
        "base": base,
        "routes": base,
        "num_tokens": 4,
        "token_dim": WIDTH,
        "text_length": TEXT,
        "qformer": dict(_QFORMER),
        "instructions": {"style": [0, 1, 2], "content": [0, 3, 2]},
        "projection_dim": 48,
        "preprocess": Preprocess(size=28),
    }
    return AdapterConfig(**{**given, **changes})


def adapter(net: UNet2DConditionModel, **changes) -> DEADiffAdapter:
    """An adapter whose image K/V differ from the text's, as after training."""
    made = DEADiffAdapter.from_base(net, vision(), config(**changes)).eval()
    with torch.no_grad():
        for i, kv in enumerate(made.image_kv.parameters()):
            kv.add_(noise(*kv.shape, seed=i), alpha=0.1)
    return made
