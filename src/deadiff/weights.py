"""Weights on disk: safetensors read strictly, folders written whole or not at all."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkstemp

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deadiff.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"


def write_whole(directory: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Files are written under temporary names and renamed when all are complete: a full disk leaves the folder as it was."""
    existed = directory.is_dir()
    written: list[tuple[Path, Path]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            handle, temporary = mkstemp(prefix=".", suffix=f".{name}", dir=directory)
            os.close(handle)
            written.append((Path(temporary), directory / name))
            write(Path(temporary))
        for temporary, final in written:
            os.chmod(temporary, 0o644)
            os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
        if not existed and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        raise CheckpointError(f"cannot write {', '.join(writers)} into '{directory}': {error}: nothing was written") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file -> tensors, mapped. Raises CheckpointError when it is missing, truncated or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read '{path}' as safetensors: {error}: download or convert it again") from error


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    """Strict loading with readable errors: the same keys, the same shapes. Raises CheckpointError."""
    if missing := [k for k in expected if k not in weights]:
        count = f"{len(missing)} of {len(expected)}"
        raise CheckpointError(f"{count} weights are missing in '{source}', first {missing[0]}: is the file complete?")
    if unknown := [k for k in weights if k not in expected]:
        what = f"{len(unknown)} weights of '{source}' are unknown, first {unknown[0]}"
        raise CheckpointError(f"{what}: does its config.json belong to it?")
    for key, tensor in expected.items():
        if tensor.shape != weights[key].shape:
            got = tuple(weights[key].shape)
            raise CheckpointError(f"{key} in '{source}' has shape {got}: expected {tuple(tensor.shape)} by its config.json")
