"""The renditions: pure functions image -> image that draw an icon again in a style that a person would name.

Each reads the icon's silhouette, lines and tones (picture.py), so colour art and line art both work, and takes its palette and
parameters from the random generator it is given. One thread draws a 128-pixel picture in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deadiff.data import crafted, drawn, lit, painted, printed
from deadiff.data.picture import Picture
from deadiff.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Rendition:
    """One style. `draw` maps a picture to ((H, W, 3) float RGB in [0, 1], the palette's name); `words` are ways to say it."""

    name: str
    draw: Callable[[Picture, np.random.Generator], tuple[np.ndarray, str]]
    words: tuple[str, ...]


def _table(*rows: tuple[Callable, tuple[str, ...]]) -> dict[str, Rendition]:
    return {draw.__name__: Rendition(name=draw.__name__, draw=draw, words=words) for draw, words in rows}


RENDITIONS: dict[str, Rendition] = _table(
    (
        drawn.blueprint,
        ("a blueprint", "white lines on blue paper, like a blueprint", "an architect's blueprint", "blueprint drawing"),
    ),
    (drawn.chalkboard, ("a chalk drawing", "chalk on a blackboard", "drawn in chalk on a school board", "chalkboard sketch")),
    (drawn.pencil, ("a pencil sketch", "pencil on parchment", "graphite sketch with hatching", "hand-drawn in pencil")),
    (drawn.crayon, ("a crayon drawing", "wax crayon on paper", "coloured in with crayons", "a child's crayon picture")),
    (
        drawn.engraving,
        ("a banknote engraving", "engraved in fine lines", "an engraving with swelling lines", "printed like money"),
    ),
    (drawn.pyrography, ("burnt into wood", "pyrography on a wooden board", "a wood-burned drawing")),
    (drawn.scratchboard, ("rainbow scratch art", "scratched into black wax over a rainbow", "a rainbow scratchboard")),
    (drawn.contour, ("a topographic map", "contour lines on a map", "drawn as a hiking map with height lines")),
    (drawn.graffiti, ("graffiti on a brick wall", "spray paint on bricks", "street art, sprayed on a wall")),
    (drawn.sand, ("drawn in the sand", "lines in wet sand on a beach", "a drawing in beach sand")),
    (drawn.ink_wash, ("an ink wash painting", "sumi-e ink with a red seal", "japanese brush painting in black ink")),
    (
        painted.watercolour,
        ("a watercolour", "painted in watercolour", "a watercolor painting with soft edges", "aquarelle on white paper"),
    ),
    (painted.oil, ("an oil painting", "thick oil paint", "painted in oils with visible brush strokes", "impasto painting")),
    (painted.pointillism, ("a pointillist painting", "painted in tiny dots of colour", "pointillism, thousands of dabs")),
    (painted.night, ("a night scene", "under the moon and stars", "by moonlight on a dark night")),
    (painted.woodblock, ("a japanese woodblock print", "ukiyo-e print", "a colour woodblock print with a red sun")),
    (painted.tie_dye, ("a tie-dye print", "on a tie-dyed shirt", "white on a tie-dye spiral")),
    (painted.batik, ("a batik cloth", "batik with cracked wax lines", "wax-resist dyed fabric")),
    (printed.woodcut, ("a woodcut", "an old woodcut print", "cut in wood and printed in one ink")),
    (printed.linocut, ("a linocut", "a linoleum print", "lino print, light on solid ink")),
    (printed.halftone, ("a halftone print", "printed in halftone dots", "one-colour dots of different sizes")),
    (printed.newspaper, ("a newspaper clipping", "cut out of a newspaper", "a newsprint photo over columns of text")),
    (printed.pop_art, ("pop art", "pop art with bold dots", "a bright pop art print with thick outlines")),
    (printed.four_panels, ("a four-panel silkscreen", "four loud silkscreen prints", "repeated four times in bright colours")),
    (printed.risograph, ("a risograph print", "a two-colour riso print", "grainy two-ink print, slightly misaligned")),
    (printed.sunburst, ("a retro sunburst poster", "a mid-century poster with sun rays", "a vintage poster with rays behind")),
    (printed.sepia, ("a sepia photograph", "an old brown photo", "a faded antique photograph")),
    (printed.comic, ("a comic book panel", "comic style with speed lines", "a cartoon panel with a heavy outline")),
    (printed.duotone, ("a duotone", "in two colours only", "a two-tone gradient image")),
    (printed.cyanotype, ("a cyanotype", "a sun print in prussian blue", "pale on brushed blue, a cyanotype photogram")),
    (printed.stamp, ("a postage stamp", "on a perforated postage stamp", "engraved on a stamp with a postmark")),
    (crafted.mosaic, ("a mosaic", "a mosaic of small stones", "roman mosaic tiles")),
    (crafted.toy_bricks, ("built from toy bricks", "plastic bricks with studs", "a picture made of building bricks")),
    (crafted.pixel_art, ("pixel art", "an 8-bit video game sprite", "a retro game sprite in big pixels")),
    (crafted.cross_stitch, ("a cross-stitch", "cross-stitched on cloth", "embroidered in little crosses")),
    (crafted.knitted, ("knitted in wool", "a knitted sweater pattern", "a wool knit")),
    (crafted.stained_glass, ("a stained glass window", "stained glass with black lead lines", "coloured church window glass")),
    (crafted.paper_cut, ("a paper cut-out", "layers of cut paper with shadows", "made of coloured card, papercraft")),
    (crafted.embossed, ("embossed in paper", "a blind emboss, no ink, only relief", "pressed into one-coloured paper")),
    (crafted.clay, ("made of clay", "a plasticine model", "modelled in soft clay", "claymation")),
    (crafted.gold_foil, ("foil stamped on dark card", "shiny metal foil on a dark card", "stamped in metallic foil")),
    (crafted.pottery, ("a greek vase painting", "painted on terracotta pottery", "ancient greek pottery, black and orange")),
    (crafted.felt, ("a felt patch", "sewn from felt with running stitches", "fuzzy felt appliqué")),
    (crafted.stone, ("carved in stone", "a stone relief", "chiselled into rock")),
    (crafted.coin, ("on a coin", "struck on a metal coin", "a coin relief")),
    (crafted.enamel_pin, ("an enamel pin", "a metal pin badge with glossy enamel", "an enamel badge on cloth")),
    (crafted.sticker, ("a sticker", "a die-cut sticker with a white border", "a vinyl sticker on a bright ground")),
    (crafted.low_poly, ("low poly", "low-poly triangles", "made of flat triangles, low poly")),
    (
        crafted.long_shadow,
        ("a flat app icon with a long shadow", "long shadow flat design", "a flat white icon on a coloured square"),
    ),
    (crafted.wood_inlay, ("a wood inlay", "marquetry of different woods", "inlaid wood veneer")),
    (lit.neon, ("a neon sign", "glowing neon tubes", "neon lights on a dark wall")),
    (lit.glitch, ("glitch art", "a glitched screen with split colours", "a broken video signal")),
    (lit.thermal, ("a thermal image", "seen by a heat camera", "an infrared heat map")),
    (lit.hologram, ("a holographic foil", "an iridescent hologram", "shimmering rainbow foil")),
    (lit.xray, ("an x-ray", "an x-ray image", "a radiograph, glowing on black film")),
    (lit.crt, ("an old monochrome terminal", "glowing phosphor with scan lines", "on a retro crt monitor")),
    (lit.vaporwave, ("vaporwave", "synthwave with a striped sun", "eighties retro wave with a neon grid")),
)


def render(image: np.ndarray, name: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 RGB on white -> (the same shape drawn as rendition `name`, the palette's name).

    The same state of `rng` gives the same pixels. Raises DataError for an unknown name.
    """
    if name not in RENDITIONS:
        raise DataError(f"no rendition is called '{name}': expected one of {', '.join(RENDITIONS)}")
    drawn_, palette = RENDITIONS[name].draw(Picture(image), rng)
    return np.clip(np.round(drawn_ * 255), 0, 255).astype(np.uint8), palette


def render_batch(images: np.ndarray, rng: np.random.Generator, names: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    """(B, H, W, 3) plain pictures -> (rendered, the rendition of each by lot from `names`, the palette of each)."""
    chosen = [names[int(index)] for index in rng.integers(len(names), size=len(images))]
    drawn_ = [render(image, name, rng) for image, name in zip(images, chosen, strict=True)]
    return np.stack([image for image, _ in drawn_]), chosen, [palette for _, palette in drawn_]
