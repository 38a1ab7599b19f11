"""What is to be drawn: each subject in about 14 styles, every style equally often. The paper's way, as a function of a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np

from deadiff.data.splits import TRAIN, UNSEEN_COMBINATION, UNSEEN_STYLE
from deadiff.data.vocabulary import StyleWord, SubjectWord
from deadiff.errors import ConfigError
from deadiff.writing import write_whole

# M pictures to draw, K styles a subject

Word = TypeVar("Word", SubjectWord, StyleWord)
ROWS = 65_536  # of the plan held as Python objects at a time
SHARERS = 4  # subjects at least that share a style: alone with its subject it makes no pair


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How subjects and styles are combined."""

    seed: int = 0
    styles_per_subject: int = 14  # the paper: >160,000 prompts of >12,000 subjects
    limit: int | None = None  # subjects, the same number of each group, from the top of the list; None: all
    unseen_styles: float = 0.02  # share of the styles that training never sees
    unseen_combinations: float = 0.02  # share of the pictures whose subject training never sees in this style

    def __post_init__(self) -> None:
        if self.styles_per_subject < 1:
            raise ConfigError(f"styles_per_subject is {self.styles_per_subject}: expected at least 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}: expected at least 1 subject")
        for name in ("unseen_styles", "unseen_combinations"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One picture to draw."""

    number: int
    subject: str
    group: str
    style: str
    kind: str
    prompt: str
    seed: int
    split: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The subjects in the order in which they are drawn, each with its styles."""

    subjects: Sequence[SubjectWord]
    styles: Sequence[StyleWord]
    chosen: np.ndarray  # (subjects, K) places in styles
    config: PlanConfig

    def __len__(self) -> int:
        return self.chosen.size

    def __getitem__(self, number: int) -> Planned:
        subject = self.subjects[number // self.chosen.shape[1]]
        style = self.styles[self.chosen.flat[number]]
        return Planned(
            number=number,
            subject=subject.word,
            group=subject.group,
            style=style.words,
            kind=style.kind,
            prompt=style.prompt(subject.word),
            seed=int(_lot(self.config.seed, "picture", subject.word, style.words) * 2**48),
            split=split_of(self.config, subject.word, style.words),
        )


def make_plan(subjects: Sequence[SubjectWord], styles: Sequence[StyleWord], config: PlanConfig) -> Plan:
    """Subjects and styles -> what is drawn, in an order that may be broken off anywhere: subjects and styles stay balanced.

    With few subjects only some styles are used, by lot, as many of each kind: so many that about SHARERS subjects share each.
    Raises ConfigError if there are fewer styles than a subject is to have.
    """
    if config.styles_per_subject > len(styles):
        raise ConfigError(
            f"styles_per_subject is {config.styles_per_subject}: expected at most the {len(styles)} styles there are"
        )
    chosen = in_turn(subjects)[: config.limit]
    rng = np.random.default_rng([config.seed, 3])
    ordered = [chosen[int(place)] for place in rng.permutation(len(chosen))]
    shared = len(ordered) * config.styles_per_subject // SHARERS
    if shared < len(styles):
        mixed = [styles[int(place)] for place in np.random.default_rng([config.seed, 4]).permutation(len(styles))]
        styles = in_turn(mixed, "kind")[: max(shared, config.styles_per_subject)]
    return Plan(
        subjects=ordered, styles=styles, chosen=deal(len(ordered), len(styles), config.styles_per_subject, rng), config=config
    )


def in_turn(words: Sequence[Word], by: str = "group") -> list[Word]:
    """One word of each group (or kind) after the other, the groups in the order in which they first come."""
    groups: dict[str, list[Word]] = {}
    for word in words:
        groups.setdefault(getattr(word, by), []).append(word)
    return [word for row in zip_longest(*groups.values()) for word in row if word is not None]


def deal(players: int, cards: int, hand: int, rng: np.random.Generator) -> np.ndarray:
    """(players, hand): `hand` different cards for each from shuffled packs, so that no card is out twice more than another."""
    hands = np.empty((players, hand), np.int32)
    pack: list[int] = []
    for player in range(players):
        taken, pack = pack[:hand], pack[hand:]
        if len(taken) < hand:  # the pack ends in the middle of a hand: the next one gives what is not in it yet
            fresh = [int(card) for card in rng.permutation(cards)]
            missing = hand - len(taken)
            new = [card for card in fresh if card not in taken][:missing]
            pack = [card for card in fresh if card not in new]
            taken += new
        hands[player] = taken
    return hands


def split_of(config: PlanConfig, subject: str, style: str) -> str:
    """By lot, from the names: the same in every plan of the same seed."""
    if _lot(config.seed, "style", style) < config.unseen_styles:
        return UNSEEN_STYLE
    return UNSEEN_COMBINATION if _lot(config.seed, "combination", subject, style) < config.unseen_combinations else TRAIN


def write_plan(plan: Plan, path: Path, rows_per_group: int) -> None:
    """A parquet file with a row a picture, a row group a shard."""
    import pyarrow
    import pyarrow.parquet

    def write(partial: Path) -> None:
        writer = None
        step = max(1, ROWS // rows_per_group) * rows_per_group
        for start in range(0, len(plan), step):
            rows = [vars(plan[number]) for number in range(start, min(start + step, len(plan)))]
            table = pyarrow.Table.from_pylist(rows)
            writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=rows_per_group)
        assert writer is not None
        writer.close()

    write_whole(path, write)


def read_part(path: Path, group: int) -> list[Planned]:
    """The plan's rows of one shard."""
    import pyarrow.parquet

    return [Planned(**row) for row in pyarrow.parquet.ParquetFile(path).read_row_group(group).to_pylist()]


def _lot(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on the seed and the names alone."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
