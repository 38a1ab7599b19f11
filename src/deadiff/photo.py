"""Photos, masks and control images that a drawing starts from: sized for the model; inpainting for latents of any width.

B batch, Z latent channels, h, w latent size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def fitting_size(
    picture: Image.Image, width: int | None, height: int | None, native: tuple[int, int], step: int
) -> tuple[int, int]:
    """(width, height) to draw at: as asked for, else the picture's shape with the native number of pixels, in whole steps."""
    if width and height:
        return width, height
    if width or height:
        scale = width / picture.width if width else (height or 1) / picture.height
    else:
        scale = (native[0] * native[1] / (picture.width * picture.height)) ** 0.5
    fitted = (max(step, round(side * scale / step) * step) for side in picture.size)
    across, down = fitted
    return width or across, height or down


def resized(picture: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, resample)


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, Z, h, w), scaled for the U-Net; each alone, so that none depends on its company."""
    return torch.cat([vae.encode(x[None]).latent_dist.mode() for x in pixels]) * vae.config.scaling_factor


class LatentBlend:
    """Inpainting where diffusers' pipeline cannot: it knows latents of 4 channels only, or U-Nets that take the mask themselves.

    After each step the latents outside the mask are the photo's, noised to the step's level (as diffusers does for 4 channels).
    """

    def __init__(self, pipe: Any, images: Sequence[Image.Image], masks: Sequence[Image.Image], seeds: Sequence[int]) -> None:
        device, dtype = pipe._execution_device, pipe.unet.dtype
        pixels = pipe.image_processor.preprocess(list(images)).to(device, dtype)
        self.photo = encoded(pipe.vae, pixels)
        drawn = [torch.randn(x.shape, generator=torch.Generator().manual_seed(s)) for x, s in zip(self.photo, seeds, strict=True)]
        self.noise = torch.stack(drawn).to(device, dtype)  # (B, Z, h, w)
        white = torch.stack([torch.frombuffer(bytearray(m.tobytes()), dtype=torch.uint8).view(m.height, m.width) for m in masks])
        size = self.photo.shape[2:]
        self.mask = F.interpolate((white[:, None] >= 128).float(), size).to(device, dtype)  # (B, 1, h, w), 1 where to draw

    def __call__(self, pipe: Any, step: int, latents: Tensor) -> Tensor:
        """(B, Z, h, w) after `step` -> the same with the photo outside the mask."""
        left = pipe.num_timesteps - 1 - step
        photo = self.photo
        if left > 0:
            timestep = pipe.scheduler.timesteps[-left]
            photo = pipe.scheduler.add_noise(photo, self.noise, timestep.repeat(len(photo)))
        return (1 - self.mask) * photo + self.mask * latents
