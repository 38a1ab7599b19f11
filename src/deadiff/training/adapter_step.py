"""One forward pass of adapter training as a module: what DDP, FSDP and autocast wrap.

B batch, V vision tokens, W vision width, Z latent channels, T text tokens, C token width, P width of SDXL's pooled text.
"""

from typing import NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.training.adapter import adapter_loss
from deadiff.training.bases import Base
from deadiff.training.objectives import Live, Objective, keep_text


class Sample(NamedTuple):
    """One draw of one task, as features: what caches hold."""

    objective: Objective
    vision: Tensor  # (B, V, W) of the references
    moments: Tensor  # (B, 2Z, h, w) of the targets: mean and log variance, unscaled
    text: Tensor  # (B, T, C) of the targets' captions
    pooled: Tensor | None  # (B, P), SDXL alone

    def to(self, device: torch.device) -> "Sample":
        moved = [None if x is None else x.to(device, non_blocking=True).float() for x in self[1:]]
        return Sample(self.objective, *moved)  # pyright: ignore[reportArgumentType]


class AdapterStep(nn.Module):
    """Sample -> loss. Adapter and U-Net are children, so that whatever wraps this module finds the weights of both."""

    def __init__(
        self,
        adapter: DEADiffAdapter,
        base: Base,
        empty: dict[str, Tensor],
        weighting: str = "plain",
        timestep_shift: float = 1.0,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.unet: UNet2DConditionModel = base.unet
        self.base, self.empty, self.weighting, self.timestep_shift = base, empty, weighting, timestep_shift
        adapter.inject(self.unet)

    def forward(self, sample: Sample, live: Live, generator: torch.Generator) -> Tensor:
        """The scalar to minimise; `generator` (CPU) gives posterior noise, timesteps and noise.

        Both readers read every reference and `live` silences the idle one with a factor of zero: the same gradients (zero) as
        leaving it out, and every process of a group has the same parameters in its graph, which DDP and FSDP rely on.
        """
        device = sample.vision.device
        latents = self.base.draw_latents(sample.moments, generator)
        tokens = Tokens(self.adapter.extractors["style"](sample.vision), self.adapter.extractors["content"](sample.vision))
        live = Live(*(kept.to(device) for kept in live))
        told = {}
        if sample.pooled is not None:
            empty = self.empty["pooled"].to(sample.pooled)
            told = self.base.told(keep_text(sample.pooled[:, None], empty[:, None], live.text)[:, 0].to(self.unet.dtype))
        empty = self.empty["text"].to(sample.text)
        return adapter_loss(
            self.adapter,
            self.unet,
            self.base.schedule,
            latents,
            tokens,
            sample.text,
            empty,
            live,
            generator,
            self.weighting,
            self.timestep_shift,
            **told,
        )
