"""Who is held out, written down once: training and evaluation ask the same functions.

A style is a (set, rendition) pair; rendition "plain" is the art as its artist drew it.

- unseen style: the held-out sets, and five whole renditions, whatever the subject.
- unseen combination: 10 % of the (subject, style) pairs of the other styles. The unit that is drawn by lot is (subject, family):
  sets of one family share their outlines, and every rendition of a picture shows its drawing, so holding out "guitar, fluent-3d"
  means holding out all Fluent guitars in all renditions. Of every style 10 % of the subjects are held out that way.
- reference hold-out: 5 % of the drawings (same unit, another lot) are learned from as targets and never shown as references.

The lots are hashes of names: no list to store, nothing to seed, the same on every machine and in every order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from deadiff.data.art import SETS_BY_NAME
from deadiff.errors import DataError

TRAIN = "train"
UNSEEN_COMBINATION = "unseen_combination"
UNSEEN_STYLE = "unseen_style"
SPLITS = (TRAIN, UNSEEN_COMBINATION, UNSEEN_STYLE)

PLAIN = "plain"
HELD_OUT_SETS = frozenset(art_set.name for art_set in SETS_BY_NAME.values() if art_set.held_out)
HELD_OUT_RENDITIONS = frozenset({"scratchboard", "batik", "cyanotype", "stained_glass", "knitted"})  # one or more of each medium

# whose drawing a prompt without a style means: the first of these that has the subject and may be trained on (`house_set`)
HOUSE_SETS = ("twemoji", "fluent-emoji-flat", "noto", "emojione", "fluent-emoji", "noto-v1")

COMBINATION_SHARE = 0.10  # of the drawings
REFERENCE_SHARE = 0.05  # of the drawings


def family_of(set_name: str) -> str:
    """The drawing that a set shares with its sisters: 'fluent-3d' -> 'fluent'."""
    if set_name not in SETS_BY_NAME:
        raise DataError(f"no set is called '{set_name}': expected one of {', '.join(SETS_BY_NAME)}")
    return SETS_BY_NAME[set_name].family


def split_of(subject: str, set: str, rendition: str = PLAIN) -> str:
    """'train', 'unseen_combination' or 'unseen_style'. `subject` is a hexcode."""
    if set in HELD_OUT_SETS or rendition in HELD_OUT_RENDITIONS:
        return UNSEEN_STYLE
    if _lot("combination", subject, family_of(set)) < COMBINATION_SHARE:
        return UNSEEN_COMBINATION
    return TRAIN


def house_set(subject: str, sets: Collection[str]) -> str | None:
    """Of the sets that drew a subject, the one whose drawing stands for it where no style is named; None where none may.

    Where none of HOUSE_SETS drew it, the first set by name.
    """
    order = (*HOUSE_SETS, *sorted(sets))
    return next((name for name in order if name in sets and split_of(subject, name) == TRAIN), None)


def is_reference_holdout(subject: str, set: str, rendition: str = PLAIN) -> bool:
    """True if training must never show this picture as a reference: by lot, or because it is not a training picture at all."""
    return split_of(subject, set, rendition) != TRAIN or _lot("reference", subject, family_of(set)) < REFERENCE_SHARE


def _lot(purpose: str, subject: str, family: str) -> float:
    """A number in [0, 1) that depends on the names alone."""
    digest = hashlib.sha256(f"deadiff icons v1|{purpose}|{subject}|{family}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
