"""Stage 6 of the icons model: the decoder learns to make clean pictures of what the base draws.

The autoencoder's decoder has seen true latents, with hardly any noise: what noise a small base leaves (a fifth of the latents'
spread) it would draw as grain on every ground. Here it is shown as much noise, and latents that the base drew
(deadiff.training.redrawn). Encoder and base stay as they are.

B batch, S picture side in pixels, Z latent channels, h = w = S / 16.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deadiff.autoencoder import PatchAutoencoder
from deadiff.training.autoencoder import edge_difference, save_rows
from deadiff.training.loop import Task
from deadiff.training.samples import to_pixels

SHOWN = 2**31  # the draw of the previews
COARSE = 8  # pixels: what a far drawing has to keep of its latents are colours and shapes of this size


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What is decoded."""

    pictures: int = 6400  # that the base draws once, before the first step
    drawn_share: float = 0.6  # of the samples; the others are true latents with noise
    noise: float = 0.3  # greatest standard deviation of that noise, in units of the latents' own


class Shown(NamedTuple):
    latents: Tensor  # (B, Z, h, w), unscaled
    pictures: Tensor  # (B, 3, S, S) that they were meant to be
    left: Tensor  # (B,) share of the steps that the base drew; 0: true latents


class DecoderTask(Task):
    """`draw(draw, count)` -> latents, uint8 pictures (B, S, S, 3) and shares, as Shown."""

    def __init__(
        self,
        config: DecoderConfig,
        vae: PatchAutoencoder,
        draw: Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    ) -> None:
        self.config, self.draw = config, draw
        self.before = copy.deepcopy(vae).requires_grad_(False).eval()
        vae.encoder.requires_grad_(False)
        vae.inverse.requires_grad_(False)
        self.modules = {"vae": vae}

    def batch(self, draw: int, batch_size: int) -> Shown:
        latents, pictures, left = self.draw(draw, batch_size)
        return Shown(torch.from_numpy(latents).float(), to_pixels(pictures), torch.from_numpy(left).float())

    def loss(self, batch: Shown, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 of pixels and of their gradients, the less the more was drawn, for a far drawing is of another picture; of that
        L1 to what the decoder made before, in squares of COARSE pixels.
        """
        vae: Any = self.modules["vae"]
        much = torch.rand(len(batch.latents), 1, 1, 1, generator=generator) * self.config.noise / vae.config.scaling_factor
        much = much * (batch.left == 0)[:, None, None, None]
        latents = batch.latents + much * torch.randn(batch.latents.shape, generator=generator)
        drawn = vae.decode(latents.to(vae.dtype)).sample.float()

        near = (1 - 2 * batch.left).clamp(min=0)[:, None, None, None]  # 1 for true latents, 0 once half of the steps are drawn
        error = (drawn - batch.pictures) * near
        pixel, edge = error.abs().mean(), edge_difference(error, torch.zeros_like(error))
        with torch.no_grad():
            before = self.before.decode(latents.to(self.before.dtype)).sample.float().clamp(-1, 1)  # pyright: ignore
        coarse = (F.avg_pool2d(drawn - before, COARSE) * (1 - near)).abs().mean()
        return pixel + edge + coarse, {"pixel": pixel.detach(), "edge": edge.detach(), "coarse": coarse.detach()}

    @torch.no_grad()
    def preview(self, step: int, folder: Path) -> None:
        """What was meant, as decoded before, and as decoded now."""
        shown = self.batch(SHOWN, 16)
        decoders: list[Any] = [self.before, self.modules["vae"]]
        made = [decoder.decode(shown.latents.to(decoder.dtype)).sample for decoder in decoders]
        save_rows([shown.pictures, *made], folder / f"preview-{step:08d}.png")
