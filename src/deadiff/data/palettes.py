"""Named colours: palettes of five from dark to light, papers, and single inks."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Row = TypeVar("Row")


def f32(values) -> np.ndarray:
    return np.array(values, np.float32)


def rgb(hexes: str) -> np.ndarray:
    """'2d1b4e a23e66' -> (2, 3) float32 in [0, 1]; a single colour gives (3,)."""
    colours = f32([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in hexes.split()])
    return colours[0] if len(colours) == 1 else colours


PALETTES: dict[str, np.ndarray] = {
    "sunset": rgb("2d1b4e a23e66 f26b5b ffb35c ffe9b0"),
    "forest": rgb("1c2f26 3d6b47 86a95a d3c77a f5efcf"),
    "ocean": rgb("0b2545 13568a 2a9fc0 8fd8d2 f1fbf4"),
    "candy": rgb("5b2a86 e0479e ff8fb1 8fe3e8 fff6d8"),
    "earth": rgb("33221b 7d4427 c47f45 e3bd83 f6ead0"),
    "berry": rgb("2a0f2e 7a1f4f c93a62 f08fa3 fde8e4"),
    "retro": rgb("23395b d1495b 66a182 edae49 f7f0dc"),
    "mint": rgb("14363a 2f7c78 6fc3a6 c3ead0 fffbe9"),
    "citrus": rgb("34403a 6a994e f2b632 f7e463 fffceb"),
    "dusk": rgb("1d1f3b 4b4e9b 8f7fd1 e3a6d0 fdeaf0"),
    "autumn": rgb("3a1d16 8f2d1c d9662b f0b24b f9ebc8"),
    "nordic": rgb("2b3440 56708a 9db8c7 dbe2e0 f8f4ec"),
    "tropical": rgb("06363f 00867d ff6f59 ffc857 fdf5e0"),
}
INKS: dict[str, np.ndarray] = {
    "black": rgb("1a1a1c"),
    "navy": rgb("1b2f5b"),
    "crimson": rgb("a3202f"),
    "forest green": rgb("1f5136"),
    "sepia": rgb("5a3620"),
    "violet": rgb("4b2a78"),
    "teal": rgb("0d5b62"),
}


def one_of(rng: np.random.Generator, *rows: Row) -> Row:
    """One of `rows` by lot."""
    return rows[int(rng.integers(len(rows)))]


def pick(rng: np.random.Generator, choices: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """One of `choices` by lot: (its name, its colours)."""
    name = list(choices)[int(rng.integers(len(choices)))]
    return name, choices[name]
