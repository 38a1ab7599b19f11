"""A plan -> pictures: shards that any number of runs and workers draw, without a picture lost or drawn twice.

OUT/generate.json         what was asked for: a run with other options refuses to mix with it
OUT/plan.parquet          every picture to draw: prompt, seed, subject, style, split
OUT/pictures/NNNNN.parquet   the pictures of one shard, written whole
OUT/failed/NNNNN.jsonl    prompts of that shard that gave no picture, each with the reason
OUT/parked/NNNNN/         batches of a shard that is not finished: what a killed run goes on from
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.data.painter import Painted, Painter, PainterSpec, open_painter
from deadiff.data.plan import PlanConfig, Planned, make_plan, read_part, write_plan
from deadiff.data.shard_jobs import Progress, Runner
from deadiff.data.splits import TRAIN
from deadiff.data.store import encode_png, read_rows, write_shard
from deadiff.data.vocabulary import StyleWord, SubjectWord
from deadiff.errors import ConfigError, DataError, DEADiffError
from deadiff.writing import write_text_whole

log = logging.getLogger(__name__)
FORMAT = 1
PATIENCE = 16  # prompts in a row that may fail before it is the model's fault and not theirs


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How the work is cut up, and whose the pictures are."""

    shard_size: int = 256  # pictures of a shard
    batch_size: int = 8  # pictures drawn at once
    licence: str = ""  # of the pictures; empty: "output of MODEL"

    def __post_init__(self) -> None:
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1")


def prepare(
    out: Path,
    subjects: Sequence[SubjectWord],
    styles: Sequence[StyleWord],
    plan: PlanConfig,
    painter: PainterSpec,
    config: GenerateConfig,
) -> int:
    """Write the plan to `out`, or check that the one there is the same. Returns the number of pictures it plans."""
    words = hashlib.sha256(repr((list(subjects), list(styles))).encode()).hexdigest()
    options = asdict(config)
    del options["batch_size"]  # may differ from run to run: each picture has a seed of its own
    own = {name: value for name, value in asdict(painter).items() if name != "device"}
    claim(out, "generate.json", {"format": FORMAT, "plan": asdict(plan), "words": words, "painter": own, **options})
    whole = make_plan(subjects, styles, plan)
    if not (out / "plan.parquet").is_file():
        write_plan(whole, out / "plan.parquet", config.shard_size)
    return len(whole)


def generate(
    out: Path,
    painter: PainterSpec,
    config: GenerateConfig,
    *,
    retry_failed: bool = False,
    share: tuple[int, int] = (0, 1),
    run: Runner | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, int]:
    """Draw what the plan in `out` (see prepare) holds and is not there yet. Returns counts: planned, drawn, failed.

    share: (this worker, all workers) of those that draw into the same folder, each its own shards. retry_failed: draw again the
    prompts that failed before. run: where the shards are drawn; None: one after the other in this process.
    """
    worker, workers = share
    if not 0 <= worker < workers:
        raise ConfigError(f"the share is {worker}/{workers}: expected 0/{workers} to {workers - 1}/{workers}")
    count, groups = plan_size(out)
    jobs = [
        GenerateJob(out=out, shard=shard, painter=painter, config=config, retry_failed=retry_failed)
        for shard in range(worker, groups, workers)
    ]
    if run:
        run("drawing shards", jobs, progress)
    else:
        _draw_here([job for job in jobs if not job.done()], min(count, len(jobs) * config.shard_size), progress)
    return {"planned": count, **counts(out)}


def _draw_here(jobs: Sequence[GenerateJob], total: int, progress: Progress) -> None:
    """Shard after shard, told picture by picture."""
    done = total - sum(len(job.planned()) for job in jobs)
    progress("drawing pictures", done, total)
    for job in jobs:
        before = done

        def report(drawn: int, before: int = before) -> None:
            progress("drawing pictures", before + drawn, total)

        job.draw(open_painter(job.painter), report)
        done += len(job.planned())


def plan_size(out: Path) -> tuple[int, int]:
    """(pictures, shards) of the plan in `out`."""
    import pyarrow
    import pyarrow.parquet

    try:
        about = pyarrow.parquet.ParquetFile(out / "plan.parquet").metadata
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"'{out}' has no plan that can be read: prepare it first ({' '.join(str(error).split())[:100]})"
        ) from error
    return about.num_rows, about.num_row_groups


def counts(out: Path) -> dict[str, int]:
    """Pictures that are there, and prompts that failed, by what lies in `out`."""
    import pyarrow.parquet

    drawn = sum(pyarrow.parquet.ParquetFile(path).metadata.num_rows for path in (out / "pictures").glob("[!.]*.parquet"))
    failed = sum(len(path.read_text().splitlines()) for path in (out / "failed").glob("[!.]*.jsonl"))
    return {"drawn": drawn, "failed": failed}


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """One shard of the plan."""

    out: Path
    shard: int
    painter: PainterSpec
    config: GenerateConfig
    retry_failed: bool = False

    @property
    def pictures(self) -> Path:
        return self.out / "pictures" / f"{self.shard:05d}.parquet"

    @property
    def failed(self) -> Path:
        return self.out / "failed" / f"{self.shard:05d}.jsonl"

    @property
    def parked(self) -> Path:
        return self.out / "parked" / f"{self.shard:05d}"

    def done(self) -> bool:
        return self.pictures.is_file() and not (self.retry_failed and self.failed.is_file())

    def run(self) -> None:
        self.draw(open_painter(self.painter))

    def planned(self) -> list[Planned]:
        return read_part(self.out / "plan.parquet", self.shard)

    def draw(self, painter: Painter, report: Callable[[int], None] = lambda done: None) -> None:
        """Draw what is missing, batch by batch, each parked as it is done; then write the shard. `report` hears of each batch."""
        planned = self.planned()
        rows, failures = self._found(planned)
        missing = [item for item in planned if item.number not in rows and item.number not in failures]
        in_a_row: list[Path] = []  # batches since the last picture
        bad = 0
        for start in range(0, len(missing), self.config.batch_size):
            batch = missing[start : start + self.config.batch_size]
            new, wrong = {}, {}
            for item, painted in zip(batch, attempt(painter, batch), strict=True):
                if isinstance(painted, str):
                    wrong[item.number] = painted
                else:
                    new[item.number] = self._row(item, painted)
            bad = 0 if new else bad + len(wrong)
            path = self._park(batch, new, wrong)
            in_a_row = [] if new else [*in_a_row, path]
            if bad >= PATIENCE:
                for path in in_a_row:  # not these prompts' fault: to be drawn when the cause is gone
                    path.unlink(missing_ok=True)
                raise DataError(
                    f"{bad} prompts in a row gave no picture, the last one because: {wrong[batch[-1].number]}; "
                    f"what was drawn is kept in '{self.out}', the same command goes on"
                )
            rows |= new
            failures |= wrong
            report(len(rows) + len(failures))
        self._write(planned, rows, failures)

    def _found(self, planned: list[Planned]) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """What earlier runs left: rows and failures by number."""
        by_name = {(item.subject, item.style): item.number for item in planned}
        rows: dict[int, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        found = [self.pictures] if self.pictures.is_file() else []
        for path in [*found, *sorted(self.parked.glob("[!.]*.parquet"))]:
            for row in read_rows(path):
                row["image"] = row["image"]["bytes"]
                rows[by_name[row["subject"], row["rendition"]]] = row
        for path in sorted(self.parked.glob("[!.]*.json")):
            failures |= {int(number): reason for number, reason in json.loads(path.read_text()).items()}
        return rows, {number: reason for number, reason in failures.items() if number not in rows}

    def _park(self, batch: list[Planned], new: dict[int, dict[str, Any]], wrong: dict[int, str]) -> Path:
        """One batch, so that a killed run loses no finished one. Returns the file of its failures, if it has any."""
        stem = f"{batch[0].number:09d}"
        if wrong:
            write_text_whole(self.parked / f"{stem}.json", json.dumps(wrong))
        if new:
            write_shard(self.parked / f"{stem}.parquet", list(new.values()))
        return self.parked / f"{stem}.json"

    def _write(self, planned: list[Planned], rows: dict[int, dict[str, Any]], failures: dict[int, str]) -> None:
        """The failures first: a shard that is there is finished, and what it lacks is written down."""
        if failures:
            lines = [json.dumps({**vars(item), "reason": failures[item.number]}) for item in planned if item.number in failures]
            write_text_whole(self.failed, "\n".join(lines) + "\n")
        write_shard(self.pictures, [rows[item.number] for item in planned if item.number in rows])
        if not failures:
            self.failed.unlink(missing_ok=True)
        shutil.rmtree(self.parked, ignore_errors=True)

    def _row(self, item: Planned, picture: np.ndarray) -> dict[str, Any]:
        name = self.painter.name
        return {
            "image": encode_png(picture),
            "subject": item.subject,
            "label": item.subject,
            "tags": [],
            "group": item.group,
            "set": name,
            "family": name,
            "rendition": item.style,
            "palette": "",
            "caption": item.prompt,
            "licence": self.config.licence or f"output of {self.painter.model}",
            "split": item.split,
            "reference_holdout": item.split != TRAIN,
            "sha256": hashlib.sha256(picture.tobytes()).hexdigest(),
        }


def attempt(painter: Painter, batch: Sequence[Planned]) -> list[Painted]:
    """Draw a batch; where that fails, one by one, so that a bad prompt costs its own picture only."""
    try:
        return painter([item.prompt for item in batch], [item.seed for item in batch])
    except DEADiffError:
        raise  # the options are wrong, for this prompt and for all
    except Exception as error:  # a pipeline raises what it likes
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if len(batch) == 1:
            return [reason]
        log.warning("a batch of %d failed (%s): drawing one by one", len(batch), reason)
        return [painted for item in batch for painted in attempt(painter, [item])]


def claim(out: Path, name: str, wanted: dict[str, Any]) -> None:
    """Writes OUT/name, or checks that the one that is there asks for the same. Raises DataError."""
    note = out / name
    if note.is_file():
        try:
            found = json.loads(note.read_text())
        except ValueError as error:
            raise DataError(f"'{note}' is no JSON: delete the folder, or choose another --out") from error
        wanted = json.loads(json.dumps(wanted))
        if found != wanted and not any((out / part).is_dir() for part in ("pictures", "parked", ".looks")):
            for plan in ("plan.parquet", "listing.parquet", "clusters.json"):  # nothing was done yet: a wrong option mended
                (out / plan).unlink(missing_ok=True)
            write_text_whole(note, json.dumps(wanted, indent=1) + "\n")
        elif found != wanted:
            was, asked = _flat(found), _flat(wanted)
            differing = sorted(key for key in {*was, *asked} if was.get(key) != asked.get(key))
            changes = ", ".join(f"{key} {was.get(key)!r} and not {asked.get(key)!r}" for key in differing)
            raise DataError(f"'{out}' was begun with {changes[:300]}: choose another --out, or the options it was begun with")
        return
    if out.exists() and not out.is_dir():
        raise DataError(f"'{out}' is a file: expected a folder for --out")
    if out.is_dir() and any(not re.match(r"\.|plan\.parquet$", path.name) for path in out.iterdir()):
        raise DataError(f"'{out}' is not empty and holds no {name}: choose an empty or a new folder for --out")
    write_text_whole(note, json.dumps(wanted, indent=1) + "\n")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
