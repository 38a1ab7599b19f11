"""Latents as the base draws them: what the decoder has to make pictures of, beside the pictures that they were meant to be.

A true picture's latents are noised to some step and drawn anew from there (Meng et al. 2022, SDEdit): from an early step nothing
is left of the picture but its caption, from a late one everything but the finest texture.
"""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from deadiff.training.base import SCHEDULE, BaseTask
from deadiff.training.samples import rng_of
from deadiff.writing import write_whole

if TYPE_CHECKING:
    from deadiff.training.icon_art import IconArt

log = logging.getLogger(__name__)

# B batch, Z latent channels, h = w latents a side, T tokens, C token width

STEPS = 12  # of a whole drawing, as the model is used
GUIDANCE = 3.0
CHUNK = 128  # pictures a file
FROM_NOISE = 0.15  # share that is drawn whole


class Redrawn(NamedTuple):
    """N drawn latents and the pictures that they were meant to be."""

    latents: np.ndarray  # (N, Z, h, w) fp16, unscaled
    picture: np.ndarray  # (N,) numbers of pictures
    left: np.ndarray  # (N,) share of the steps that were drawn: 1 is a whole drawing


@torch.no_grad()
def redraw(unet: Any, latents: Tensor, text: Tensor, empty: Tensor, left: int, generator: torch.Generator) -> Tensor:
    """(B, Z, h, w) of unit variance -> the same after the last `left` of STEPS steps. text: (B, T, C); empty: (1, T, C)."""
    solver = DDIMScheduler(**SCHEDULE)  # pyright: ignore[reportArgumentType]
    solver.set_timesteps(STEPS)
    times, dtype = solver.timesteps[STEPS - left :], next(unet.parameters()).dtype
    said = torch.cat([text, empty.expand(len(text), -1, -1)]).to(dtype)
    noise = torch.randn(latents.shape, generator=generator)
    drawn = solver.add_noise(latents, noise, times[:1].expand(len(latents)))  # pyright: ignore[reportArgumentType]
    for t in times:
        asked, unasked = unet(torch.cat([drawn, drawn]).to(dtype), t, said).sample.float().chunk(2)
        drawn = solver.step(unasked + GUIDANCE * (asked - unasked), t, drawn).prev_sample  # pyright: ignore
    return drawn


def make_redrawn(folder: Path, count: int, seed: int, art: "IconArt", base: BaseTask) -> Redrawn:
    """Draw `count` of them into `folder`, in files of CHUNK; files that are there are kept, so that a killed run goes on.

    The words name the style, the sketch is that of the subject alone, as under a style reference.
    """
    scaling: float = base.vae.config.scaling_factor  # pyright: ignore
    unet = base.modules["unet"]
    dtype = next(unet.parameters()).dtype
    empty = base.read(base.empty.expand(3, 1, -1), dtype)
    for start in range(0, count, CHUNK):
        path = folder / f"{start:06d}.npz"
        if path.is_file():
            continue
        rng = rng_of(seed, start, stream=11)
        left = STEPS if rng.random() < FROM_NOISE else int(rng.integers(1, 2 * STEPS // 3 + 1))
        numbers, target = art.to_redraw(rng, min(CHUNK, count - start))
        latents, text = base.prepared(target)
        noise = torch.Generator().manual_seed(seed * 1_000_003 + start)
        drawn = redraw(unet, latents, base.read(text, dtype), empty, left, noise)
        found = Redrawn((drawn / scaling).half().numpy(), numbers, np.full(len(numbers), left / STEPS))
        write_whole(path, partial(_save, found))
        log.info("redrawn: %d of %d", start + len(numbers), count)
    files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    return Redrawn(*(np.concatenate([file[name] for file in files])[:count] for name in Redrawn._fields))


def _save(found: Redrawn, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **found._asdict())
