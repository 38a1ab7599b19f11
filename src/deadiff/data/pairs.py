"""Pairs from records and features: STRE (same style, other subject) and SERE (same subject, other style), filtered and balanced.

Every target looks for references in its group, the pictures of its style or of its subject, which stand in a random order: it
takes those that stand behind it in the circle. So every picture is a reference about as often as it is a target, small groups
are used up, and what a target finds depends on nothing but the seed. Targets are looked at in chunks (jobs) that know nothing
of each other: time is linear in the pictures, and any number of workers finds the same. Balance comes last: of a style or
subject with too many pairs those with the lowest hashes stay.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.data.features import Features, embed
from deadiff.data.pair_index import PAIRED, SERE, STRE, dictionary, write_note, write_pictures
from deadiff.data.records import Records, read_records
from deadiff.data.shard_jobs import Progress, Runner, run_here
from deadiff.data.similarity import difference, likeness, style_distance
from deadiff.errors import ConfigError, DataError
from deadiff.writing import write_text_whole, write_whole

# N pictures, G groups (styles or subjects), B targets of a chunk, P pairs

CHUNK = 65_536  # targets of one job
SAMPLE = 50_000  # random pairs from which the thresholds are read
NO_LIMIT = 1e9
REASONS = (  # of a pair that is dropped; the number is its place here
    "kept",
    "same_picture",  # the same pixels under two names
    "near_duplicate",  # thumbnails closer than near_duplicate
    "looks_diverge",  # STRE: labelled with one style, and look like two
    "looks_alike",  # SERE: labelled with two styles, and look like one
    "subjects_diverge",  # SERE, with CLIP: labelled with one subject, and show two
    "alone",  # a target whose style or subject nothing else shares
    "style_cap",  # balance: the style has pairs enough
    "subject_cap",  # balance: the subject has pairs enough
)
CODE = {reason: code for code, reason in enumerate(REASONS)}


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """What makes a good pair. Style distances are in standard deviations (similarity.py), differences from 0 to 1."""

    seed: int = 0
    split: str = "train"  # both pictures of a pair are of this split
    per_target: int = 2  # pairs of one target and task, at most
    candidates: int = 8  # references that a target looks at before it gives up
    near_duplicate: float = 0.02  # of less difference than this the two are one picture
    looks_quantile: float = 0.5  # a style pair looks more alike than this share of the pairs of different styles
    alike_quantile: float = 0.02  # a subject pair looks more different than this share of the pairs of different styles
    subject_quantile: float = 0.5  # with CLIP: a subject pair is more alike than this share of the pairs of different subjects
    balance: float = 3.0  # a style or subject has at most this many times the median number of pairs; 0: no limit
    max_per_style: int | None = None  # pairs, instead of balance
    max_per_subject: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_target", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("near_duplicate", "looks_quantile", "alike_quantile", "subject_quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1")
        if self.balance != 0 and not 1 <= self.balance <= NO_LIMIT:
            raise ConfigError(f"balance is {self.balance}: expected at least 1, or 0 for no limit")
        for name in ("max_per_style", "max_per_subject"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1 pair")


def make_pairs(
    data: Path,
    out: Path | None = None,
    config: PairConfig | None = None,
    *,
    clip: str | None = None,
    run: Runner = run_here(),
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Look at the pictures in `data`, pair them and write the index to `out` (data/pairs). Returns what pairs.json says."""
    records = read_records(data)
    features = embed(records, clip=clip, run=run, progress=progress)
    return pair(records, features, out or data / "pairs", config or PairConfig(), run=run, progress=progress)


def pair(
    records: Records,
    features: Features,
    out: Path,
    config: PairConfig,
    *,
    run: Runner = run_here(),
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Records and their features -> the index in `out`, by way of OUT/.work."""
    if config.split not in records.splits:
        raise ConfigError(f"no picture is of the split '{config.split}': expected one of {', '.join(records.splits)}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"'{out}' is a file: expected a folder for the pairs")
    asked = {"options": asdict(config), "pictures_sha256": records.fingerprint, "clip": features.clip is not None}
    work = out / ".work"
    _claim(work, {**asked, "chunk": CHUNK})
    thresholds = _prepare(records, features, work, config)
    jobs = [
        PairJob(work=work, task=task, start=start, stop=min(start + CHUNK, len(records)))
        for task in PAIRED
        for start in range(0, len(records), CHUNK)
    ]
    run("pairing", jobs, progress)
    (out / "pairs.json").unlink(missing_ok=True)  # from here on the old index is no more
    statistics = _finish(records, out, [job.out for job in jobs], config)
    write_pictures(out, records)
    note = {**asked, "split": config.split, "pictures": len(records), "thresholds": thresholds, "statistics": statistics}
    write_note(out, note)
    shutil.rmtree(work)
    return note


# ---------------------------------------------------------------- what every chunk needs to know


def _claim(work: Path, asked: dict[str, Any]) -> None:
    """Parts of a killed run are gone on with if they answer the same question, else thrown away."""
    note = work / "asked.json"
    text = json.dumps(asked, sort_keys=True)
    if not note.is_file() or note.read_text() != text:
        shutil.rmtree(work, ignore_errors=True)
        write_text_whole(note, text)


def _prepare(records: Records, features: Features, work: Path, config: PairConfig) -> dict[str, float]:
    """Writes the circles and thresholds to `work`; returns the thresholds."""
    split = records.split == records.splits.index(config.split)
    arrays = {"key": _keys(records), "subject": records.subject, "style": records.style}
    for task, group in ((STRE, records.style), (SERE, records.subject)):
        order, slot, start = circle(group, split, split & ~records.hidden, config.seed + PAIRED.index(task))
        arrays |= {f"{task}-order": order, f"{task}-slot": slot, f"{task}-start": start}
    arrays["target"], arrays["shown"] = split, split & ~records.hidden
    for name, values in arrays.items():
        _save(work / f"{name}.npy", values)
    thresholds = _thresholds(records, features, np.flatnonzero(split), config)
    paths = {name: str(path.absolute()) for name, path in vars(features).items() if path}
    write_text_whole(work / "plan.json", json.dumps({"options": asdict(config), "thresholds": thresholds, "features": paths}))
    return thresholds


def circle(group: np.ndarray, target: np.ndarray, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pictures that may be shown, group by group, each group in a random order.

    group (N,) codes; target, shown (N,) bool. Returns order: their numbers; slot (N,): where in `order` each picture stands, or
    would stand if it were shown; start (G+1,): where each group begins.
    """
    number = np.flatnonzero(target)
    lot = mixed(number.astype(np.uint64), seed)
    sort = np.lexsort((lot, group[number]))
    number = number[sort]
    is_shown = shown[number]
    before = np.concatenate([[0], np.cumsum(is_shown)])
    slot = np.zeros(len(group), np.int64)
    slot[number] = before[:-1]
    groups = int(group.max(initial=-1)) + 1
    start = before[np.searchsorted(group[number], np.arange(groups + 1))]
    return number[is_shown], slot, start


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """uint64 -> uint64 that look random: splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        x = values + np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _keys(records: Records) -> np.ndarray:
    """(N,) uint64: the first quarter of each sha256, equal for equal pixels."""
    import pyarrow.compute

    compute: Any = pyarrow.compute
    text = b"".join(compute.utf8_slice_codeunits(records.sha256, 0, 16).cast("binary").to_pylist())
    if len(text) != 16 * len(records):
        raise DataError(f"a shard in '{records.folder}' holds pictures without sha256: make it again")
    return np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype(np.uint64)


def _thresholds(records: Records, features: Features, pool: np.ndarray, config: PairConfig) -> dict[str, float]:
    """How alike pictures of different styles, and of different subjects, are by chance: the quantiles that pairs must beat."""
    rng = np.random.default_rng([config.seed, 1])
    a, b = pool[rng.integers(len(pool), size=(2, SAMPLE))]
    looks = np.load(features.looks, mmap_mode="r")
    apart = records.style[a] != records.style[b]
    found = {"near_duplicate": config.near_duplicate, "looks_diverge": NO_LIMIT, "looks_alike": 0.0}
    if apart.any():
        chance = style_distance(looks[a[apart]], looks[b[apart]])
        found["looks_diverge"] = float(np.quantile(chance, config.looks_quantile)) if config.looks_quantile < 1 else NO_LIMIT
        found["looks_alike"] = float(np.quantile(chance, config.alike_quantile))
    apart = records.subject[a] != records.subject[b]
    if features.clip and apart.any():
        clip = np.load(features.clip, mmap_mode="r")
        found["subjects_diverge"] = float(np.quantile(likeness(clip[a[apart]], clip[b[apart]]), config.subject_quantile))
    return found


# ---------------------------------------------------------------- one chunk of targets


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """The pairs of the targets numbered start to stop under one task."""

    work: Path
    task: str
    start: int
    stop: int

    @property
    def out(self) -> Path:
        return self.work / f"{self.task}-{self.start:012d}.npy"

    def done(self) -> bool:
        return self.out.is_file()

    def run(self) -> None:
        space = _open(self.work)
        targets = self.start + np.flatnonzero(space.array("target")[self.start : self.stop])
        _save(self.out, pair_targets(space, self.task, targets))


JUDGED = np.dtype(  # a pair, kept or dropped; reference -1 for a target that is alone
    [("reference", "<i8"), ("target", "<i8"), ("reason", "u1"), ("style_distance", "<f4"), ("difference", "<f4")]
)


class _Space:
    """The arrays of OUT/.work by memory map, as a worker holds them."""

    def __init__(self, work: Path) -> None:
        plan = json.loads((work / "plan.json").read_text())
        self.work, self.options, self.thresholds = work, PairConfig(**plan["options"]), plan["thresholds"]
        self.looks = np.load(plan["features"]["looks"], mmap_mode="r")
        self.thumbnails = np.load(plan["features"]["thumbnails"], mmap_mode="r")
        self.clip = np.load(plan["features"]["clip"], mmap_mode="r") if "clip" in plan["features"] else None

        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = np.load(self.work / f"{name}.npy", mmap_mode="r")
        return self._arrays[name]


def _open(work: Path) -> _Space:
    return _opened(work, (work / "plan.json").stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(work: Path, _written: int) -> _Space:
    return _Space(work)


def pair_targets(space: Any, task: str, targets: np.ndarray) -> np.ndarray:
    """(B,) targets -> JUDGED pairs: each target walks its circle until it has pairs or candidates enough."""
    options = space.options
    order, slots, starts = (space.array(f"{task}-{name}") for name in ("order", "slot", "start"))
    same, other = ("style", "subject") if task == STRE else ("subject", "style")
    group, other = space.array(same)[targets], space.array(other)
    start = starts[group]
    size = starts[group + 1] - start
    is_shown = space.array("shown")[targets].astype(np.int64)
    place = slots[targets] - start + is_shown  # of the first candidate, counted from the group's start
    others = size - is_shown  # pictures to meet before the circle closes
    found = np.zeros(len(targets), np.int64)
    looked = np.zeros(len(targets), np.int64)
    active = np.arange(len(targets))
    judged = []
    for step in range(4 * options.candidates):  # some steps meet the target's own subject (STRE) or style (SERE) again
        open_ = (others[active] > step) & (found[active] < options.per_target) & (looked[active] < options.candidates)
        active = active[open_]
        if not len(active):
            break
        reference = order[start[active] + (place[active] + step) % size[active]]
        differs = other[reference] != other[targets[active]]
        walker, reference = active[differs], reference[differs]
        looked[walker] += 1
        verdict = _judge(space, task, reference, targets[walker])
        found[walker] += verdict["reason"] == CODE["kept"]
        judged.append(verdict)
    alone = np.zeros(int((looked == 0).sum()), JUDGED)
    alone["reference"], alone["target"], alone["reason"] = -1, targets[looked == 0], CODE["alone"]
    return np.concatenate([*judged, alone])


def _judge(space: Any, task: str, reference: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(B,) candidates -> JUDGED, the first reason against each that holds."""
    limits = space.thresholds
    result = np.zeros(len(reference), JUDGED)
    result["reference"], result["target"] = reference, target
    far = style_distance(space.looks[reference], space.looks[target])
    unlike = difference(space.thumbnails[reference], space.thumbnails[target])
    key = space.array("key")
    against = {
        "same_picture": key[reference] == key[target],
        "near_duplicate": unlike < limits["near_duplicate"],
        **({"looks_diverge": far > limits["looks_diverge"]} if task == STRE else {"looks_alike": far < limits["looks_alike"]}),
    }
    if task == SERE and space.clip is not None:
        against["subjects_diverge"] = likeness(space.clip[reference], space.clip[target]) < limits["subjects_diverge"]
    for reason, holds in against.items():
        result["reason"][holds & (result["reason"] == 0)] = CODE[reason]
    result["style_distance"], result["difference"] = far, unlike
    return result


# ---------------------------------------------------------------- balance, statistics, files


def _finish(records: Records, out: Path, parts: list[Path], config: PairConfig) -> dict[str, Any]:
    """Caps the pairs, writes pairs.parquet and dropped.parquet, returns the statistics by task."""
    import pyarrow.parquet

    statistics = {}
    texts: list[str] = list(PAIRED)

    def tables() -> Iterator[tuple[str, Any]]:
        for task in PAIRED:
            own = [part for part in parts if part.name.startswith(task)]
            kept = []
            dropped = np.zeros(len(REASONS), np.int64)
            for part in own:
                judged = np.load(part)
                is_kept = judged["reason"] == 0
                kept.append(judged[is_kept])
                yield "dropped", _table(task, texts, judged[~is_kept], reasons=True)
                dropped += np.bincount(judged["reason"][~is_kept], minlength=len(REASONS))
            pairs = np.concatenate(kept)
            del kept
            found = len(np.unique(pairs["target"]))
            caps = balance(pairs, task, records, config)
            yield "dropped", _table(task, texts, pairs[pairs["reason"] > 0], reasons=True)
            dropped += np.bincount(pairs["reason"][pairs["reason"] > 0], minlength=len(REASONS))
            pairs = pairs[pairs["reason"] == 0]
            pairs = pairs[np.lexsort((pairs["reference"], pairs["target"]))]
            yield "pairs", _table(task, texts, pairs, reasons=False)
            statistics[task] = {
                "pairs": len(pairs),
                "targets_with_a_pair_before_balance": found,
                "targets": len(np.unique(pairs["target"])),
                "references": len(np.unique(pairs["reference"])),
                "dropped": {reason: int(dropped[code]) for reason, code in CODE.items() if code},
                "caps": caps,
                "pairs_per_style": spread(records.style[pairs["target"]]),
                "pairs_per_subject": spread(records.subject[pairs["target"]]),
                "mean_style_distance": round(float(pairs["style_distance"].mean()), 4) if len(pairs) else None,
            }

    writers: dict[str, Any] = {}
    partials = {name: out / f".{name}.partial" for name in ("pairs", "dropped")}
    try:
        for name, table in tables():
            if name not in writers:
                writers[name] = pyarrow.parquet.ParquetWriter(partials[name], table.schema, compression="zstd")
            writers[name].write_table(table)
        for name, writer in writers.items():
            writer.close()
            partials[name].replace(out / f"{name}.parquet")
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return statistics


def balance(pairs: np.ndarray, task: str, records: Records, config: PairConfig) -> dict[str, int]:
    """Marks in `pairs` (JUDGED) what is too much of one style or subject; returns the greatest number allowed of each."""
    lot = mixed(pairs["reference"].astype(np.uint64) * np.uint64(0x9E3779B1) ^ pairs["target"].astype(np.uint64), config.seed)
    given = {"style": config.max_per_style, "subject": config.max_per_subject}
    caps: dict[str, int] = {}
    varying, shared = ("subject", "style") if task == STRE else ("style", "subject")
    for what, end in ((varying, "target"), (varying, "reference"), (shared, "target")):
        code = (records.style if what == "style" else records.subject)[pairs[end]]
        if what not in caps:
            counts = np.bincount(code)
            counts = counts[counts > 0]
            usual = (config.balance or NO_LIMIT) * float(np.median(counts)) if len(counts) else 1.0
            caps[what] = given[what] or int(np.ceil(usual))
        left = np.flatnonzero(pairs["reason"] == 0)
        over = left[rank_in_group(code[left], lot[left]) >= caps[what]]
        pairs["reason"][over] = CODE[f"{what}_cap"]
    return caps


def rank_in_group(group: np.ndarray, lot: np.ndarray) -> np.ndarray:
    """(P,) groups and lots -> (P,) place of each among those of its group, by lot."""
    order = np.lexsort((lot, group))
    ordered = group[order]
    first = np.searchsorted(ordered, ordered)  # where each one's group begins
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - first
    return rank


def spread(code: np.ndarray) -> dict[str, float]:
    """How evenly pairs fall on styles or subjects, over those that have any."""
    counts = np.bincount(code)
    counts = counts[counts > 0]
    if not len(counts):
        return {"number": 0}
    return {
        "number": len(counts),
        "fewest": int(counts.min()),
        "median": float(np.median(counts)),
        "most": int(counts.max()),
    }


def _table(task: str, tasks: list[str], pairs: np.ndarray, *, reasons: bool):
    import pyarrow

    columns: dict[str, Any] = {"objective": dictionary(np.full(len(pairs), tasks.index(task)), tasks)}
    columns |= {name: np.ascontiguousarray(pairs[name]) for name in ("reference", "target")}
    if reasons:
        columns["reason"] = dictionary(pairs["reason"], list(REASONS))
    columns |= {name: np.ascontiguousarray(pairs[name]) for name in ("style_distance", "difference")}
    return pyarrow.table(columns)


def _save(path: Path, values: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, values)

    write_whole(path, write)
