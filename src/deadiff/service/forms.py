"""Jobs and styles as forms (multipart/form-data), for curl and for programs that would rather not encode pictures in base64."""

import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deadiff.errors import ConfigError
from deadiff.service.schemas import JobIn, StyleIn

MAX_PARTS = 200
ROLES, PHOTOS = ("style", "content"), ("image", "mask_image", "control_image")
_FILE = {"type": "string", "format": "binary"}
_FILES = {"type": "array", "items": _FILE}
_WEIGHTS = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1000}}


def job_form_schema() -> dict[str, Any]:
    """The OpenAPI schema of the form: JobIn's scalars as they are, references as files."""
    properties = JobIn.model_json_schema()["properties"]
    scalars = {name: schema for name, schema in properties.items() if name not in (*ROLES, *PHOTOS, "style_window")}
    files = {role: _FILES | {"description": "Files of pictures, or names of saved styles."} for role in ROLES}
    weights = {f"{role}_weight": _WEIGHTS | {"description": "One for each reference, in their order."} for role in ROLES}
    window = {"style_window": {"type": "string", "pattern": r"^[0-9.]+:[0-9.]+$", "description": "START:END"}}
    photos = {name: _FILE for name in PHOTOS}
    return {"type": "object", "required": ["prompt"], "properties": {**scalars, **window, **files, **weights, **photos}}


def style_form_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "style"],
        "properties": {
            "name": {"type": "string"},
            "style": _FILES,
            "style_weight": _WEIGHTS,
            "resize": {"enum": ["squash", "pad", "crop"]},
        },
    }


async def read_job_form(request: Request) -> JobIn:
    """Raises ConfigError."""
    values: dict[str, Any] = {}
    async with _form(request) as form:
        for name in dict.fromkeys(form.keys()):
            if name in ROLES:
                values[name] = await _references(form, name)
            elif name in PHOTOS:
                values[name] = await _picture(_single(form, name), name)
            elif not name.endswith("_weight") or name.removesuffix("_weight") not in form:
                values[name] = _text(_single(form, name), name)
    if "style_window" in values:
        values["style_window"] = values["style_window"].split(":")
    return _checked(JobIn, values)


async def read_style_form(request: Request) -> StyleIn:
    """Raises ConfigError."""
    async with _form(request) as form:
        values: dict[str, Any] = {"style": await _references(form, "style")}
        for name in dict.fromkeys(form.keys()):
            if name not in ("style", "style_weight"):
                values[name] = _text(_single(form, name), name)
    return _checked(StyleIn, values)


@contextlib.asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The parts, files in memory: the body is bounded already, and nothing goes to a temporary file."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ConfigError(f"the request is {kind[:40]!a}: expected multipart/form-data, as curl -F sends")
    body = await request.body()

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=MAX_PARTS, max_fields=MAX_PARTS)
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError, AttributeError, TypeError) as error:
        message = getattr(error, "message", None) or str(error) or type(error).__name__
        raise ConfigError(f"the form cannot be read: {' '.join(message.split())[:200]}") from error
    try:
        yield form
    finally:
        await form.close()


async def _references(form: FormData, role: str) -> list[dict[str, Any]]:
    items = form.getlist(role)
    weights = [_text(weight, f"{role}_weight") for weight in form.getlist(f"{role}_weight")] or [1.0] * len(items)
    if len(weights) != len(items):
        raise ConfigError(
            f"there are {len(weights)} {role}_weight for {len(items)} {role}: expected one for each, in their order"
        )
    references = []
    for item, weight in zip(items, weights, strict=True):
        what = {"style": item} if isinstance(item, str) else await _picture(item, role)
        references.append({**what, "weight": weight})
    return references


async def _picture(item: Any, name: str) -> dict[str, Any]:
    if not isinstance(item, UploadFile):
        raise ConfigError(f"{name} is text: expected a file, as curl -F {name}=@FILE sends")
    return {"data": base64.b64encode(await item.read()).decode()}


def _single(form: FormData, name: str) -> Any:
    items = form.getlist(name)
    if len(items) > 1:
        raise ConfigError(f"{name[:40]!a} is given {len(items)} times: expected once")
    return items[0]


def _text(item: Any, name: str) -> str:
    if not isinstance(item, str):
        raise ConfigError(f"{name[:40]!a} is a file: expected text")
    return item


def _checked(model: Any, values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_mistake(error.errors(include_url=False, include_input=False, include_context=False))) from error


def first_mistake(errors: Any) -> str:
    """pydantic's list of mistakes -> one line, without the input, which may be megabytes or not be text."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    message = str(first["msg"]).removeprefix("Value error, ")
    text = " ".join(f"{where[:100]}: {message}{more}".split()) if where else f"{message}{more}"
    return text.encode("utf-8", "replace").decode()
