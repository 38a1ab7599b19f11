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
    found = service.queue.get(identity)
    if found is None:
        raise NoSuchError(f"there is no job {identity}: it was deleted, or its time was up")
    return job_view(service, *found)


def job_view(service: Service, row: JobRow, pictures: list[PictureRow], ahead: int = 0) -> JobOut:
    progress = 1.0 if row.status == DONE else service.events.progress(row.id) if row.status == RUNNING else 0.0
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
