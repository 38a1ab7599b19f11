"""What this service is and how it fares: models, health, readiness, metrics."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from deadiff.schedulers import MODEL, SCHEDULERS
from deadiff.service.job_routes import Here
from deadiff.service.schemas import Health, ModelList, ModelOut

router = APIRouter(tags=["status"])


@router.get("/v1/models")
def models(service: Here) -> ModelList:
    """The model that draws; a service has one."""
    stylizer = service.stylizer
    d, origin = stylizer.defaults, stylizer.origin
    native = stylizer.native_size
    one = ModelOut(
        name=str(origin.model or "custom"),
        fingerprint=stylizer.fingerprint,
        width=d.width or native[0],
        height=d.height or native[1],
        num_inference_steps=d.num_inference_steps,
        guidance_scale=d.guidance_scale,
        scheduler=d.scheduler,
        schedulers=[MODEL, *SCHEDULERS],
        controlnet=getattr(stylizer.pipe, "controlnet", None) is not None,
        notes={str(key): str(value) for key, value in origin.notes.items()},
    )
    return ModelList(models=[one])


@router.get("/health")
def health() -> Health:
    """Whether the process answers: restart it if not. Needs no token."""
    return Health(ok=True)


@router.get("/ready", responses={503: {"model": Health, "description": "Send nothing now."}})
def ready(service: Here) -> Response:
    """Whether it can take jobs now: database, disk and worker. Needs no token."""
    trouble = service.trouble()
    return JSONResponse({"ok": trouble is None, "trouble": trouble and "not ready, see the log"}, 200 if trouble is None else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
def metrics(service: Here) -> Response:
    """For Prometheus."""
    for status, pictures in service.queue.waiting().items():
        service.metrics.waiting.labels(status).set(pictures)
    service.metrics.listening.set(service.events.listening)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
