"""Grounds and surfaces: noise, paper, light on a relief, cells; every function takes its own random generator."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import f32
from deadiff.data.picture import blur, ramp

Shape = tuple[int, int]


def grain(rng: np.random.Generator, shape: Shape, sigma: float = 0) -> np.ndarray:
    """(H, W) noise of unit variance, a pixel fine, or `sigma` pixels coarse."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if sigma:
        values = blur(values, sigma)
        values /= values.std() + 1e-6
    return values


def clouds(rng: np.random.Generator, shape: Shape, cells: int, octaves: int = 1) -> np.ndarray:
    """(H, W) smooth noise of about unit variance with `cells` bumps a side, finer octaves added at half the height."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        side = min(cells * 2**octave, shape[0])
        coarse = rng.standard_normal((side + 1, side + 1), dtype=np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total / 1.1


def coordinates(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """x to the right and y down in units of a 128-pixel picture, each (H, W)."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x * (128 / width), y * (128 / height)


def stripes(shape: Shape, angle: float, period: float, wobble: np.ndarray | float = 0) -> np.ndarray:
    """(H, W) waves in [0, 1] that run along `angle` (radians), `period` units apart, bent by `wobble` units."""
    x, y = coordinates(shape)
    return (0.5 + 0.5 * np.sin(2 * np.pi * (y * np.cos(angle) - x * np.sin(angle) + wobble) / period)).astype(np.float32)


def dots(shape: Shape, angle: float, period: float) -> np.ndarray:
    """(H, W) a halftone screen in [0, 1]: 1 at the middle of each dot."""
    x, y = coordinates(shape)
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    return (0.5 + 0.25 * (np.cos(u) + np.cos(v))).astype(np.float32)


def warp(image: np.ndarray, rng: np.random.Generator, reach: float, cells: int) -> np.ndarray:
    """`image` bent by smooth noise of `reach` units, as an unsteady hand would draw it."""
    shape = image.shape[:2]
    x, y = np.meshgrid(np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32))
    reach *= shape[0] / 128
    return cv2.remap(
        image,
        x + clouds(rng, shape, cells) * reach,
        y + clouds(rng, shape, cells) * reach,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def paper(rng: np.random.Generator, shape: Shape, colour: np.ndarray, rough: float = 0.03, blotchy: float = 0.02) -> np.ndarray:
    """(H, W, 3) a sheet of `colour` with fibres and faint blotches."""
    surface = rough * grain(rng, shape, 0.7) + blotchy * clouds(rng, shape, 4, 2)
    return np.clip(colour + surface[..., None], 0, 1).astype(np.float32)


def relief(height: np.ndarray, angle: float, strength: float) -> np.ndarray:
    """(H, W) light from `angle` on a surface of `height`: 0 flat, up to +1 on lit and -1 on shaded slopes."""
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    lit = -(slope_x * np.float32(np.cos(angle)) + slope_y * np.float32(np.sin(angle)))
    return np.tanh(lit * np.float32(strength))


def shifted(mask: np.ndarray, right: float, down: float) -> np.ndarray:
    """`mask` moved by units, empty where nothing came from."""
    unit = mask.shape[0] / 128
    place = f32([[1, 0, right * unit], [0, 1, down * unit]])
    return cv2.warpAffine(mask, place, mask.shape[1::-1], flags=cv2.INTER_LINEAR)


def vignette(shape: Shape) -> np.ndarray:
    """(H, W) 0 in the middle, 1 in the corners."""
    x, y = coordinates(shape)
    return ramp(np.hypot(x - 64, y - 64), 40, 92)


def cells(rng: np.random.Generator, shape: Shape, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A broken pane: ((H, W) int piece of each pixel, (H, W) 1 on the joints)."""
    x, y = coordinates(shape)
    side = int(np.ceil(np.sqrt(number)))
    spots = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + rng.uniform(0, 1, (side**2, 2))) * (
        128 / side
    )
    nearest = np.stack([(x - px) ** 2 + (y - py) ** 2 for px, py in spots.astype(np.float32)]).argmin(0)
    joint = np.zeros(shape, np.float32)
    joint[:, 1:] += nearest[:, 1:] != nearest[:, :-1]
    joint[1:] += nearest[1:] != nearest[:-1]
    return nearest, np.clip(joint, 0, 1)


def bricks(rng: np.random.Generator, shape: Shape, colour: np.ndarray, mortar: np.ndarray) -> np.ndarray:
    """(H, W, 3) a wall, each brick a shade of its own."""
    x, y = coordinates(shape)
    row = np.floor(y / 11).astype(int)
    column = np.floor((x + (row % 2) * 13) / 26).astype(int)
    shade = rng.normal(0, 0.05, (16, 8)).astype(np.float32)[row % 16, column % 8]
    joint = np.maximum((y % 11) < 1.6, ((x + (row % 2) * 13) % 26) < 1.6).astype(np.float32)
    wall = colour + (shade + 0.03 * grain(rng, shape, 0.7))[..., None]
    wall = wall + (mortar - wall) * blur(joint, 0.5)[..., None]
    return np.clip(wall, 0, 1).astype(np.float32)


def wood(rng: np.random.Generator, shape: Shape, light: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """(H, W, 3) a plank with its grain running across."""
    x, y = coordinates(shape)
    bend = clouds(rng, shape, 3) * 7
    rings = 0.5 + 0.5 * np.sin((y * 0.42 + bend * 0.9 + 0.02 * x) * 1.6)
    fibres = cv2.blur(grain(rng, shape), (15, 1))
    share = np.clip(0.3 * rings + 0.35 * fibres + 0.1, 0, 1)
    return (light + (dark - light) * share[..., None]).astype(np.float32)
