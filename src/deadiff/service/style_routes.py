"""/v1/styles: references kept under a name, with their tokens; shared as files."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from deadiff.service.forms import read_style_form, style_form_schema
from deadiff.service.job_routes import FILE_BODY, Here
from deadiff.service.schemas import Error, Identity, NameIn, StyleIn, StyleList, StyleOut
from deadiff.service.state import Service
from deadiff.service.tables import StyleRow
from deadiff.service.views import style_view
from deadiff.style_library import SavedStyle, adapter_fingerprint, file_name

router = APIRouter(prefix="/v1/styles", tags=["styles"])
Id = Annotated[Identity, Path(description="Of a style.")]
_TAKEN: dict[int | str, dict[str, Any]] = {409: {"model": Error, "description": "Another style has that name."}}
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _view(service: Service, row: StyleRow) -> StyleOut:
    return style_view(row, adapter_fingerprint(service.stylizer.adapter))


@router.get("")
def list_styles(service: Here) -> StyleList:
    """All saved styles, by name."""
    model = adapter_fingerprint(service.stylizer.adapter)
    return StyleList(styles=[style_view(row, model) for row in service.styles.all()])


@router.post("", status_code=201, responses=_TAKEN)
def create(given: StyleIn, service: Here) -> StyleOut:
    """Read references once and keep their tokens under a name, which jobs then give as {"style": NAME}."""
    return _view(service, service.styles.add(service.intake.style(given)))


@router.post(
    "/form",
    status_code=201,
    responses=_TAKEN,
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": style_form_schema()}}, "required": True}},
)
async def create_form(request: Request, service: Here) -> StyleOut:
    """The same as a form: curl -F name=neon -F style=@ref.png"""
    given = await read_style_form(request)
    return await run_in_threadpool(create, given, service)


@router.post("/import", status_code=201, responses=_TAKEN, openapi_extra={"requestBody": FILE_BODY})
async def import_style(
    request: Request, service: Here, name: Annotated[str | None, Query(max_length=1000, description="Instead of its own.")] = None
) -> StyleOut:
    """Take in a style's file (the body) that was saved here or elsewhere."""
    data = await request.body()

    def add() -> StyleOut:
        style = SavedStyle.from_bytes(data, "the style file")
        style.tokens_for(service.stylizer)
        return _view(service, service.styles.add(style if name is None else replace(style, name=name)))

    return await run_in_threadpool(add)


@router.get("/{id}")
def get(id: Id, service: Here) -> StyleOut:
    return _view(service, service.styles.get(id))


@router.patch("/{id}", responses=_TAKEN)
def rename(id: Id, given: NameIn, service: Here) -> StyleOut:
    """Another name. Jobs accepted under the old one keep their style."""
    return _view(service, service.styles.rename(id, given.name))


@router.delete("/{id}", status_code=204)
def delete(id: Id, service: Here) -> Response:
    """Jobs accepted with it keep their style."""
    service.styles.delete(id)
    return Response(status_code=204)


@router.get("/{id}/file", response_class=Response, responses={200: {"content": {"application/octet-stream": _FILE}}})
def file(id: Id, service: Here) -> Response:
    """The style as one file, to be imported by another service or put into another's library of styles."""
    row = service.styles.get(id)
    headers = {"Content-Disposition": f'attachment; filename="{file_name(row.name)}"'}
    return Response(service.styles.store.get(row.sha256), media_type="application/octet-stream", headers=headers)


@router.get("/{id}/thumbnail", response_class=Response, responses={200: {"content": {"image/png": _FILE}}})
def thumbnail(id: Id, service: Here) -> Response:
    return Response(service.styles.thumbnail(service.styles.get(id).sha256), media_type="image/png")
