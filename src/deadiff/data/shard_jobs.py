"""Work in parts, each of which leaves one file, whole or not at all: a killed run goes on, and any worker may do any part.

The same jobs run here, in processes of this machine, or on a Ray cluster (ray_stages.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Protocol

Progress = Callable[[str, int, int], None]  # what is being done, how many parts are done, of how many


class Job(Protocol):
    """A part of the work, as plain data that travels to a worker."""

    def done(self) -> bool:
        """Whether its file is there already."""
        ...

    def run(self) -> None:
        """Do it and leave its file. Run twice, it leaves the same file."""
        ...


Runner = Callable[[str, Sequence[Job], Progress], None]  # runs the jobs that are not done


def run_here(processes: int = 1) -> Runner:
    """Jobs one after the other in this process, or in several."""

    def run(what: str, jobs: Sequence[Job], progress: Progress) -> None:
        left = [job for job in jobs if not job.done()]
        progress(what, len(jobs) - len(left), len(jobs))
        if processes == 1 or len(left) < 2:
            for number, job in enumerate(left, 1):
                job.run()
                progress(what, len(jobs) - len(left) + number, len(jobs))
            return
        with get_context("spawn").Pool(min(processes, len(left))) as pool:
            for number, _ in enumerate(pool.imap_unordered(_run, left), 1):
                progress(what, len(jobs) - len(left) + number, len(jobs))

    return run


def _run(job: Job) -> None:
    job.run()
