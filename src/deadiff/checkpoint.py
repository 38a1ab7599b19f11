"""Opening a .ckpt from strangers: mapped into memory, tensors only, one clear error for everything that is not that."""

import pickle
import re
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deadiff.errors import CheckpointError
from deadiff.hub import OFFICIAL_FILE, OFFICIAL_REPO, OFFICIAL_SIZE

DOCS = "see docs/weights.md"
# Classes that training frameworks pickle beside the weights: they become inert; whatever else is pickled is refused.
_LEFTOVERS = ("pytorch_lightning.", "lightning.", "omegaconf.")


def open_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .ckpt, mapped, nothing but tensors unpickled. Raises CheckpointError, one line, for anything else."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(
            f"'{path}' is a folder: expected the file {OFFICIAL_FILE} (a converted folder is ready to be loaded)"
        )
    if not path.is_file():
        raise CheckpointError(f"no file '{path}': download {OFFICIAL_FILE} from the hub repository {OFFICIAL_REPO}, {DOCS}")
    with open(path, "rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or (start[8:9] == b"{" and not start.startswith(b"PK")):
        raise CheckpointError(f"'{path}' is a safetensors file: expected {OFFICIAL_FILE} as published, {DOCS}")
    payload = _load(path)
    state = payload.get("state_dict", payload) if isinstance(payload, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"'{path}' holds no state_dict of tensors: expected the published DEADiff checkpoint, {DOCS}")
    return state


class _Leftover:
    """Stands for an object that a training framework pickled: takes any state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Leftover":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _load(path: Path) -> Any:
    """torch.load(weights_only=True), mapped; leftovers of training are replaced by inert objects, everything else is refused."""
    leftovers: dict[str, type] = {}
    size = f"{path.stat().st_size / 1e9:.2f} GB"
    broken = f"({size}) is truncated or not a PyTorch checkpoint: expected {OFFICIAL_FILE} of {OFFICIAL_SIZE}; download it again"
    while True:
        allowed = torch.serialization.safe_globals(list(leftovers.values())) if leftovers else nullcontext()
        try:
            with allowed, warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # of unusual pickle protocols: what cannot be read is an error anyhow
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            if found is None:
                raise CheckpointError(f"'{path}' {broken}") from error
            name = found[1].rstrip(",.")
            if not name.startswith(_LEFTOVERS) or name in leftovers:
                raise CheckpointError(
                    f"'{path}' holds code beside weights: unpickling would call {name}, refused; get the published file, {DOCS}"
                ) from error
            module, _, cls = name.rpartition(".")
            leftovers[name] = type(cls, (_Leftover,), {"__module__": module, "__qualname__": cls})
        except (RuntimeError, EOFError, OSError, ValueError, LookupError, AssertionError) as error:
            raise CheckpointError(f"'{path}' {broken}") from error
