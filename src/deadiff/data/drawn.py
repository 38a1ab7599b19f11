"""Renditions by a pointed tool: chalk, pencil, needle, burin, spray can."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import INKS, PALETTES, f32, one_of, pick, rgb
from deadiff.data.picture import Picture, blur, kernel, over, ramp
from deadiff.data.textures import (
    bricks,
    clouds,
    coordinates,
    grain,
    paper,
    relief,
    stripes,
    vignette,
    warp,
    wood,
)

Drawn = tuple[np.ndarray, str]


def blueprint(p: Picture, rng: np.random.Generator) -> Drawn:
    name, blue = pick(
        rng, {"blue": rgb("1d4f91"), "deep blue": rgb("12346b"), "bright blue": rgb("2a6fc4"), "slate blue": rgb("2f4f78")}
    )
    x, y = coordinates(p.shape)
    fine = ((x % 8 < 1) | (y % 8 < 1)) * 0.10 + ((x % 32 < 1) | (y % 32 < 1)) * 0.12
    sheet = over(paper(rng, p.shape, blue, 0.012, 0.015), f32([1, 1, 1]), fine.astype(np.float32))
    small = p.shrunk(0.86, (0, -4))
    sheet = over(sheet, f32([1, 1, 1]), 0.07 * small.alpha)
    strokes = small.lines.copy()
    columns = np.flatnonzero(small.hard.any(0))
    if columns.size:  # the measure below the figure
        u = p.unit
        left, right, foot = int(columns[0]), int(columns[-1]), int(121 * u)
        cv2.line(strokes, (left, foot), (right, foot), 0.8, 1)
        for end in (left, right):
            cv2.line(strokes, (end, foot - int(3 * u)), (end, foot + int(3 * u)), 0.8, 1)
    return over(sheet, f32([0.95, 0.98, 1]), np.clip(strokes * 1.05, 0, 1)), name


def chalkboard(p: Picture, rng: np.random.Generator) -> Drawn:
    name, board = pick(rng, {"green": rgb("24463a"), "black": rgb("262829"), "slate": rgb("35404a")})
    dust = clouds(rng, p.shape, 3, 3) * 0.03 + 0.02 * cv2.blur(grain(rng, p.shape), (9, 3))
    ground = board + dust[..., None]
    chalks = rgb("f7f4ec ffe27a ff9fb0 9fd8ff b9f0b0")
    chalk = chalks[0] if rng.random() < 0.5 else chalks[1 + int(rng.integers(4))]
    tooth = ramp(clouds(rng, p.shape, 64) + 0.6 * grain(rng, p.shape), -1.1, 0.5)
    bent = warp(np.dstack([cv2.dilate(p.lines, kernel(0.8 * p.unit)), p.tone * p.alpha]), rng, 0.8, 9)
    angle = rng.uniform(0.5, 1.0)
    hatch = ramp(stripes(p.shape, angle, 4.5, clouds(rng, p.shape, 6)), 0.35, 0.8) * tooth
    tint = p.colours(chalks) * 0.5 + chalk * 0.5
    ground = over(ground, tint, 0.55 * bent[..., 1] * hatch)
    return over(ground, chalk, np.clip(bent[..., 0], 0, 1) * (0.35 + 0.65 * tooth)), name


def pencil(p: Picture, rng: np.random.Generator) -> Drawn:
    name, sheet = pick(rng, {"parchment": rgb("ead7ae"), "cream": rgb("f4ead2"), "grey paper": rgb("d9d6cf")})
    ground = paper(rng, p.shape, sheet, 0.025, 0.03)
    ground = over(ground, sheet * 0.72, 0.5 * vignette(p.shape) * ramp(clouds(rng, p.shape, 4, 2), -1, 1))
    lead = rgb("3a3733")
    tooth = ramp(grain(rng, p.shape, 0.6), -1.4, 0.6)
    angle = rng.uniform(0.6, 1.0)
    dark = (1 - p.tone) * p.alpha
    bend = clouds(rng, p.shape, 5) * 0.8
    one = ramp(stripes(p.shape, angle, 3.4, bend), 0.45, 0.9) * ramp(dark, 0.15, 0.75)
    two = ramp(stripes(p.shape, -angle, 3.4, bend), 0.5, 0.9) * ramp(dark, 0.5, 0.95)
    ground = over(ground, lead, np.clip(0.55 * one + 0.5 * two, 0, 1) * tooth)
    strokes = np.maximum(warp(p.lines, rng, 0.7, 8), 0.7 * warp(p.lines, rng, 1.1, 6))
    return over(ground, lead, np.clip(strokes, 0, 1) * (0.45 + 0.5 * tooth)), name


def crayon(p: Picture, rng: np.random.Generator) -> Drawn:
    name, palette = pick(rng, PALETTES)
    ground = paper(rng, p.shape, rgb("fbf9f3"), 0.012, 0.01)
    angle = rng.uniform(0.5, 1.1)
    stroke = stripes(p.shape, angle, 5.2, clouds(rng, p.shape, 7) * 2.2)
    wax = ramp(stroke + 0.55 * grain(rng, p.shape, 0.7) + 0.4 * clouds(rng, p.shape, 20), 0.05, 0.55)
    bright = np.clip(p.colours(palette) * 1.05, 0, 1)
    alpha = warp(cv2.dilate(p.alpha, kernel(p.unit)), rng, 2.2, 9)
    ground = over(ground, bright, alpha * (0.12 + 0.85 * wax))
    edge = warp(cv2.dilate(p.lines, kernel(p.unit)), rng, 1.4, 7)
    rubbed = ramp(grain(rng, p.shape, 0.8), -1.2, 0.3)
    return over(ground, palette[0] * 0.8, np.clip(edge, 0, 1) * (0.2 + 0.7 * rubbed)), name


def engraving(p: Picture, rng: np.random.Generator) -> Drawn:
    """A banknote: one set of fine curved lines that swell where the picture is dark, and a guilloche behind."""
    name, ink = pick(
        rng, {"green ink": rgb("1f4d3a"), "black ink": rgb("22211f"), "brown ink": rgb("5b3420"), "blue ink": rgb("1f3563")}
    )
    sheet = paper(rng, p.shape, over(rgb("f3efdf"), ink, 0.06), 0.012, 0.01)
    x, y = coordinates(p.shape)
    turn, wave = rng.uniform(18, 30), rng.uniform(3, 6)
    guilloche = ramp(stripes(p.shape, 0, 7, wave * np.sin(x / turn * 2)), 0.9, 1) + ramp(
        stripes(p.shape, 0, 7, -wave * np.sin(x / turn * 2)), 0.9, 1
    )
    sheet = over(sheet, ink, 0.35 * np.clip(guilloche, 0, 1) * (1 - p.alpha))
    bulge = 7 * np.cos((x - 64) / 46) + 2 * clouds(rng, p.shape, 3)
    lines = stripes(p.shape, rng.uniform(-0.3, 0.3), 3.3, bulge)
    dark = np.clip((1 - p.tone) * 0.95, 0, 1)
    cut = ramp(dark - lines * 0.95, -0.08, 0.2) * p.alpha
    return over(sheet, ink, np.clip(np.maximum(cut, p.lines * 0.95), 0, 1)), name


def pyrography(p: Picture, rng: np.random.Generator) -> Drawn:
    name, light, dark = one_of(rng, ("pine", "e3bd84", "c4935a"), ("oak", "c99a63", "a06d3c"), ("birch", "ecd6ae", "d3b382"))
    plank = wood(rng, p.shape, rgb(light), rgb(dark))
    burnt = rgb("2a1509")
    shade = (1 - p.tone) * p.alpha
    scorch = blur(p.lines, 1.8 * p.unit)
    plank = over(plank, rgb("7a4420"), np.clip(0.5 * ramp(shade, 0.25, 0.95) + 0.55 * scorch, 0, 1))
    line = cv2.dilate(p.lines, kernel(0.8 * p.unit))
    return over(plank, burnt, np.clip(line * (0.8 + 0.12 * clouds(rng, p.shape, 30)), 0, 1)), name


def scratchboard(p: Picture, rng: np.random.Generator) -> Drawn:
    """Black wax over a rainbow, scratched away with a needle."""
    x, y = coordinates(p.shape)
    angle, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
    hue = (start + (x * np.cos(angle) + y * np.sin(angle)) / 150 + 0.05 * clouds(rng, p.shape, 3)) % 1
    hsv = np.dstack([hue * 360, np.full(p.shape, 0.75), np.full(p.shape, 1)]).astype(np.float32)
    rainbow = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    scratch = ramp(stripes(p.shape, rng.uniform(0.4, 1.2), 3.2, clouds(rng, p.shape, 12) * 1.2), 0.72, 0.95)
    scratch *= ramp(clouds(rng, p.shape, 40), -1.0, 0.0)
    inside = p.alpha * ramp(p.tone, 0.35, 0.9) * scratch
    bright = np.clip(np.maximum(inside * 0.9, warp(p.lines, rng, 0.6, 10)), 0, 1)
    wax = rgb("131216") + (0.012 * grain(rng, p.shape))[..., None]
    return over(wax, rainbow, bright), "rainbow"


def contour(p: Picture, rng: np.random.Generator) -> Drawn:
    """Lines of equal height, as on a hiking map: the figure is a hill, the paper falls away from it."""
    name, sheet, line, fill = one_of(
        rng,
        ("green map", "e4edd3", "5c7a3c", "c5d9a4"),
        ("brown map", "f4ead6", "8a5a2e", "e6cda3"),
        ("blue chart", "e2eef4", "2f6690", "b7d6e6"),
    )
    ground = paper(rng, p.shape, rgb(sheet), 0.008, 0.01)
    height = np.where(p.hard, p.depth, -p.distance) / p.unit + 1.2 * clouds(rng, p.shape, 5)
    smooth = blur(height, 0.8 * p.unit)
    ground = over(ground, over(rgb(fill), rgb(fill) * 0.82, p.tone[..., None] < 0.5), p.alpha)
    rings = ramp(np.abs((smooth / 5.5) % 1 - 0.5), 0.36, 0.47)
    ground = over(ground, rgb(line), 0.6 * rings * (1 - 0.45 * p.alpha))
    return over(ground, rgb(line) * 0.6, np.clip(p.lines, 0, 1)), name


def graffiti(p: Picture, rng: np.random.Generator) -> Drawn:
    """Sprayed on a brick wall: soft edges, a halo of droplets, and runs of paint."""
    wall_name, wall, mortar = one_of(
        rng, ("red brick", "94503c", "b9ab9b"), ("grey brick", "8a8884", "b5b2ac"), ("white brick", "d6d2c8", "b3aea4")
    )
    ground = bricks(rng, p.shape, rgb(wall), rgb(mortar))
    name, palette = pick(
        rng,
        {
            "pink and cyan": rgb("1a1423 ff3d8b 26d0ce ffe94a ffffff"),
            "lime": rgb("101820 1fa34a a8e10c fff04d ffffff"),
            "orange": rgb("20110b e0341c ff8c1a ffd23f fff6e5"),
        },
    )
    paint = p.filled(palette)
    mist = blur(p.hard.astype(np.float32), 4 * p.unit)
    droplets = ramp(grain(rng, p.shape, 0.6), 1.5, 2.0) * ramp(mist, 0.03, 0.5)
    ground = over(ground, palette[2], np.clip(0.35 * mist + 0.8 * droplets, 0, 1) * (1 - p.alpha))
    runs = np.zeros(p.shape, np.float32)
    for column in rng.choice(p.width, 5):
        rows = np.flatnonzero(p.hard[:, column])
        if rows.size:
            foot = int(rows[-1])
            cv2.line(
                runs,
                (int(column), foot - 2),
                (int(column), min(p.height, foot + int(rng.uniform(6, 20) * p.unit))),
                1,
                max(1, round(1.4 * p.unit)),
            )
    ground = over(ground, palette[1], blur(runs, 0.5) * 0.9)
    ground = over(
        ground, paint, blur(p.alpha, 0.8 * p.unit) * (0.93 + 0.04 * clouds(rng, p.shape, 20))[..., None].clip(0, 1)[..., 0]
    )
    return over(
        ground, palette[0], np.clip(blur(cv2.dilate(p.lines, kernel(1.2 * p.unit)), 0.8 * p.unit), 0, 1)
    ), f"{name} on {wall_name}"


def sand(p: Picture, rng: np.random.Generator) -> Drawn:
    """Drawn with a stick in wet sand: grooves with raised rims under low light."""
    name, colour = pick(rng, {"golden": rgb("d8b57c"), "pale": rgb("e6d3ae"), "grey": rgb("b7aa98")})
    groove = warp(cv2.dilate(p.lines, kernel(1.2 * p.unit)), rng, 0.8, 8)
    height = (
        -1.6 * blur(groove, 1.1 * p.unit)
        + 0.7 * blur(groove, 2.6 * p.unit)
        - 0.35 * blur(p.hard.astype(np.float32), 1.5 * p.unit)
    )
    height += 0.22 * clouds(rng, p.shape, 10, 2) + 0.05 * grain(rng, p.shape, 0.7)
    light = relief(height, rng.uniform(-2.6, -1.9), 0.8 * p.unit)
    surface = colour * (1 + 0.34 * light + 0.05 * grain(rng, p.shape))[..., None]
    return over(surface, colour * 0.5, 0.5 * np.clip(blur(groove, 0.7 * p.unit), 0, 1)), name


def ink_wash(p: Picture, rng: np.random.Generator) -> Drawn:
    """Sumi-e: grey washes that bleed into rice paper, a dry brush for the outline, a red seal."""
    name, sheet = pick(rng, {"rice paper": rgb("f3ecdc"), "white paper": rgb("f8f6f1"), "tea paper": rgb("e9dcc0")})
    ground = paper(rng, p.shape, sheet, 0.015, 0.02)
    ink = INKS["black"]
    bleed = blur(warp((1 - p.tone) * 0.75 * p.alpha + 0.1 * p.alpha, rng, 2.4, 10), 1.6 * p.unit)
    pooled = np.clip(bleed * (0.85 + 0.25 * clouds(rng, p.shape, 7, 2)), 0, 1)
    ground = over(ground, ink, pooled * 0.85)
    press = ramp(clouds(rng, p.shape, 7), -1.2, 0.8)
    thick = warp(over(p.lines[..., None], cv2.dilate(p.lines, kernel(1.6 * p.unit))[..., None], press)[..., 0], rng, 1.4, 8)
    dry = ramp(cv2.blur(grain(rng, p.shape), (7, 2)), -0.9, 0.2)
    ground = over(ground, ink, np.clip(thick, 0, 1) * (0.5 + 0.5 * dry))
    side = int(14 * p.unit)
    top, left = p.height - side - int(4 * p.unit), p.width - side - int(4 * p.unit)
    seal = np.full((side, side), 0.9, np.float32)
    mark = rng.random((4, 4)) < 0.5
    inset = max(1, int(2 * p.unit))
    inner = (side - 2 * inset,) * 2
    seal[inset:-inset, inset:-inset] -= 0.8 * cv2.resize(mark.astype(np.float32), inner, interpolation=cv2.INTER_NEAREST)
    corner = ground[top : top + side, left : left + side]
    ground[top : top + side, left : left + side] = over(corner, rgb("b8281e"), np.clip(seal, 0, 1))
    return ground, name
