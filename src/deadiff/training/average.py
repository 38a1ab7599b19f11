"""Trained weights wherever they lie, whole or sharded: their moving average, and how they get into and out of files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Average:
    """The moving average of the trained weights, fp32, where they lie."""

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self.weights = weights
        self.values = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average += (1 - decay) * (weights - average)."""
        values, weights = list(self.values.values()), [p.detach() for p in self.weights.values()]
        torch._foreach_mul_(values, decay)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(values, weights, alpha=1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The average in the place of the weights."""
        kept = {name: p.detach().clone() for name, p in self.weights.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.copy_(values[name])


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor (FSDP) gathered; every process must ask."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


@torch.no_grad()
def put(place: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a place that may be sharded."""
    value = value.to(place.device, place.dtype)
    place.copy_(distribute_tensor(value, place.device_mesh, place.placements) if isinstance(place, DTensor) else value)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators, which dropout draws from, set for one draw and put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
