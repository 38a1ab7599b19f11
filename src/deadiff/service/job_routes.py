"""/v1/jobs: submit, look, wait, watch, cancel, fetch, delete. /v1/references: pictures uploaded once for many jobs."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from deadiff.errors import ConfigError
from deadiff.service.forms import job_form_schema, read_job_form
from deadiff.service.queue import NewJob, QueueFullError
from deadiff.service.schemas import STATUSES, Error, Identity, JobIn, JobList, JobOut, UploadOut
from deadiff.service.state import Service
from deadiff.service.styles import NoSuchError
from deadiff.service.tables import FINAL
from deadiff.service.views import job_by_id, job_view, pictures_of

router = APIRouter(prefix="/v1", tags=["jobs"])
LOOK_AGAIN = 1.0  # seconds; another process may draw the job, and tells us nothing
KEEP_ALIVE = 15.0  # seconds of silence on a stream, after which proxies give up
MOST_WAIT = 60.0  # seconds
MOST_JOBS = 100  # on one page


def the_service(request: Request) -> Service:
    return request.app.state.service


Here = Annotated[Service, Depends(the_service)]
Id = Annotated[Identity, Path(description="Of a job.")]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern="^[!-~]{1,200}$", description="The same key again gives the same job, not another."),
]
FILE_BODY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, "required": True}
_ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": JobOut, "description": "Accepted before, under the same Idempotency-Key."},
    409: {"model": Error, "description": "The Idempotency-Key came with another request before."},
    429: {
        "model": Error,
        "description": "The queue is full.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}


@router.post("/jobs", status_code=202, response_model=JobOut, responses=_ACCEPTED)
async def submit(given: JobIn, service: Here, response: Response, idempotency_key: Key = None) -> Any:
    """Accept a job. Once this has answered, the job is on the disk and will be drawn, whatever happens to the service."""
    return await _accept(service, given, idempotency_key, response)


@router.post(
    "/jobs/form",
    status_code=202,
    response_model=JobOut,
    responses=_ACCEPTED,
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": job_form_schema()}}, "required": True}},
)
async def submit_form(request: Request, service: Here, response: Response, idempotency_key: Key = None) -> Any:
    """The same as a form, with pictures as files: curl -F prompt="a robot" -F style=@ref.png"""
    return await _accept(service, await read_job_form(request), idempotency_key, response)


async def _accept(service: Service, given: JobIn, key: str | None, response: Response) -> JobOut:
    if service.events.stopping:
        raise QueueFullError("the service is stopping: try again in a moment")

    def accept() -> tuple[JobOut, bool]:
        job: NewJob = service.intake.job(given, key)
        identity, new = service.queue.accept(job)
        return job_by_id(service, identity), new

    job, new = await run_in_threadpool(accept)
    if new:
        service.metrics.jobs.labels("accepted").inc()
        service.worker.wake()
    response.status_code = 202 if new else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def full(service: Service, error: QueueFullError) -> JSONResponse:
    """429, and when a batch will have made room."""
    service.metrics.refused.labels("queue").inc()
    seconds = min(60, max(1, math.ceil(service.metrics.seconds_for(service.settings.max_batch))))
    return JSONResponse({"error": str(error)}, 429, {"Retry-After": str(seconds)})


@router.get("/jobs")
def list_jobs(
    service: Here,
    limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = 20,
    before: Annotated[Identity | None, Query(description="The `next` of the last page.")] = None,
    status: Annotated[STATUSES | None, Query()] = None,
) -> JobList:
    """Newest first; pictures are listed by each job's own address."""
    rows = service.queue.recent(limit, before, status)
    jobs = [job_view(row, [], service.events.progress(row.id)) for row in rows]
    return JobList(jobs=jobs, next=rows[-1].id if len(rows) == limit else None)


@router.get("/jobs/{id}")
async def job(
    id: Id,
    service: Here,
    wait: Annotated[float, Query(ge=0, le=MOST_WAIT, allow_inf_nan=False, description="Seconds to wait for its end.")] = 0,
) -> JobOut:
    """A job as it is now, or when it is over, or when the wait is."""
    found = await run_in_threadpool(job_by_id, service, id)
    if wait <= 0 or found.status in FINAL:
        return found
    _room(service)
    until = time.monotonic() + wait
    with service.events.listen(id) as happened:
        while True:
            happened.clear()
            found = await run_in_threadpool(job_by_id, service, id)
            left = until - time.monotonic()
            if found.status in FINAL or service.events.stopping or left <= 0:
                return found
            await _happened(service, id, happened, min(LOOK_AGAIN, left))


async def _happened(service: Service, id: str, happened: asyncio.Event, seconds: float) -> None:
    """Until more than a step has happened to the job, or the time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                await happened.wait()
                if not 0 < service.events.progress(id) < 1:
                    return
                happened.clear()


@router.get(
    "/jobs/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}},
)
async def events(id: Id, service: Here) -> StreamingResponse:
    """Server-sent events: `job`, with the job as JSON, whenever something changed; the stream ends with the job."""
    await run_in_threadpool(job_by_id, service, id)  # a 404 now, not in the stream
    _room(service)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(service, id), media_type="text/event-stream", headers=headers)


async def _stream(service: Service, id: str) -> AsyncIterator[str]:
    sent, spoken = "", time.monotonic()
    with service.events.listen(id) as happened:
        while True:
            happened.clear()
            try:
                job = await run_in_threadpool(job_by_id, service, id)
            except NoSuchError as error:
                yield f"event: gone\ndata: {json.dumps({'error': str(error)})}\n\n"
                return
            text = job.model_dump_json()
            if text != sent:
                sent, spoken = text, time.monotonic()
                yield f"event: job\ndata: {text}\n\n"
            elif time.monotonic() - spoken > KEEP_ALIVE:
                spoken = time.monotonic()
                yield ": still here\n\n"
            if job.status in FINAL or service.events.stopping:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(happened.wait(), LOOK_AGAIN)


def _room(service: Service) -> None:
    if service.events.listening >= service.settings.max_streams:
        service.metrics.refused.labels("streams").inc()
        raise QueueFullError(f"{service.settings.max_streams} callers are waiting already: ask again without waiting")


@router.post("/jobs/{id}/cancel")
def cancel(id: Id, service: Here) -> JobOut:
    """Cancel a job that waits or is being drawn; one that is over stays as it is."""
    if service.queue.cancel(id):
        service.metrics.jobs.labels("cancelled").inc()
        service.worker.drop(id)
        service.events.publish(id)
    return job_by_id(service, id)


@router.delete("/jobs/{id}", status_code=204, responses={409: {"model": Error, "description": "It is not over yet."}})
def delete(id: Id, service: Here) -> Response:
    """Forget a job that is over, and its pictures."""
    if not service.queue.forget(id):
        job = job_by_id(service, id)
        return JSONResponse({"error": f"job {id} is {job.status}: cancel it first, POST /v1/jobs/{id}/cancel"}, 409)
    return Response(status_code=204)


@router.get(
    "/jobs/{id}/pictures/{position}",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "A PNG."}},
)
def picture(id: Id, position: Annotated[int, Path(ge=0, le=1_000_000)], service: Here) -> FileResponse:
    """A finished picture. The PNG carries its recipe: `deadiff stylize --again` makes it once more."""
    pictures = pictures_of(service.queue, id)
    if position >= len(pictures):
        raise NoSuchError(f"job {id} has {len(pictures)} pictures: expected 0 to {len(pictures) - 1}")
    row = pictures[position]
    path = service.pictures.path(row.sha256)
    if not path.is_file():
        raise NoSuchError(f"the file of picture {position} of job {id} is missing from the service's folder")
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})


@router.post("/references", status_code=201, openapi_extra={"requestBody": FILE_BODY})
async def upload(request: Request, service: Here) -> UploadOut:
    """Keep a picture (the body is its file) for jobs that name it by its sha256: curl --data-binary @ref.png"""
    data = await request.body()
    if not data:
        raise ConfigError("the request is empty: expected a picture's file, as curl --data-binary @FILE sends")
    sha256, width, height = await run_in_threadpool(service.intake.upload, data, "the picture")
    return UploadOut(sha256=sha256, width=width, height=height, bytes=len(data))
