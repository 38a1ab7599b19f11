"""The data card: what a built folder holds, counted from its shards and said in Markdown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from textwrap import fill

from deadiff.data.art import EMOJIBASE, EMOJILIB, SETS_BY_NAME
from deadiff.data.renditions import RENDITIONS
from deadiff.data.splits import (
    COMBINATION_SHARE,
    HELD_OUT_RENDITIONS,
    PLAIN,
    REFERENCE_SHARE,
    TRAIN,
    UNSEEN_COMBINATION,
    UNSEEN_STYLE,
)
from deadiff.data.store import read_rows, shards
from deadiff.writing import write_text_whole

COLUMNS = [
    "subject",
    "label",
    "group",
    "set",
    "family",
    "rendition",
    "palette",
    "caption",
    "split",
    "reference_holdout",
    "sha256",
]


def write_card(folder: Path, path: Path) -> None:
    """Counts the data set in `folder` and writes the card to `path`."""
    rows = [row for shard in shards(folder) for row in read_rows(shard, COLUMNS)]
    write_text_whole(path, card(rows))


def card(rows: list[dict]) -> str:
    """The card of a data set with these rows (COLUMNS)."""
    plain = [row for row in rows if row["rendition"] == PLAIN]
    return "\n\n".join(
        [
            "# Data card: icons",
            _summary(rows, plain),
            "## Sources",
            "\n".join(_set_table(plain)),
            _paragraph(
                f"Names, tags and groups: {EMOJIBASE.name} {EMOJIBASE.version} (MIT); keywords: {EMOJILIB.name} "
                f"{EMOJILIB.version} (MIT). "
                "The sha256 of every package stands in `src/deadiff/data/art.py`, attribution in NOTICE."
            ),
            _paragraph(
                "Subjects are Unicode's emoji without skin tones, components, and the flags of countries and "
                "subdivisions. Sets are aligned by "
                "code point (FE0F left out), or by the CLDR name where a package records none. SVG is drawn by resvg, "
                "fonts by FreeType, on white "
                "paper. Left out: blanks (fewer than 0.4 % of the pixels inked) and pictures whose pixels equal an "
                "earlier one's in the order "
                "of the table, so no held-out picture equals a training picture."
            ),
            "## Splits",
            _paragraph("Written down once, in `src/deadiff/data/splits.py`. A style is a (set, rendition) pair."),
            "\n".join(_split_table(rows)),
            _paragraph(
                f"Of the training pictures {sum(row['reference_holdout'] and row['split'] == TRAIN for row in rows):,} are "
                f"targets only and "
                f"never references ({REFERENCE_SHARE:.0%} of the drawings). The unit of both lots is (subject, family): "
                f"sets of one family "
                "share their outlines and each rendition shows the drawing of its picture, so for a held-out subject all "
                "pictures of the family "
                f"are held out, in all renditions. Families of more than one set: {'; '.join(_families(plain))}."
            ),
            "## Renditions",
            _paragraph(
                "Pure functions of a picture and a random generator, which chooses palette, angles and textures; about 3 "
                "ms each at 128 pixels on "
                "one thread. Each picture of the training sets gets some of the seen renditions, the drawing that stands for its "
                "subject where no style is named more of them, and one of the held-out "
                "ones; the held-out sets "
                "stay as drawn."
            ),
            "\n".join(_rendition_table(rows)),
            "## Subjects",
            "\n".join(_group_table(plain)),
            "## Captions",
            _paragraph("Label or synonyms, in changing frames, at most 20 words; half of them name the style. For example:"),
            "\n".join(f"- {row['caption']}" for row in sorted(rows, key=lambda row: row["sha256"])[:12]),
            "## Limits",
            _LIMITS,
        ]
    )


_LIMITS = """\
- Symbols, buttons and clock faces are alike in every set: a style shows less in them than in animals or things.
- Tags are associations as well as names: 'queen' stands for a crown. Prompts to evaluate with use labels, or tags of one subject.
- People are drawn in each set's default skin colour (yellow or grey), as emoji without a skin tone are.
- Line art has no colours of its own: renditions fill its fields from a palette.
- A rendition keeps its picture's drawing, so the hand behind it stays visible, most in outlines.
"""


def _summary(rows: list[dict], plain: list[dict]) -> str:
    return _paragraph(
        f"**{len(rows):,} pictures**: {len(plain):,} as drawn and {len(rows) - len(plain):,} rendered; "
        f"{len({row['subject'] for row in plain}):,} subjects, {len({row['set'] for row in plain})} sets, "
        f"{len({row['rendition'] for row in rows} - {PLAIN})} renditions. The same subjects are drawn by many "
        f"hands and drawn again in many "
        "renditions, so that pictures share a style or a subject but are never the same picture. Made by `deadiff "
        "data icons --out DIR`, which "
        "counts its shards and writes this page (`DIR/card.md`) and the contact sheets: [every "
        "set](data/sets.jpg) and every rendition, "
        "from [the first page](data/renditions-1.jpg) on."
    )


def _split_table(rows: list[dict]) -> list[str]:
    counts = Counter(row["split"] for row in rows)
    held_out_sets = sum(art_set.held_out for art_set in SETS_BY_NAME.values())
    meanings = {
        TRAIN: "training",
        UNSEEN_COMBINATION: f"a subject never seen in that style: by lot {COMBINATION_SHARE:.0%} of the (subject, style) pairs",
        UNSEEN_STYLE: f"the style was never seen: {held_out_sets} sets and {len(HELD_OUT_RENDITIONS)} renditions",
    }
    return ["| split | pictures | what it is |", "|---|---|---|"] + [
        f"| {split} | {counts[split]:,} | {meaning} |" for split, meaning in meanings.items()
    ]


def _set_table(plain: list[dict]) -> list[str]:
    lines = ["| set | package | licence | family | pictures | use |", "|---|---|---|---|---|---|"]
    for name, number in Counter(row["set"] for row in plain).items():
        art_set = SETS_BY_NAME[name]
        use = "held out: an unseen style" if art_set.held_out else "training"
        package = f"{art_set.package.name} {art_set.package.version}"
        lines.append(f"| {name} | {package} | {art_set.licence} | {art_set.family} | {number:,} | {use} |")
    return lines


def _families(plain: list[dict]) -> list[str]:
    sets: dict[str, list[str]] = {}
    for family, name in dict.fromkeys((row["family"], row["set"]) for row in plain):
        sets.setdefault(family, []).append(name)
    return [f"{family} ({', '.join(names)})" for family, names in sets.items() if len(names) > 1] or ["none"]


def _rendition_table(rows: list[dict]) -> list[str]:
    counts = Counter(row["rendition"] for row in rows)
    palettes: dict[str, set[str]] = {}
    for row in rows:
        palettes.setdefault(row["rendition"], set()).add(row["palette"])
    lines = ["| rendition | pictures | palettes | in words |", "|---|---|---|---|"]
    for name, rendition in RENDITIONS.items():
        held_out = " (held out)" if name in HELD_OUT_RENDITIONS else ""
        lines.append(f"| {name}{held_out} | {counts[name]:,} | {len(palettes.get(name, ()))} | {'; '.join(rendition.words)} |")
    return lines


def _group_table(plain: list[dict]) -> list[str]:
    pictures = Counter(row["group"] for row in plain)
    subjects = Counter(group for _, group in {(row["subject"], row["group"]) for row in plain})
    return ["| group | subjects | pictures as drawn |", "|---|---|---|"] + [
        f"| {group} | {subjects[group]:,} | {number:,} |" for group, number in pictures.most_common()
    ]


def _paragraph(text: str) -> str:
    return fill(text, width=150, break_long_words=False, break_on_hyphens=False)
