"""What a folder of shards holds, without its pictures: one record a picture, numbered through all shards in their order.

Subjects and styles become whole numbers, so that a million records take some hundred bytes each.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.data.splits import PLAIN
from deadiff.data.store import shards
from deadiff.errors import DataError

# N pictures

COLUMNS = ("subject", "label", "set", "rendition", "palette", "caption", "split", "reference_holdout", "sha256")


@dataclass(frozen=True, kw_only=True)
class Records:
    """The pictures of a data set. Texts are pyarrow arrays: indexing one gives a scalar, `.as_py()` its text."""

    folder: Path
    shards: tuple[Path, ...]
    starts: np.ndarray  # (shards + 1,) number of the first picture of each shard; the last entry is N
    subject: np.ndarray  # (N,) int32 into subjects
    subjects: list[str]
    style: np.ndarray  # (N,) int32 into styles
    styles: list[str]  # style_names(): what a style pair shares
    split: np.ndarray  # (N,) int8 into splits
    splits: list[str]
    hidden: np.ndarray  # (N,) bool: never shown as a reference
    label: Any  # (N,) pyarrow text
    caption: Any
    sha256: Any

    def __len__(self) -> int:
        return len(self.subject)

    @cached_property
    def fingerprint(self) -> str:
        """Of every picture's pixels and place: pairs made from other pictures, or from these in another order, are noticed."""
        digest = hashlib.sha256()
        for path, start in zip(self.shards, self.starts, strict=False):
            digest.update(f"{path.relative_to(self.folder)} {start}\n".encode())
        for start in range(0, len(self), 65536):
            digest.update("".join(self.sha256[start : start + 65536].to_pylist()).encode())
        return digest.hexdigest()

    def place(self, number: int) -> tuple[Path, int]:
        """Picture number -> (its shard, its row there)."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.shards[shard], number - int(self.starts[shard])


def read_records(folder: Path) -> Records:
    """All pictures of a data set made by `deadiff data icons`, `generate` or `import`. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    paths = shards(folder)
    tables, starts = [], [0]
    for path in paths:
        try:
            table = pyarrow.parquet.read_table(path, columns=list(COLUMNS))
        except (OSError, pyarrow.ArrowException) as error:
            text = " ".join(str(error).split())[:200]
            raise DataError(f"'{path}' cannot be read as a shard ({text}): delete it and make it again") from error
        tables.append(table)
        starts.append(starts[-1] + len(table))
    whole = pyarrow.concat_tables(tables).combine_chunks()
    if len(whole) == 0:
        raise DataError(f"'{folder}' holds no pictures: generate or import some first")
    columns = {name: _flat(whole[name]) for name in COLUMNS}
    subject, subjects = codes(columns["subject"])
    style, styles = codes(style_names(columns["set"], columns["rendition"], columns["palette"]))
    split, splits = codes(columns["split"])
    return Records(
        folder=folder,
        shards=tuple(paths),
        starts=np.array(starts, np.int64),
        subject=subject,
        subjects=subjects,
        style=style,
        styles=styles,
        split=split.astype(np.int8),
        splits=splits,
        hidden=np.asarray(columns["reference_holdout"].fill_null(False).to_numpy(zero_copy_only=False), bool),
        label=columns["label"],
        caption=columns["caption"],
        sha256=columns["sha256"],
    )


def style_names(sets, renditions, palettes):
    """pyarrow texts -> what a style pair shares: the set of plain art, else the rendition, with its palette if it has one."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made at run time

    palettes = pc.fill_null(palettes, "")
    with_palette = pc.if_else(
        pc.equal(palettes, ""),
        renditions,
        pc.binary_join_element_wise(renditions, palettes, ", "),
    )
    return pc.if_else(pc.equal(renditions, PLAIN), sets, with_palette)


def codes(texts) -> tuple[np.ndarray, list[str]]:
    """pyarrow texts -> (N,) int32 codes, and the texts they stand for in alphabetical order."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made at run time

    encoded = pc.dictionary_encode(texts)
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return rank[encoded.indices.to_numpy(zero_copy_only=False)], [names[i] for i in order]


def _flat(column):
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
