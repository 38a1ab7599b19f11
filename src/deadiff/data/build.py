"""Art -> a data set on disk: plain pictures of every set, then renditions of them, part by part; a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib

import numpy as np

from deadiff.data.renditions import RENDITIONS, render
from deadiff.data.splits import HELD_OUT_RENDITIONS

SEEN_RENDITIONS = tuple(name for name in RENDITIONS if name not in HELD_OUT_RENDITIONS)


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator of its own for every named thing: order, shards and processes change nothing."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def planned_renditions(subject: str, set_name: str, number: int, seed: int) -> list[str]:
    """`number` different seen renditions for one plain picture."""
    order = generator(seed, "plan", subject, set_name).permutation(len(SEEN_RENDITIONS))
    return [SEEN_RENDITIONS[int(index)] for index in order[:number]]


def render_planned(image: np.ndarray, subject: str, set_name: str, rendition: str, seed: int) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 plain picture -> (its rendition, the palette's name)."""
    return render(image, rendition, generator(seed, "render", subject, set_name, rendition))
