"""Renditions by brush: watercolour, oil, points, night, wood-block colours."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import PALETTES, f32, one_of, pick, rgb
from deadiff.data.picture import Picture, blur, kernel, over, ramp
from deadiff.data.textures import clouds, coordinates, grain, paper, relief, shifted, stripes, warp

Drawn = tuple[np.ndarray, str]


def watercolour(p: Picture, rng: np.random.Generator) -> Drawn:
    name, palette = pick(rng, PALETTES)
    sheet = paper(rng, p.shape, rgb("fcfaf4"), 0.012, 0.006)
    wet = warp(np.dstack([blur(p.colours(palette), 1.5 * p.unit), cv2.dilate(p.alpha, kernel(p.unit)), p.lines]), rng, 2.6, 9)
    colour, alpha, lines = wet[..., :3], np.clip(wet[..., 3], 0, 1), np.clip(wet[..., 4], 0, 1)
    pool = clouds(rng, p.shape, 5, 3) * 0.22
    rim = ramp(blur(alpha, 0.6 * p.unit), 0.25, 0.5) * ramp(blur(alpha, 2.2 * p.unit), 0.97, 0.6)
    load = np.clip(0.72 + pool + 0.45 * rim, 0.2, 1.1)
    ground = sheet * over(np.ones(3, np.float32), np.clip(colour, 0.02, 1) ** load[..., None], alpha)
    ground = over(ground, ground * 0.42, 0.6 * lines)
    halo = blur(alpha, 8 * p.unit) * (1 - alpha)  # a pale wash around the figure
    stain = palette[3] if rng.random() < 0.7 else palette[2]
    return over(ground, ground * stain, np.clip(halo * (0.9 + pool), 0, 1) * 0.7), name


def oil(p: Picture, rng: np.random.Generator) -> Drawn:
    """Impasto: short strokes that follow the forms, with ridges that catch the light."""
    name, palette = pick(rng, PALETTES)
    ground = over(palette[1], palette[3], ramp(clouds(rng, p.shape, 5, 2), -1.3, 1.3)[..., None])
    scene = over(ground, over(p.colours(palette), palette[0], 0.6 * p.lines), p.alpha)
    # each stroke copies the colour at its middle: the scene sampled through stretched cells
    image = warp(scene.astype(np.float32), rng, 1.6, 26)
    smooth = (
        cv2.bilateralFilter(cv2.medianBlur((np.clip(image, 0, 1) * 255).astype(np.uint8), 5), 5, 60, 3).astype(np.float32) / 255
    )
    angle = clouds(rng, p.shape, 4) * 0.8 + rng.uniform(0, np.pi)
    x, y = coordinates(p.shape)
    bristle = np.sin((y * np.cos(angle) - x * np.sin(angle)) * 1.9 + 2.5 * clouds(rng, p.shape, 14))
    light = relief(bristle * 0.25 + 0.35 * clouds(rng, p.shape, 18) + 1.2 * blur(smooth.mean(2), 0.8), -2.2, 0.8)
    return np.clip(smooth * (1 + 0.26 * light[..., None]) + 0.05 * np.clip(light, 0, 1)[..., None], 0, 1), name


def pointillism(p: Picture, rng: np.random.Generator) -> Drawn:
    """Thousands of round dabs of pure colour."""
    name, palette = pick(rng, PALETTES)
    ground = over(palette[4], palette[3], ramp(clouds(rng, p.shape, 4), -1, 1)[..., None])
    scene = over(ground, over(p.colours(palette), palette[0], 0.9 * p.lines), p.alpha)
    canvas = over(f32([1, 1, 1]), scene, 0.55)
    pitch = 3.6
    side = int(128 / pitch)
    for _ in range(2):
        spots = (
            (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + rng.uniform(0, 1, (side * side, 2)))
            * pitch
            * p.unit
        )
        spots = spots[rng.permutation(len(spots))].clip(0, p.height - 1)
        taken = scene[spots[:, 1].astype(int), spots[:, 0].astype(int)]
        hsv = cv2.cvtColor(taken[None].astype(np.float32), cv2.COLOR_RGB2HSV)[0]
        hsv[:, 0] = (hsv[:, 0] + rng.normal(0, 14, len(hsv))) % 360
        hsv[:, 1] = np.clip(hsv[:, 1] * 1.25 + 0.06, 0, 1)
        hsv[:, 2] = np.clip(hsv[:, 2] + rng.normal(0, 0.06, len(hsv)), 0, 1)
        dabs = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0].tolist()
        radius = max(1, round(1.7 * p.unit * 16))
        for (cx, cy), colour in zip((spots * 16).astype(int).tolist(), dabs, strict=True):
            cv2.circle(canvas, (cx, cy), radius, colour, -1, cv2.LINE_8, 4)
    return canvas, name


def night(p: Picture, rng: np.random.Generator) -> Drawn:
    """Moonlight: a dark sky with stars and a moon, the figure in blues with a lit rim, a hill below."""
    name, sky, low = one_of(
        rng, ("blue night", "0a1030", "27407a"), ("violet night", "160b2e", "4a2f78"), ("teal night", "04161f", "1c5560")
    )
    x, y = coordinates(p.shape)
    ground = over(rgb(sky), rgb(low), ramp(y + 8 * clouds(rng, p.shape, 3), 20, 128)[..., None])
    stars = blur((grain(rng, p.shape) > 2.75).astype(np.float32), 0.5 * p.unit) * 2.2
    ground = over(ground, rgb("fdf6d8"), np.clip(stars, 0, 1) * ramp(y, 110, 60))
    moon_x, moon_y = (18 if rng.random() < 0.5 else 110), 18
    moon = np.hypot(x - moon_x, y - moon_y)
    ground = over(ground, rgb("fff3c4"), np.clip(ramp(moon, 10.6, 9.6) + 0.28 * ramp(moon, 32, 8), 0, 1))
    hill = ramp(y - 112 - 4 * np.sin(x / 22 + rng.uniform(0, 6)), -0.7, 0.7)
    ground = over(ground, rgb(sky) * 0.8, hill)
    small = p.shrunk(0.84, (0, 6))
    shade = over(rgb(sky) * 1.3, rgb("7f97cf"), small.tone[..., None])
    tint = over(shade, small.colours(rgb("0a1030 33508a 5f7fc0 8fb0e0 c8dcf5")) * rgb("8fa2dc"), 0.6)
    rim = np.clip(small.alpha - shifted(small.alpha, np.sign(64 - moon_x) * 2.5, 2.5), 0, 1)
    ground = over(ground, tint, small.alpha)
    ground = over(ground, rgb(sky) * 0.5, 0.7 * small.lines)
    return over(ground, rgb("fff3c4"), 0.75 * rim), name


def woodblock(p: Picture, rng: np.random.Generator) -> Drawn:
    """A Japanese colour print: muted flats with wood grain, blue-black key lines, a graded sky band, a sun."""
    name, sky, sun = one_of(rng, ("indigo", "3f6a94", "c8452f"), ("rose", "d08a8a", "c03a2b"), ("jade", "6f9f8b", "d0662c"))
    x, y = coordinates(p.shape)
    ground = paper(rng, p.shape, rgb("f0e4c9"), 0.02, 0.02)
    ground = over(ground, rgb(sky), ramp(y + 3 * clouds(rng, p.shape, 4), 52, 4))
    disc = ramp(np.hypot(x - rng.choice([34, 94]), y - 38), 25, 24)
    ground = over(ground, rgb(sun), 0.9 * disc)
    waves = ramp(np.abs(((y + 2.5 * np.sin(x / 5)) % 7) - 3.5), 1.0, 0.4) * ramp(y, 100, 106)
    ground = over(ground, rgb("2d4a6b"), 0.8 * waves)
    flats = rgb("24324a a8502f c99a4e 7f9a86 efdfba")
    colour = over(p.filled(flats), p.colours(flats), 0.35)
    fibre = cv2.blur(grain(rng, p.shape), (19, 1)) * 0.10
    ground = over(ground, colour + fibre[..., None], p.alpha)
    return over(ground, rgb("1c2638"), np.clip(cv2.dilate(p.lines, kernel(0.8 * p.unit)), 0, 1)), name


def tie_dye(p: Picture, rng: np.random.Generator) -> Drawn:
    """A spiral of dye on cloth, the figure printed white in the middle."""
    name, dyes = pick(
        rng,
        {
            "rainbow": rgb("e8324a f7a721 f5e642 3fb950 2f80ed 8f3fd1"),
            "indigo": rgb("1b2a6b 3d5bbf dfe8f7 3d5bbf 1b2a6b 8fa8e8"),
            "sunset": rgb("d7263d f46036 ffd166 f08fa3 7b2d8e c93a62"),
            "lagoon": rgb("0b6e8a 1fb5b0 e2f7e1 86d06f 2f80ed 0f4c81"),
        },
    )
    x, y = coordinates(p.shape)
    radius, angle = np.hypot(x - 64, y - 64), np.arctan2(y - 64, x - 64)
    turn = angle / (2 * np.pi) + radius / 70 + 0.07 * clouds(rng, p.shape, 9, 2) + rng.uniform(0, 1)
    place = (turn * len(dyes)) % len(dyes)
    low = place.astype(int)
    ground = over(dyes[low % len(dyes)], dyes[(low + 1) % len(dyes)], ramp(place - low, 0.35, 0.65)[..., None])
    crease = ramp(stripes(p.shape, 0, 6, clouds(rng, p.shape, 10) * 5), 0.93, 1) * 0.4
    weave = 0.025 * grain(rng, p.shape, 0.6)
    ground = over(ground, f32([1, 1, 1]), crease) + weave[..., None]
    small = p.shrunk(0.8)
    ground = over(ground, f32([1, 1, 1]), blur(cv2.dilate(small.hard.astype(np.float32), kernel(2 * p.unit)), 1.0) * 0.96)
    ground = over(ground, rgb("1d1b2e"), ramp(1 - small.tone, 0.66, 0.8) * small.alpha * (1 if not small.mono else 0))
    return over(ground, rgb("1d1b2e"), np.clip(np.maximum(small.lines, small.solid if small.mono else 0), 0, 1)), name


def batik(p: Picture, rng: np.random.Generator) -> Drawn:
    """Wax-resist cloth: dye that seeped through cracks in the wax, light outlines, a dotted ground."""
    name, dark, mid, light = one_of(
        rng,
        ("indigo", "17234f", "4f6db3", "eef1f7"),
        ("brown", "3b1d10", "b06a2c", "f6e5c2"),
        ("teal", "063b3f", "2c9a93", "e8f6ee"),
    )
    x, y = coordinates(p.shape)
    cloth = rgb(dark) + (0.03 * grain(rng, p.shape, 0.7))[..., None]
    spot = np.hypot((x + 5 * (np.floor(y / 10) % 2)) % 10 - 5, y % 10 - 5)
    cloth = over(cloth, rgb(mid), ramp(spot, 2.2, 1.4) * (p.distance > 4 * p.unit))
    fill = over(rgb(mid), rgb(light), ramp(p.tone, 0.25, 0.7)[..., None])
    crack = np.zeros(p.shape, np.float32)
    for cells_ in (6, 10):
        crack = np.maximum(crack, ramp(np.abs(clouds(rng, p.shape, cells_)), 0.055, 0.015))
    figure = over(fill, rgb(dark), 0.6 * crack[..., None])
    cloth = over(cloth, figure, p.alpha)
    cloth = over(cloth, rgb(light), 0.9 * ramp(p.distance / p.unit, 4.5, 3.5) * (1 - p.alpha) * ramp(p.distance / p.unit, 1, 2))
    return over(cloth, rgb(dark) * 0.8, np.clip(p.lines, 0, 1)), name
