"""The same jobs on a Ray cluster: drawing, looking and pairing over shards, as stages of Ray Data.

A stage is a data set of jobs that is mapped over a pool of workers, each of which keeps its model. A worker that dies is replaced
and its job done again; jobs leave whole files or none, so the result is that of one machine. All machines must see the same
folder.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

from deadiff import errors
from deadiff.data.shard_jobs import Job, Progress, Runner
from deadiff.errors import DataError, DEADiffError, MissingExtraError


def run_on_ray(workers: int = 2, *, address: str | None = None, cpus: float = 1, gpus: float = 0) -> Runner:
    """A runner for generate(), embed() and make_pairs() that takes jobs to `workers` Ray workers of so many cores and GPUs.

    address: of a running cluster ("auto", "ray://host:10001"); None: a cluster of this machine, or the one that RAY_ADDRESS
    names. A process that has called ray.init itself keeps its cluster. Raises MissingExtraError without Ray.
    """
    _ray()

    def run(what: str, jobs: Sequence[Job], progress: Progress) -> None:
        left = [job for job in jobs if not job.done()]
        progress(what, len(jobs) - len(left), len(jobs))
        if not left:
            return
        ray = _connected(address, workers * cpus, workers * gpus)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        stage = ray.data.from_items([{"job": pickle.dumps(job)} for job in left], override_num_blocks=len(left)).map_batches(
            _Worker,
            batch_size=1,
            num_cpus=cpus,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(left)), max_tasks_in_flight_per_actor=2),
        )
        for number, row in enumerate(stage.iter_rows(), 1):
            if row["error"]:
                kind = getattr(errors, row["kind"], DataError)
                raise kind(row["error"])
            progress(what, len(jobs) - len(left) + number, len(jobs))
        if lost := [job for job in left if not job.done()]:
            raise DataError(
                f"{len(lost)} of {len(left)} parts left no file that this machine sees: expected all machines of the cluster to "
                "share the folder; mount it on each of them under the same path"
            )

    return run


class _Worker:
    """One actor of the pool. What a job loads is kept by the modules themselves (open_painter, pairs, features)."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        kinds, messages = [], []
        for job in batch["job"]:
            kind = message = ""
            try:
                pickle.loads(job).run()
            except DEADiffError as error:  # the input's fault, which another try would not mend
                kind, message = type(error).__name__, str(error)
            kinds.append(kind)
            messages.append(message)
        return {"kind": kinds, "error": messages}


def _connected(address: str | None, cpus: float, gpus: float) -> Any:
    ray = _ray()
    if not ray.is_initialized():
        known = address or os.environ.get("RAY_ADDRESS")
        size = {} if known else {"num_cpus": max(1, round(cpus)), "num_gpus": round(gpus), "include_dashboard": False}
        try:
            ray.init(address=known, log_to_driver=False, logging_level="ERROR", **size)
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise DataError(f"no Ray cluster can be reached at '{known or 'this machine'}': {text}") from error
    return ray


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("work on a cluster needs Ray: pip install 'deadiff[ray]'") from error
    return ray
