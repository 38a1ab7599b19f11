"""Rows and shards: one parquet file a part, through `datasets`, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from deadiff.errors import DataError


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG; the same bytes for the same pixels."""
    done, png = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])
    assert done
    return png.tobytes()


def decode_png(png: bytes) -> np.ndarray:
    """PNG -> (H, W, 3) uint8 RGB."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError("a row's image is not a PNG that can be read: delete the shard and build it again")
    return np.ascontiguousarray(image[..., ::-1])


def row_features():
    """The columns, one row a picture."""
    import datasets

    text = datasets.Value("string")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "subject": text,  # hexcode
            "label": text,
            "tags": datasets.List(text),
            "group": text,
            "set": text,
            "family": text,
            "rendition": text,
            "palette": text,
            "caption": text,
            "licence": text,
            "split": text,
            "reference_holdout": datasets.Value("bool"),
            "sha256": text,  # of the pixels
        }
    )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary file beside `path` and renames it: a killed run leaves no half file under the real name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_shard(path: Path, rows: list[dict]) -> None:
    """`rows` hold the columns of row_features(), `image` as PNG bytes."""
    import datasets

    features = row_features()
    columns = {name: [row[name] for row in rows] for name in features}
    columns["image"] = [{"bytes": png, "path": None} for png in columns["image"]]
    table = datasets.Dataset.from_dict(columns, features=features)
    write_whole(path, lambda partial: table.to_parquet(str(partial)))


def read_columns(path: Path, columns: list[str] | None = None) -> list[dict]:
    """Rows of one parquet file as dicts; `image` comes as {"bytes", "path"}."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as parquet ({error}): delete it and build it again") from error
