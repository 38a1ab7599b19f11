"""Rows and shards: parquet files through `datasets`, written whole or not at all, and read back as rows or arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deadiff.data.art import SETS_BY_NAME
from deadiff.data.splits import SPLITS
from deadiff.errors import DataError, MissingExtraError
from deadiff.writing import write_whole

PARTS = ("plain", "rendered", "pictures")  # icons: as drawn, rendered; generated and imported sets: pictures


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG; the same bytes for the same pixels."""
    done, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 6])
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
    datasets = _datasets()
    text = datasets.Value("string")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "subject": text,  # hexcode
            "label": text,
            "tags": datasets.List(text),
            "group": text,
            "set": text,
            "family": text,  # sets of one family share their drawings
            "rendition": text,  # "plain": as its artist drew it
            "palette": text,
            "caption": text,
            "licence": text,  # of the set
            "split": text,  # splits.py
            "reference_holdout": datasets.Value("bool"),  # never a reference in training
            "sha256": text,  # of the pixels
        }
    )


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    """`rows` hold the columns of row_features(), `image` as PNG bytes."""
    import pyarrow
    import pyarrow.parquet

    features = row_features()
    columns: dict[str, list] = {name: [row[name] for row in rows] for name in features}
    columns["image"] = [{"bytes": png, "path": None} for png in columns["image"]]
    # arrow_schema carries the features along: datasets.load_dataset("parquet", ...) decodes the pictures
    table = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
    write_whole(path, lambda partial: pyarrow.parquet.write_table(table, partial, row_group_size=256, compression="zstd"))


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one parquet file as dicts; `image` comes as {"bytes", "path"}."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as parquet ({error}): delete it and build it again") from error


def shards(folder: Path, parts: tuple[str, ...] = PARTS) -> list[Path]:
    """The shards of a data set, part by part in the order of the sets. Raises DataError if there are none."""
    order = {name: number for number, name in enumerate(SETS_BY_NAME)}

    def place(shard: Path) -> tuple[int, str]:  # rendered/noto-v1-03.parquet belongs to noto-v1
        name = shard.stem if shard.stem in order else shard.stem.rpartition("-")[0]
        return order.get(name, len(order)), shard.name

    found = [shard for part in parts for shard in sorted((folder / part).glob("[!.]*.parquet"), key=place)]
    if not found:
        raise DataError(
            f"'{folder}' holds no shards ({'/, '.join(parts)}/): make them with `deadiff data icons --out {folder}`, "
            "or with `generate` or `import`"
        )
    return found


def read_split(folder: Path, split: str, *, parts: tuple[str, ...] = PARTS, images: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of one split ("train", "unseen_combination", "unseen_style"); `image` decoded to (H, W, 3) uint8, or left out."""
    if split not in SPLITS:
        raise DataError(f"no split is called '{split}': expected one of {', '.join(SPLITS)}")
    columns = [name for name in row_features() if images or name != "image"]
    for shard in shards(folder, parts):
        for row in read_rows(shard, columns):
            if row["split"] == split:
                if images:
                    row["image"] = decode_png(row["image"]["bytes"])
                yield row


def read_arrays(folder: Path, split: str, *, parts: tuple[str, ...] = PARTS) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """One split in memory: (N, H, W, 3) uint8 pictures, and their rows without `image`."""
    total = sum(1 for _ in read_split(folder, split, parts=parts, images=False))
    if total == 0:
        raise DataError(f"'{folder}' holds no picture of the split '{split}': build more subjects or renditions")
    pictures: np.ndarray | None = None
    rows = []
    for row in read_split(folder, split, parts=parts):
        image = row.pop("image")
        if pictures is None:
            pictures = np.empty((total, *image.shape), np.uint8)
        pictures[len(rows)] = image
        rows.append(row)
    assert pictures is not None
    return pictures, rows


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading and writing shards needs `datasets`: pip install 'deadiff[data]'") from error
    return datasets
