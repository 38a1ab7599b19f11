"""The worker: takes the oldest job and what can be drawn with it, draws, records; beside it a thread that keeps house."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from deadiff.errors import DEADiffError
from deadiff.references import one_line
from deadiff.service.drawing import Drawing
from deadiff.service.events import Events
from deadiff.service.metrics import Metrics
from deadiff.service.queue import Drawn, Queue
from deadiff.service.settings import Settings
from deadiff.service.store import HOUR, DiskError
from deadiff.service.tables import JobRow

log = logging.getLogger(__name__)
IDLE = 1.0  # seconds between looks at the queue when nobody wakes the worker: other processes may fill it
PAUSE = 2.0  # seconds after trouble with the disk or the database


class _StoppedError(Exception):
    """Raised between two steps: the service stops, or nobody wants the batch any more."""


class Worker:
    """One batch at a time. `trouble` says in one line what keeps it from drawing, None when all is well."""

    def __init__(
        self, settings: Settings, queue: Queue, drawing: Drawing, events: Events, metrics: Metrics, sweep: Callable[[], None]
    ) -> None:
        self.settings, self.queue, self.drawing, self.events, self.metrics = settings, queue, drawing, events, metrics
        self.trouble: str | None = None
        self._sweep = sweep
        self._woken, self._stopping, self._abandon = threading.Event(), threading.Event(), threading.Event()
        self._current: set[str] = set()  # ids of the jobs being drawn
        self._dropped: set[str] = set()  # of these, the ones that are ours no more
        self._threads = [
            threading.Thread(target=self._run, name="deadiff-draw", daemon=True),
            threading.Thread(target=self._keep_house, name="deadiff-house", daemon=True),
        ]

    def start(self) -> None:
        self.queue.recover(everything=self.settings.alone)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The batch may finish within the grace; else it is left at its next step and its jobs are queued again."""
        self._stopping.set()
        self._woken.set()
        draw, house = self._threads
        draw.join(self.settings.grace)
        self._abandon.set()
        draw.join()
        house.join()
        with contextlib.suppress(SQLAlchemyError):  # then the lease runs out
            self.queue.give_back()

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads) and not self._stopping.is_set()

    def wake(self) -> None:
        self._woken.set()

    def drop(self, identity: str) -> None:
        """The job was cancelled: its picture is not recorded, and a batch that nobody else is in ends at its next step."""
        self._dropped.add(identity)

    # ---- drawing ----

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._draw_next():
                    self._woken.wait(IDLE)
                    self._stopping.wait(self.settings.batch_wait)  # others of its kind may come in this moment
                    self._woken.clear()
                    continue
                self.trouble = None
            except (SQLAlchemyError, DiskError, OSError) as error:
                self.trouble = one_line(error)
                log.error("cannot draw now, will try again: %s", self.trouble)
                with contextlib.suppress(SQLAlchemyError):
                    self.queue.give_back()
                self._stopping.wait(PAUSE)

    def _draw_next(self) -> bool:
        rows = self.queue.claim(self.settings.max_batch)
        if rows:
            self._dropped.clear()
            self._draw(rows)
        return bool(rows)

    def _draw(self, rows: Sequence[JobRow]) -> None:
        self._current = {row.id for row in rows}
        begun = time.perf_counter()
        try:
            made = self.drawing.draw(rows, self.settings.max_batch, self._progress)
        except _StoppedError:
            self.queue.give_back(list(self._current))  # those cancelled are not running any more, and stay so
            self._over(rows)
            return
        except (SQLAlchemyError, DiskError):
            raise
        except Exception as error:
            if len(rows) == 1:
                self._fail(rows[0], error)
                return
            log.warning("a batch of %d jobs failed, each is drawn alone: %s", len(rows), one_line(error))
            for row in rows:
                if row.id not in self._dropped:
                    self._draw([row])
            return
        self.metrics.batch_drawn(sum(row.images for row in rows), time.perf_counter() - begun)
        for row, pictures in zip(rows, made, strict=True):
            self._record(row, pictures)
        self._over(rows)

    def _record(self, row: JobRow, pictures: list[Drawn]) -> None:
        if self.queue.finish(row.id, pictures):
            self.metrics.jobs.labels("done").inc()
            self.metrics.job_seconds.observe(time.time() - row.created)

    def _fail(self, row: JobRow, error: Exception) -> None:
        if isinstance(error, DEADiffError):
            reason = one_line(error)
        else:
            log.error("job %s failed", row.id, exc_info=error)
            reason = f"drawing failed: {one_line(error)}"
        if self.queue.fail(row.id, reason.replace("\0", "")):
            self.metrics.jobs.labels("failed").inc()
        self._over([row])

    def _over(self, rows: Sequence[JobRow]) -> None:
        self._current = set()
        for row in rows:
            self.events.publish(row.id)

    def _progress(self, done: int, total: int) -> None:
        """Called by the Stylizer after each step."""
        if self._abandon.is_set() or self._current <= self._dropped:
            raise _StoppedError
        for identity in self._current - self._dropped:
            self.events.publish(identity, done / total)

    # ---- keeping house ----

    def _keep_house(self) -> None:
        next_sweep = 0.0
        while not self._stopping.is_set():
            try:
                mine = set(self._current)
                self._dropped |= mine - self.queue.renew()  # cancelled by way of another process, or taken over by it
                if not self.settings.alone and self.queue.recover(everything=False):
                    self._woken.set()
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + HOUR
                    self._sweep()
            except (SQLAlchemyError, DiskError, OSError) as error:
                log.error("cannot keep house now, will try again: %s", one_line(error))
            self._stopping.wait(self.settings.lease / 4)
