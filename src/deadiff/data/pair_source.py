"""Pairs as a stream of training samples: what comes in which draw is a function of (seed, draw number) alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deadiff.data.captions import plain_label, with_article
from deadiff.data.pair_index import RECONSTRUCTION, SERE, STRE, read_index
from deadiff.data.picture_store import FITS, PictureStore
from deadiff.data.records import read_records
from deadiff.errors import ConfigError, DataError

# B samples of a draw, S side of a picture in pixels, N pictures

STYLE_WORDS = {STRE: 0.25, SERE: 0.5, RECONSTRUCTION: 0.5}
_STREAM = {STRE: 11, SERE: 12, RECONSTRUCTION: 13}


class PairSource:
    """References, targets and captions of a data set that `deadiff data pairs` has been through.

    data: the folder of shards; pairs: the index, by default data/pairs. size: side of the pictures given, by default that of the
    first one; fit: what is done to pictures of another shape (picture_store.FITS). style_words: share of the captions, by task,
    that are the picture's whole caption; the others name the subject alone and leave the style to the reference.
    Raises DataError if the index is missing or belongs to other pictures.
    """

    def __init__(
        self,
        data: str | Path,
        pairs: str | Path | None = None,
        *,
        seed: int = 0,
        size: int | None = None,
        fit: str = "crop",
        style_words: Mapping[str, float] | None = None,
    ) -> None:
        if fit not in FITS:
            raise ConfigError(f"fit is {fit!r}: expected one of {', '.join(FITS)}")
        folder = Path(data).expanduser()
        self.records = read_records(folder)
        self.index = read_index(Path(pairs).expanduser() if pairs else folder / "pairs", self.records)
        self.pictures = PictureStore(self.records)
        self.seed, self.fit = seed, fit
        self.size = size or min(self.pictures[0].shape[:2])
        self.style_words = {**STYLE_WORDS, **(style_words or {})}

    def __len__(self) -> int:
        """Pictures, paired or not."""
        return len(self.records)

    def draw(self, objective: str, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """References and targets, (B, S, S, 3) uint8 each, and the captions of the targets. In reconstruction both are the same.

        objective: a training.objectives.Objective, or its text.
        """
        references, targets, captions = self.numbers(objective, draw_number, count)
        shown = self.pictures.squares(references, self.size, self.fit)
        drawn = shown if objective == RECONSTRUCTION else self.pictures.squares(targets, self.size, self.fit)
        return shown, drawn, captions

    def numbers(self, objective: str, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The same draw as picture numbers, (B,) int64 each, for those who keep latents or features by picture."""
        rng = np.random.default_rng([self.seed, _STREAM[objective], draw_number])
        if objective == RECONSTRUCTION:
            pool = self.index.reconstructed
            if not len(pool):
                raise DataError(f"'{self.records.folder}' has no picture to reconstruct in split '{self.index.note['split']}'")
            references = targets = pool[rng.integers(len(pool), size=count)]
        else:
            pairs = self.index.pairs[objective]
            if not len(pairs):
                raise DataError(
                    f"'{self.records.folder}' has no {objective} pairs: see the reasons in pairs.json, "
                    "or leave this objective out"
                )
            references, targets = pairs[rng.integers(len(pairs), size=count)].T
        whole = rng.random(count) < self.style_words[objective]
        return references, targets, [self.caption(int(t), bool(w)) for t, w in zip(targets, whole, strict=True)]

    def caption(self, number: int, style_words: bool = True) -> str:
        """The caption of a picture, or its subject alone."""
        records = self.records
        if style_words:
            return records.caption[number].as_py()
        return with_article(plain_label(records.label[number].as_py()))

    def picture(self, number: int) -> np.ndarray:
        """(S, S, 3) uint8."""
        return self.pictures.squares(np.array([number]), self.size, self.fit)[0]

    def sha256(self, number: int) -> str:
        """Of the picture's pixels: what a cache may be keyed by."""
        return self.records.sha256[number].as_py()
