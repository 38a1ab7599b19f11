"""Stage 1 of the icons model: pictures <-> a small latent: principal components, then a decoder for what they lost.

The latents are ready before the first step: the base can learn from them while the decoder still improves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from deadiff.autoencoder import PatchAutoencoder
from deadiff.training.loop import Task
from deadiff.training.samples import to_pixels
from deadiff.writing import write_whole

# B batch, S side in pixels, Z latent channels, h = w = S / 16

FIT_BATCH = 256  # pictures


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder and weights of its losses."""

    block_out_channels: tuple[int, ...] = (3, 12, 96, 128, 192)
    layers_per_block: int = 1
    latent_channels: int = 32
    noise: float = 0.1  # greatest standard deviation of the noise on the decoder's input, in units of the latents' own
    edge_weight: float = 1.0  # of the difference of picture gradients, at full, half and quarter size
    fitted_on: int = 4096  # pictures whose patches give the principal components


def fitted_autoencoder(config: AutoencoderConfig, draw: Callable[[int, int], np.ndarray]) -> PatchAutoencoder:
    """An autoencoder fitted to the pictures of `draw(step, count)`, uint8 (count, S, S, 3), its decoder still without effect.

    One scale for all channels: those of little energy stay faint, so that diffusion settles the large shapes first.
    """
    vae = PatchAutoencoder(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
    )
    side = vae.encoder.stride[0]
    patches = [F.unfold(to_pixels(draw(i, FIT_BATCH)), side, stride=side) for i in range(-(-config.fitted_on // FIT_BATCH))]
    vae.fit(torch.cat(patches).transpose(1, 2).flatten(0, 1))
    latents = vae.encode(to_pixels(draw(0, FIT_BATCH))).latent_dist.mode()  # pyright: ignore
    vae.register_to_config(scaling_factor=round(1 / float(latents.detach().std()), 5))
    return vae.bfloat16().float()  # exactly what training in bf16 will hold


class AutoencoderTask(Task):
    """Teach the decoder to reconstruct pictures, uint8 (N, S, S, 3); `draw(step, count)` gives a batch of them."""

    def __init__(self, config: AutoencoderConfig, draw: Callable[[int, int], np.ndarray], vae: PatchAutoencoder) -> None:
        self.config = config
        self.draw = draw
        vae.encoder.requires_grad_(False)
        vae.inverse.requires_grad_(False)
        self.modules = {"vae": vae}

    @property
    def autoencoder(self) -> PatchAutoencoder:
        return self.modules["vae"]  # pyright: ignore[reportReturnType]

    def batch(self, draw: int, batch_size: int) -> torch.Tensor:
        return to_pixels(self.draw(draw, batch_size))

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """L1 of pixels + L1 of their gradients on three scales, decoded from latents with a little noise, as a sampler leaves."""
        vae = self.autoencoder
        with torch.no_grad():
            latents = vae.encode(batch.to(vae.dtype)).latent_dist.mode()  # pyright: ignore
        much = torch.rand(len(batch), 1, 1, 1, generator=generator) * self.config.noise / vae.config.scaling_factor  # pyright: ignore
        noise = much * torch.randn(latents.shape, generator=generator)
        drawn = vae.decode(latents + noise.to(latents.dtype)).sample.float()  # pyright: ignore
        pixel = (drawn - batch).abs().mean()
        edge = edge_difference(drawn, batch)
        return pixel + self.config.edge_weight * edge, {"pixel": pixel.detach(), "edge": edge.detach()}

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """Eight pictures of the training stream above their reconstructions."""
        batch = self.batch(step, 16)
        posterior = self.autoencoder.encode(batch.to(self.autoencoder.dtype)).latent_dist  # pyright: ignore
        drawn = self.autoencoder.decode(posterior.mode()).sample  # pyright: ignore
        save_rows([batch, drawn], folder / f"preview-{step:08d}.png")


def save_rows(rows: Sequence[torch.Tensor], path: Path) -> None:
    """Pictures (B, 3, S, S) in [-1, 1], a row of each B, as one PNG."""
    sheet = torch.cat([torch.cat(list(row.float()), dim=2) for row in rows], dim=1)
    Image.fromarray(sheet.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


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


def save_latents(path: Path, latents: np.ndarray) -> None:
    """Whole or not at all: a later run takes the file that it finds."""

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, latents)

    write_whole(path, write)
