"""Recipes are TOML files whose tables are dataclasses: read and checked here, for training and evaluation alike."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError


def read_table(path: Path) -> dict[str, Any]:
    """A TOML file as plain data. Raises ConfigError, in one line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe '{path}' cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe '{path}' is not TOML: {error}") from error


def build(kind: type, table: Any, where: str) -> Any:
    """A dataclass from a table, lists as tuples: unknown and missing keys, and values of another type, are ConfigErrors."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}: expected a table of {', '.join(sorted(known))}")
    if unknown := sorted(table.keys() - known.keys()):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; expected some of {', '.join(sorted(known))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    for name, value in values.items():
        expected = known[name].type
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            values[name] = float(value)
        elif expected in (int, float, bool, str) and type(value) is not expected:
            raise ConfigError(f"{where}: {name} = {value!r} is {type(value).__name__}; expected {expected.__name__}")
    try:
        return kind(**values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(kind.__name__ + '.__init__() ')}") from error
