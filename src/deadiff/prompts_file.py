"""Lists of things to draw: a text file with a prompt a line, or JSON lines with references, seeds and strengths of their own."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError
from deadiff.jobs import Job
from deadiff.references import one_line, read_bytes

_NAMES = tuple(field.name for field in fields(Job))
_PICTURES = ("style", "content", "image", "mask_image", "control_image")


def read_jobs(path: str | Path) -> list[Job]:
    """FILE.jsonl: an object a line with Job's fields, pictures as paths (from here or beside it). Else: a prompt a line."""
    try:
        text = read_bytes(path, "prompts file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompts file '{path}' is not UTF-8 text ({one_line(error)}): save it as UTF-8") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"prompts file '{path}' holds no prompts: expected one a line")
    if Path(path).suffix.lower() not in (".jsonl", ".ndjson"):
        return [Job(prompt=line) for _, line in lines]
    return [_row(line, f"line {number} of '{path}'", Path(path).expanduser().parent) for number, line in lines]


def _row(line: str, where: str, folder: Path) -> Job:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {type(values).__name__}: expected an object with prompt, style, seed, ...")
    if unknown := sorted(values.keys() - set(_NAMES)):
        raise ConfigError(f"{where} has unknown entries {', '.join(unknown)}: expected some of {', '.join(_NAMES)}")
    if not isinstance(values.get("prompt", ""), str):
        raise ConfigError(f"{where}: prompt is {type(values['prompt']).__name__}, expected text")
    for name in _PICTURES:
        if values.get(name) is not None:
            values[name] = _beside(values[name], folder)
    return Job(**values)


def _beside(value: Any, folder: Path) -> Any:
    """Paths as given if they exist, else taken from the file's own folder."""
    if isinstance(value, list):
        return [_beside(item, folder) for item in value]
    if isinstance(value, str) and not Path(value).expanduser().exists() and (folder / value).exists():
        return str(folder / value)
    return value
