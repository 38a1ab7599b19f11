"""Weights on disk: safetensors read strictly, folders written whole or not at all."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import mkstemp

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deadiff.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"
_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def stream_safetensors(path: Path, shapes: Mapping[str, Iterable[int]], dtype: torch.dtype, tensors: Iterable[Tensor]) -> None:
    """Write a safetensors file one tensor at a time, so that only one is ever in memory; `tensors` come in the order of `shapes`.

    The format: 8 bytes of header length, a JSON header of dtype, shape and offsets, then the numbers, little-endian, row by row.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        sizes = list(shape)
        end = offset + torch.Size(sizes).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": sizes, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
        if file.tell() != 8 + len(text) + offset:
            raise CheckpointError(f"'{path}' came out with {file.tell()} bytes: expected {8 + len(text) + offset}")


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
