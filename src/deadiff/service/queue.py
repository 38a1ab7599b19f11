"""The queue in the database. Every change of a job's status is one transaction here, and says which status it expects."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import CursorResult

from deadiff.errors import DEADiffError
from deadiff.service.database import Database
from deadiff.service.tables import CANCELLED, DONE, FAILED, FINAL, QUEUED, RUNNING, JobRow, PictureRow, StyleRow, UseRow

MOST_IN = 10_000  # values of one SQL IN (...)
_ACCEPT_LOCK = 20240306952  # any number: of the advisory lock that keeps the bound exact among several processes


class QueueFullError(DEADiffError):
    """The bounded queue has no room; the caller should come back."""


class KeyReusedError(DEADiffError):
    """An Idempotency-Key came again with another request."""


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What intake.py makes of a request."""

    request: str  # JSON
    kind: str
    images: int
    uses: frozenset[str]  # sha256s of the files it draws with
    request_hash: str
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished picture, already in the store."""

    position: int  # in its job
    seed: int
    sha256: str
    bytes: int
    width: int
    height: int
    flagged: bool


class Queue:
    """Accept, claim, finish. `worker` is the name of this process in the database."""

    def __init__(self, database: Database, *, limit: int, lease: float, max_attempts: int) -> None:
        self.database, self.limit, self.lease, self.max_attempts = database, limit, lease, max_attempts
        self.worker = secrets.token_hex(16)

    # ---- callers ----

    def accept(self, job: NewJob) -> tuple[str, bool]:
        """(id, whether it is new). The job is on the disk when this returns. Raises QueueFullError or KeyReusedError."""
        with self.database.write() as session:
            if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
                session.execute(select(func.pg_advisory_xact_lock(_ACCEPT_LOCK)))
            if job.idempotency_key is not None:
                known = session.scalar(select(JobRow).where(JobRow.idempotency_key == job.idempotency_key))
                if known is not None:
                    if known.request_hash != job.request_hash:
                        raise KeyReusedError("this Idempotency-Key came with another request before: use a new key for a new job")
                    return known.id, False
            waiting = session.scalar(select(func.sum(JobRow.images)).where(JobRow.status.in_((QUEUED, RUNNING)))) or 0
            if waiting + job.images > self.limit and waiting > 0:
                raise QueueFullError(f"the queue is full: {waiting} of {self.limit} pictures are waiting; try again later")
            identity = secrets.token_hex(16)
            session.add(
                JobRow(
                    id=identity,
                    status=QUEUED,
                    request=job.request,
                    kind=job.kind,
                    images=job.images,
                    created=time.time(),
                    attempts=0,
                    idempotency_key=job.idempotency_key,
                    request_hash=job.request_hash,
                )
            )
            session.flush()
            session.add_all(UseRow(job_id=identity, sha256=sha256) for sha256 in sorted(job.uses))
        return identity, True

    def get(self, identity: str) -> tuple[JobRow, list[PictureRow], int] | None:
        """(the job, its pictures in order, pictures queued ahead of it), or None."""
        with self.database.read() as session:
            job = session.scalar(select(JobRow).where(JobRow.id == identity))
            if job is None:
                return None
            order = select(PictureRow).where(PictureRow.job_id == identity).order_by(PictureRow.position)
            pictures = list(session.scalars(order)) if job.status == DONE else []
            ahead = 0
            if job.status == QUEUED:
                earlier = (JobRow.status == QUEUED) & (JobRow.seq < job.seq)
                ahead = session.scalar(select(func.sum(JobRow.images)).where(earlier)) or 0
            session.expunge_all()
            return job, pictures, ahead

    def recent(self, limit: int, before: str | None, status: str | None) -> list[JobRow]:
        """Newest first; `before` is the id where the last page ended."""
        query = select(JobRow).order_by(JobRow.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(JobRow.seq < select(JobRow.seq).where(JobRow.id == before).scalar_subquery())
        if status is not None:
            query = query.where(JobRow.status == status)
        with self.database.read() as session:
            jobs = list(session.scalars(query))
            session.expunge_all()
            return jobs

    def cancel(self, identity: str) -> bool:
        """Whether it was still waiting or being drawn."""
        live = (JobRow.id == identity) & JobRow.status.in_((QUEUED, RUNNING))
        with self.database.write() as session:
            change = update(JobRow).where(live).values(status=CANCELLED, finished=time.time(), worker=None, lease_until=None)
            return _count(session.execute(change)) == 1

    def forget(self, identity: str) -> bool:
        """Delete a finished job; its files go with the next sweep. False where there is none, or it is not finished."""
        with self.database.write() as session:
            over = session.scalar(select(JobRow.id).where(JobRow.id == identity, JobRow.status.in_(FINAL)))
            if over is not None:
                _delete(session, [over])
            return over is not None

    def waiting(self) -> dict[str, int]:
        """Pictures by status: {"queued": 3, "running": 8}."""
        by_status = (
            select(JobRow.status, func.sum(JobRow.images)).where(JobRow.status.in_((QUEUED, RUNNING))).group_by(JobRow.status)
        )
        with self.database.read() as session:
            found = {status: int(images) for status, images in session.execute(by_status)}
        return {status: found.get(status, 0) for status in (QUEUED, RUNNING)}

    # ---- the worker ----

    def claim(self, most: int) -> list[JobRow]:
        """The oldest job and, up to `most` pictures, those of its kind that wait behind it; they are running from now on.

        A job whose process died while drawing it is drawn alone: were it the cause, no other job would suffer for it.
        """
        with self.database.write() as session:
            oldest = select(JobRow).where(JobRow.status == QUEUED).order_by(JobRow.seq).limit(1).with_for_update(skip_locked=True)
            first = session.scalar(oldest)
            if first is None:
                return []
            jobs = [first]
            if first.attempts == 0 and first.images < most:
                same = select(JobRow).where(
                    JobRow.status == QUEUED, JobRow.kind == first.kind, JobRow.attempts == 0, JobRow.seq > first.seq
                )
                for job in session.scalars(same.order_by(JobRow.seq).limit(most - 1).with_for_update(skip_locked=True)):
                    if sum(j.images for j in jobs) + job.images <= most:
                        jobs.append(job)
            now = time.time()
            for job in jobs:
                job.status, job.worker, job.lease_until = RUNNING, self.worker, now + self.lease
                job.started, job.attempts = job.started or now, job.attempts + 1
            session.flush()
            session.expunge_all()
        return jobs

    def finish(self, identity: str, pictures: Sequence[Drawn]) -> bool:
        """Record the pictures and the end of the job in one transaction, if it is still ours to finish."""
        with self.database.write() as session:
            if not self._end(session, identity, DONE, None):
                return False
            session.execute(insert(PictureRow), [{"job_id": identity, **vars(picture)} for picture in pictures])
            return True

    def fail(self, identity: str, error: str) -> bool:
        with self.database.write() as session:
            return self._end(session, identity, FAILED, error)

    def give_back(self, identities: Sequence[str] | None = None) -> int:
        """Our running jobs (all, or these) to the queue, in good order: it does not count as an attempt."""
        ours = (JobRow.status == RUNNING) & (JobRow.worker == self.worker)
        if identities is not None:
            ours &= JobRow.id.in_(identities)
        with self.database.write() as session:
            change = update(JobRow).where(ours)
            return _count(
                session.execute(change.values(status=QUEUED, worker=None, lease_until=None, attempts=JobRow.attempts - 1))
            )

    def renew(self) -> set[str]:
        """Keep our running jobs; the ids of those that are still ours."""
        ours = (JobRow.status == RUNNING) & (JobRow.worker == self.worker)
        with self.database.write() as session:
            session.execute(update(JobRow).where(ours).values(lease_until=time.time() + self.lease))
            return set(session.scalars(select(JobRow.id).where(ours)))

    def recover(self, everything: bool) -> int:
        """Jobs whose process died go back to the queue, or fail if that was too often. `everything`: no other one can live."""
        orphaned = JobRow.status == RUNNING
        orphaned &= (JobRow.worker != self.worker) if everything else (JobRow.lease_until < time.time())
        with self.database.write() as session:
            worn = f"given up: the service ended {self.max_attempts} times while drawing it"
            ended = {"worker": None, "lease_until": None}
            often = update(JobRow).where(orphaned, JobRow.attempts >= self.max_attempts)
            session.execute(often.values(status=FAILED, error=worn, finished=time.time(), **ended))
            return _count(session.execute(update(JobRow).where(orphaned).values(status=QUEUED, **ended)))

    # ---- keeping house ----

    def forget_finished(self, before: float) -> int:
        """Delete jobs that ended before that time; at most a thousand at once, so that callers do not wait."""
        with self.database.write() as session:
            old = select(JobRow.id).where(JobRow.status.in_(FINAL), JobRow.finished < before).limit(1000)
            identities = list(session.scalars(old))
            if identities:
                _delete(session, identities)
            return len(identities)

    def pictures_in_use(self, sha256s: list[str]) -> set[str]:
        return self._among(PictureRow.sha256, sha256s)

    def files_in_use(self, sha256s: list[str]) -> set[str]:
        return self._among(UseRow.sha256, sha256s) | self._among(StyleRow.sha256, sha256s)

    def _among(self, column: Any, values: list[str]) -> set[str]:
        found: set[str] = set()
        with self.database.read() as session:
            for start in range(0, len(values), MOST_IN):
                found |= set(session.scalars(select(column).where(column.in_(values[start : start + MOST_IN]))))
        return found

    def _end(self, session: Any, identity: str, status: str, error: str | None) -> bool:
        ours = (JobRow.id == identity) & (JobRow.status == RUNNING) & (JobRow.worker == self.worker)
        values = {"status": status, "error": error, "finished": time.time(), "worker": None, "lease_until": None}
        return _count(session.execute(update(JobRow).where(ours).values(**values))) == 1


def _delete(session: Any, identities: list[str]) -> None:
    session.execute(delete(PictureRow).where(PictureRow.job_id.in_(identities)))
    session.execute(delete(UseRow).where(UseRow.job_id.in_(identities)))
    session.execute(delete(JobRow).where(JobRow.id.in_(identities)))


def _count(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
