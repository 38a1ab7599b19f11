"""The models that are timed, with random weights: sizes as rows of a table, and builders in the final precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.config import AdapterConfig
from deadiff.extractor import Preprocess
from deadiff.routes import cross_attention_layers, resolve_routes

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that the cost of a step and of a picture depends on."""

    routes: str  # the route table of that layout
    unet: dict[str, Any]  # UNet2DConditionModel
    text_length: int  # tokens of a prompt
    text: dict[str, Any]  # CLIPTextConfig
    vae: dict[str, Any]  # AutoencoderKL
    vision: dict[str, Any]  # CLIPVisionConfig of our eye; num_hidden_layers counts those that run
    qformer: dict[str, Any]  # AdapterConfig.qformer
    projection_dim: int  # AdapterConfig.projection_dim
    ip_vision: dict[str, Any]  # CLIPVisionConfig of IP-Adapter's image encoder
    ip_projection: dict[str, Any]  # IPAdapterPlusImageProjection
    rounds: int  # by default: the fewer, the longer a step is

    @property
    def latents(self) -> tuple[int, int, int]:
        """(channels, h, w)."""
        return self.unet["in_channels"], self.unet["sample_size"], self.unet["sample_size"]


_VAE_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_SD15_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
}
_ICONS_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
_SMALL_VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip
_SMALL_QFORMER = {
    "vocab_size": 30523,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}

SIZES = {
    # Stable Diffusion 1.5 at 512 px, the released DEADiff, IP-Adapter Plus for SD 1.5 (CLIP ViT-H/14, 16 tokens).
    "sd15": Size(
        routes="sd15",
        unet={
            **_SD15_BLOCKS, "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        text_length=77,
        text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        vae={**_VAE_BLOCKS, "block_out_channels": (128, 256, 512, 512), "sample_size": 512},
        vision={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "image_size": 224,
            "patch_size": 14,
        },
        qformer={"vocab_size": 30523},
        projection_dim=3072,
        ip_vision={
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224,
            "patch_size": 14, "hidden_act": "gelu",
        },
        ip_projection={"embed_dims": 1280, "hidden_dims": 768, "depth": 4, "dim_head": 64, "heads": 12},
        rounds=4,
    ),
    # The same sixteen layers at the same token counts of text and image, a fraction of the width: seconds.
    "small": Size(
        routes="sd15",
        unet={
            **_SD15_BLOCKS, "sample_size": 16, "block_out_channels": (64, 64, 128, 128), "cross_attention_dim": 64,
            "attention_head_dim": 2,
        },
        text_length=77,
        text={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        vae={**_VAE_BLOCKS, "block_out_channels": (32, 32, 32, 32), "sample_size": 128},
        vision=_SMALL_VISION,
        qformer=_SMALL_QFORMER,
        projection_dim=64,
        ip_vision=_SMALL_VISION,
        ip_projection={"embed_dims": 64, "hidden_dims": 64, "depth": 2, "dim_head": 32, "heads": 2},
        rounds=5,
    ),
    # The U-Net of the embedded model: 8x8x24 latents, 32 text tokens. Its pictures are timed at the cold start.
    "icons": Size(
        routes="icons",
        unet={
            **_ICONS_BLOCKS, "sample_size": 8, "in_channels": 24, "out_channels": 24, "block_out_channels": (192, 192, 256),
            "cross_attention_dim": 256, "attention_head_dim": (3, 3, 4),
        },
        text_length=32,
        text={"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 4},
        vae={**_VAE_BLOCKS, "block_out_channels": (32, 32, 32, 32), "sample_size": 64, "latent_channels": 24},
        vision={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 3, "image_size": 128,
            "patch_size": 16,
        },
        qformer={
            "vocab_size": 8, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024,
        },
        projection_dim=1024,
        ip_vision={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3, "image_size": 128,
            "patch_size": 16,
        },
        ip_projection={"embed_dims": 192, "hidden_dims": 256, "depth": 4, "dim_head": 64, "heads": 4},
        rounds=25,
    ),
}  # fmt: skip


@contextmanager
def making(dtype: torch.dtype, device: torch.device, seed: int) -> Iterator[None]:
    """Modules made inside are of that dtype and on that device from the start: a cast afterwards would count as peak memory."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def frozen(make: Callable[[], M], dtype: torch.dtype, device: torch.device, seed: int = 0) -> M:
    """make() with random weights, for inference only."""
    with making(dtype, device, seed):
        return make().requires_grad_(False).eval()


def build_unet(size: Size, dtype: torch.dtype, device: torch.device, seed: int = 0) -> UNet2DConditionModel:
    return frozen(lambda: UNet2DConditionModel(**size.unet), dtype, device, seed)


def build_adapter(size: Size, unet: nn.Module, dtype: torch.dtype, device: torch.device, seed: int = 0) -> DEADiffAdapter:
    """The whole of ours: eye, both Q-Formers, projections, image K/V. Not injected."""
    layers = cross_attention_layers(unet)
    config = AdapterConfig(
        base=size.routes,
        routes=size.routes,
        token_dim=size.unet["cross_attention_dim"],
        text_length=size.text_length,
        vision=size.vision,
        qformer=size.qformer,
        projection_dim=size.projection_dim,
        instructions={"style": [0, 1, 2], "content": [0, 3, 2]},
        preprocess=Preprocess(size=size.vision["image_size"]),
        image_kv={path: layers[path].to_k.out_features for path in resolve_routes(size.routes)},  # pyright: ignore[reportOptionalMemberAccess]
    )
    return frozen(lambda: DEADiffAdapter(config), dtype, device, seed)


def build_text_encoder(size: Size, dtype: torch.dtype, device: torch.device, seed: int = 0) -> CLIPTextModel:
    config = CLIPTextConfig(**size.text, max_position_embeddings=size.text_length)
    return frozen(lambda: CLIPTextModel(config), dtype, device, seed)


def build_vae(size: Size, dtype: torch.dtype, device: torch.device, seed: int = 0) -> AutoencoderKL:
    return frozen(lambda: AutoencoderKL(**size.vae), dtype, device, seed)


def build_vision(sizes: dict[str, Any], dtype: torch.dtype, device: torch.device, seed: int = 0) -> CLIPVisionModel:
    return frozen(lambda: CLIPVisionModel(CLIPVisionConfig(**sizes)), dtype, device, seed)
