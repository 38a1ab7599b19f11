"""Where pairs come from, seen from training: numbered pictures, and draws that depend on (seed, draw number) alone."""

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from deadiff.data.pair_index import PAIRED, RECONSTRUCTION
from deadiff.data.pair_source import PairSource
from deadiff.data.picture_store import square
from deadiff.training.icon_art import IconArt
from deadiff.training.objectives import Objective

# B samples of a draw, S side of a picture in pixels, N pictures

VALIDATION = 1 << 40  # draw numbers from here on are never trained on


class Source(Protocol):
    """What the loop and the caches ask for."""

    fingerprint: str  # of the pictures and of the pairs: a resumed run insists on the same

    def numbers(self, objective: Objective, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Picture numbers of references and targets, (B,) each, and the captions of the targets."""
        ...

    def drawable(self) -> np.ndarray:
        """(N,) the pictures that any draw may return, sorted."""
        ...

    def captions(self) -> list[str]:
        """The captions that any draw may return; empty where they are made up as they come."""
        ...

    def picture(self, number: int) -> np.ndarray:
        """(S, S, 3) uint8."""
        ...

    def sha256(self, number: int) -> str:
        """Of the picture's pixels, before they were scaled."""
        ...


class PairedPictures:
    """The pairs that `deadiff data pairs` found in a folder of pictures."""

    def __init__(self, data: Path, pairs: Path | None = None, *, seed: int = 0, size: int | None = None) -> None:
        self.pairs = PairSource(data, pairs, seed=seed, size=size)
        self.numbers, self.picture, self.sha256 = self.pairs.numbers, self.pairs.picture, self.pairs.sha256
        digest = hashlib.sha256(self.pairs.records.fingerprint.encode())
        for found in (*(self.pairs.index.pairs[which] for which in PAIRED), self.pairs.index.reconstructed):
            digest.update(np.ascontiguousarray(found, np.int64).tobytes())
        self.fingerprint = digest.hexdigest()

    def drawable(self) -> np.ndarray:
        index = self.pairs.index
        return np.unique(np.concatenate([index.reconstructed, *(index.pairs[which].ravel() for which in PAIRED)]))

    def captions(self) -> list[str]:
        index = self.pairs.index
        targets = np.unique(np.concatenate([index.reconstructed, *(index.pairs[which][:, 1] for which in PAIRED)]))
        return sorted({self.pairs.caption(int(number), whole) for number in targets for whole in (True, False)})

    def objectives(self) -> list[str]:
        """The tasks that have something to draw."""
        index = self.pairs.index
        return [which for which in PAIRED if len(index.pairs[which])] + [RECONSTRUCTION] * bool(len(index.reconstructed))


class IconPairs:
    """The icons data set: the same draws as IconArt.for_adapter, by number."""

    def __init__(self, art: IconArt, size: int | None = None) -> None:
        self.art, self.size = art, size
        self.fingerprint = hashlib.sha256("".join(row["sha256"] for row in art.rows).encode()).hexdigest()

    def numbers(self, objective: Objective, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        return self.art.pairs(objective, draw_number, count)

    def drawable(self) -> np.ndarray:
        return np.arange(len(self.art.rows))

    def captions(self) -> list[str]:
        return []

    def picture(self, number: int) -> np.ndarray:
        whole = self.art.pictures[number]
        return whole if self.size is None else square(whole, self.size)

    def sha256(self, number: int) -> str:
        return self.art.rows[number]["sha256"]


def open_source(data: Path, pairs: Path | None = None, *, seed: int = 0, size: int | None = None) -> Source:
    """Pairs where the folder has an index of them, else the icons data set as it is built. Raises DataError."""
    if pairs is None and not (data / "pairs" / "pairs.json").is_file() and (data / "plain").is_dir():
        return IconPairs(IconArt(data, seed), size)
    return PairedPictures(data, pairs, seed=seed, size=size)
