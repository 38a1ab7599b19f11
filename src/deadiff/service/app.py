"""The FastAPI application: routes, errors as one line of JSON, the guards around them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from deadiff import __version__
from deadiff.errors import DEADiffError
from deadiff.references import one_line
from deadiff.service import job_routes, status_routes, style_routes
from deadiff.service.auth import Guard, LimitBodies
from deadiff.service.forms import first_mistake
from deadiff.service.metrics import CountRequests
from deadiff.service.queue import KeyReusedError, QueueFullError
from deadiff.service.schemas import Error
from deadiff.service.state import Service
from deadiff.service.store import DiskError
from deadiff.service.styles import NameTakenError, NoSuchError

log = logging.getLogger(__name__)
_STATUS = {NoSuchError: 404, NameTakenError: 409, KeyReusedError: 409}  # other DEADiffErrors: 422
_ANY = {
    400: "The request is not even JSON, or not HTTP as it should be.",
    401: "The token is missing or wrong.",
    403: "No token is set, and the request is from elsewhere.",
    404: "There is no such thing.",
    413: "The body is too large.",
    422: "Something in the request is wrong; the error says what.",
    503: "Too much at once, or trouble with the disk or the database; Retry-After says when to come back.",
}


def create_app(service: Service) -> FastAPI:
    """An ASGI application over an open service, which outlives it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.events.bind(asyncio.get_running_loop())
        yield
        service.events.stop()

    app = FastAPI(
        title="deadiff",
        version=__version__,
        summary="Draw what a prompt says in the style of a reference picture.",
        lifespan=lifespan,
        responses={status: {"model": Error, "description": text} for status, text in _ANY.items()},
    )
    app.state.service = service
    for routes in (job_routes, style_routes, status_routes):
        app.include_router(routes.router)
    _answer_errors(app, service)
    s = service.settings
    # the last one added is the outermost
    app.add_middleware(LimitBodies, most=s.max_bytes, in_flight=s.max_bytes_in_flight, metrics=service.metrics)
    app.add_middleware(Guard, token=s.token, metrics=service.metrics)
    app.add_middleware(CountRequests, metrics=service.metrics)
    if s.token is not None:
        _document_token(app)
    return app


def _answer_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(DEADiffError)
    def mistake(_: Request, error: DEADiffError) -> JSONResponse:
        if isinstance(error, QueueFullError):
            return job_routes.full(service, error)
        return JSONResponse({"error": _printable(one_line(error))}, _STATUS.get(type(error), 422))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": first_mistake(error.errors())}, 422)

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(DiskError)
    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeoutError)
    def unavailable(_: Request, error: Exception) -> JSONResponse:
        log.error("a request could not be served: %s", one_line(error))
        service.metrics.refused.labels("trouble").inc()
        return JSONResponse({"error": "the service cannot store anything now: try again later"}, 503, {"Retry-After": "5"})

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error)
        return JSONResponse({"error": "the service failed at this request; its log says why"}, 500)


def _printable(text: str) -> str:
    """What can be sent as UTF-8 (a lone half of a surrogate pair cannot)."""
    return text.encode("utf-8", "replace").decode()


def _document_token(app: FastAPI) -> None:
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        return schema

    app.openapi = openapi
