"""Weights in eight bits on disk, whole again in memory: the embedded model in 60 MB instead of 120 in fp16.

Matrices and convolutions are kept as int8 with one fp16 scale per output channel (largest weight / levels); the rest stays fp16.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deadiff.errors import CheckpointError

SCALE = ".scale"  # of the tensor of that name, (rows,)
FINE = 63  # levels from which on the largest weight sets the step
CUTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of it, tried below
SMALLEST = 4096  # elements; below that eight bits save nothing


def quantize(weights: Mapping[str, Tensor], levels: int | Mapping[str, int] = 127) -> dict[str, Tensor]:
    """Float tensors -> int8 (rows, ...) and `name.scale` (rows,) fp16, or fp16 where small. Off by half a step at most, but for
    the weights that `best_scale` cuts.

    levels: the largest integer used, of all tensors or by how their names begin (127 for the others); 63 says seven bits, whose
    file is as long but packs an eighth smaller in a wheel.
    """
    by_name = {"": levels} if isinstance(levels, int) else levels
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            stored[name] = tensor.contiguous()
        elif tensor.ndim < 2 or tensor.numel() < SMALLEST:
            stored[name] = tensor.half().contiguous()
        else:
            most = next((count for start, count in by_name.items() if name.startswith(start)), 127)
            rows = tensor.float().flatten(1)
            scale = best_scale(rows, most)
            steps = (rows / scale.float()[:, None]).round().clamp(-most, most)
            stored[name] = steps.to(torch.int8).view(tensor.shape).contiguous()
            stored[name + SCALE] = scale
    return stored


def best_scale(rows: Tensor, levels: int) -> Tensor:
    """(R, N) -> (R,) fp16: the largest weight / levels; below FINE levels the step whose rounding loses least, in squares, since
    there it pays to cut the largest weights.
    """
    largest = rows.abs().amax(1)
    found, least = (largest / levels).clamp(min=1e-6).half(), torch.full((len(rows),), torch.inf)
    for cut in CUTS if levels < FINE else ():
        scale = (largest * cut / levels).clamp(min=1e-6).half()
        step = scale.float()[:, None]
        lost = ((rows / step).round().clamp(-levels, levels) * step - rows).square().sum(1)
        found, least = torch.where(lost < least, scale, found), torch.minimum(lost, least)
    return found


def dequantize(stored: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What `quantize` stored -> float tensors in `dtype`. Raises CheckpointError where a scale is missing."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        if tensor.dtype == torch.int8:
            if name + SCALE not in stored:
                raise CheckpointError(
                    f"'{name}' is stored in eight bits without its scale: the file is damaged, reinstall deadiff"
                )
            scale = stored[name + SCALE].float().view(-1, *[1] * (tensor.ndim - 1))
            weights[name] = (tensor.float() * scale).to(dtype)
        else:
            weights[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return weights


def save(weights: Mapping[str, Tensor], path: Path, levels: int | Mapping[str, int] = 127) -> None:
    save_file(quantize(weights, levels), path, metadata={"format": "pt", "storage": "int8 per output channel"})


def load(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return dequantize(load_file(path), dtype)
