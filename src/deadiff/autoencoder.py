"""PatchAutoencoder: 128 px pictures <-> 8x8 latents for the icons model, made of diffusers' own encoder and decoder.

A stock `AutoencoderKL` with sixteenfold reduction spends most of its time at full resolution, where flat art has little to say.
Here the first fourfold reduction is a pixel-unshuffle, which costs nothing: twice the pictures per second (docs/log.md).
"""

# B batch, H, W picture size in pixels, h = H / 16, w = W / 16, Z latent channels

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, DiagonalGaussianDistribution, Encoder
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch.nn import functional as F

PATCH = 4  # pixels folded into channels on each side before the first convolution


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A variational autoencoder with the interface that diffusers' Stable Diffusion pipelines expect of `vae`.

    `block_out_channels` names the channels at full, half, quarter... resolution, as everywhere in diffusers; the first two levels
    are the folded pixels (3 and 3 * 2 * 2), so a pipeline that computes `2 ** (len - 1)` finds the true reduction.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (3, 12, 96, 128, 192),
        layers_per_block: int = 1,
        latent_channels: int = 32,
        norm_num_groups: int = 8,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        sample_size: int = 128,
    ) -> None:
        super().__init__()
        folded = 3 * PATCH * PATCH
        levels = tuple(block_out_channels[2:])
        shared: dict[str, Any] = dict(
            block_out_channels=levels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        self.encoder = Encoder(
            in_channels=folded,
            out_channels=latent_channels,
            down_block_types=("DownEncoderBlock2D",) * len(levels),
            double_z=True,
            **shared,
        )
        self.decoder = Decoder(
            in_channels=latent_channels, out_channels=folded, up_block_types=("UpDecoderBlock2D",) * len(levels), **shared
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels (B, 3, H, W) in [-1, 1] -> posterior over latents (B, Z, h, w)."""
        posterior = DiagonalGaussianDistribution(self.encoder(F.pixel_unshuffle(x, PATCH)))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]. Pipelines pass a `generator`; it has no use here."""
        pixels = F.pixel_shuffle(self.decoder(z), PATCH)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Reconstruct through one draw from the posterior."""
        posterior = DiagonalGaussianDistribution(self.encoder(F.pixel_unshuffle(x, PATCH)))
        return F.pixel_shuffle(self.decoder(posterior.sample(generator=generator)), PATCH)
