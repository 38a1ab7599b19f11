"""Words for pictures: what is drawn (label or a synonym), and in about half of the captions how it is drawn."""

from __future__ import annotations

import numpy as np

STYLE_SHARE = 0.5  # of the captions name the style
MAX_WORDS = 20


def clean_label(label: str) -> str:
    return label.lower()


def caption(row: dict, rng: np.random.Generator, style_words: bool) -> str:
    return clean_label(row["label"])
