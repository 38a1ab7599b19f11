"""Stage 1 of the icons model: pictures <-> a small latent, by reconstruction of flat art with sharp edges."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from deadiff.autoencoder import PatchAutoencoder
from deadiff.training.loop import Task
from deadiff.training.samples import to_pixels

# B batch, S side in pixels, Z latent channels, h = w = S / 16


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder and weights of its losses."""

    block_out_channels: tuple[int, ...] = (3, 12, 96, 128, 192)
    layers_per_block: int = 1
    latent_channels: int = 32
    kl_weight: float = 3e-4  # per latent element; large enough that neighbours in latent space look alike, which diffusion needs
    edge_weight: float = 1.0  # of the difference of picture gradients, at full, half and quarter size


class AutoencoderTask(Task):
    """Reconstruct pictures given as uint8 (N, S, S, 3); `draw(step, count)` gives a batch of them."""

    def __init__(self, config: AutoencoderConfig, draw: Callable[[int, int], np.ndarray]) -> None:
        self.config = config
        self.draw = draw
        autoencoder = PatchAutoencoder(
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
        )
        self.modules = {"vae": autoencoder}

    @property
    def autoencoder(self) -> PatchAutoencoder:
        return self.modules["vae"]  # pyright: ignore[reportReturnType]

    def batch(self, draw: int, batch_size: int) -> torch.Tensor:
        return to_pixels(self.draw(draw, batch_size))

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L1 of pixels + L1 of their gradients on three scales + KL of the posterior to N(0, 1)."""
        posterior = self.autoencoder.encode(batch.to(self.autoencoder.dtype)).latent_dist  # pyright: ignore
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latents = posterior.mean + posterior.std * noise.to(posterior.mean.dtype)
        drawn = self.autoencoder.decode(latents).sample.float()  # pyright: ignore
        pixel = (drawn - batch).abs().mean()
        edge = edge_difference(drawn, batch)
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = pixel + self.config.edge_weight * edge + self.config.kl_weight * kl
        return loss, {"pixel": pixel.detach(), "edge": edge.detach(), "kl": kl.detach()}

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """Eight pictures of the training stream above their reconstructions."""
        batch = self.batch(step, 16)
        posterior = self.autoencoder.encode(batch.to(self.autoencoder.dtype)).latent_dist  # pyright: ignore
        drawn = self.autoencoder.decode(posterior.mode()).sample  # pyright: ignore
        rows = [torch.cat(list(x), dim=2) for x in (batch, drawn.float())]
        sheet = torch.cat(rows, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(sheet).save(folder / f"preview-{step:08d}.png")


def edge_difference(drawn: torch.Tensor, target: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """Mean L1 between the horizontal and vertical gradients of (B, 3, S, S) pictures at full, half, quarter... size."""
    error = drawn - target
    total = error.new_zeros(())
    for _ in range(scales):
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total / scales


@torch.no_grad()
def encode_all(autoencoder: PatchAutoencoder, pictures: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """uint8 (N, S, S, 3) -> the means of their posteriors, (N, Z, h, w) fp16, unscaled."""
    parts = []
    for start in range(0, len(pictures), batch_size):
        pixels = to_pixels(pictures[start : start + batch_size]).to(autoencoder.dtype)  # pyright: ignore
        parts.append(autoencoder.encode(pixels).latent_dist.mode().half().numpy())  # pyright: ignore
    return np.concatenate(parts)


def set_scaling(autoencoder: PatchAutoencoder, pictures: np.ndarray) -> None:
    """Record in the config the scale that gives latents of `pictures`, uint8 (N, S, S, 3), standard deviation 1.

    One scale for all channels: channels of little energy stay faint, so that diffusion settles the large shapes first.
    """
    spread = float(encode_all(autoencoder, pictures).astype(np.float32).std())
    autoencoder.register_to_config(scaling_factor=round(1 / spread, 5))
