"""PatchAutoencoder: 128 px pictures <-> 8x8 latents for the icons model: a linear encoder, a convolutional decoder.

The encoder is one convolution without overlap, the principal components of 16 px patches: the latent keeps the order of pixels
(large shapes in strong channels, texture in faint ones), which diffusion learns faster than the latent of a learned encoder
(docs/log.md), and it stays the same while the decoder gets better. The decoder adds to the linear inverse what that has lost.
"""

# B batch, H, W picture size in pixels, h = H / 16, w = W / 16, Z latent channels

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F

PATCH = 4  # pixels on each side that the last convolution unfolds from channels


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """An autoencoder with the interface that diffusers' Stable Diffusion pipelines expect of `vae`.

    `block_out_channels` names the channels at full, half, quarter... resolution, as everywhere in diffusers; the first two levels
    are folded pixels (3 and 3 * 2 * 2), so a pipeline that computes `2 ** (len - 1)` finds the true reduction.
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
        side = 2 ** (len(block_out_channels) - 1)
        levels = tuple(block_out_channels[2:])
        self.encoder = nn.Conv2d(3, latent_channels, side, stride=side)
        self.inverse = nn.ConvTranspose2d(latent_channels, 3, side, stride=side)
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=3 * PATCH * PATCH,
            up_block_types=("UpDecoderBlock2D",) * len(levels),
            block_out_channels=levels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )

    @torch.no_grad()
    def fit(self, patches: torch.Tensor) -> None:
        """Set the encoder and its inverse from (N, 3 * side * side) patches in [-1, 1]; the decoder begins by adding nothing.

        A component of standard deviation s is scaled by 1 / sqrt(s): half way between pixels (whose texture would drown in
        noise) and white (whose texture would weigh as much as shape).
        """
        mean = patches.mean(0)
        variance, basis = torch.linalg.eigh(torch.cov(patches.T))
        spread = variance.flip(0)[: self.encoder.out_channels].clamp(min=1e-6).sqrt()
        basis = basis.flip(1)[:, : self.encoder.out_channels].T  # (Z, 3 * side * side)
        basis = basis * basis.sum(1, keepdim=True).sign()  # the sign of an eigenvector is arbitrary
        shape = self.encoder.weight.shape
        self.encoder.weight.copy_((basis / spread.sqrt()[:, None]).view(shape))
        colour = mean.view(3, -1).mean(1)  # the mean patch is almost flat: its colour is all that the inverse need add
        self.encoder.bias.copy_(-(self.encoder.weight.sum((2, 3)) @ colour))  # pyright: ignore[reportOptionalMemberAccess]
        self.inverse.weight.copy_((basis * spread.sqrt()[:, None]).view(shape))
        self.inverse.bias.copy_(colour)  # pyright: ignore[reportOptionalMemberAccess]
        nn.init.zeros_(self.decoder.conv_out.weight)
        nn.init.zeros_(self.decoder.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, Z, h, w), as a distribution without width."""
        mean = self.encoder(x)
        posterior = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, -30.0)], dim=1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Latents (B, Z, h, w) -> pixels (B, 3, H, W), about [-1, 1]. Pipelines pass a `generator`; it has no use here."""
        pixels = self.inverse(z) + F.pixel_shuffle(self.decoder(z), PATCH)
        return DecoderOutput(sample=pixels) if return_dict else (pixels,)
