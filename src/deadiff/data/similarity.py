"""How alike two pictures look, without any weights: numbers for style, and thumbnails for near-duplicates.

The looks of a picture are 111 numbers in three blocks, which count equally:
- colour: mean and spread in Lab, histograms of lightness, chroma and hue (weighted by chroma), the colour of the border;
- edges: how strong they are and which way they run, at two scales;
- texture: the Gram matrix of six derivative filters at two scales, with its diagonal as energies. What Gatys' style loss takes
  of a network, here of fixed filters: which strokes come together, wherever they stand.
They know nothing of what is drawn. A CLIP vision tower adds that where one is given (features.py).
"""

from __future__ import annotations

import cv2
import numpy as np

# H, W pixels of a picture; D looks; B pairs

SIDE = 96  # pixels at which pictures are compared
BLOCKS = (("colour", 41), ("edges", 28), ("texture", 42))  # numbers in each
LOOKS = sum(size for _, size in BLOCKS)
THUMB = 8  # pixels a side of the thumbnail that tells near-duplicates
VERSION = 1  # of these numbers: features of another version are computed again

QUANTUM = 1 / 31  # of a standard deviation: looks are kept as int8, up to +-4.1 deviations
_HUES, _LIGHTS, _CHROMAS, _TURNS = 12, 10, 10, 8  # bins
_STRENGTHS = np.array([0.02, 0.08, 0.25, 0.7, 1.6], np.float32)  # of edges, where the bins meet


def looks_of(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (D,) float32, not yet standardised."""
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # L 0..100, a and b about -100..100
    light = lab[..., 0] / 100
    half = cv2.resize(light, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA)
    found = np.concatenate([_colour(lab), _edges(light), _edges(half), _texture(light), _texture(half)])
    return found.astype(np.float32)


def thumbnail_of(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (3 * THUMB**2,) uint8."""
    return cv2.resize(picture, (THUMB, THUMB), interpolation=cv2.INTER_AREA).reshape(-1)


def quantised(looks: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """(B, D) looks -> int8 in steps of QUANTUM standard deviations; what lies further out is cut off."""
    steps = (looks.astype(np.float32) - mean) / (deviation * QUANTUM)
    return np.clip(np.rint(steps), -127, 127).astype(np.int8)


def style_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B, D) int8 twice -> (B,) float64: root mean square difference in standard deviations, each block counting the same.

    Sums are of whole numbers, so every machine and every batch finds the same.
    """
    gap = np.subtract(a, b, dtype=np.int32)
    np.square(gap, out=gap)
    total, start = np.zeros(len(a)), 0
    for _, size in BLOCKS:
        total += gap[:, start : start + size].sum(axis=1) / size
        start += size
    return np.sqrt(total / len(BLOCKS)) * QUANTUM


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B, T) uint8 thumbnails twice -> (B,) float64 in [0, 1]: root mean square difference. 0 is the same picture, in small."""
    gap = np.subtract(a, b, dtype=np.int32)
    np.square(gap, out=gap)
    return np.sqrt(gap.sum(axis=1) / gap.shape[1]) / 255


def likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B, E) embeddings of unit length twice -> (B,) cosines."""
    return np.einsum("be,be->b", a.astype(np.float32), b.astype(np.float32))


def _colour(lab: np.ndarray) -> np.ndarray:
    flat = lab.reshape(-1, 3)
    chroma, hue = (x.reshape(-1) for x in cv2.cartToPolar(lab[..., 1].copy(), lab[..., 2].copy()))  # hue in [0, 2 pi)
    hues = np.bincount((hue * (_HUES / 6.2832)).astype(np.int32), weights=chroma, minlength=_HUES)[:_HUES] / (chroma.sum() + 1e-3)
    lights = np.bincount((flat[:, 0] * (_LIGHTS / 100.01)).astype(np.int32), minlength=_LIGHTS) / len(flat)
    chromas = np.bincount((np.minimum(chroma, 99.9) * (_CHROMAS / 100)).astype(np.int32), minlength=_CHROMAS) / len(flat)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    mean, deviation = cv2.meanStdDev(lab)
    return np.concatenate([mean[:, 0], deviation[:, 0], hues, lights, chromas, np.median(border, axis=0)])


def _edges(light: np.ndarray) -> np.ndarray:
    across, down = cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)
    strength, turn = (x.reshape(-1) for x in cv2.cartToPolar(across, down))
    turn = (turn * (2 * _TURNS / 6.2832)).astype(np.int32) % _TURNS  # an edge and its opposite are one
    turns = np.bincount(turn, weights=strength, minlength=_TURNS) / (strength.sum() + 1e-3)
    strengths = np.bincount(np.searchsorted(_STRENGTHS, strength), minlength=len(_STRENGTHS) + 1) / len(strength)
    return np.concatenate([turns, np.sqrt(strengths)])


_FILTERS = [
    np.array(rows, np.float32)
    for rows in (
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],  # across
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],  # down
        [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]],  # one diagonal
        [[0, -1, -2], [1, 0, -1], [2, 1, 0]],  # the other
        [[0, 1, 0], [1, -4, 1], [0, 1, 0]],  # spots and lines
        [[1, -2, 1], [-2, 4, -2], [1, -2, 1]],  # checks and grain
    )
]
_UPPER = np.triu_indices(len(_FILTERS))


def _texture(light: np.ndarray) -> np.ndarray:
    answers = np.abs(np.stack([cv2.filter2D(light, cv2.CV_32F, kernel).reshape(-1) for kernel in _FILTERS]))
    gram = answers @ answers.T / answers.shape[1]
    return np.log(gram[_UPPER] + 1e-4)  # energies span magnitudes
