"""The icons data set as a stream of training samples: which picture, with which words, beside which reference."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from deadiff.data.captions import caption, plain_label, style_phrases, tag_counts, with_article, word_phrases
from deadiff.data.splits import PLAIN, TRAIN, house_set
from deadiff.data.store import read_arrays, read_split
from deadiff.errors import DataError
from deadiff.training.objectives import Objective
from deadiff.training.redrawn import Redrawn
from deadiff.training.samples import Drawn, choose, recolour, rng_of

SUBJECT_LEFT_OUT = 0.5  # share of the SERE captions that say the style alone
HOUSE_SHARE = 0.6  # of the plain targets are house drawings
SKETCH_OF_SUBJECT, SKETCH_OF_STYLE = 0.45, 0.2  # shares of the base's styled captions whose sketch is not their own
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
        houses = self._houses()
        at_home = np.array([row["set"] == houses[row["subject"]] for row in self.rows])
        self.house = np.flatnonzero(is_plain & at_home)  # what a caption without a style stands for
        self.other = np.flatnonzero(is_plain & ~at_home)
        self.house_rendered = np.flatnonzero(~is_plain & at_home)
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

    def _houses(self) -> dict[str, str | None]:
        """Subject -> the set whose drawing stands for it where no style is named."""
        sets_of: dict[str, set[str]] = defaultdict(set)
        for i in (*self.plain, *self.rendered):
            row = self.rows[i]
            if row["rendition"] == PLAIN or row["subject"] not in sets_of:  # its plain art may have been left out
                sets_of[row["subject"]].add(row["set"])
        return {subject: house_set(subject, sets) for subject, sets in sets_of.items()}

    def choose_targets(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) numbers of pictures to learn to draw: of plain art the house drawings and in smaller part the other sets', of
        the renditions those of house drawings, so that a subject has one shape and a style is what is done to it.
        """
        plain = choose(rng, count, self.house, self.other, HOUSE_SHARE)
        rendered = self.house_rendered if len(self.house_rendered) else self.rendered
        return np.where(rng.random(count) < self.plain_share, plain, rng.choice(rendered, count)) if len(rendered) else plain

    def captions(self, chosen: np.ndarray, rng: np.random.Generator, style_share: float) -> list[str]:
        """style_share of them name the style."""
        return [caption(self.rows[i], rng, bool(rng.random() < style_share), self.counts) for i in chosen]

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

    def for_base(self, draw: int, count: int) -> Drawn:
        """Cached latents and captions: those of the house drawings mostly leave the style out, all others name it, so that a
        prompt without a style means one thing. Of the captions that name it some have the sketch of their subject alone, some
        leave the subject to an added sketch.
        """
        rng = rng_of(self.seed, draw, stream=3)
        chosen = self.choose_targets(rng, count)
        named = rng.random(count) < np.where(np.isin(chosen, self.house), 0.2, 1.0)
        said = [self._words_and_sketches(int(i), bool(n), rng) for i, n in zip(chosen, named, strict=True)]
        return Drawn(self._cached()[chosen], *(list(texts) for texts in zip(*said, strict=True)))

    def _words_and_sketches(self, number: int, named: bool, rng: np.random.Generator) -> tuple[str, str, str]:
        """What is read, sketched and added for one picture whose style is named or not."""
        plain, lot = caption(self.rows[number], rng, False, self.counts), rng.random()
        if not named:
            return plain, plain, ""
        if lot < SKETCH_OF_STYLE:
            style = self._style_words(number, rng)
            return style, style, plain
        words = caption(self.rows[number], rng, True, self.counts)
        return words, plain if lot < SKETCH_OF_STYLE + SKETCH_OF_SUBJECT else words, ""

    def for_sketch(
        self, plain: int, styled: int, owners: Mapping[str, str] | None = None
    ) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Captions, the number of the picture that each stands for, and whether it leaves the style out: `plain` captions of each
        house drawing without its style; `styled` of each house drawing, its renditions and the other sets' drawings with it, for
        the house drawing too (a style is for words and references to say); then the empty caption and the style's words alone,
        for pictures by lot; then single words, in every frame, for the house drawing of their owner (word -> subject).
        """
        rng = rng_of(self.seed, 0, stream=9)
        drawn = np.concatenate([self.house, self.other, self.house_rendered])
        described = np.concatenate([np.repeat(self.house, plain), np.repeat(drawn, styled)])
        is_plain = np.arange(len(described)) < plain * len(self.house)
        said = [caption(self.rows[i], rng, not p, self.counts) for i, p in zip(described, is_plain, strict=True)]
        house_of = {self.rows[i]["subject"]: int(i) for i in self.house}
        chosen = np.array([house_of.get(self.rows[i]["subject"], int(i)) for i in described])
        some, any_style = (rng.choice(pool, max(1, len(pool) * plain // 32)) for pool in (self.house, drawn))
        said += [""] * len(some) + [self._style_words(i, rng) for i in any_style]
        words = {word: house_of[subject] for word, subject in sorted((owners or {}).items()) if subject in house_of}
        said += [phrase for word in words for phrase in word_phrases(word)]
        owned = np.repeat(np.array([*words.values()], int), len(word_phrases("word")))
        is_plain = np.concatenate([is_plain, np.ones(len(some), bool), np.zeros(len(any_style), bool), np.ones(len(owned), bool)])
        return said, np.concatenate([chosen, some, any_style, owned]), is_plain

    def to_redraw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, Drawn]:
        """Numbers of pictures, their latents and words, the style told, and their subjects to sketch."""
        chosen = self.choose_targets(rng, count)
        words, subjects = (self.captions(chosen, rng, share) for share in (1.0, 0.0))
        return chosen, Drawn(self._cached()[chosen], words, subjects, [""] * count)

    def for_decoder(
        self, redrawn: Redrawn, drawn_share: float, draw: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latents, true or drawn by the base; the pictures that they were meant to be; the share of the steps that was drawn."""
        rng = rng_of(self.seed, draw, stream=12)
        chosen = self.choose(rng, count)
        latents, left = self._cached()[chosen], np.zeros(count)
        which, drawn = rng.integers(len(redrawn.picture), size=count), rng.random(count) < drawn_share
        chosen[drawn], left[drawn] = redrawn.picture[which[drawn]], redrawn.left[which[drawn]]
        latents[drawn] = redrawn.latents[which[drawn]]
        return latents, self.pictures[chosen], left

    def for_content(self, draw: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures and what their artists drew, plain; half of them mirrored, both alike."""
        rng = rng_of(self.seed, draw, stream=13)
        chosen = self.choose(rng, count)
        pictures = np.stack([self.pictures[chosen], self.pictures[self._plain_of[chosen]]])
        return tuple(np.where(rng.random(count)[:, None, None, None] < 0.5, pictures[:, :, :, ::-1], pictures))

    @cached_property
    def _plain_of(self) -> np.ndarray:
        """(N,) for each picture the number of the drawing that it renders; its own where training has not got that."""
        drawn = {(self.rows[i]["subject"], self.rows[i]["set"]): int(i) for i in self.plain}
        return np.array([drawn.get((row["subject"], row["set"]), i) for i, row in enumerate(self.rows)])

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
            target = int(self.choose_targets(rng, 1)[0])
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
