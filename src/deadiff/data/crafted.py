"""Renditions by hand and material: tiles, thread, glass, paper, clay, metal, stone."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import PALETTES, one_of, pick, rgb
from deadiff.data.picture import WHITE, Picture, blur, kernel, over, ramp
from deadiff.data.textures import cells, clouds, coordinates, grain, paper, relief, shifted, stripes, vignette, wood

Drawn = tuple[np.ndarray, str]


def gridded(scene: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) the scene's mean colour in each cell of a `side` x `side` grid, (side, side, 3)."""
    return cv2.resize(scene.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def enlarged(small: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_NEAREST)


def scene_of(p: Picture, palette: np.ndarray, ground: np.ndarray, line: float = 0.7) -> np.ndarray:
    """The figure in colour with its lines darkened, on a flat ground: what cell by cell crafts copy."""
    return over(np.broadcast_to(ground, (*p.shape, 3)), over(p.colours(palette), palette[0] * 0.7, line * p.lines), p.alpha)


def mosaic(p: Picture, rng: np.random.Generator) -> Drawn:
    """Roman tesserae: uneven little stones set in grout."""
    name, palette = pick(rng, PALETTES)
    side = 32
    tiles = gridded(scene_of(p, palette, palette[3] if rng.random() < 0.5 else palette[4]), side)
    tiles = tiles + rng.normal(0, 0.055, (side, side, 1)).astype(np.float32)
    x, y = coordinates(p.shape)
    bent_x = x + 0.7 * clouds(rng, p.shape, 12)
    bent_y = y + 0.7 * clouds(rng, p.shape, 12)
    pitch = 128 / side
    column, row = np.clip((bent_x / pitch).astype(int), 0, side - 1), np.clip((bent_y / pitch).astype(int), 0, side - 1)
    inset = np.minimum(np.minimum(bent_x % pitch, pitch - bent_x % pitch), np.minimum(bent_y % pitch, pitch - bent_y % pitch))
    stone = tiles[row, column] * (1 + 0.10 * ramp(bent_y % pitch, 3, 0.6) - 0.08)[..., None]
    return over(np.broadcast_to(rgb("4b463f"), (*p.shape, 3)), stone, ramp(inset, 0.1, 0.75)), name


def toy_bricks(p: Picture, rng: np.random.Generator) -> Drawn:
    """A baseplate of square plastic bricks with round studs."""
    name, base = pick(
        rng, {"green": rgb("3aa655"), "blue": rgb("2f6fc9"), "grey": rgb("9ba3a8"), "sand": rgb("e0cf9f"), "white": rgb("f2f2ee")}
    )
    side = 26
    paints = rgb(
        "1b1b1b 5b3a21 c4281c f2705e f5cd2f fbe890 287f46 a5ca4f 0d69ac 7fb7e6 8a5db8 e4adc8 a3a2a4 f2f3f2 d9a86c f08c2e"
    )
    flats = rgb("1b1b1b c4281c 0d69ac f5cd2f f2f3f2")
    small = gridded(scene_of(p, flats, base, 0.85), side)
    mask = gridded(np.repeat(p.alpha[..., None], 3, 2), side)[..., 0] > 0.45
    nearest = ((small[:, :, None] - paints) ** 2).sum(-1).argmin(-1)
    small = np.where(mask[..., None], paints[nearest], base)
    scene = enlarged(small, p.shape)
    x, y = coordinates(p.shape)
    pitch = 128 / side
    u, v = x % pitch - pitch / 2, y % pitch - pitch / 2
    stud = np.hypot(u, v)
    light = (
        0.16 * ramp(stud, 1.7, 1.2)
        - 0.22 * ramp(np.abs(stud - 1.75), 0.6, 0.1) * (u + v > 0)
        + 0.2 * ramp(np.abs(stud - 1.6), 0.5, 0.1) * (u + v < -0.8)
    )
    seam = ramp(np.maximum(np.abs(u), np.abs(v)), pitch / 2 - 0.7, pitch / 2) * 0.2
    return np.clip(scene * (1 + light - seam)[..., None] + 0.12 * np.clip(light, 0, 1)[..., None], 0, 1), name


def pixel_art(p: Picture, rng: np.random.Generator) -> Drawn:
    """A sprite from an old video game: 32 cells a side, few colours, a dark outline, a flat backdrop."""
    name, ground = pick(
        rng, {"sky": rgb("5c94fc"), "black": rgb("101018"), "dusk": rgb("3b2a5c"), "grass": rgb("5aa04a"), "sand": rgb("e8c07a")}
    )
    side = 32
    palette = list(PALETTES.values())[int(rng.integers(len(PALETTES)))]
    pic = p.shrunk(0.9)
    small = gridded(over(pic.colours(palette), palette[0] * 0.6, 0.75 * pic.lines), side)
    hsv = cv2.cvtColor(np.clip(small, 0, 1), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.2, 0, 1)
    small = np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 4) / 4
    mask = (gridded(np.repeat(pic.alpha[..., None], 3, 2), side)[..., 0] > 0.4).astype(np.uint8)
    rim = cv2.dilate(mask, np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)) - mask
    rows = np.arange(side)[:, None, None]
    back = np.where((rows > 26) & ((rows + np.arange(side)[None, :, None]) % 2 == 0), ground * 0.75, ground)
    back = np.where(rows > 29, ground * 0.75, back)
    sprite = np.where(mask[..., None] > 0, small, back)
    outline = rgb("0c0c14") if ground.mean() > 0.15 else rgb("e8e8f0")
    sprite = np.where(rim[..., None] > 0, outline, sprite)
    return enlarged(sprite.astype(np.float32), p.shape), name


def cross_stitch(p: Picture, rng: np.random.Generator) -> Drawn:
    """Crossed threads on a woven ground of even holes."""
    name, cloth = pick(
        rng, {"white cloth": rgb("f4f0e6"), "linen": rgb("d9c7a3"), "black cloth": rgb("2b2a2e"), "blue cloth": rgb("3f5d8a")}
    )
    palette = list(PALETTES.values())[int(rng.integers(len(PALETTES)))]
    side = 32
    pitch = 128 / side
    x, y = coordinates(p.shape)
    u, v = x % pitch / pitch - 0.5 + 0.5 / pitch, y % pitch / pitch - 0.5 + 0.5 / pitch
    hole = ramp(np.minimum(np.hypot(np.abs(u) - 0.5, np.abs(v) - 0.5), 1), 0.24, 0.12)
    ground = cloth * (1 + 0.03 * grain(rng, p.shape, 0.6) - 0.3 * hole)[..., None]
    pic = p.shrunk(0.94)
    threads = np.round(gridded(over(pic.colours(palette), palette[0], 0.8 * pic.lines), side) * 5) / 5
    worked = gridded(np.repeat(pic.alpha[..., None], 3, 2), side)[..., 0] > 0.42
    first, second = np.abs(u - v), np.abs(u + v)
    cross = np.maximum(ramp(first, 0.36, 0.2), ramp(second, 0.36, 0.2)) * enlarged(worked.astype(np.float32), p.shape)
    sheen = 0.86 + 0.22 * ramp(second, 0.3, 0.05) - 0.22 * ramp(first, 0.1, 0.35) * ramp(second, 0.15, 0.4)
    return over(ground, np.clip(enlarged(threads, p.shape) * sheen[..., None], 0, 1), cross), name


def knitted(p: Picture, rng: np.random.Generator) -> Drawn:
    """Wool: rows of V stitches across figure and ground alike."""
    name, wool = pick(
        rng,
        {
            "red wool": rgb("a8323a"),
            "blue wool": rgb("2f4f86"),
            "green wool": rgb("3c6b4f"),
            "cream wool": rgb("e9dfc8"),
            "grey wool": rgb("8a8d93"),
        },
    )
    palette = list(PALETTES.values())[int(rng.integers(len(PALETTES)))]
    rows, columns = 34, 28
    pic = p.shrunk(0.9)
    small = cv2.resize(scene_of(pic, palette, wool, 0.9).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    x, y = coordinates(p.shape)
    wide, high = 128 / columns, 128 / rows
    u = x % wide / wide - 0.5
    sag = y / high + np.abs(u) * 1.15  # a stitch is a V: its arms rise away from the middle
    row = np.clip(np.floor(sag).astype(int), 0, rows - 1)
    column = np.clip((x / wide).astype(int), 0, columns - 1)
    v = sag % 1
    shade = 0.62 + 0.46 * np.sin(np.pi * np.clip(v, 0, 1)) * ramp(np.abs(u), 0.0, 0.12) * ramp(np.abs(u), 0.5, 0.36)
    fuzz = 0.05 * grain(rng, p.shape, 0.6)
    return np.clip(small[row, column] * (shade + fuzz)[..., None], 0, 1), name


def stained_glass(p: Picture, rng: np.random.Generator) -> Drawn:
    """Lit glass in lead: saturated panes, black cames, the ground in pieces."""
    name, palette = pick(
        rng,
        {
            "jewel": rgb("3b0d5c b3122f 0f7a4d 1c54c4 f5b21a"),
            "rose": rgb("4a0d3a c2185b e8788a 6a4fc4 f7d9b0"),
            "sea": rgb("06324f 0c6e8f 16a79b 7fd1c6 f3e9a8"),
            "amber": rgb("5a1807 b5451b e58a1f 3f7f4f f9d65c"),
        },
    )
    number = int(rng.integers(16, 26))
    piece, joint = cells(rng, p.shape, number)
    shades = palette[rng.integers(1, 5, 64)] * rng.uniform(0.75, 1.1, (64, 1)).astype(np.float32)
    ground = shades[piece % 64]
    hsv = cv2.cvtColor(np.clip(p.colours(palette), 0, 1), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.4 + 0.08, 0, 1)
    figure = np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 5) / 5
    pane = over(ground, figure, p.alpha)
    glow = 1.12 - 0.35 * vignette(p.shape) + 0.09 * clouds(rng, p.shape, 10, 3)
    lead = np.maximum(
        cv2.dilate(joint, kernel(1)) * (1 - p.alpha), cv2.dilate(np.maximum(p.lines, p.outline), kernel(0.9 * p.unit))
    )
    lead = np.clip(blur(lead, 0.5 * p.unit) * 1.2, 0, 1)
    return over(
        np.clip(pane * glow[..., None], 0, 1), rgb("15130f") + 0.12 * np.clip(relief(lead, -2.2, 1.0), 0, 1)[..., None], lead
    ), name


def paper_cut(p: Picture, rng: np.random.Generator) -> Drawn:
    """Layers of coloured card, each with the shadow of the one above."""
    name, palette = pick(rng, PALETTES)
    order = palette if rng.random() < 0.5 else palette[::-1]
    small = p.shrunk(0.86)
    ground = paper(rng, p.shape, over(order[-1], order[-2], 0.35), 0.012, 0.01)
    stack = small.alpha
    levels = small.steps(4)
    layers = [(blur((small.distance < 4 * p.unit).astype(np.float32), 0.5), order[3])]
    for level, colour in zip((0, 1, 2, 3), order[np.array([0, 1, 2, 4])], strict=True):
        shape = stack * (levels >= level)
        layers.append((np.clip(blur(shape.astype(np.float32), 0.6 * p.unit), 0, 1), colour))
    for shape, colour in layers:
        edge = ramp(shape, 0.35, 0.65)
        ground = ground * (1 - 0.42 * blur(shifted(edge, 1.6, 2.2), 1.4 * p.unit)[..., None])
        ground = over(ground, paper(rng, p.shape, colour, 0.012, 0), edge)
    if small.mono:
        ground = over(ground, order[0], small.lines)
    return ground, name


def embossed(p: Picture, rng: np.random.Generator) -> Drawn:
    """Blind embossing: heavy paper of one colour, pressed from behind, seen by its shadows alone."""
    name, sheet = pick(
        rng,
        {
            "white": rgb("f3f1ec"),
            "rose": rgb("efd3d0"),
            "pale blue": rgb("d3e0ee"),
            "kraft": rgb("cbab7e"),
            "sage": rgb("cfdcc6"),
            "lilac": rgb("ddd3ea"),
        },
    )
    small = p.shrunk(0.88)
    height = (
        1.6 * blur(small.hard.astype(np.float32), 1.5 * p.unit)
        - 1.25 * blur(small.lines, 0.7 * p.unit)
        + 0.5 * blur(small.tone * small.alpha, p.unit)
    )
    light = relief(height, -2.3, 0.55)
    surface = sheet * (1 + 0.55 * np.minimum(light, 0) + 0.2 * np.maximum(light, 0) + 0.018 * grain(rng, p.shape, 0.7))[..., None]
    return np.clip(surface, 0, 1), name


def clay(p: Picture, rng: np.random.Generator) -> Drawn:
    """Modelling clay: rounded bodies with soft highlights and thumb marks on a pastel table."""
    name, table = pick(
        rng,
        {"peach": rgb("f7cdb5"), "mint": rgb("bfe3d0"), "sky": rgb("bcd9ef"), "butter": rgb("f6e3a6"), "lilac": rgb("d8c8ec")},
    )
    palette = PALETTES["candy"] if rng.random() < 0.5 else PALETTES["tropical"]
    small = p.shrunk(0.84, (0, -2))
    ground = table * (1.03 - 0.12 * vignette(p.shape))[..., None]
    cast = blur(shifted(small.alpha, 3, 6), 3.5 * p.unit)
    ground = ground * (1 - 0.4 * cast[..., None])
    colour = over(blur(small.colours(palette), 1.1 * p.unit), small.colours(palette), 0.3)
    body = np.minimum(small.depth / p.unit, 9) / 9
    height = (
        7 * np.sqrt(np.clip(1 - (1 - body) ** 2, 0, 1))
        - 2.0 * blur(small.lines, 1.2 * p.unit)
        + 0.35 * clouds(rng, p.shape, 14, 2)
    )
    light = relief(blur(height.astype(np.float32), 1.3 * p.unit), -2.1, 0.16)
    lit = colour * (0.93 + 0.42 * light)[..., None] + 0.22 * ramp(light, 0.5, 1.0)[..., None]
    lit = over(lit, lit * 0.45, 0.5 * blur(small.lines, 0.8 * p.unit))
    soft = blur(cv2.dilate(small.hard.astype(np.float32), kernel(1)), 0.8 * p.unit)
    return np.clip(over(ground, lit, soft), 0, 1), name


def gold_foil(p: Picture, rng: np.random.Generator) -> Drawn:
    """Hot foil stamped on dark card."""
    metal_name, metal = pick(
        rng,
        {
            "gold": rgb("4d3208 a8781f e3b94f fff1b8"),
            "rose gold": rgb("4f241c b0685a e8ac9a ffe6dc"),
            "silver": rgb("33373d 858c95 c9cfd6 ffffff"),
        },
    )
    card_name, card = pick(
        rng, {"black": rgb("141416"), "midnight blue": rgb("10183a"), "emerald": rgb("083a2c"), "burgundy": rgb("3a0a18")}
    )
    ground = paper(rng, p.shape, card, 0.012, 0.008)
    x, y = coordinates(p.shape)
    angle = rng.uniform(0.4, 1.1)
    sheen = 0.5 + 0.5 * np.sin(
        (x * np.cos(angle) + y * np.sin(angle)) / 13 + 1.3 * clouds(rng, p.shape, 5, 2) + rng.uniform(0, 6)
    )
    wrinkle = 0.2 * clouds(rng, p.shape, 26)
    place = np.clip(sheen + wrinkle, 0, 0.999) * 3
    low = place.astype(int)
    foil = over(metal[low], metal[low + 1], (place - low)[..., None])
    if p.mono:
        laid = np.clip(np.maximum(p.ink, 0.0), 0, 1)
    else:
        laid = p.alpha * np.clip(ramp(p.tone, 0.28, 0.4) * (1 - p.lines), 0, 1)
        laid = np.maximum(laid, p.outline * 0.9)
    return over(ground, foil, np.clip(laid, 0, 1)), f"{metal_name} on {card_name}"


def pottery(p: Picture, rng: np.random.Generator) -> Drawn:
    """Greek vase painting: black figures on terracotta or the reverse, incised lines, a key pattern above and below."""
    clay_colour, slip = rgb("c8693a"), rgb("1d130e")
    red_figure = rng.random() < 0.5
    ground, figure = (slip, clay_colour) if red_figure else (clay_colour, slip)
    x, y = coordinates(p.shape)
    surface = np.broadcast_to(ground, (*p.shape, 3))
    small = p.shrunk(0.78)
    inside = over(
        figure,
        clay_colour * 0.62 if red_figure else rgb("5a2a18"),
        ramp(1 - small.tone, 0.55, 0.75)[..., None] * (0.9 if red_figure else 0),
    )
    inside = over(inside, rgb("efe0c0"), ramp(small.tone, 0.9, 0.97)[..., None] * (0 if small.mono else 0.85))
    surface = over(surface, inside, blur(small.hard.astype(np.float32), 0.6 * p.unit))
    surface = over(surface, ground, np.clip(small.lines * small.alpha, 0, 1))
    pattern = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1, 0, 1, 1, 1, 1, 1, 0],
            [1, 0, 1, 0, 0, 0, 1, 0],
            [1, 0, 1, 0, 1, 1, 1, 0],
            [1, 0, 1, 0, 0, 0, 0, 0],
            [1, 0, 1, 1, 1, 1, 1, 1],
        ],
        np.uint8,
    )
    for start in (0, 114):
        band = (y >= start) & (y < start + 14)
        row, column = np.clip(((y - start) / 2).astype(int), 0, 6), (x / 2).astype(int) % 8
        key = pattern[row, column] > 0
        surface = np.where(band[..., None], np.where(key[..., None], figure, ground), surface)
    curve = 1.08 - 0.3 * ((x - 58) / 64) ** 2
    crackle = ramp(np.abs(clouds(rng, p.shape, 12)), 0.03, 0.0) * 0.12
    return np.clip(
        surface * (curve - crackle + 0.03 * grain(rng, p.shape, 0.8))[..., None], 0, 1
    ), "red figure" if red_figure else "black figure"


def felt(p: Picture, rng: np.random.Generator) -> Drawn:
    """Appliqué: fuzzy pieces of felt, a dashed running stitch along the edge."""
    name, ground = pick(
        rng,
        {
            "grey felt": rgb("7d8288"),
            "red felt": rgb("b53a3f"),
            "navy felt": rgb("2c3a5e"),
            "mustard felt": rgb("d2a03a"),
            "green felt": rgb("4c7a58"),
        },
    )
    palette = list(PALETTES.values())[int(rng.integers(len(PALETTES)))]
    fibre = 0.055 * grain(rng, p.shape, 0.6) + 0.05 * np.maximum(
        cv2.blur(grain(rng, p.shape), (5, 2)), cv2.blur(grain(rng, p.shape), (2, 5))
    )
    small = p.shrunk(0.86)
    base = ground * (1 + fibre)[..., None]
    patch = (small.distance < 4.5 * p.unit).astype(np.float32)
    base = base * (1 - 0.45 * blur(shifted(patch, 1.2, 1.8), 1.5 * p.unit)[..., None])
    backing = palette[4] if ground.mean() < 0.55 else palette[0]
    base = over(base, backing * (1 + fibre)[..., None], blur(patch, 0.7 * p.unit))
    x, y = coordinates(p.shape)
    ring = ramp(np.abs(small.distance / p.unit - 2.4), 0.9, 0.4)
    dash = ramp(np.sin(np.arctan2(y - 64, x - 64) * 44), -0.1, 0.3)
    base = over(base, palette[1] if ground.mean() < 0.55 else WHITE, ring * dash)
    soft = np.clip(small.filled(palette) * 0.65 + small.colours(palette) * 0.35, 0, 1)
    soft = cv2.medianBlur((soft * 255).astype(np.uint8), 5).astype(np.float32) / 255 if not small.mono else soft
    depth = relief(blur(soft.mean(2), 1.2 * p.unit), -2.2, 0.8)
    base = over(base, soft * (1 + fibre + 0.12 * depth)[..., None], small.alpha)
    return np.clip(over(base, palette[0], 0.55 * small.lines), 0, 1), name


def stone(p: Picture, rng: np.random.Generator) -> Drawn:
    """Carved in low relief: rough stone, deep lines, light from above left."""
    name, colour = pick(
        rng, {"sandstone": rgb("cdae7f"), "granite": rgb("8d9094"), "marble": rgb("dcdad6"), "slate": rgb("7f8b97")}
    )
    vein = ramp(np.abs(clouds(rng, p.shape, 3, 3)), 0.12, 0.0) * 0.18
    height = (
        2.2 * blur(p.hard.astype(np.float32), 1.4 * p.unit)
        - 1.7 * blur(p.lines, 0.8 * p.unit)
        + 0.6 * blur(p.tone * p.alpha, p.unit)
    )
    height += 0.12 * clouds(rng, p.shape, 26, 2) + 0.05 * grain(rng, p.shape, 0.6)
    light = relief(height, -2.3, 0.6)
    sunk = 0.14 * blur(p.hard.astype(np.float32), 1.0)
    groove = 0.3 * blur(p.lines, 0.8 * p.unit)
    rock = (
        colour
        * (
            0.8 + sunk - groove + 0.5 * np.minimum(light, 0) + 0.3 * np.maximum(light, 0) - vein + 0.05 * grain(rng, p.shape, 0.8)
        )[..., None]
    )
    return np.clip(rock, 0, 1), name


def coin(p: Picture, rng: np.random.Generator) -> Drawn:
    """Struck on a round coin with a beaded rim."""
    name, dark, mid, light, cloth = one_of(
        rng,
        ("gold", "5a3d0c", "d0a23a", "fff0b5", "5a1420"),
        ("silver", "3a3f46", "b2b9c2", "ffffff", "1d2b4f"),
        ("bronze", "3a1f10", "a9673a", "f5cfa5", "20342a"),
        ("copper", "4a1d10", "bf6a45", "ffd2b8", "2b2b33"),
    )
    x, y = coordinates(p.shape)
    radius, angle = np.hypot(x - 64, y - 64), np.arctan2(y - 64, x - 64)
    small = p.shrunk(0.68)
    height = (
        1.5 * blur(small.hard.astype(np.float32), 1.0 * p.unit)
        - 1.5 * blur(small.lines, 0.7 * p.unit)
        + 0.5 * blur(small.tone * small.alpha, 0.8 * p.unit)
    )
    height += 1.8 * blur(ramp(radius, 55, 56.5), 0.8 * p.unit) + 0.9 * ramp(np.abs(radius - 51.5), 1.8, 0.8) * ramp(
        np.sin(angle * 44), -0.2, 0.6
    )
    shade = relief(height.astype(np.float32), -2.3, 0.6)
    shine = 0.14 * np.sin(angle * 2 + rng.uniform(0, 6)) + 0.03 * clouds(rng, p.shape, 8)
    level = np.clip(0.55 + 0.5 * shade + shine - 0.18 * blur(small.lines, 0.8) + 0.1 * small.alpha * (small.tone - 0.5), 0, 1)
    metal = np.where(
        level[..., None] < 0.5,
        over(rgb(dark), rgb(mid), level[..., None] * 2),
        over(rgb(mid), rgb(light), level[..., None] * 2 - 1),
    )
    table = paper(rng, p.shape, rgb(cloth), 0.02, 0.02)
    disc = ramp(radius, 62, 61)
    table = table * (1 - 0.5 * blur(shifted(disc, 1.5, 2.5), 2 * p.unit)[..., None])
    return over(table, metal.astype(np.float32), disc), name


def enamel_pin(p: Picture, rng: np.random.Generator) -> Drawn:
    """Hard enamel: glossy flat colours between raised metal lines, pinned on cloth."""
    name, ground = pick(
        rng, {"denim": rgb("4a6a94"), "canvas": rgb("c9b48d"), "black cloth": rgb("26262b"), "pink cloth": rgb("e3a1b4")}
    )
    palette = PALETTES["tropical"] if rng.random() < 0.5 else PALETTES["retro"]
    weave = 0.05 * (stripes(p.shape, 0.785, 2.4) - 0.5) + 0.03 * grain(rng, p.shape, 0.5)
    cloth = ground * (1 + 2 * weave)[..., None]
    small = p.shrunk(0.82)
    rim = blur((small.distance < 2.8 * p.unit).astype(np.float32), 0.6 * p.unit)
    cloth = cloth * (1 - 0.55 * blur(shifted(rim, 2, 3), 2 * p.unit)[..., None])
    wire = np.clip(np.maximum(cv2.dilate(small.lines, kernel(0.6 * p.unit)) * small.alpha, rim - small.alpha), 0, 1)
    x, y = coordinates(p.shape)
    shade = relief(blur(wire, 0.8 * p.unit), -2.3, 1.0)
    gold = over(rgb("a9781f"), rgb("fff0b0"), np.clip(0.45 + 0.5 * shade + 0.18 * np.sin((x + y) / 9), 0, 1)[..., None])
    enamel = small.filled(palette) * 0.45 + small.colours(palette) * 0.55
    gloss = ramp(np.abs((x + y * 0.6) % 96 - 40), 9, 6) * 0.22 + 0.08 * ramp(y, 70, 20)
    cloth = over(cloth, np.clip(enamel + gloss[..., None], 0, 1), rim)
    return np.clip(over(cloth, gold, wire), 0, 1), name


def sticker(p: Picture, rng: np.random.Generator) -> Drawn:
    """A die-cut sticker: white border, soft shadow, a loud ground."""
    name, first, second = one_of(
        rng,
        ("teal", "1aa6a6", "1fb8b4"),
        ("violet", "7d5bd6", "8b6ae0"),
        ("coral", "ff6f59", "ff8370"),
        ("yellow", "fbc02d", "fccb4b"),
        ("blue", "3f7fe0", "5290ea"),
    )
    x, y = coordinates(p.shape)
    check = (
        (((x // 16) + (y // 16)) % 2)[..., None]
        if rng.random() < 0.5
        else ramp(stripes(p.shape, 0.785, 16), 0.45, 0.55)[..., None]
    )
    ground = over(rgb(first), rgb(second), check)
    small = p.shrunk(0.78)
    palette = PALETTES["tropical"] if rng.random() < 0.5 else PALETTES["candy"]
    border = ramp(blur((small.distance < 6.5 * p.unit).astype(np.float32), 1.6 * p.unit), 0.35, 0.65)
    ground = ground * (1 - 0.45 * blur(shifted(border, 2, 3), 2.2 * p.unit)[..., None])
    ground = over(ground, WHITE, border)
    ground = over(ground, small.colours(palette), small.alpha)
    return over(ground, rgb("2a2a33"), 0.8 * small.lines if small.mono else 0.0), name


def snapped(points: np.ndarray, p: Picture, reach: float) -> np.ndarray:
    """`points` (..., 2) in pixels, those within `reach` of a drawn edge moved onto it, so that facets follow the figure."""
    edges = cv2.Canny(cv2.GaussianBlur(p.image, (0, 0), p.unit), 40, 110)
    if not edges.any():
        return points
    distance, labels = cv2.distanceTransformWithLabels(255 - edges, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    labels = np.asarray(labels, np.int32)
    nearest = np.zeros((int(labels.max()) + 1, 2), np.float32)
    rows, columns = np.nonzero(edges)
    nearest[labels[rows, columns]] = np.stack([columns, rows], -1)
    at = points.round().astype(int)
    column, row = np.clip(at[..., 0], 0, p.width - 1), np.clip(at[..., 1], 0, p.height - 1)
    inside = (at[..., 0] > 0) & (at[..., 0] < p.width) & (at[..., 1] > 0) & (at[..., 1] < p.height)
    close = (distance[row, column] < reach) & inside
    return np.where(close[..., None], nearest[labels[row, column]], points)


def low_poly(p: Picture, rng: np.random.Generator) -> Drawn:
    """Flat triangles, each the mean colour beneath it."""
    name, palette = pick(rng, PALETTES)
    ground = over(palette[2], palette[3], ramp(coordinates(p.shape)[1] + 10 * clouds(rng, p.shape, 2), 10, 118)[..., None])
    scene = over(ground, over(p.colours(palette), palette[0] * 0.8, 0.8 * p.lines if p.mono else 0.25 * p.lines), p.alpha).astype(
        np.float32
    )
    side = 19
    grid = np.stack(np.meshgrid(np.linspace(0, p.width, side + 1), np.linspace(0, p.height, side + 1)), -1)
    jitter = rng.uniform(-0.26, 0.26, grid.shape) * (p.width / side)
    jitter[[0, -1]] = jitter[:, [0, -1]] = 0
    grid = np.round((snapped(grid + jitter, p, 0.55 * p.width / side)) * 16).astype(np.int32)
    labels = np.zeros(p.shape, np.int32)
    lean = rng.random((side, side)) < 0.5
    index = 0
    for row in range(side):
        for column in range(side):
            a, b, c, d = grid[row, column], grid[row, column + 1], grid[row + 1, column + 1], grid[row + 1, column]
            for corners in ((a, b, c), (a, c, d)) if lean[row, column] else ((a, b, d), (b, c, d)):
                cv2.fillConvexPoly(labels, np.array(corners), index, cv2.LINE_8, 4)
                index += 1
    flat = labels.ravel()
    area = np.maximum(np.bincount(flat, minlength=index), 1)
    mean = np.stack([np.bincount(flat, scene[..., channel].ravel(), minlength=index) / area for channel in range(3)], -1)
    mean = mean * (1 + rng.normal(0, 0.035, (index, 1)))
    return np.clip(mean[labels], 0, 1).astype(np.float32), name


def long_shadow(p: Picture, rng: np.random.Generator) -> Drawn:
    """A flat app icon: white figure with a long diagonal shadow on a coloured rounded square."""
    name, tile = pick(
        rng,
        {
            "red": rgb("e74c3c"),
            "blue": rgb("3498db"),
            "green": rgb("27ae60"),
            "orange": rgb("e67e22"),
            "purple": rgb("8e44ad"),
            "teal": rgb("16a085"),
        },
    )
    x, y = coordinates(p.shape)
    small = p.shrunk(0.68)
    shade = small.hard.astype(np.float32)
    for reach in (1, 2, 4, 8, 16, 32):
        shade = np.maximum(shade, shifted(shade, reach, reach))
    corner = np.hypot(np.maximum(np.abs(x - 63.5) - 40, 0), np.maximum(np.abs(y - 63.5) - 40, 0))
    plate = ramp(corner, 21.5, 20.5)
    face = over(np.broadcast_to(tile, (*p.shape, 3)), tile * 0.68, blur(shade, 0.5 * p.unit))
    paints = np.stack([tile * 0.42, over(tile, WHITE, 0.62), over(tile, WHITE, 0.85), WHITE])
    face = over(face, small.filled(paints), small.alpha)
    face = over(face, tile * 0.42, 0.85 * small.lines)
    return over(np.broadcast_to(rgb("eef1f4"), (*p.shape, 3)), face, plate), name


def wood_inlay(p: Picture, rng: np.random.Generator) -> Drawn:
    """Marquetry: the figure pieced together from woods of different colours."""
    name, light, dark = one_of(rng, ("maple", "e8c99a", "d2a86c"), ("walnut", "7a5234", "5c3a22"), ("cherry", "b8703f", "96522a"))
    ground = wood(rng, p.shape, rgb(light), rgb(dark))
    veneers = np.stack([rgb("2b190f"), rgb("6b3f22"), rgb("a8693a"), rgb("d3a05f"), rgb("f0d9ac")])
    steps = p.filled(veneers)
    fibre = np.rot90(cv2.blur(grain(rng, p.shape), (13, 1))) * 0.22
    piece = steps * (1 + fibre)[..., None]
    ground = over(ground, piece, p.alpha)
    joint = np.clip(np.maximum(p.lines * 0.8, p.outline * 0.8), 0, 1)
    ground = over(ground, rgb("1f120a"), joint)
    x, y = coordinates(p.shape)
    return np.clip(ground + 0.07 * ramp(np.abs((x + y) / 2 - 50), 22, 0)[..., None], 0, 1), name
