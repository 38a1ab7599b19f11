"""The pair index on disk: which picture is the reference of which target under which task, what was left out and why.

PAIRS/pairs.parquet     objective, reference, target (picture numbers), style_distance, difference: one row a pair
PAIRS/dropped.parquet   the same for what was left out, with the reason; no reference where a target found none
PAIRS/pictures.parquet  number, shard, row, subject, style, split, sha256: what the numbers mean
PAIRS/pairs.json        the options, the fingerprint of the pictures, the statistics
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.data.records import Records
from deadiff.errors import DataError
from deadiff.writing import write_text_whole, write_whole

# P pairs

FORMAT = 1
STRE, SERE, RECONSTRUCTION = "stre", "sere", "reconstruction"  # training.objectives.Objective: its members equal these texts
PAIRED = (STRE, SERE)


@dataclass(frozen=True, kw_only=True)
class PairIndex:
    """Pairs of both tasks, and the pictures that may be reconstructed."""

    pairs: dict[str, np.ndarray]  # task -> (P, 2) int64 picture numbers: reference, target
    reconstructed: np.ndarray  # (P,) int64: training pictures that may be shown as references
    note: dict[str, Any]  # pairs.json


def read_index(folder: Path, records: Records) -> PairIndex:
    """The index of a data set. Raises DataError if there is none, or if it belongs to other pictures."""
    import pyarrow
    import pyarrow.parquet

    note = read_note(folder)
    if note.get("pictures_sha256") != records.fingerprint:
        raise DataError(
            f"the pairs in '{folder}' were made from other pictures than those in '{records.folder}': "
            f"run `deadiff data pairs {records.folder}` again"
        )
    try:
        table = pyarrow.parquet.read_table(folder / "pairs.parquet", columns=["objective", "reference", "target"])
    except (OSError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"'{folder / 'pairs.parquet'}' cannot be read ({text}): make it anew with `deadiff data pairs`"
        ) from error
    objective = np.asarray(table["objective"].to_pylist()) if len(table) else np.empty(0, str)
    ends = np.stack([table[name].to_numpy() for name in ("reference", "target")], axis=1)  # (P, 2)
    split = records.splits.index(note["split"]) if note["split"] in records.splits else -1
    return PairIndex(
        pairs={which: ends[objective == which] for which in PAIRED},
        reconstructed=np.flatnonzero((records.split == split) & ~records.hidden),
        note=note,
    )


def read_note(folder: Path) -> dict[str, Any]:
    """pairs.json. Raises DataError."""
    path = folder / "pairs.json"
    try:
        note = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"'{folder}' holds no pairs.json: make pairs with `deadiff data pairs DATA`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read ({error}): make it again with `deadiff data pairs`") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise DataError(f"'{path}' is not of format {FORMAT}: make the pairs again with `deadiff data pairs`")
    return note


def write_pictures(folder: Path, records: Records) -> None:
    """PAIRS/pictures.parquet."""
    import pyarrow
    import pyarrow.parquet

    number = np.arange(len(records))
    shard = np.searchsorted(records.starts, number, side="right") - 1
    names = [str(path.relative_to(records.folder)) for path in records.shards]
    named = {"shard": (shard, names), "subject": (records.subject, records.subjects), "style": (records.style, records.styles)}
    table = pyarrow.table(
        {
            "number": number,
            "row": number - records.starts[shard],
            **{name: dictionary(values, texts) for name, (values, texts) in named.items()},
            "split": dictionary(records.split, records.splits),
            "sha256": records.sha256,
        }
    )
    write_whole(folder / "pictures.parquet", lambda partial: pyarrow.parquet.write_table(table, partial, compression="zstd"))


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Written last: an index without it is not finished."""
    write_text_whole(folder / "pairs.json", json.dumps({"format": FORMAT, **note}, indent=1) + "\n")


def dictionary(values: np.ndarray, texts: list[str]):
    """Codes and what they stand for -> a pyarrow column of texts that takes four bytes a row."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(np.ascontiguousarray(values, np.int32), pyarrow.array(texts, pyarrow.string()))
