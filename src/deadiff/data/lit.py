"""Renditions by light and screen: tubes, tubes' screens, rays, foils."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import f32, one_of, pick, rgb
from deadiff.data.picture import Picture, blur, kernel, over, ramp
from deadiff.data.textures import clouds, coordinates, grain, shifted, stripes, vignette

Drawn = tuple[np.ndarray, str]


def glowing(lines: np.ndarray, colour: np.ndarray, unit: float) -> np.ndarray:
    """(H, W, 3) light to add: a white-hot core and a halo of `colour`."""
    halo = 0.9 * blur(lines, 1.6 * unit) + 1.0 * blur(lines, 4.5 * unit) + 0.6 * blur(lines, 10 * unit)
    return halo[..., None] * colour + np.clip(lines, 0, 1)[..., None] * (0.35 + 0.65 * colour)


def neon(p: Picture, rng: np.random.Generator) -> Drawn:
    """Glass tubes on a dark wall: the outline in one colour, the inner lines in another."""
    name, outer, inner = one_of(
        rng,
        ("pink and cyan", "ff2d95", "21e6ff"),
        ("green and violet", "39ff6a", "b44dff"),
        ("orange and blue", "ff8a1f", "3d7bff"),
        ("red and yellow", "ff3131", "ffe14d"),
    )
    small = p.shrunk(0.86)
    wall = over(rgb("08060f"), rgb("1b1530"), ramp(clouds(rng, p.shape, 3, 2) - vignette(p.shape), -1.5, 1.5)[..., None])
    contour = cv2.dilate(small.outline, kernel(0.5 * p.unit))
    within = small.lines * (1 - ramp(blur(contour, 1.2 * p.unit), 0.1, 0.35))
    light = glowing(contour * 0.9, rgb(outer), p.unit) + glowing(within * 0.9, rgb(inner), p.unit)
    light = light + (0.05 * small.alpha)[..., None] * rgb(outer)
    return np.clip(1 - (1 - wall) * np.exp(-1.15 * light), 0, 1), name


def glitch(p: Picture, rng: np.random.Generator) -> Drawn:
    """A broken signal: red, green and blue apart, torn rows, scan lines, on dark."""
    name, ground = pick(rng, {"black": rgb("0a0a10"), "deep blue": rgb("0b1030"), "dark violet": rgb("190a28")})
    flats = rgb("16161d ff2e63 08d9d6 f9ed69 f5f5f5")
    scene = over(np.broadcast_to(ground, (*p.shape, 3)), over(p.colours(flats), ground, 0.85 * p.lines), p.alpha).astype(
        np.float32
    )
    reach = rng.uniform(3, 5.5)
    apart = np.dstack([shifted(scene[..., 0], -reach, 0), scene[..., 1], shifted(scene[..., 2], reach, 0)])
    rows = np.zeros(p.height, np.float32)
    for _ in range(int(rng.integers(4, 8))):
        start = int(rng.integers(p.height))
        rows[start : start + int(rng.uniform(2, 9) * p.unit)] = rng.uniform(-12, 12) * p.unit
    x, y = np.meshgrid(np.arange(p.width, dtype=np.float32), np.arange(p.height, dtype=np.float32))
    torn = cv2.remap(apart, x + rows[:, None], y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    scan = 0.86 + 0.14 * (stripes(p.shape, 0, 3.2) > 0.4)
    noise = 0.04 * grain(rng, p.shape)
    bar = (rows != 0)[:, None] & (rng.random(p.shape) < 0.02)
    torn = over(torn, rgb("f5f5f5"), cv2.blur(bar.astype(np.float32), (9, 1)) * 2)
    return np.clip(torn * scan[..., None] * 1.15 + noise[..., None], 0, 1), name


def thermal(p: Picture, rng: np.random.Generator) -> Drawn:
    """A heat camera: the figure glows from violet over orange to white against the cold."""
    name, heat = pick(
        rng,
        {
            "iron": rgb("05052b 2a0a6b 8f1a8a e0433e fba01d fff6a8"),
            "rainbow": rgb("06104a 0b5fd0 14c4a0 b5e61d ffb000 f02a10"),
            "arctic": rgb("02061f 123a8a 2f8fd8 8fd8f5 f5d76a f08a1d"),
        },
    )
    warm = 0.5 + 0.22 * p.tone + 0.22 * np.clip(p.depth / (16 * p.unit), 0, 1)
    cold = 0.1 + 0.05 * clouds(rng, p.shape, 3, 2) + 0.22 * ramp(p.distance / p.unit, 14, 0)
    level = over(cold[..., None], warm[..., None], p.alpha)[..., 0] - 0.36 * p.lines * p.alpha
    level = np.clip(blur(level.astype(np.float32), 0.9 * p.unit) + 0.012 * grain(rng, p.shape), 0, 0.999) * (len(heat) - 1)
    low = level.astype(int)
    return over(heat[low], heat[low + 1], (level - low)[..., None]), name


def hologram(p: Picture, rng: np.random.Generator) -> Drawn:
    """Iridescent foil: pastel rainbows that slide across the figure and its silver ground."""
    x, y = coordinates(p.shape)
    phase = rng.uniform(0, 6.3)
    flow = clouds(rng, p.shape, 3) * 1.1

    def sheen(scale: float, shift: float) -> np.ndarray:
        t = (x * 0.8 + y) / scale + flow + shift + phase
        return np.dstack([0.5 + 0.5 * np.sin(t), 0.5 + 0.5 * np.sin(t + 2.1), 0.5 + 0.5 * np.sin(t + 4.2)]).astype(np.float32)

    ground = 0.80 + 0.14 * sheen(15, 0)
    fine = 0.03 * (stripes(p.shape, 0.785, 2.6) - 0.5)
    figure = over(0.40 + 0.55 * sheen(11, 2.4), f32([0.16, 0.13, 0.34]), (0.75 * (1 - p.tone))[..., None])
    light = relief_of(p)
    figure = np.clip(figure + 0.22 * light[..., None], 0, 1)
    ground = over(ground + fine[..., None], figure, p.alpha)
    return over(ground, f32([0.2, 0.14, 0.4]), 0.75 * p.lines), "iridescent"


def relief_of(p: Picture) -> np.ndarray:
    """(H, W) light on the figure's rounded edge."""
    from deadiff.data.textures import relief

    return relief(blur(p.hard.astype(np.float32), 1.6 * p.unit), -2.3, 0.8)


def xray(p: Picture, rng: np.random.Generator) -> Drawn:
    """A radiograph: translucent, brighter where dense, edges brightest, on black-blue film."""
    name, film, bone = one_of(rng, ("blue", "030a16", "cfe6ff"), ("green", "02100b", "d2ffe6"), ("grey", "070708", "f0f0f0"))
    small = p.shrunk(0.9)
    depth = np.clip(small.depth / (12 * p.unit), 0, 1)
    dense = 0.16 + 0.42 * (1 - small.tone) + 0.14 * depth
    rim = 0.5 * ramp(small.depth / p.unit, 5, 0)
    level = (dense + rim) * small.alpha + 0.55 * small.lines
    level = blur(level.astype(np.float32), 1.0 * p.unit) + 0.10 * blur(small.alpha, 9 * p.unit)
    level = level + 0.022 * grain(rng, p.shape, 0.6) + 0.02 * clouds(rng, p.shape, 3, 2)
    return over(rgb(film), rgb(bone), np.clip(level, 0, 1)[..., None]), name


def crt(p: Picture, rng: np.random.Generator) -> Drawn:
    """A phosphor terminal: one glowing colour, scan lines, a curved dark screen."""
    name, glow = pick(rng, {"green": rgb("33ff66"), "amber": rgb("ffb000"), "ice": rgb("7fd4ff")})
    small = p.shrunk(0.84)
    level = (0.04 + (0.18 if small.mono else 0.42) * small.tone) * small.alpha * (
        1 - small.lines
    ) + 0.95 * small.lines * small.alpha
    level = np.maximum(level, 0.9 * small.outline)
    pixels = cv2.resize(
        cv2.resize(level.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA),
        p.shape[::-1],
        interpolation=cv2.INTER_LINEAR,
    )
    scan = ramp(stripes(p.shape, 0, 4), 0.05, 0.6)
    bloom = 0.5 * blur(pixels, 2.5 * p.unit) + 0.3 * blur(pixels, 7 * p.unit)
    light = pixels * (0.25 + 0.85 * scan) + bloom + 0.05 + 0.012 * grain(rng, p.shape)
    screen = light[..., None] * glow + 0.3 * ramp(light, 0.8, 1.5)[..., None]
    x, y = coordinates(p.shape)
    curve = ramp(np.maximum(np.abs(x - 63.5) + ((y - 63.5) / 30) ** 2, np.abs(y - 63.5) + ((x - 63.5) / 30) ** 2), 64, 60)
    return np.clip(screen * (curve * (1 - 0.4 * vignette(p.shape)))[..., None] + 0.02, 0, 1), name


def vaporwave(p: Picture, rng: np.random.Generator) -> Drawn:
    """The eighties that never were: a striped sun, a wire floor, the figure in pink and cyan."""
    name, top, low, sun = one_of(
        rng,
        ("magenta", "1a0b3b", "ff4fa3", "ffd166"),
        ("purple", "12063d", "a04bff", "ff7ac6"),
        ("teal", "03122e", "1fb6c9", "ff6ec7"),
    )
    x, y = coordinates(p.shape)
    ground = over(rgb(top), rgb(low), ramp(y, 0, 92)[..., None])
    disc = ramp(np.hypot(x - 64, y - 56), 41, 40) * ((y < 52) | ((y % 7) > 2.2))
    ground = over(ground, over(rgb(sun), rgb("ff3d81"), ramp(y, 24, 92)[..., None]), disc)
    depth = np.maximum(y - 92, 0.01)
    wires = np.maximum(
        ramp(np.abs(((x - 64) / (depth + 6) * 2.2) % 1 - 0.5), 0.44, 0.49), ramp(np.abs((60 / (depth + 6)) % 1 - 0.5), 0.42, 0.48)
    )
    floor = over(rgb(top) * 0.8, rgb("3df5ff"), (0.75 * wires)[..., None])
    ground = np.where((y > 92)[..., None], floor, ground)
    small = p.shrunk(0.8, (0, 2))
    ramp_colours = rgb("2b0f54 b5179e ff5fa2 7df9ff f8ffff")
    rim = blur(cv2.dilate(small.hard.astype(np.float32), kernel(1.4 * p.unit)), 0.7 * p.unit)
    ground = over(ground + 0.25 * blur(rim, 5 * p.unit)[..., None] * rgb("7df9ff"), rgb("f5fbff"), rim)
    ground = over(ground, small.filled(ramp_colours), small.alpha)
    return np.clip(over(ground, rgb("1a0b3b"), np.clip(small.lines, 0, 1)), 0, 1), name
