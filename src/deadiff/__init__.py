"""DEADiff: draw what the prompt says in the style of a reference picture. Names are imported on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it
    "load": "loading",
    "Stylizer": "stylizer",
    "Job": "jobs",
    "Reference": "references",
    "DEADiffAdapter": "adapter",
    "Role": "routes",
    "DEADiffError": "errors",
    "ConfigError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ReferenceError": "errors",
    "MissingExtraError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deadiff' has no attribute {name!r}")
    return getattr(import_module(f"deadiff.{_HOME[name]}"), name)
