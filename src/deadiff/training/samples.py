"""Drawing training samples: which pictures come in which step, as a pure function of (seed, step)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Drawn(NamedTuple):
    """Latents of pictures, and captions for what is read and what is sketched."""

    latents: np.ndarray  # (B, Z, h, w) in the autoencoder's units
    words: Sequence[str]
    sketched: Sequence[str]
    added: Sequence[str]  # whose difference from the empty caption's sketch is added; "" for none


def rng_of(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """The generator of one step of one stream, the same on every machine and after every resume."""
    return np.random.default_rng([seed, stream, step])


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def recolour(pictures: np.ndarray, rng: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """Permute channels, invert or tint a share of uint8 (B, S, S, 3): colours that the art itself lacks."""
    pictures = pictures.copy()
    for i in np.flatnonzero(rng.random(len(pictures)) < share):
        x = pictures[i][..., rng.permutation(3)].astype(np.float32)
        if rng.random() < 0.5:
            x = 255 - x
        low, high = np.sort(rng.uniform(0, 255, (2, 3)), axis=0) if rng.random() < 0.5 else (0.0, 255.0)
        pictures[i] = (low + x * (np.asarray(high) - low) / 255).astype(np.uint8)
    return pictures


def choose(rng: np.random.Generator, count: int, plain: np.ndarray, rendered: np.ndarray, plain_share: float) -> np.ndarray:
    """(count,) picture numbers: plain art and renditions in the given shares, uniform within each."""
    if not len(rendered):
        return rng.choice(plain, count)
    return np.where(rng.random(count) < plain_share, rng.choice(plain, count), rng.choice(rendered, count))
