"""Art -> a data set on disk: plain pictures of every set, then their renditions, in parts; a killed run goes on where it stopped.

OUT/build.json            what was asked for: a run with other options refuses to mix with it
OUT/plain/SET.parquet     the art as drawn, one row a picture
OUT/rendered/SET-NN.parquet   N seen renditions (more of the house drawing) and one held-out rendition of each training picture
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from deadiff.data.art import DEFAULT_CACHE, EMOJIBASE, EMOJILIB, SETS, SETS_BY_NAME, ArtSet, fetch
from deadiff.data.captions import STYLE_SHARE, caption, tag_counts
from deadiff.data.icons import Drawing, read_art_folder, read_drawings, read_font, render_all, screen
from deadiff.data.renditions import RENDITIONS, render
from deadiff.data.splits import HELD_OUT_RENDITIONS, PLAIN, family_of, house_set, is_reference_holdout, split_of
from deadiff.data.store import decode_png, encode_png, read_rows, write_shard
from deadiff.data.subjects import Subject, read_subjects
from deadiff.errors import ConfigError, DataError
from deadiff.writing import write_text_whole

FORMAT = 1  # of the folder; raised when old folders can no longer be continued
PICTURES_PER_SHARD = 512
SEEN_RENDITIONS = tuple(name for name in RENDITIONS if name not in HELD_OUT_RENDITIONS)
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What a data set holds. The folder it is written to is no part of it."""

    size: int = 128  # pixels a side
    seed: int = 0  # of renditions and captions
    renditions: int = 3  # seen renditions of each picture of the training sets
    house_renditions: int = 0  # of the drawing that stands for a subject where no style is named (`house_set`), if more
    limit: int | None = None  # subjects; None for all of them

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 512:
            raise ConfigError(f"size is {self.size}: expected 16 to 512 pixels")
        for name in ("renditions", "house_renditions"):
            if not 0 <= getattr(self, name) <= len(SEEN_RENDITIONS):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: expected 0 to {len(SEEN_RENDITIONS)}, the number of seen renditions"
                )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}: expected at least 1 subject")


# ---------------------------------------------------------------- what is drawn how: by name, not by order


def generator(seed: int, *names: str) -> np.random.Generator:
    """A random generator of its own for every named thing: order, shards and processes change nothing."""
    digest = hashlib.sha256("|".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def planned_renditions(subject: str, set_name: str, number: int, seed: int) -> list[str]:
    """`number` different seen renditions for one plain picture."""
    order = generator(seed, "plan", subject, set_name).permutation(len(SEEN_RENDITIONS))
    return [SEEN_RENDITIONS[int(index)] for index in order[:number]]


def planned_held_out(subject: str, set_name: str, seed: int) -> str:
    """The one held-out rendition that a plain picture gets, for evaluation."""
    names = sorted(HELD_OUT_RENDITIONS)
    return names[int(generator(seed, "held out", subject, set_name).integers(len(names)))]


def render_planned(image: np.ndarray, subject: str, set_name: str, rendition: str, seed: int) -> tuple[np.ndarray, str]:
    """(H, W, 3) uint8 plain picture -> (its rendition, the palette's name)."""
    return render(image, rendition, generator(seed, "render", subject, set_name, rendition))


# ---------------------------------------------------------------- where the art comes from


@dataclass(frozen=True, kw_only=True)
class Source:
    """Subjects, and for each set by name what reads its drawings and its font file."""

    subjects: list[Subject]
    sets: dict[str, Callable[[], tuple[list[Drawing], bytes | None]]]


def from_packages(cache: Path, *, offline: bool = False, progress: Progress = lambda *_: None) -> Source:
    """The pinned packages, fetched into `cache` where they are missing."""
    packages = list(dict.fromkeys([EMOJIBASE, EMOJILIB, *(art_set.package for art_set in SETS)]))
    done = iter(range(1, len(packages) + 1))
    archives = fetch(packages, cache, offline=offline, on_done=lambda _: progress("fetching art", next(done), len(packages)))
    subjects = read_subjects(archives)

    def read(art_set: ArtSet) -> tuple[list[Drawing], bytes | None]:
        archive = archives[art_set.package.name]
        font = read_font(art_set, archive) if art_set.kind == "font" else None
        return read_drawings(art_set, archive, subjects), font

    return Source(subjects=subjects, sets={art_set.name: partial(read, art_set) for art_set in SETS})


def from_folder(folder: Path) -> Source:
    """Art that lies in a folder: subjects.json and SET/HEXCODE.svg (see read_art_folder)."""
    subjects, drawings = read_art_folder(folder)
    return Source(subjects=subjects, sets={name: partial(lambda found: (found, None), found) for name, found in drawings.items()})


# ---------------------------------------------------------------- the build


def build(
    out: Path,
    config: BuildConfig,
    *,
    cache: Path = DEFAULT_CACHE,
    art: Path | None = None,
    offline: bool = False,
    processes: int = 1,
    progress: Progress = lambda *_: None,
) -> None:
    """Writes the data set to `out`, skipping the parts that are there. The same config gives the same bytes.

    Raises DataError (no art, wrong checksum, `out` was built otherwise).
    """
    out, art = out.expanduser(), art.expanduser() if art else None
    source = from_folder(art) if art else from_packages(cache.expanduser(), offline=offline, progress=progress)
    _claim(out, config, art)
    for left_over in out.rglob(".*.partial"):  # of a run that was killed in the middle of a write
        left_over.unlink()
    subjects = _limited(source.subjects, config.limit)
    counts = tag_counts({"subject": subject.hexcode, "tags": subject.tags} for subject in subjects)
    known: set[str] = set()  # sha256 of every picture so far
    for name, read in source.sets.items():
        shard = out / "plain" / f"{name}.parquet"
        if not shard.exists():
            drawings, font = read()
            wanted = {subject.hexcode for subject in subjects}
            drawings = [drawing for drawing in drawings if drawing.subject in wanted]
            images = list(
                _counted(render_all(drawings, config.size, font=font, processes=processes), name, len(drawings), progress)
            )
            records = {subject.hexcode: subject for subject in subjects}
            rows = [
                _row(encode_png(images[index]), sha256, records[drawings[index].subject], name, PLAIN, "", config.seed, counts)
                for index, sha256 in screen(images, known)
            ]
            write_shard(shard, rows)
        else:
            known |= {row["sha256"] for row in read_rows(shard, ["sha256"])}
    if config.renditions:
        with _workers(processes) as mapped:
            _build_renditions(out, config, source, subjects, counts, mapped, progress)


def _build_renditions(
    out: Path,
    config: BuildConfig,
    source: Source,
    subjects: list[Subject],
    counts: dict[str, int],
    mapped: Callable[[Callable, list], Iterator],
    progress: Progress,
) -> None:
    records = {subject.hexcode: subject for subject in subjects}
    names = [name for name in source.sets if not SETS_BY_NAME[name].held_out]  # an unseen style already: it stays as drawn
    sets_of: dict[str, list[str]] = {}  # subject -> the sets that drew it
    for name in names:
        for row in read_rows(out / "plain" / f"{name}.parquet", ["subject"]):
            sets_of.setdefault(row["subject"], []).append(name)
    houses = {subject: house_set(subject, sets) for subject, sets in sets_of.items()}
    total, done = sum(len(sets) for sets in sets_of.values()), 0
    for name in names:
        plain = read_rows(out / "plain" / f"{name}.parquet", ["image", "subject"])
        for start in range(0, len(plain), PICTURES_PER_SHARD):
            shard = out / "rendered" / f"{name}-{start // PICTURES_PER_SHARD:02d}.parquet"
            part = plain[start : start + PICTURES_PER_SHARD]
            if shard.exists():
                done += len(part)
                progress("pictures rendered", done, total)
                continue
            jobs = [
                (row["image"]["bytes"], row["subject"], _number_of_renditions(config, houses[row["subject"]] == name))
                for row in part
            ]
            job = partial(_render_job, set_name=name, seed=config.seed)
            rows = []
            for (_, subject, _), drawn in zip(jobs, mapped(job, jobs), strict=True):
                rows += [
                    _row(png, sha256, records[subject], name, rendition, palette, config.seed, counts)
                    for png, sha256, rendition, palette in drawn
                ]
                done += 1
                progress("pictures rendered", done, total)
            write_shard(shard, rows)


def _number_of_renditions(config: BuildConfig, is_house: bool) -> int:
    return max(config.renditions, config.house_renditions) if is_house else config.renditions


def _render_job(picture: tuple[bytes, str, int], set_name: str, seed: int) -> list[tuple[bytes, str, str, str]]:
    """One plain picture -> (png, sha256, rendition, palette) of each of its renditions."""
    cv2.setNumThreads(1)
    png, subject, number = picture
    image = decode_png(png)
    names = [*planned_renditions(subject, set_name, number, seed), planned_held_out(subject, set_name, seed)]
    drawn = []
    for name in names:
        rendered, palette = render_planned(image, subject, set_name, name, seed)
        drawn.append((encode_png(rendered), hashlib.sha256(rendered.tobytes()).hexdigest(), name, palette))
    return drawn


def _row(
    png: bytes, sha256: str, subject: Subject, set_name: str, rendition: str, palette: str, seed: int, counts: dict[str, int]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image": png,
        "subject": subject.hexcode,
        "label": subject.label,
        "tags": list(subject.tags),
        "group": subject.group,
        "set": set_name,
        "family": family_of(set_name),
        "rendition": rendition,
        "palette": palette,
        "licence": SETS_BY_NAME[set_name].licence,
        "split": split_of(subject.hexcode, set_name, rendition),
        "reference_holdout": is_reference_holdout(subject.hexcode, set_name, rendition),
        "sha256": sha256,
    }
    words = generator(seed, "caption", subject.hexcode, set_name, rendition)
    row["caption"] = caption(row, words, bool(words.random() < STYLE_SHARE), counts)
    return row


def _claim(out: Path, config: BuildConfig, art: Path | None) -> None:
    """Writes build.json, or checks that the one that is there asks for the same."""
    wanted = {"format": FORMAT, **asdict(config), "art": _folder_sha256(art) if art else _packages_sha256()}
    note = out / "build.json"
    if note.exists():
        try:
            found = json.loads(note.read_text())
        except json.JSONDecodeError as error:
            raise DataError(f"'{note}' is no JSON: delete the folder, or choose another --out") from error
        if found != wanted:
            differing = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
            raise DataError(
                f"'{out}' was built with another {', '.join(differing)} (was {[found.get(key) for key in differing]}, "
                f"asked for {[wanted.get(key) for key in differing]}): choose another --out, or delete it"
            )
        return
    if out.exists() and not out.is_dir():
        raise DataError(f"'{out}' is a file: expected a folder for --out")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"'{out}' is not empty and holds no build.json: choose an empty or a new folder for --out")
    write_text_whole(note, json.dumps(wanted, indent=1) + "\n")


def _packages_sha256() -> str:
    packages = [EMOJIBASE, EMOJILIB, *(art_set.package for art_set in SETS)]
    return hashlib.sha256("".join(package.sha256 for package in packages).encode()).hexdigest()


def _folder_sha256(art: Path) -> str:
    digest = hashlib.sha256()
    for file in [art / "subjects.json", *sorted(art.glob("*/*.svg"))]:
        if file.is_file():
            digest.update(str(file.relative_to(art)).encode() + file.read_bytes())
    return digest.hexdigest()


def _limited(subjects: list[Subject], limit: int | None) -> list[Subject]:
    """`limit` subjects, evenly spread over the list so that every group is met."""
    if limit is None or limit >= len(subjects):
        return subjects
    return [subjects[int(index)] for index in np.linspace(0, len(subjects) - 1, limit).round()]


@contextmanager
def _workers(processes: int) -> Iterator[Callable[[Callable, list], Iterator]]:
    """A map over jobs, in order: here, or in `processes` workers."""
    if processes == 1:
        yield map
        return
    with get_context("spawn").Pool(processes) as pool:
        yield lambda job, jobs: pool.imap(job, jobs, chunksize=8)


def _counted(items: Iterable, what: str, total: int, progress: Progress) -> Iterator:
    for number, item in enumerate(items, 1):
        yield item
        progress(what, number, total)
