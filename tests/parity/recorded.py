"""The recordings, ours and the whole set, and the reduced checkpoint that goes with them.

`compact` is this folder: recordings and the reduced checkpoint made anew from keys and shapes. `shared` is the whole
set with the checkpoint file itself, where a checkout has it beside it.
"""

import gzip
import json
from pathlib import Path

import torch
from procedural import weight
from safetensors import safe_open
from torch import Tensor

from deadiff.clip_bpe import MERGES, byte_letters

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "../shared/parity"
FOLDERS = {"compact": HERE, "shared": SHARED}
DIFFERENCES: dict[
    str, tuple[float, float]
] = {}  # what was compared -> (greatest difference, tolerance); printed at the end of pytest


class Recording:
    """One file of recorded tensors."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.metadata: dict[str, str] = file.metadata() or {}
        self.crops: dict[str, dict[str, list[int]]] = json.loads(self.metadata.get("crops", "{}"))

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def close(self, key: str, ours: Tensor, tolerance: float, *, relative: bool = False) -> None:
        """Assert that our tensor is within the tolerance of the recorded one, absolute or of its greatest number."""
        theirs = self.tensors[key]
        for axis, (start, end) in self.crops.get(key, {}).items():
            ours = ours.narrow(int(axis), start, end - start)
        assert ours.shape == theirs.shape, f"{self.name}.{key}: {tuple(ours.shape)} against the recorded {tuple(theirs.shape)}"
        difference = (ours.double() - theirs.double()).abs().max().item()
        if relative:
            difference /= theirs.double().abs().max().item()
        label = f"{self.name}.{key}"
        DIFFERENCES[label] = (max(difference, DIFFERENCES.get(label, (0.0, 0.0))[0]), tolerance)
        assert difference <= tolerance, f"{label}: greatest difference {difference:.2e}, tolerance {tolerance:.0e}"


def manifest(name: str) -> dict[str, dict]:
    """key -> {"shape", "dtype"} of "reduced" or "deadiff_v1"; embedding tables of the former tell their non-zero "rows"."""
    data = json.loads(gzip.decompress((HERE / f"{name}_manifest.json.gz").read_bytes()))
    return data.get("state_dict", data)


def reduced_state() -> dict[str, Tensor]:
    """The reduced checkpoint's state dict. Numbers that no import reads (caches) are zeros."""
    state = {}
    for key, entry in manifest("reduced").items():
        shape, dtype = tuple(entry["shape"]), getattr(torch, entry["dtype"])
        if key == "betas":
            state[key] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().float()
        elif dtype == torch.int64 or not key.endswith(("weight", "bias", "embedding", "query_tokens")):
            state[key] = torch.zeros(shape, dtype=dtype)
        else:
            full = weight(key, shape)
            if "rows" in entry:
                full, rows = torch.zeros(shape), full[entry["rows"]]
                full[entry["rows"]] = rows
            state[key] = full.to(dtype)
    return state


def write_vocabulary(path: Path) -> Path:
    """A stand-in for CLIP's bpe_simple_vocab_16e6.txt.gz: the merges that the prompts need at their true places.

    A merge that a word never uses cannot change it, so the prompts get the ids that the real file gives.
    """
    used = {int(rank): merge for rank, merge in json.loads((HERE / "merges_used.json").read_text()).items()}
    rare = byte_letters()[-128:]  # bytes that no prompt holds
    pairs = [(a, b) for a in rare for b in rare]
    dummies = iter([*(f"{a} {b}" for a, b in pairs), *(f"{a}{b} {c}" for a, b in pairs for c in rare[:2])])
    lines = ["#version: a stand-in for tests", *(used.get(rank) or next(dummies) for rank in range(MERGES))]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    return path
