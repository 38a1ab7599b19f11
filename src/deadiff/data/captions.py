"""Words for pictures: what is drawn (its label or its synonyms), and in about half of the captions how it is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from deadiff.data.renditions import RENDITIONS
from deadiff.data.splits import PLAIN
from deadiff.errors import DataError

STYLE_SHARE = 0.5  # of the captions name the style
MAX_WORDS = 20

SET_WORDS: dict[str, tuple[str, ...]] = {
    "twemoji": ("a flat colour icon", "a simple flat emoji", "flat vector shapes"),
    "noto": ("a shaded colour emoji", "a colour icon with soft shading", "a detailed colour emoji"),
    "noto-v1": ("an old flat emoji", "a rounded flat blob emoji", "an early android emoji"),
    "emojione": ("a flat icon in muted colours", "a muted flat emoji", "flat and soft-coloured"),
    "emojione-monotone": ("a black stencil icon", "a bold black pictogram", "a solid black and white glyph"),
    "fluent-emoji": ("a glossy gradient icon", "smooth colour gradients", "a modern icon with soft gradients"),
    "fluent-emoji-flat": ("a bright flat icon", "saturated flat colours", "a modern flat emoji"),
    "fluent-emoji-high-contrast": (
        "a thick black hatched icon",
        "a high-contrast black icon",
        "heavy black outlines with hatching",
    ),
    "fluent-3d": ("a glossy 3-d render", "a 3d icon", "a rounded three-dimensional model"),
    "noto-mono": ("a thin black line drawing", "a black outline icon", "simple line art"),
    "symbola": ("an engraved ink symbol", "a black ink glyph", "an old printed symbol in ink"),
    "fxemoji": ("a friendly flat emoji", "flat colours with rounded shapes"),
    "streamline-emojis": ("a duotone outline cartoon", "a bold cartoon icon with dark outlines"),
    "openmoji": ("an outlined flat icon", "flat colour with a black outline"),
    "openmoji-black": ("a thin outline icon", "thin black outlines only"),
    "emojione-v1": ("a soft pastel icon", "a gently shaded early emoji"),
}
_SUBJECT_FRAMES = ("{}", "{}", "{}", "an icon of {}", "an emoji of {}", "a picture of {}", "{} icon", "{} emoji")
_STYLE_FRAMES = ("{subject}, {style}", "{subject}, {style}", "{style}: {subject}", "{subject} as {style}", "{style} of {subject}")


def plain_label(label: str) -> str:
    """'Japanese “here” button' -> 'japanese here button'; 'person: blond hair' -> 'person, blond hair'."""
    text = label.lower().replace("’", "'").replace(":", ",")
    text = re.sub(r"[“”\"()!]", "", text)
    return re.sub(r"\s+", " ", text).strip()


def with_article(phrase: str) -> str:
    """'owl' -> 'an owl'; plurals, numbers and phrases that bring their own article stay as they are."""
    first = phrase.split()[0]
    if first in ("a", "an", "the", "no") or re.match(r"\d|keycap", first) or (phrase.endswith("s") and not phrase.endswith("ss")):
        return phrase
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def style_phrases(set_name: str, rendition: str = PLAIN) -> tuple[str, ...]:
    """Ways to say a style in words: the rendition's, or for plain pictures the set's."""
    if rendition != PLAIN:
        if rendition not in RENDITIONS:
            raise DataError(f"no rendition is called '{rendition}': expected one of {', '.join(RENDITIONS)}")
        return RENDITIONS[rendition].words
    if set_name not in SET_WORDS:
        raise DataError(f"no set is called '{set_name}': expected one of {', '.join(SET_WORDS)}")
    return SET_WORDS[set_name]


def tag_counts(rows: Iterable[Mapping]) -> dict[str, int]:
    """How many subjects share each tag. `rows` may hold a subject several times."""
    tags_of = {row["subject"]: set(row["tags"]) for row in rows}
    counts: dict[str, int] = {}
    for tags in tags_of.values():
        for tag in tags:
            counts[tag] = counts.get(tag, 0) + 1
    return counts


def subject_phrases(row: Mapping, counts: Mapping[str, int] | None = None, most: int = 1) -> list[str]:
    """Prompts that name one subject, the label first: for evaluation, where a prompt must mean one thing.

    With `counts` (tag_counts) come the synonyms that at most `most` subjects carry.
    """
    label = plain_label(row["label"])
    phrases = [label, with_article(label), f"an icon of {with_article(label)}"]
    if counts is not None:
        phrases += [tag for tag in row["tags"] if counts.get(tag, 0) <= most and tag != label]
    return list(dict.fromkeys(phrases))


def word_phrases(word: str) -> list[str]:
    """The plain captions that one word makes: 'car', 'a car', 'an icon of a car', 'car icon'."""
    named = with_article(word)
    return [word, named, f"an icon of {named}", f"{word} icon"]


def caption(row: Mapping, rng: np.random.Generator, style_words: bool, counts: Mapping[str, int] | None = None) -> str:
    """A lower-case caption of at most 20 words for one row (label, tags, set, rendition, palette); each draw finds other words.

    With `counts` (tag_counts) rare tags, which say more about the subject, are drawn more often than common ones.
    """
    subject = _subject_words(row, rng, counts or {})
    if not style_words:
        return _shortened(subject)
    styles = style_phrases(row["set"], row["rendition"])
    style = styles[int(rng.integers(len(styles)))]
    if row["rendition"] != PLAIN and row["palette"] and rng.random() < 0.25:
        style = f"{style}, {row['palette']}"
    # "a wool knit of an owl", but not "a wool knit of a picture of an owl" nor "knitted in wool of an owl"
    is_noun = style.startswith(("a ", "an ")) and not any("," in words for words in (subject, style))
    is_framed = " of " in subject or subject.endswith((" icon", " emoji"))
    frames = _STYLE_FRAMES if is_noun and not is_framed else _STYLE_FRAMES[:3]
    return _shortened(frames[int(rng.integers(len(frames)))].format(subject=subject, style=style))


def _subject_words(row: Mapping, rng: np.random.Generator, counts: Mapping[str, int]) -> str:
    """The label in three of four captions, tags beside it or alone in the others."""
    label, tags = plain_label(row["label"]), list(row["tags"])
    if tags:
        weights = np.array([1 / counts.get(tag, 1) ** 0.5 for tag in tags])
        tags = [tags[int(index)] for index in rng.choice(len(tags), len(tags), replace=False, p=weights / weights.sum())]
    draw = rng.random()
    if len(tags) > 1 and draw < 0.25:  # synonyms alone, two at least: one may mean many things
        return ", ".join(tags[: 2 + int(rng.integers(2))])
    if tags and draw < 0.45:
        return ", ".join([label, *tags[: 1 + int(rng.integers(2))]])
    name = with_article(label) if rng.random() < 0.6 else label
    frame = _SUBJECT_FRAMES[int(rng.integers(len(_SUBJECT_FRAMES)))]
    return frame.format(label if frame.endswith(("icon", "emoji")) else name)


def _shortened(text: str) -> str:
    return " ".join(text.lower().split()[:MAX_WORDS]).rstrip(",:")
