"""Weights in eight bits: the error has a bound, nothing else changes, damage is noticed."""

from pathlib import Path

import pytest
import torch

from deadiff import eight_bit
from deadiff.errors import CheckpointError


@pytest.mark.parametrize("levels", [127, 63])
def test_a_weight_comes_back_within_half_a_step_of_its_row(levels: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(96, 64, 3, 3, generator=generator) * torch.logspace(-3, 1, 96).view(-1, 1, 1, 1)
    eight_bit.save({"conv.weight": rows}, tmp_path / "w.safetensors", levels)
    back = eight_bit.load(tmp_path / "w.safetensors")["conv.weight"]
    step = rows.flatten(1).abs().amax(1) / levels
    assert back.shape == rows.shape
    assert ((back - rows).flatten(1).abs().amax(1) <= 0.5 * step + 0.1 * step).all()  # the scale itself is rounded to fp16
    assert (tmp_path / "w.safetensors").stat().st_size < 0.27 * rows.numel() * 4


def test_levels_can_differ_by_name() -> None:
    weights = {"eye.a": torch.randn(64, 64), "mouth.a": torch.randn(64, 64)}
    stored = eight_bit.quantize(weights, {"eye.": 15})
    assert stored["eye.a"].abs().max() == 15 and stored["mouth.a"].abs().max() == 127
    again = eight_bit.quantize(eight_bit.dequantize(stored), {"eye.": 15})
    assert all(torch.equal(stored[name], again[name]) for name in stored)  # what is packed anew is not worn by it


def test_small_and_integer_tensors_keep_their_values() -> None:
    weights = {"norm.weight": torch.linspace(0, 1, 9).half().float(), "ids": torch.arange(7), "small": torch.ones(4, 4) / 3}
    back = eight_bit.dequantize(eight_bit.quantize(weights))
    assert torch.equal(back["norm.weight"], weights["norm.weight"]) and torch.equal(back["ids"], weights["ids"])
    assert torch.allclose(back["small"], weights["small"], atol=2e-4)


def test_a_row_of_zeros_stays_zero() -> None:
    weights = {"w": torch.zeros(64, 64)}
    assert torch.equal(eight_bit.dequantize(eight_bit.quantize(weights))["w"], weights["w"])


def test_a_missing_scale_is_one_clear_line() -> None:
    stored = eight_bit.quantize({"w": torch.ones(64, 64)})
    del stored["w" + eight_bit.SCALE]
    with pytest.raises(CheckpointError, match="without its scale"):
        eight_bit.dequantize(stored)
