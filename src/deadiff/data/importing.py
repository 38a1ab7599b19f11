"""A user's own pictures -> shards in the layout of the icons data. A killed run goes on; what is left out is written down.

OUT/import.json            what was asked for, and how many pictures it found
OUT/listing.parquet        every picture found: file, subject, style, ... or why it is left out
OUT/clusters.json          of pictures without styles: how many each cluster has, and the picture nearest to its centre
OUT/pictures/NNNNN.parquet OUT/left_out/NNNNN.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deadiff.data.captions import plain_label, with_article
from deadiff.data.clustering import kmeans, squared_distances, style_space, usual_number
from deadiff.data.features import clip_embeddings
from deadiff.data.generate import claim
from deadiff.data.listing import Listed, from_layout, from_table, from_tags
from deadiff.data.painter import BLANK
from deadiff.data.plan import PlanConfig, split_of
from deadiff.data.shard_jobs import Progress, Runner, run_here
from deadiff.data.similarity import LOOKS, looks_of
from deadiff.data.splits import SPLITS, TRAIN
from deadiff.data.store import encode_png, write_shard
from deadiff.errors import ConfigError, DataError, ReferenceError
from deadiff.references import read_picture
from deadiff.writing import write_text_whole, write_whole

FORMAT = 1
LOOK_SIDE = 256  # pixels at which pictures are clustered


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """How pictures become rows."""

    size: int = 512  # pixels: of greater pictures the shorter side; smaller ones stay as they are
    shard_size: int = 256  # pictures of a shard
    name: str = "imported"  # the column `set`: whose pictures these are
    licence: str = "unknown"  # of pictures whose table names none
    clusters: int | None = None  # styles to find where none are named; None: by the number of pictures
    seed: int = 0  # of clusters and splits
    unseen_styles: float = 0.0  # shares that training never sees, as in a plan
    unseen_combinations: float = 0.0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096:
            raise ConfigError(f"size is {self.size}: expected 16 to 4096 pixels")
        if self.shard_size < 1:
            raise ConfigError(f"shard_size is {self.shard_size}: expected at least 1 picture")
        if self.clusters is not None and self.clusters < 2:
            raise ConfigError(f"clusters is {self.clusters}: expected at least 2 styles")
        _ = self.lots

    @property
    def lots(self) -> PlanConfig:
        """Who is held out: the same lots as in a plan."""
        return PlanConfig(seed=self.seed, unseen_styles=self.unseen_styles, unseen_combinations=self.unseen_combinations)


def import_pictures(
    out: Path,
    folder: Path | None,
    config: ImportConfig,
    *,
    table: Path | None = None,
    layout: str | None = None,
    tags: bool | Path = False,
    clip: str | None = None,
    run: Runner = run_here(),
    progress: Progress = lambda *_: None,
) -> dict[str, int]:
    """Import a folder by its layout, by a table, or by tags with clustered styles. Returns counts: found, imported, left_out.

    tags: True for tags in files beside the pictures, or a table of tags; the styles are then clustered. clip: a CLIP model that
    takes part in the clustering.
    """
    if table and layout or tags and layout:
        raise ConfigError("a layout and a table or tags are given: expected one of them to say what the pictures show")
    if tags:
        if folder is None:
            raise ConfigError("tags are given without a folder: expected the folder of the pictures")
        listed = from_tags(folder, tags if isinstance(tags, Path) else None)
    elif table:
        listed = from_table(table, folder)
    elif folder:
        listed = from_layout(folder, layout or "{style}/{subject}")
    else:
        raise ConfigError("there is nothing to import: expected a folder of pictures or a table")
    listed = [_checked(item) for item in listed]
    content = hashlib.sha256(json.dumps([asdict(item) for item in listed]).encode()).hexdigest()
    source = {"folder": str(folder) if folder else None, "table": str(table) if table else None, "clip": clip}
    claim(out, "import.json", {"format": FORMAT, "found": len(listed), "listing": content, **source, **asdict(config)})
    base = folder or (table.parent if table else Path())
    if not any(not item.reason for item in listed):
        raise DataError(f"none of {len(listed)} pictures can be imported, the first because {listed[0].reason}: {listed[0].file}")
    if not (out / "listing.parquet").is_file():
        if tags:
            listed = _clustered(out, base, listed, config, clip, run, progress)
        _write_listing(out / "listing.parquet", listed)
    shards = range(-(-len(listed) // config.shard_size))
    jobs = [ImportJob(out=out, base=base, table=table, shard=shard, config=config) for shard in shards]
    run("importing shards", jobs, progress)
    left_out = sum(len(path.read_text().splitlines()) for path in (out / "left_out").glob("[!.]*.jsonl"))
    return {"found": len(listed), "imported": len(listed) - left_out, "left_out": left_out}


def _checked(item: Listed) -> Listed:
    if item.split and item.split not in SPLITS:
        return replace(item, reason=f"its split is {item.split!r}: expected one of {', '.join(SPLITS)}")
    return item


# ---------------------------------------------------------------- clusters


@dataclass(frozen=True, kw_only=True)
class LookJob:
    """The looks of some of the pictures that have no style yet; of one that cannot be read, nothing."""

    base: Path
    files: tuple[str, ...]
    out: Path
    clip: str | None

    def done(self) -> bool:
        return self.out.is_file()

    def run(self) -> None:
        cv2.setNumThreads(1)
        looks = np.full((len(self.files), LOOKS), np.nan, np.float32)
        clip = []
        for number, file in enumerate(self.files):
            try:
                picture = shrunk(np.asarray(read_picture(self.base / file, what="picture")[0]), LOOK_SIDE)
            except ReferenceError:
                picture = None  # the importing job finds it again and writes down why
            if picture is not None:
                looks[number] = looks_of(picture)
            if self.clip:
                clip.append(clip_embeddings(self.clip, [np.zeros((8, 8, 3), np.uint8) if picture is None else picture])[0])
        arrays = {"looks": looks, **({"clip": np.array(clip)} if self.clip else {})}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

        write_whole(self.out, write)


def _clustered(
    out: Path, base: Path, listed: list[Listed], config: ImportConfig, clip: str | None, run: Runner, progress: Progress
) -> list[Listed]:
    """Gives every picture that can be read a style: "style 1" is the one with most pictures."""
    waiting = [number for number, item in enumerate(listed) if not item.reason]
    files = [listed[number].file for number in waiting]
    step = config.shard_size
    jobs = [
        LookJob(base=base, files=tuple(files[start : start + step]), out=out / ".looks" / f"{start:09d}.npz", clip=clip)
        for start in range(0, len(files), step)
    ]
    run("looking at pictures", jobs, progress)
    found = [np.load(job.out) for job in jobs]
    looks = np.concatenate([part["looks"] for part in found])
    embedded = np.concatenate([part["clip"] for part in found]) if clip else None
    readable = np.flatnonzero(~np.isnan(looks[:, 0]))
    if len(readable) < 2:
        raise DataError(f"{len(readable)} of {len(files)} pictures can be read: expected at least 2 to find styles among")
    space = style_space(looks[readable], None if embedded is None else embedded[readable])
    label, centres = kmeans(space, min(config.clusters or usual_number(len(readable)), len(readable)), config.seed)
    for place, cluster in zip(readable, label, strict=True):
        number = waiting[int(place)]
        listed[number] = replace(listed[number], style=f"style {cluster + 1}")
    distances = squared_distances(space, centres)
    note = {}
    for cluster in np.unique(label):
        own = np.flatnonzero(label == cluster)
        nearest = own[distances[own, cluster].argmin()]
        note[f"style {cluster + 1}"] = {"pictures": len(own), "typical": files[int(readable[nearest])]}
    write_text_whole(out / "clusters.json", json.dumps(note, indent=1) + "\n")
    return listed


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """One shard of the listing."""

    out: Path
    base: Path  # of the files
    table: Path | None  # that holds pictures itself
    shard: int
    config: ImportConfig

    @property
    def pictures(self) -> Path:
        return self.out / "pictures" / f"{self.shard:05d}.parquet"

    def done(self) -> bool:
        return self.pictures.is_file()

    def run(self) -> None:
        cv2.setNumThreads(1)
        rows, left_out = [], []
        items = _read_listing(self.out / "listing.parquet", self.shard, self.config.shard_size)
        inside = _pictures_inside(self.table, [item.file for item in items])
        for item in items:
            row, reason = None, item.reason
            if not reason:
                try:
                    source = inside[item.file] if item.file.startswith("#") else self.base / item.file
                    row, reason = self._row(item, source)
                except ReferenceError as error:
                    reason = str(error)
            if row:
                rows.append(row)
            else:
                left_out.append(json.dumps({"file": item.file, "reason": reason}))
        if left_out:  # first: a shard that is there is finished, and what it lacks is written down
            write_text_whole(self.out / "left_out" / f"{self.shard:05d}.jsonl", "\n".join(left_out) + "\n")
        write_shard(self.pictures, rows)

    def _row(self, item: Listed, source: Any) -> tuple[dict[str, Any] | None, str]:
        picture = np.asarray(read_picture(source, what="picture")[0])
        if picture.std() < BLANK:
            return None, "the picture is blank"
        picture = shrunk(picture, self.config.size)
        label = item.label or item.subject
        split = item.split or split_of(self.config.lots, item.subject, item.style)
        row = {
            "image": encode_png(picture),
            "subject": item.subject,
            "label": label,
            "tags": list(item.tags),
            "group": item.group,
            "set": self.config.name,
            "family": self.config.name,
            "rendition": item.style,
            "palette": item.palette,
            "caption": item.caption or ", ".join([with_article(plain_label(label)), *item.tags[:8]]),
            "licence": item.licence or self.config.licence,
            "split": split,
            "reference_holdout": split != TRAIN,
            "sha256": hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest(),
        }
        return row, ""


def shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> its shorter side at most `size` pixels, the shape kept."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(picture, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def _write_listing(path: Path, listed: Sequence[Listed]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{**asdict(item), "tags": list(item.tags)} for item in listed])
    write_whole(path, lambda partial: pyarrow.parquet.write_table(table, partial, compression="zstd"))


def _read_listing(path: Path, shard: int, size: int) -> list[Listed]:
    rows = _listing(path, path.stat().st_mtime_ns).slice(shard * size, size).to_pylist()
    return [Listed(**{**row, "tags": tuple(row["tags"] or ())}) for row in rows]


@lru_cache(maxsize=1)
def _listing(path: Path, _written: int):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _pictures_inside(table: Path | None, files: list[str]) -> dict[str, bytes]:
    """Of a parquet table that holds its pictures: "#row" -> encoded bytes."""
    wanted = [int(file[1:]) for file in files if file.startswith("#") and file[1:].isdigit()]
    if not wanted or table is None or table.suffix != ".parquet":
        return dict.fromkeys((f"#{number}" for number in wanted), b"")
    import pyarrow.dataset

    from deadiff.data.listing import FILE_COLUMNS

    source = pyarrow.dataset.dataset(table)
    column = next(name for name in FILE_COLUMNS if name in source.schema.names)
    taken = source.take(pyarrow.array(wanted), columns=[column])[column].to_pylist()
    bytes_of = [item.get("bytes") if isinstance(item, dict) else item for item in taken]
    return {f"#{number}": data or b"" for number, data in zip(wanted, bytes_of, strict=True)}
