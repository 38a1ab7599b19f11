"""Any picture of a data set at once: the encoded pictures of all shards in one file that is read by memory map.

Parquet must unpack hundreds of rows to give one; training draws pictures in no order. The file lies at DATA/.pictures.arrow and
is made anew when the shards change.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from deadiff.data.records import Records
from deadiff.data.store import decode_png
from deadiff.errors import ConfigError, DataError
from deadiff.writing import write_whole

NAME = ".pictures.arrow"
FITS = ("crop", "pad", "squash")


class PictureStore:
    """picture number -> pixels. Opening makes the file where it is missing or of other pictures."""

    def __init__(self, records: Records) -> None:
        import pyarrow

        self.records = records
        self.path = records.folder / NAME
        if not self._fits():
            _pack(records, self.path)
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
        self._column = reader.read_all()["png"]
        if len(self._column) != len(records):
            raise DataError(f"'{self.path}' holds {len(self._column)} pictures of {len(records)}: delete it, it is made anew")

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return decode_png(self._column[int(number)].as_buffer())

    def squares(self, numbers: np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
        """(B,) picture numbers -> (B, size, size, 3) uint8."""
        return np.stack([square(self[int(number)], size, fit) for number in numbers])

    def _fits(self) -> bool:
        import pyarrow

        try:
            schema = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path))).schema
        except (OSError, pyarrow.ArrowException):
            return False
        return (schema.metadata or {}).get(b"fingerprint", b"").decode() == self.records.fingerprint


def square(picture: np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
    """(H, W, 3) -> (size, size, 3): the middle of it, the whole of it on white, or all of it squashed."""
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        picture = picture[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        whole = np.full((side, side, 3), 255, np.uint8)
        whole[top : top + height, left : left + width] = picture
        picture = whole
    elif fit != "squash":
        raise ConfigError(f"fit is {fit!r}: expected one of {', '.join(FITS)}")
    smaller = picture.shape[0] > size
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def _pack(records: Records, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [("png", pyarrow.large_binary())], metadata={"fingerprint": records.fingerprint, "what": json.dumps("deadiff pictures")}
    )

    def write(partial: Path) -> None:
        with pyarrow.OSFile(str(partial), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            for shard in records.shards:
                for batch in pyarrow.parquet.ParquetFile(shard).iter_batches(256, columns=["image"]):
                    png = batch.column(0).field("bytes").cast(pyarrow.large_binary())
                    writer.write_batch(pyarrow.record_batch([png], schema=schema))

    write_whole(path, write)
