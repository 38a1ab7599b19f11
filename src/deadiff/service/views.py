"""Rows of the database as what callers get."""

import json
from datetime import UTC, datetime

from deadiff.service.queue import Queue
from deadiff.service.schemas import JobOut, PictureOut, StyleOut
from deadiff.service.state import Service
from deadiff.service.styles import NoSuchError
from deadiff.service.tables import DONE, RUNNING, JobRow, PictureRow, StyleRow


def when(seconds: float | None) -> str | None:
    """ISO 8601, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def job_by_id(service: Service, identity: str) -> JobOut:
    """Raises NoSuchError."""
    drawn = service.events.progress(identity)  # read before the row: it is forgotten as soon as the job is over
    found = service.queue.get(identity)
    if found is None:
        raise NoSuchError(f"there is no job {identity}: it was deleted, or its time was up")
    row, pictures, ahead = found
    return job_view(row, pictures, drawn, ahead)


def job_view(row: JobRow, pictures: list[PictureRow], drawn: float, ahead: int = 0) -> JobOut:
    """drawn: 0 to 1, how much of it was drawn when the row was read or a moment before."""
    progress = {DONE: 1.0, RUNNING: drawn}.get(row.status, 0.0)
    return JobOut(
        id=row.id,
        status=row.status,  # pyright: ignore[reportArgumentType]
        progress=round(progress, 4),
        ahead=ahead,
        created=when(row.created) or "",
        started=when(row.started),
        finished=when(row.finished),
        error=row.error,
        pictures=[picture_view(picture) for picture in pictures],
        request=json.loads(row.request),
    )


def picture_view(row: PictureRow) -> PictureOut:
    return PictureOut(
        url=f"/v1/jobs/{row.job_id}/pictures/{row.position}",
        seed=row.seed,
        sha256=row.sha256,
        bytes=row.bytes,
        width=row.width,
        height=row.height,
        flagged=row.flagged,
    )


def pictures_of(queue: Queue, identity: str) -> list[PictureRow]:
    """Raises NoSuchError."""
    found = queue.get(identity)
    if found is None:
        raise NoSuchError(f"there is no job {identity}: it was deleted, or its time was up")
    if found[0].status != DONE:
        raise NoSuchError(f"job {identity} is {found[0].status}: its pictures are there when it is done")
    return found[1]


def style_view(row: StyleRow, model: str) -> StyleOut:
    here = f"/v1/styles/{row.id}"
    return StyleOut(
        id=row.id,
        name=row.name,
        created=when(row.created) or "",
        fits=row.model == model,
        file=f"{here}/file",
        thumbnail=f"{here}/thumbnail",
    )
