"""Styles of pictures that nobody named: k-means over their looks (similarity.py) and CLIP embeddings where there are any."""

from __future__ import annotations

import numpy as np

from deadiff.data.similarity import BLOCKS

# N pictures, D looks, E width of a CLIP embedding, K styles

ROUNDS = 100  # of k-means, at most
PICTURES_PER_STYLE = 30  # where the number of styles is not given


def usual_number(pictures: int) -> int:
    """How many styles so many pictures are taken to have if nobody says: one in 30, at least 2 and at most 200."""
    return min(max(2, round(pictures / PICTURES_PER_STYLE)), 200, pictures)


def style_space(looks: np.ndarray, clip: np.ndarray | None = None) -> np.ndarray:
    """(N, D) looks, (N, E) embeddings or None -> (N, D [+ E]) float32 in which near pictures look alike.

    Every number is standardised, cut at four deviations, and every block counts the same; CLIP counts as one more block.
    """
    scaled = np.clip((looks - looks.mean(axis=0)) / (looks.std(axis=0) + 1e-6), -4, 4)
    start, parts = 0, []
    for _, size in BLOCKS:
        parts.append(scaled[:, start : start + size] / size**0.5)
        start += size
    if clip is not None:
        centred = clip.astype(np.float32) - clip.astype(np.float32).mean(axis=0)
        parts.append(centred / (centred.std() * centred.shape[1] ** 0.5 + 1e-6))
    return np.concatenate(parts, axis=1).astype(np.float32)


def kmeans(points: np.ndarray, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> (N,) cluster of each point, (K, D) centres. Begins as k-means++ does; the greatest cluster comes first."""
    rng = np.random.default_rng([seed, 7])
    centres = points[[int(rng.integers(len(points)))]]
    nearest = squared_distances(points, centres)[:, 0]
    while len(centres) < clusters and nearest.sum() > 0:
        new = points[[int(rng.choice(len(points), p=nearest / nearest.sum()))]]
        centres = np.concatenate([centres, new])
        nearest = np.minimum(nearest, squared_distances(points, new)[:, 0])
    label = np.full(len(points), -1)
    for _ in range(ROUNDS):
        found = squared_distances(points, centres).argmin(axis=1)
        if (found == label).all():
            break
        label = found
        for number in range(len(centres)):
            if (label == number).any():
                centres[number] = points[label == number].mean(axis=0)
    order = np.argsort(-np.bincount(label, minlength=len(centres)), kind="stable")
    rank = np.empty(len(centres), int)
    rank[order] = np.arange(len(centres))
    return rank[label], centres[order]


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, D), (K, D) -> (N, K) float64."""
    a, b = points.astype(np.float64), centres.astype(np.float64)
    return np.maximum((a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1), 0)
