"""Renditions by press: screens, blocks, plates, posters, photographs."""

from __future__ import annotations

import cv2
import numpy as np

from deadiff.data.palettes import INKS, PALETTES, f32, one_of, pick, rgb
from deadiff.data.picture import WHITE, Picture, blur, kernel, over, ramp
from deadiff.data.textures import clouds, coordinates, dots, grain, paper, shifted, stripes, vignette

Drawn = tuple[np.ndarray, str]


def woodcut(p: Picture, rng: np.random.Generator) -> Drawn:
    """Black on plain paper, shades cut as swelling lines, gouge marks around the figure."""
    name, ink = pick(rng, {"black": rgb("171412"), "dark red": rgb("6b1a17"), "dark blue": rgb("14264f")})
    ground = paper(rng, p.shape, rgb("efe3c6"), 0.02, 0.02)
    angle = rng.uniform(-0.4, 0.4)
    lines = stripes(p.shape, angle, 5.2, clouds(rng, p.shape, 4) * 2.5)
    dark = 1 - p.tone
    cut = ramp(dark - lines * 0.9, -0.04, 0.12) * p.alpha
    x, y = coordinates(p.shape)
    rays = ramp(np.sin(np.arctan2(y - 64, x - 64) * 34 + 1.5 * clouds(rng, p.shape, 6)), 0.35, 0.7)
    gouge = rays * ramp(p.distance / p.unit, 4, 9) * ramp(clouds(rng, p.shape, 22), -0.5, 0.4)
    key = cv2.dilate(p.lines, kernel(1.1 * p.unit))
    block = np.clip(np.maximum(np.maximum(cut, key), 0.95 * gouge), 0, 1)
    worn = ramp(grain(rng, p.shape, 0.7), -2.4, -1.2)
    return over(ground, ink, block * worn), name


def linocut(p: Picture, rng: np.random.Generator) -> Drawn:
    """One colour of ink on a solid ground: the figure is cut out light, chatter marks stay around it."""
    name, ink = pick(rng, {key: INKS[key] for key in ("navy", "crimson", "forest green", "violet", "teal")})
    sheet = paper(rng, p.shape, rgb("f6f0e2"), 0.012, 0.01)
    dark = ramp(1 - p.tone, 0.5, 0.62)
    inked = np.where(p.hard, dark, 1.0).astype(np.float32)
    light_rim = ramp(p.distance / p.unit, 3.6, 2.8)
    inked = np.where(p.hard, np.maximum(inked, cv2.dilate(p.lines, kernel(0.8 * p.unit))), 1 - light_rim)
    chatter = ramp(stripes(p.shape, rng.uniform(0, np.pi), 7, clouds(rng, p.shape, 5) * 5), 0.88, 0.97) * ramp(
        clouds(rng, p.shape, 14), 0.2, 0.5
    )
    inked = inked - chatter * ramp(p.distance / p.unit, 6, 9)
    x, y = coordinates(p.shape)
    edge = np.minimum(np.minimum(x, 127 - x), np.minimum(y, 127 - y)) + 1.2 * clouds(rng, p.shape, 16)
    inked = blur(np.clip(inked, 0, 1), 0.6 * p.unit) * ramp(edge, 4, 5.5)
    salt = ramp(grain(rng, p.shape, 0.7), -2.1, -1.3)
    return over(sheet, ink, ramp(inked, 0.3, 0.7) * (0.8 + 0.2 * salt)), name


def halftone(p: Picture, rng: np.random.Generator) -> Drawn:
    """One ink, printed as dots whose size is the shade."""
    name, ink = pick(rng, INKS)
    sheet = paper(rng, p.shape, rgb("faf6ea"), 0.01, 0.01)
    screen = dots(p.shape, np.pi / 4 + rng.uniform(-0.15, 0.15), rng.uniform(4.4, 5.6))
    dark = np.clip(np.maximum((0.25 + 0.75 * (1 - p.tone)) * p.alpha, p.lines), 0, 1)
    dark = np.maximum(dark, 0.14 * ramp(coordinates(p.shape)[1], 0, 128))
    return over(sheet, ink, ramp(screen + dark * 1.05 - 1.0, -0.08, 0.08)), name


def newspaper(p: Picture, rng: np.random.Generator) -> Drawn:
    """A cut-out black-and-white photograph over columns of text."""
    sheet = paper(rng, p.shape, rgb("e2dccb"), 0.025, 0.025)
    x, y = coordinates(p.shape)
    word = np.repeat(rng.random((26, 64)) < 0.78, 2, axis=1)
    row, column = (y / 5).astype(int), (x + 40).astype(int)
    text = ((y % 5) > 2.6) & word[row % 26, (column * 128 // 200) % 128] & ((x % 43) > 3)
    sheet = over(sheet, rgb("4a4741"), 0.6 * blur(text.astype(np.float32), 0.45 * p.unit))
    small = p.shrunk(0.9)
    border = blur((small.distance < 3 * p.unit).astype(np.float32), 0.5 * p.unit)
    sheet = over(sheet, f32([0.2, 0.2, 0.2]), 0.4 * blur(shifted(border, 2, 2.5), 1.2 * p.unit))
    sheet = over(sheet, rgb("f2eee2"), border)
    dark = np.clip(np.maximum((0.12 + 0.8 * (1 - small.tone)) * small.alpha, small.lines), 0, 1)
    screen = dots(p.shape, np.pi / 4, 3.3)
    return over(sheet, rgb("1f1e1c"), ramp(screen + dark * 1.05 - 1.0, -0.15, 0.15) * border), "grey"


def pop_art(p: Picture, rng: np.random.Generator) -> Drawn:
    """Primary flats, thick black lines, and dots for half the ground."""
    name, ground, spot = one_of(
        rng,
        ("yellow", "ffd400", "f04e37"),
        ("cyan", "19b5e6", "fff9e8"),
        ("pink", "ff5fa2", "ffe14d"),
        ("red", "e8302a", "ffd400"),
    )
    x, y = coordinates(p.shape)
    sheet = np.broadcast_to(rgb(ground), (*p.shape, 3))
    screen = dots(p.shape, np.pi / 4, 8)
    sheet = over(sheet, rgb(spot), ramp(screen - 0.95 + 0.55 * (x + y) / 256, -0.03, 0.03))
    flats = rgb("1c1c1c e4002b 0077c8 ffcd00 ffffff")
    hsv = cv2.cvtColor(p.colours(flats), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.clip(hsv[..., 1] * 1.7, 0, 1)
    hsv[..., 2] = np.clip(hsv[..., 2] * 1.12, 0, 1)
    vivid = np.round(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 3) / 3
    small = dots(p.shape, np.pi / 4, 4.2)
    shade = ramp(small - 0.62, -0.04, 0.04) * ramp(np.abs(p.tone - 0.5), 0.3, 0.2)
    sheet = over(sheet, over(vivid, WHITE, 0.55 * shade), p.alpha)
    key = np.clip(np.maximum(cv2.dilate(p.lines, kernel(0.9 * p.unit)), cv2.dilate(p.outline, kernel(1.3 * p.unit))), 0, 1)
    return over(sheet, rgb("0d0d0d"), key), name


def four_panels(p: Picture, rng: np.random.Generator) -> Drawn:
    """The picture four times in four loud colourings, as a silk-screen series."""
    sets = [
        rgb(row)
        for row in (
            "3b0f70 ff2e88 ffd60a 00e0c6",
            "0a2463 fb3640 e2e2e2 ffb400",
            "14213d 06d6a0 ef476f ffe66d",
            "2d00f7 ff8500 8ac926 fff3b0",
            "480ca8 4cc9f0 f72585 fef9ef",
        )
    ]
    order = rng.permutation(len(sets))[:4]
    half = p.height // 2, p.width // 2
    small = Picture(cv2.resize(p.image, half[::-1], interpolation=cv2.INTER_AREA))
    sheet = np.zeros((*p.shape, 3), np.float32)
    for index, which in enumerate(order):
        palette = sets[which]
        steps = palette[np.array([0, 1, 3])][small.steps(3)]
        panel = over(np.broadcast_to(palette[2], (*half, 3)), steps, small.alpha)
        panel = over(panel, palette[0], np.clip(small.lines, 0, 1))
        top, left = (index // 2) * half[0], (index % 2) * half[1]
        sheet[top : top + half[0], left : left + half[1]] = panel
    return sheet, "loud"


def risograph(p: Picture, rng: np.random.Generator) -> Drawn:
    """Two transparent inks that do not quite meet, with coarse grain."""
    name, first, second = one_of(
        rng,
        ("pink and blue", "ff48b0", "0078bf"),
        ("orange and teal", "ff6c2f", "00838a"),
        ("yellow and violet", "ffc800", "765ba7"),
        ("red and green", "f15060", "00a95c"),
    )
    sheet = paper(rng, p.shape, rgb("f7f3e6"), 0.012, 0.008)
    speck = 0.5 + 0.26 * grain(rng, p.shape, 0.6)
    light = ramp(0.78 * p.alpha * (0.45 + 0.55 * p.tone) + 0.2 - speck * 0.62, -0.05, 0.15) * p.alpha
    dark = ramp((1 - p.tone) * p.alpha * 1.1 - speck * 0.85, -0.05, 0.12)
    dark = np.maximum(dark, p.lines)
    angle = rng.uniform(0, 2 * np.pi)
    light = shifted(light, 2.4 * np.cos(angle), 2.4 * np.sin(angle))
    x, y = coordinates(p.shape)
    disc = ramp(np.hypot(x - 64, y - 64) + 0 * y, 61, 59) * ramp(0.34 - speck * 0.6, -0.05, 0.05)
    sheet = sheet * over(WHITE, rgb(second), 0.55 * disc * (1 - p.alpha))
    sheet = sheet * over(WHITE, rgb(first), 0.92 * np.clip(light, 0, 1))
    return sheet * over(WHITE, rgb(second), 0.95 * np.clip(dark, 0, 1)), name


def sunburst(p: Picture, rng: np.random.Generator) -> Drawn:
    """A mid-century poster: rays behind, few flat colours with grainy shade, a worn print."""
    name, palette = pick(rng, {key: PALETTES[key] for key in ("retro", "earth", "autumn", "mint", "sunset", "tropical")})
    x, y = coordinates(p.shape)
    rays = ramp(np.sin(np.arctan2(y - 78, x - 64) * 12 + rng.uniform(0, 6)), -0.12, 0.12)
    sheet = over(palette[3], palette[4], rays[..., None])
    speck = grain(rng, p.shape, 0.6)
    sheet = over(sheet, palette[2], 0.55 * ramp(speck + 2.2 * vignette(p.shape), 1.4, 1.8))
    small = p.shrunk(0.88)
    flats = palette[np.array([0, 1, 2, 4])]
    figure = over(small.filled(flats), palette[0], 0.4 * ramp(speck + 2.6 * (x - 64) / 64, 1.6, 2.0)[..., None])
    sheet = over(sheet, palette[0], blur(cv2.dilate(small.hard.astype(np.float32), kernel(1.2 * p.unit)), 0.6 * p.unit))
    sheet = over(sheet, figure, small.alpha)
    sheet = over(sheet, palette[0], np.clip(small.lines, 0, 1) * 0.9)
    return over(sheet, palette[4], 0.6 * ramp(grain(rng, p.shape, 0.8), 2.2, 2.6)), name


def sepia(p: Picture, rng: np.random.Generator) -> Drawn:
    """An old photograph: brown tones, soft focus, faded corners, a pale border."""
    name, dark, light = one_of(
        rng, ("brown", "2e1a0c", "f0ddb8"), ("yellowed", "3a2a10", "f2e2a8"), ("faded", "5a4230", "ead9bd")
    )
    x, y = coordinates(p.shape)
    backdrop = 0.40 + 0.34 * ramp(np.hypot(x - 64, y - 52), 80, 10) + 0.06 * clouds(rng, p.shape, 3, 2)
    small = p.shrunk(0.78)
    figure = 0.05 + 0.95 * small.tone
    cast = blur(shifted(small.alpha, 3, 4), 3 * p.unit)
    tone = over(backdrop[..., None] * (1 - 0.45 * cast[..., None]), figure[..., None], small.alpha)[..., 0]
    tone = blur(tone * (1 - 0.85 * small.lines), 0.55 * p.unit)
    tone = tone * (1 - 0.35 * vignette(p.shape)) + 0.035 * grain(rng, p.shape, 0.6)
    print_ = over(rgb(dark), rgb(light), np.clip(tone, 0, 1)[..., None])
    stain = ramp(np.abs(clouds(rng, p.shape, 3) - 0.7), 0.06, 0.0)
    print_ = over(print_, rgb(light), 0.25 * stain)
    edge = np.minimum(np.minimum(x, 127 - x), np.minimum(y, 127 - y))
    return over(paper(rng, p.shape, rgb("f3e9d2"), 0.015, 0.02), print_, ramp(edge, 6, 7)), name


def comic(p: Picture, rng: np.random.Generator) -> Drawn:
    """A panel: speed lines, bright flats with a hard shadow, a heavy outline, a frame."""
    name, near, far = one_of(
        rng,
        ("yellow", "fff27a", "f7b500"),
        ("blue", "bfe6ff", "2f8fe0"),
        ("red", "ffd0c2", "ee4035"),
        ("green", "d6f5c0", "37a85b"),
    )
    x, y = coordinates(p.shape)
    angle, radius = np.arctan2(y - 64, x - 64), np.hypot(x - 64, y - 64)
    teeth = rng.uniform(0, 1, 90).astype(np.float32)[((angle + np.pi) / (2 * np.pi) * 89.99).astype(int)]
    burst = ramp(radius - 46 - 22 * teeth, -1, 1) * (teeth > 0.35)
    sheet = over(np.broadcast_to(rgb(near), (*p.shape, 3)), rgb(far), burst)
    small = p.shrunk(0.84)
    flats = rgb("1e1e24 d7263d 2e86de f9c80e fff8e7")
    colour = np.clip(small.colours(flats) * 1.08, 0, 1)
    hatch = ramp(stripes(p.shape, -0.8, 4), 0.5, 0.7)
    shadow = np.clip(small.alpha - shifted(small.alpha, -5, -5), 0, 1) * hatch
    heavy = blur(cv2.dilate(small.hard.astype(np.float32), kernel(2.6 * p.unit)), 0.6 * p.unit)
    sheet = over(sheet, rgb("101014"), heavy)
    sheet = over(sheet, over(colour, rgb("101014"), 0.75 * shadow), small.alpha)
    sheet = over(sheet, rgb("101014"), np.clip(cv2.dilate(small.lines, kernel(0.8 * p.unit)), 0, 1))
    frame = ramp(np.minimum(np.minimum(x, 127 - x), np.minimum(y, 127 - y)), 3.2, 2.4)
    return over(sheet, rgb("101014"), frame), name


def duotone(p: Picture, rng: np.random.Generator) -> Drawn:
    """Two colours and nothing else: shadows in one, lights and paper in the other."""
    name, dark, light = one_of(
        rng,
        ("violet and lime", "3a0ca3", "c8f560"),
        ("navy and coral", "14213d", "ff7f6b"),
        ("green and pink", "0b4f3c", "ffb3cf"),
        ("plum and gold", "4a1942", "f5c542"),
        ("blue and orange", "10409a", "ffae42"),
    )
    x, y = coordinates(p.shape)
    light_ground = rng.random() < 0.5
    ground = 0.96 - 0.2 * ramp(y, 0, 128) if light_ground else 0.04 + 0.2 * ramp(y, 0, 128)
    lifted = (0.9 * p.tone if light_ground else 0.22 + 0.78 * p.tone) ** 1.15
    tone = over(ground[..., None], lifted[..., None], p.alpha)[..., 0] * (1 - 0.92 * p.lines)
    tone = ramp(tone, 0.02, 0.94)
    return over(rgb(dark), rgb(light), np.clip(tone, 0, 1)[..., None]), name


def cyanotype(p: Picture, rng: np.random.Generator) -> Drawn:
    """A sun print: the figure is a pale shadow on Prussian blue, brushed unevenly on white paper."""
    name, blue = pick(rng, {"prussian blue": rgb("0b3a70"), "deep cyan": rgb("0a4a78"), "indigo": rgb("1a2f6e")})
    sheet = paper(rng, p.shape, rgb("f4f1e6"), 0.015, 0.01)
    x, y = coordinates(p.shape)
    edge = (
        np.minimum(np.minimum(x, 127 - x), np.minimum(y, 127 - y))
        + 2.2 * clouds(rng, p.shape, 12, 2)
        + 1.5 * cv2.blur(grain(rng, p.shape), (25, 1))
    )
    brushed = ramp(edge, 4, 8)
    streak = cv2.blur(grain(rng, p.shape), (41, 2)) * 0.35 + 0.1 * clouds(rng, p.shape, 4, 2)
    small = p.shrunk(0.84)
    pale = blur(small.alpha, 0.9 * p.unit) * (0.3 + 0.62 * small.tone) * (1 - 0.8 * small.lines)
    exposed = np.clip((1 - pale) * (0.92 + streak), 0, 1) * brushed
    return over(sheet, blue, np.clip(exposed, 0, 1)), name


def stamp(p: Picture, rng: np.random.Generator) -> Drawn:
    """A postage stamp: perforated edge, one engraved colour, a ring of a postmark."""
    name, ink = pick(
        rng,
        {"red": rgb("b3282d"), "blue": rgb("1f4e8c"), "green": rgb("22693f"), "violet": rgb("5d3a8e"), "brown": rgb("74431f")},
    )
    table = paper(rng, p.shape, rgb("39424e"), 0.01, 0.02)
    x, y = coordinates(p.shape)
    edge = np.minimum(np.minimum(x, 128 - x), np.minimum(y, 128 - y))
    holes = np.minimum(
        np.hypot((x + 1) % 10 - 5, np.minimum(np.abs(y - 5), np.abs(123 - y))),
        np.hypot(np.minimum(np.abs(x - 5), np.abs(123 - x)), (y + 1) % 10 - 5),
    )
    body = ramp(edge, 4.5, 5.5) * ramp(holes, 2.4, 3.2)
    field = ramp(edge, 12.5, 13.3)
    tint = over(
        np.broadcast_to(rgb("faf5e8"), (*p.shape, 3)),
        over(WHITE, ink, 0.45),
        field * (0.65 + 0.35 * ramp(stripes(p.shape, 0, 2.6), 0.4, 0.6)),
    )
    small = p.shrunk(0.68)
    lines = stripes(p.shape, 0.8, 2.6)
    cut = ramp((1 - small.tone) * 0.95 - lines * 0.9, -0.1, 0.2) * small.alpha
    tint = over(tint, rgb("faf5e8"), blur((small.distance < 2 * p.unit).astype(np.float32), 0.7 * p.unit))
    tint = over(tint, ink * 0.75, np.clip(np.maximum(cut, small.lines), 0, 1))
    cx, cy = rng.choice([22, 106]), rng.choice([22, 106])
    ring = np.hypot(x - cx, y - cy)
    mark = np.maximum(ramp(np.abs(ring - 26), 1.3, 0.6), ramp(np.abs(ring - 19), 1.0, 0.5)) * ramp(
        grain(rng, p.shape, 0.8), -1.5, 0.3
    )
    tint = over(tint, rgb("22222a"), 0.65 * mark)
    return over(table, tint, body), name
