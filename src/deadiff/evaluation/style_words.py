"""Words for the style of a reference, as the paper's SS wants them: found by CLIP, without the content.

After CLIP Interrogator: phrases of a vocabulary are ranked by their cosine with the reference; the best medium and movement are
joined, and more follow as long as the joined text comes nearer. Our vocabulary holds styles alone, and phrases with words for
what the reference or the prompt shows are filtered out besides. P width of CLIP's space, V phrases.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from deadiff.errors import DataError
from deadiff.evaluation.metrics import cosine

EncodeTexts = Callable[[Sequence[str]], np.ndarray]  # texts -> (V, P)


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


VOCABULARY: dict[str, tuple[str, ...]] = {
    "medium": _phrases(
        """
        an oil painting, a watercolor painting, an acrylic painting, a gouache painting, a fresco, a tempera painting,
        an ink drawing, an ink wash painting, a pencil sketch, a charcoal drawing, a pastel drawing, a crayon drawing,
        a chalk drawing, a pen and ink illustration, a line drawing, an engraving, an etching, a lithograph, a woodcut
        print, a linocut print, a screen print, a mosaic, a stained glass window, a tapestry, an embroidery, a
        cross-stitch, a knitted textile, a batik cloth, a paper cut-out, a collage, a sculpture, a stone relief, a
        clay model, a wood carving, a vector illustration, a flat icon, a glossy icon, a digital painting, a 3d
        render, a low poly render, a voxel model, pixel art, a photograph, a film still, a cyanotype, a blueprint, a
        comic book panel, a manga page, an anime still, a cartoon, a children's book illustration, a poster, a
        sticker, graffiti, a neon sign, a screenshot of an old monitor, a diagram, a tattoo design
        """
    ),
    "movement": _phrases(
        """
        impressionism, post-impressionism, expressionism, abstract expressionism, cubism, futurism, fauvism,
        pointillism, surrealism, symbolism, romanticism, realism, photorealism, hyperrealism, baroque, rococo,
        renaissance art, mannerism, gothic art, byzantine art, neoclassicism, art nouveau, art deco, arts and crafts,
        bauhaus, constructivism, suprematism, minimalism, op art, pop art, psychedelic art, street art, folk art,
        naive art, ukiyo-e, sumi-e, persian miniature, ancient egyptian art, ancient greek pottery, vaporwave,
        synthwave, steampunk, cyberpunk, glitch art, memphis design, flat design, skeuomorphism, japanese animation,
        concept art
        """
    ),
    "technique": _phrases(
        """
        thick brush strokes, impasto, visible brushwork, soft brushwork, dry brush, wet-on-wet washes, splatters of
        paint, cross-hatching, stippling, fine lines, bold outlines, no outlines, swirling strokes, geometric shapes,
        organic shapes, halftone dots, flat areas of colour, smooth gradients, cel shading, soft shading, sharp
        contrast, a grainy texture, paper texture, canvas texture, a metallic surface, a glossy surface, a matte
        surface, translucent layers, long exposure, double exposure, shallow depth of field, motion blur, isometric
        perspective, symmetrical composition, ornate details, simple shapes, a rough sketch, a blurred background, a
        plain background
        """
    ),
    "colour": _phrases(
        """
        vivid colours, muted colours, pastel colours, earth tones, warm colours, cool colours, neon colours,
        monochrome, black and white, sepia, shades of blue, shades of red, shades of green, blue and orange, black and
        gold, pink and purple, red and black, primary colours, dark and moody colours, light and airy colours, high
        contrast, low contrast, faded colours, rainbow colours
        """
    ),
    "light": _phrases(
        """
        golden hour light, dramatic lighting, chiaroscuro, soft diffuse light, hard shadows, long shadows, backlight,
        glowing light, moonlight, candle light, studio lighting, volumetric light, a misty atmosphere, bright daylight
        """
    ),
}


def without_content(phrases: Iterable[str], content: Iterable[str]) -> list[str]:
    """The phrases that hold none of the content words, in singular or plural, whole words only, upper or lower case."""
    words = {form for text in content for word in _words(text) for form in _forms(word)}
    return [phrase for phrase in phrases if not words & {form for word in _words(phrase) for form in _forms(word)}]


def find_style_words(
    reference: np.ndarray,
    encode: EncodeTexts,
    content: Iterable[str] = (),
    vocabulary: Mapping[str, Sequence[str]] = VOCABULARY,
    most: int = 8,
    pool: int = 24,
) -> list[str]:
    """(P,) image feature of the reference -> at most `most` phrases, the best first; joined by commas they say its style.

    content: words for what the reference or the prompt shows ("a red robot"); phrases with them are left out. pool: how many of
    the best remaining phrases may be tried for the chain. Raises DataError if nothing is left of the vocabulary.
    """
    kinds = {kind: kept for kind, phrases in vocabulary.items() if (kept := without_content(phrases, content))}
    if not kinds:
        raise DataError("the content words filter out the whole vocabulary of styles: give fewer of them")
    phrases = [phrase for kept in kinds.values() for phrase in kept]
    score = dict(zip(phrases, _near(encode(phrases), reference), strict=True))
    opening = [max(kept, key=lambda phrase: score[phrase]) for kept in list(kinds.values())[:2]]  # a medium and a movement
    chain = sorted(opening, key=lambda phrase: -score[phrase])[:most]
    best = float(_near(encode([", ".join(chain)]), reference)[0])
    rest = sorted((phrase for phrase in phrases if phrase not in chain), key=lambda phrase: -score[phrase])[:pool]
    while rest and len(chain) < most:
        tries = _near(encode([", ".join([*chain, phrase]) for phrase in rest]), reference)
        if tries.max() <= best:
            break
        best = float(tries.max())
        chain.append(rest.pop(int(tries.argmax())))
    return chain


def _near(texts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return cosine(texts, np.asarray(reference).reshape(1, -1))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _forms(word: str) -> set[str]:
    """The word and a guess at its singular: 'boxes' -> 'boxes', 'boxe', 'box'."""
    forms = {word}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        if word.endswith("es"):
            forms.add(word[:-2])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
    return forms
