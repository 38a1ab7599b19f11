"""The three ways to run one U-Net: plain, with DEADiff's tokens, with diffusers' IP-Adapter Plus. Each leaves it as it was.

B = 2, the two halves of classifier-free guidance; T text tokens, I = 16 image tokens, C token width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionModel

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.benchmarking.models import Size, frozen
from deadiff.benchmarking.timing import Step, Variant
from deadiff.errors import ConfigError
from deadiff.routes import cross_attention_layers

PLAIN, DEADIFF, IP_ADAPTER = "plain", "deadiff", "ip_adapter"
VARIANTS = (PLAIN, DEADIFF, IP_ADAPTER)
NUM_TOKENS = 16  # image tokens of IP-Adapter Plus, and of one DEADiff role


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every variant is given: the same latents, the same prompt."""

    latents: Tensor  # (2, Z, h, w)
    timestep: Tensor  # ()
    text: Tensor  # (2, T, C): the negative prompt, the prompt
    picture: Tensor  # (1, 3, S, S) in [-1, 1], the reference


def make_inputs(size: Size, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return Inputs(
        latents=noise(2, *size.latents),
        timestep=torch.tensor(500, device=device),
        text=noise(2, size.text_length, size.unet["cross_attention_dim"]),
        picture=noise(1, 3, size.vision["image_size"], size.vision["image_size"]).clamp(-1, 1),
    )


class IPAdapterPlus(nn.Module):
    """diffusers' own IP-Adapter Plus with random weights: its resampler, and its processor for every layer."""

    def __init__(self, size: Size, unet: nn.Module, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        super().__init__()
        width = size.unet["cross_attention_dim"]

        def parts() -> nn.ModuleList:
            plus = IPAdapterPlusImageProjection(output_dims=width, num_queries=NUM_TOKENS, **size.ip_projection)
            layers = cross_attention_layers(unet)
            processors = [
                IPAdapterAttnProcessor2_0(layer.to_k.out_features, width, num_tokens=(NUM_TOKENS,))  # pyright: ignore
                for layer in layers.values()
            ]
            return nn.ModuleList([MultiIPAdapterImageProjection([plus]), *processors])

        self.projection, *processors = frozen(parts, dtype, device, seed)
        self.processors = nn.ModuleList(processors)

    @torch.no_grad()
    def resample(self, image_embeds: Tensor) -> Tensor:
        """(2, 1, V, W) -> (2, 1, I, C). diffusers does this inside the U-Net, so again at every step."""
        return self.projection([image_embeds])[0]

    @contextmanager
    def attached(self, unet: UNet2DConditionModel) -> Iterator[None]:
        """As `unet._load_ip_adapter_weights` leaves it, and afterwards as it was."""
        layers = list(cross_attention_layers(unet).values())
        originals = [layer.processor for layer in layers]
        config = unet.config
        kind = config.encoder_hid_dim_type  # pyright: ignore[reportAttributeAccessIssue]
        if unet.encoder_hid_proj is not None:
            raise ConfigError("the U-Net already projects images or texts of its own: expected a plain Stable Diffusion 1.5")
        try:
            for layer, processor in zip(layers, self.processors, strict=True):
                layer.set_processor(processor)  # pyright: ignore[reportArgumentType]
            unet.encoder_hid_proj = self.projection  # pyright: ignore[reportAttributeAccessIssue]
            config.encoder_hid_dim_type = "ip_image_proj"  # pyright: ignore[reportAttributeAccessIssue]
            yield
        finally:
            config.encoder_hid_dim_type = kind  # pyright: ignore[reportAttributeAccessIssue]
            del unet.encoder_hid_proj  # a registered module becomes the plain None that it was
            unet.encoder_hid_proj = None
            for layer, processor in zip(layers, originals, strict=True):
                layer.set_processor(processor)


@torch.no_grad()
def ip_read(image_encoder: CLIPVisionModel, picture: Tensor) -> Tensor:
    """(1, 3, S, S) -> (2, 1, V, W): as diffusers' pipelines do, an empty picture is read as well, for the unconditional half."""
    pair = [image_encoder(x, output_hidden_states=True).hidden_states[-2] for x in (torch.zeros_like(picture), picture)]
    return torch.cat(pair)[:, None]


def conditioned(adapter: DEADiffAdapter, text: Tensor, tokens: Tokens) -> Tensor:
    """(2, T, C) -> (2, T + 2*I, C): zeros for the negative half, both roles for the other."""
    negative, positive = text[:1], text[1:]
    return torch.cat([adapter.embed(negative, *adapter.idle(tokens)), adapter.embed(positive, *tokens)])


def plain_variant(unet: UNet2DConditionModel, inputs: Inputs) -> Variant:
    @contextmanager
    def enter() -> Iterator[Step]:
        yield lambda: _step(unet, inputs, inputs.text)

    return enter


def deadiff_variant(unet: UNet2DConditionModel, inputs: Inputs, adapter: DEADiffAdapter, tokens: Tokens) -> Variant:
    embeds = conditioned(adapter, inputs.text, tokens)

    @contextmanager
    def enter() -> Iterator[Step]:
        adapter.inject(unet)
        try:
            yield lambda: _step(unet, inputs, embeds)
        finally:
            adapter.eject()

    return enter


def ip_adapter_variant(unet: UNet2DConditionModel, inputs: Inputs, ip: IPAdapterPlus, image_embeds: Tensor) -> Variant:
    """image_embeds (2, 1, V, W), from ip_read()."""

    @contextmanager
    def enter() -> Iterator[Step]:
        with ip.attached(unet):
            yield lambda: _step(unet, inputs, inputs.text, {"image_embeds": [image_embeds]})

    return enter


@torch.no_grad()
def _step(unet: UNet2DConditionModel, inputs: Inputs, embeds: Tensor, added: dict | None = None) -> Tensor:
    return unet(inputs.latents, inputs.timestep, embeds, added_cond_kwargs=added, return_dict=False)[0]
