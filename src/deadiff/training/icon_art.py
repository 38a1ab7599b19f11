"""The icons data set as a stream of training samples: which picture, with which words, beside which reference."""

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np

from deadiff.data.captions import caption, plain_label, style_phrases, tag_counts, with_article
from deadiff.data.splits import PLAIN, TRAIN
from deadiff.data.store import read_arrays, read_split
from deadiff.errors import DataError
from deadiff.training.objectives import Objective
from deadiff.training.samples import choose, recolour, rng_of

SUBJECT_LEFT_OUT = 0.5  # share of the SERE captions that say the style alone
TRIES = 20  # draws for a reference before another target is taken


class IconArt:
    """The training split of a folder made by `deadiff data icons`.

    Every draw is a function of (seed, draw number), so that any stage resumes where it was.
    """

    def __init__(self, folder: Path, seed: int = 0, plain_share: float = 0.5) -> None:
        self.folder = folder
        self.rows = list(read_split(folder, TRAIN, images=False))
        if not self.rows:
            raise DataError(f"'{folder}' holds no picture of the split '{TRAIN}': build more subjects or renditions")
        self.seed, self.plain_share = seed, plain_share
        self.latents: np.ndarray | None = None  # (N, Z, h, w) fp16, unscaled
        self.counts = tag_counts(self.rows)
        is_plain = np.array([row["rendition"] == PLAIN for row in self.rows])
        self.plain, self.rendered = np.flatnonzero(is_plain), np.flatnonzero(~is_plain)
        self.subjects = sorted({row["subject"] for row in self.rows})
        self.styles = sorted({style_name(row) for row in self.rows})
        subject_class = {name: i for i, name in enumerate(self.subjects)}
        style_class = {name: i for i, name in enumerate(self.styles)}
        self.subject = np.array([subject_class[row["subject"]] for row in self.rows])
        self.style = np.array([style_class[style_name(row)] for row in self.rows])
        self.hidden = np.array([bool(row["reference_holdout"]) for row in self.rows])  # never shown as a reference
        self._same_style: dict[tuple, list[int]] = defaultdict(list)
        self._same_subject: dict[str, list[int]] = defaultdict(list)
        for i in np.flatnonzero(~self.hidden):
            self._same_style[_style_key(self.rows[i])].append(int(i))
            self._same_subject[self.rows[i]["subject"]].append(int(i))

    @cached_property
    def pictures(self) -> np.ndarray:
        """(N, S, S, 3) uint8, read when a stage first needs them: 50 KB a picture."""
        return read_arrays(self.folder, TRAIN)[0]

    def choose(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) picture numbers: plain art and renditions in the given shares, uniform within each."""
        return choose(rng, count, self.plain, self.rendered, self.plain_share)

    def captions(
        self, chosen: np.ndarray, rng: np.random.Generator, style_share: float, rendered_share: float | None = None
    ) -> list[str]:
        """style_share of them name the style; of the renditions rendered_share, where it is given."""
        shares = {False: style_share, True: style_share if rendered_share is None else rendered_share}
        rendered = [self.rows[i]["rendition"] != PLAIN for i in chosen]
        return [
            caption(self.rows[i], rng, bool(rng.random() < shares[r]), self.counts) for i, r in zip(chosen, rendered, strict=True)
        ]

    def for_autoencoder(self, draw: int, count: int) -> np.ndarray:
        """Pictures, some of them in colours that the art lacks."""
        rng = rng_of(self.seed, draw, stream=1)
        return recolour(self.pictures[self.choose(rng, count)], rng, share=0.15)

    def for_reader(self, draw: int, count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Captions, subject classes, style classes (-1 where the caption does not name the style)."""
        rng = rng_of(self.seed, draw, stream=6)
        chosen = self.choose(rng, count)
        told = rng.random(count) < 0.5
        said = [caption(self.rows[i], rng, bool(t), self.counts) for i, t in zip(chosen, told, strict=True)]
        return said, self.subject[chosen], np.where(told, self.style[chosen], -1)

    def for_eye(self, draw: int, count: int) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
        """Pictures, captions, subject classes, style classes."""
        rng = rng_of(self.seed, draw, stream=2)
        chosen = self.choose(rng, count)
        return self.pictures[chosen], self.captions(chosen, rng, 0.7), self.subject[chosen], self.style[chosen]

    def for_base(self, draw: int, count: int) -> tuple[np.ndarray, list[str]]:
        """Cached latents and captions: half of plain art's name the style, all of the renditions', so that a prompt without a
        style means art as its artists drew it.
        """
        rng = rng_of(self.seed, draw, stream=3)
        chosen = self.choose(rng, count)
        return self._cached()[chosen], self.captions(chosen, rng, 0.5, rendered_share=1.0)

    def for_alignment(self, draw: int, count: int) -> tuple[np.ndarray, list[str], list[str]]:
        """Pictures, a phrase for the style of each, its label with an article."""
        rng = rng_of(self.seed, draw, stream=5)
        chosen = self.choose(rng, count)
        rows = [self.rows[i] for i in chosen]
        said = [self._style_words(i, rng) for i in chosen]
        return self.pictures[chosen], said, [with_article(plain_label(row["label"])) for row in rows]

    def for_adapter(
        self, objective: Objective, draw: int, count: int, paired: bool = True
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """References, latents of their targets, captions of the targets; not `paired`: the reference is the target itself.

        Captions leave to the reference what it is there to say: STRE captions mostly the style, SERE captions in half of the
        cases the subject ("a woodcut").
        """
        references, targets, captions = self.pairs(objective, draw, count, paired)
        return self.pictures[references], self._cached()[targets], captions

    def pairs(self, objective: Objective, draw: int, count: int, paired: bool = True) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The draws of for_adapter by number: references and targets, (count,) each, and the captions of the targets."""
        rng = rng_of(self.seed, draw, stream=4)
        targets, references = [], []
        while len(targets) < count:
            target = int(self.choose(rng, 1)[0])
            reference = self.reference_for(objective if paired else Objective.RECONSTRUCTION, target, rng)
            if reference is not None:
                targets.append(target)
                references.append(reference)
        chosen = np.array(targets)
        share = 0.25 if objective is Objective.STRE else 0.5
        captions = self.captions(chosen, rng, share)
        if objective is Objective.SERE:
            unnamed = rng.random(count) < SUBJECT_LEFT_OUT
            captions = [self._style_words(i, rng) if u else c for i, u, c in zip(chosen, unnamed, captions, strict=True)]
        return np.array(references), chosen, captions

    def _style_words(self, number: int, rng: np.random.Generator) -> str:
        """One way to say the style of a picture."""
        words = style_phrases(self.rows[number]["set"], self.rows[number]["rendition"])
        return words[int(rng.integers(len(words)))]

    def reference_for(self, objective: Objective, target: int, rng: np.random.Generator) -> int | None:
        """A reference for one target under one task, or None if its style or subject stands alone."""
        row = self.rows[target]
        if objective is Objective.RECONSTRUCTION:
            return None if self.hidden[target] else target
        style_pair = objective is Objective.STRE
        pool = self._same_style[_style_key(row)] if style_pair else self._same_subject[row["subject"]]
        for _ in range(TRIES if pool else 0):
            other = pool[int(rng.integers(len(pool)))]
            found = self.rows[other]
            if found["subject"] != row["subject"] if style_pair else _style_key(found) != _style_key(row):
                return other
        return None

    def _cached(self) -> np.ndarray:
        if self.latents is None:
            raise DataError("this stage learns from latents: train the autoencoder first, whose last step is to cache them")
        return self.latents


def style_name(row: dict) -> str:
    """What a style judge tells apart: the rendition, or for plain art the set."""
    return row["set"] if row["rendition"] == PLAIN else row["rendition"]


def _style_key(row: dict) -> tuple:
    """What a style pair shares: the set of plain art; rendition and palette of the rest."""
    return (row["set"],) if row["rendition"] == PLAIN else (row["rendition"], row["palette"])
