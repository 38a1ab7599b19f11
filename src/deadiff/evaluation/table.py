"""Scores on disk: parquet, one file a method, a row a cell; written whole, added to, never scored twice."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.errors import DataError, MissingExtraError
from deadiff.evaluation.design import Cell
from deadiff.writing import write_whole

KEYS = ("reference", "prompt", "seed", "strength")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one method, row by row."""

    cells: list[Cell]
    pictures: list[str]  # relative to the evaluation's folder; "" where there is none
    columns: dict[str, np.ndarray]  # score -> (N,) float, NaN where it does not apply

    def __len__(self) -> int:
        return len(self.cells)

    def chosen(self, cells: Sequence[Cell]) -> "Scores":
        """Those cells, in that order. Raises DataError where one is missing."""
        place = {cell: i for i, cell in enumerate(self.cells)}
        if missing := [cell for cell in cells if cell not in place]:
            raise DataError(f"{len(missing)} cells have no scores, such as {missing[0]}: run the evaluation to its end")
        rows = [place[cell] for cell in cells]
        return Scores(
            cells=list(cells),
            pictures=[self.pictures[i] for i in rows],
            columns={name: values[rows] for name, values in self.columns.items()},
        )


def write_scores(path: Path, scores: Scores, scorer: str) -> None:
    """`scorer` names the judges that gave the scores: those of others are never mixed with them."""
    pa, pq = _arrow()
    table: dict[str, Any] = {key: [getattr(cell, key) for cell in scores.cells] for key in KEYS}
    table |= {"picture": scores.pictures, **{name: np.asarray(v, np.float64) for name, v in scores.columns.items()}}
    arrow = pa.Table.from_pydict(table).replace_schema_metadata({"deadiff": json.dumps({"scorer": scorer})})
    write_whole(path, lambda partial: pq.write_table(arrow, partial, compression="zstd"))


def read_scores(path: Path, scorer: str) -> Scores | None:
    """None where there is no file, or one by other judges. Raises DataError for a file that cannot be read."""
    if not path.is_file():
        return None
    pa, pq = _arrow()
    try:
        table = pq.read_table(path)
        if json.loads(table.schema.metadata[b"deadiff"])["scorer"] != scorer:
            return None
        columns = table.to_pydict()
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"scores '{path}' cannot be read ({error}): delete the file and run the same command again") from error
    cells = [Cell(**dict(zip(KEYS, values, strict=True))) for values in zip(*(columns.pop(k) for k in KEYS), strict=True)]
    pictures = columns.pop("picture")
    return Scores(cells=cells, pictures=pictures, columns={name: np.asarray(v, np.float64) for name, v in columns.items()})


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("scores are kept as parquet, which needs pyarrow: pip install 'deadiff[eval]'") from error
    return pyarrow, pyarrow.parquet
