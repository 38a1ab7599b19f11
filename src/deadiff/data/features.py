"""Looks, thumbnails and, where a CLIP vision tower is given, embeddings of every picture: computed once, kept beside the shards.

DATA/.features/PART-SHARD.npz   of one shard, with the sha256 of its pictures' hashes: a changed shard is computed again
DATA/.features/looks.npy ...    of all pictures, standardised over the data set, read by memory map
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deadiff.data.records import Records
from deadiff.data.shard_jobs import Progress, Runner, run_here
from deadiff.data.similarity import LOOKS, THUMB, VERSION, looks_of, quantised, thumbnail_of
from deadiff.data.store import decode_png, read_rows
from deadiff.errors import CheckpointError
from deadiff.writing import write_text_whole, write_whole

# N pictures, D looks, E width of a CLIP embedding

FOLDER = ".features"
CLIP_BATCH = 32  # pictures


@dataclass(frozen=True, kw_only=True)
class Features:
    """Where the features of a data set lie, as .npy files. Workers open them by memory map."""

    looks: Path  # (N, D) int8
    thumbnails: Path  # (N, 3 * THUMB**2) uint8
    clip: Path | None = None  # (N, E) float16, unit length


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """The features of one shard."""

    shard: Path
    out: Path
    clip: str | None = None  # folder or hub id of a CLIP model

    @property
    def key(self) -> str:
        hashes = "".join(row["sha256"] for row in read_rows(self.shard, ["sha256"]))
        return hashlib.sha256(f"{VERSION} {self.clip} {hashes}".encode()).hexdigest()

    def done(self) -> bool:
        try:
            with np.load(self.out) as kept:
                return str(kept["key"]) == self.key
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False

    def run(self) -> None:
        import pyarrow.parquet

        cv2.setNumThreads(1)
        looks, thumbnails, embedded = [], [], []
        for batch in pyarrow.parquet.ParquetFile(self.shard).iter_batches(CLIP_BATCH, columns=["image"]):
            pictures = [decode_png(png.as_buffer()) for png in batch.column(0).field("bytes")]
            looks += [looks_of(picture) for picture in pictures]
            thumbnails += [thumbnail_of(picture) for picture in pictures]
            if self.clip:
                embedded.append(clip_embeddings(self.clip, pictures))
        arrays: dict[str, Any] = {
            "key": np.array(self.key),
            "looks": np.array(looks, np.float32).reshape(-1, LOOKS),
            "thumbnails": np.array(thumbnails, np.uint8).reshape(-1, 3 * THUMB**2),
        }
        if self.clip and embedded:
            arrays["clip"] = np.concatenate(embedded)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **arrays)

        write_whole(self.out, write)


def embed(
    records: Records, *, clip: str | None = None, run: Runner = run_here(), progress: Progress = lambda *_: None
) -> Features:
    """The features of all pictures of a data set; what is there already is not computed again."""
    folder = records.folder / FOLDER
    jobs = [EmbedJob(shard=path, out=folder / f"{path.parent.name}-{path.stem}.npz", clip=clip) for path in records.shards]
    found = Features(looks=folder / "looks.npy", thumbnails=folder / "thumbnails.npy", clip=folder / "clip.npy" if clip else None)
    note = folder / "whole.json"
    wanted = {"version": VERSION, "clip": clip, "pictures_sha256": records.fingerprint}
    if _read_json(note) == wanted and all(path.is_file() for path in (found.looks, found.thumbnails, found.clip) if path):
        return found
    run("looking at pictures", jobs, progress)
    note.unlink(missing_ok=True)
    _assemble([job.out for job in jobs], len(records), found)
    write_text_whole(note, json.dumps(wanted) + "\n")
    return found


def _assemble(parts: list[Path], count: int, found: Features) -> None:
    """One file for each kind of feature; looks are standardised over all pictures."""
    total, squares = np.zeros(LOOKS), np.zeros(LOOKS)
    for part in parts:
        with np.load(part) as kept:
            values = kept["looks"].astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    _gather(parts, count, found.looks, lambda kept: quantised(kept["looks"], mean, deviation))
    _gather(parts, count, found.thumbnails, lambda kept: kept["thumbnails"])
    if found.clip:
        _gather(parts, count, found.clip, lambda kept: kept["clip"])


def _gather(parts: list[Path], count: int, path: Path, take) -> None:
    def write(partial: Path) -> None:
        whole, start = None, 0
        for part in parts:
            with np.load(part) as kept:
                values = take(kept)
            if whole is None:
                shape = (count, *values.shape[1:])
                whole = np.lib.format.open_memmap(partial, mode="w+", dtype=values.dtype, shape=shape)
            whole[start : start + len(values)] = values
            start += len(values)
        assert start == count and isinstance(whole, np.memmap)
        whole.flush()

    write_whole(path, write)


def clip_embeddings(model: str, pictures: list[np.ndarray]) -> np.ndarray:
    """(B pictures) -> (B, E) float16 of unit length: the pooled output of a CLIP vision tower."""
    import torch

    eye, side = _eye(model)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    small = np.stack([cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pictures]).astype(np.float32) / 255
    pixels = torch.from_numpy((small - mean) / deviation).permute(0, 3, 1, 2)
    with torch.no_grad():
        pooled = eye(pixel_values=pixels.to(eye.device, eye.dtype)).pooler_output.float().cpu()
    return torch.nn.functional.normalize(pooled, dim=-1).numpy().astype(np.float16)


@lru_cache(maxsize=1)
def _eye(model: str) -> tuple[Any, int]:
    import torch
    from transformers import CLIPVisionModel

    try:
        eye = CLIPVisionModel.from_pretrained(model).eval()
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"'{model}' cannot be opened as a CLIP vision tower: {text}") from error
    eye = eye.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    return eye, int(eye.config.image_size)  # pyright: ignore[reportArgumentType]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
