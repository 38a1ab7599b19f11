"""`deadiff bench train`: what caches bring, side by side, and the memory of a full-size step, predicted and measured."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from deadiff.benchmarking.children import MIB, peak_rss
from deadiff.errors import DataError
from deadiff.training.adapter_recipe import AdapterRecipe, parse_recipe
from deadiff.training.adapter_step import AdapterStep
from deadiff.training.features import Features
from deadiff.training.initialise import select_trained
from deadiff.training.objectives import Objective, live_parts
from deadiff.training.plan import estimate, first_step, full_size_adapter, full_size_base

PICTURES, BATCH = 64, 8
CAPTION = "a robot, an oil painting"
Tick = Callable[[str], object]


def bench_recipe(layout: str, checkpointing: bool = False, batch_size: int = BATCH, precision: str = "bf16") -> AdapterRecipe:
    """The recipe whose steps are timed."""
    loop = {"steps": 1, "global_batch": batch_size, "batch_size": batch_size, "precision": precision, "trackers": [],
            "gradient_checkpointing": checkpointing}  # fmt: skip
    base = {"layout": layout, "resolution": {"icons": 128, "sd15": 512, "sdxl": 1024}[layout]}
    return parse_recipe({"loop": loop, "base": base}, "bench")


class _Noise:
    """Pictures of noise as a source of pairs, kept as PNG files are: decoded each time they are asked for."""

    fingerprint = ""

    def __init__(self, side: int) -> None:
        from deadiff.data.store import encode_png

        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (PICTURES, side // 8, side // 8, 3), np.uint8)
        self.pictures = [encode_png(picture.repeat(8, 0).repeat(8, 1)) for picture in coarse]

    def numbers(self, objective: Objective, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        references, targets = np.random.default_rng(draw_number).integers(PICTURES, size=(2, count))
        return references, targets, [CAPTION] * count

    def drawable(self) -> np.ndarray:
        return np.arange(PICTURES)

    def captions(self) -> list[str]:
        return [CAPTION]

    def picture(self, number: int) -> np.ndarray:
        from deadiff.data.store import decode_png

        return decode_png(self.pictures[number])

    def sha256(self, number: int) -> str:
        return f"{number:064d}"


def caches(layout: str = "icons", rounds: int = 8, batch_size: int = BATCH, tick: Tick = lambda what: None) -> dict[str, Any]:
    """Images per second of the adapter stage with and without caches, draw by draw in turn, on full-size random weights.

    Without caches a draw decodes and scales its pictures and runs eye, autoencoder and text encoder; with caches it reads rows.
    """
    recipe = bench_recipe(layout, batch_size=batch_size)
    base = full_size_base(layout, recipe.base.resolution, torch.bfloat16)
    base.read_text = lambda texts: _read(base, len(texts))  # no tokenizer here: the same work on any ids
    adapter = full_size_adapter(base, recipe)
    trained = list(select_trained(adapter).values())
    source = _Noise(recipe.base.resolution)
    encoded, cached = Features(base, adapter, source), Features(base, adapter, source)
    step = AdapterStep(adapter.train(), base, base.read_text([""]))
    seconds: dict[str, list[float]] = {"without caches": [], "with caches": [], "encoders alone": []}
    few_tokens = sdpa_kernel(SDPBackend.MATH) if layout == "icons" else nullcontext()  # as the loop does
    with TemporaryDirectory() as folder, few_tokens:
        tick("filling the caches")
        _fill(cached, Path(folder), batch_size)
        for number in range(rounds + 1):
            for name, features in {"without caches": encoded, "with caches": cached}.items():
                tick(f"a step {name}, {number} of {rounds}")
                objective = list(Objective)[number % 3]
                began = time.perf_counter()
                sample = features.sample(objective, number, batch_size).to(torch.device("cpu"))
                drawn = time.perf_counter()
                generator = torch.Generator().manual_seed(number)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = step(sample, live_parts(objective, batch_size, generator), generator)
                loss.backward()
                for p in trained:
                    p.grad = None
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - began)
                    if features is encoded:
                        seconds["encoders alone"].append(drawn - began)
    adapter.eject()
    rates = {name: batch_size / median(values) for name, values in seconds.items()}
    return {"layout": layout, "batch_size": batch_size, "rounds": rounds, "images_per_second": rates,
            "speed_up": rates["with caches"] / rates["without caches"]}  # fmt: skip


def _fill(features: Features, folder: Path, batch_size: int) -> None:
    """Caches of 64 pictures, by the encoders."""
    features._about = lambda kind: {"kind": kind}  # random encoders without tokenizers have no identity worth keeping
    features.open_caches(folder)
    features.fill([features.source], batch_size)


def _read(base: Any, count: int) -> dict[str, torch.Tensor]:
    encoder = base.readers[0][1]
    with torch.no_grad():
        return {"text": encoder(torch.ones(count, encoder.config.max_position_embeddings, dtype=torch.long)).last_hidden_state}


def memory(layout: str, checkpointing: bool, precision: str, batch_size: int, threads: int) -> dict[str, Any]:
    """Predicted and measured peak of one real step at full size, in MiB; the measured one is a child process's own."""
    recipe = bench_recipe(layout, checkpointing, batch_size, precision)
    cost = estimate(recipe)
    code = "from deadiff.benchmarking.training import answer; answer()"
    given = [layout, str(int(checkpointing)), precision, str(batch_size), str(threads)]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise DataError(
            f"the step at full size failed ({lines[-1][:200] if lines else done.returncode}): is there memory enough?"
        )
    told = json.loads(done.stdout.splitlines()[-1])
    predicted = cost.total_bytes / MIB
    measured = told["peak"] - told["libraries"]
    return {
        "gradient_checkpointing": checkpointing, "precision": precision, "batch_size": batch_size,
        "predicted_mib": round(predicted), "measured_mib": round(measured), "ratio": round(measured / predicted, 3),
        "predicted_activations_mib": round(cost.activation_bytes / MIB), "seconds": round(told["seconds"], 1),
        "tflop_a_sample": round(cost.operations / batch_size / 1e12, 3),
    }  # fmt: skip


def answer() -> None:
    """The child's side: one step, then its own peak."""
    layout, checkpointing, precision, batch_size, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    libraries = peak_rss()
    recipe = bench_recipe(layout, bool(int(checkpointing)), int(batch_size), precision)
    told = first_step(recipe, int(batch_size), report=lambda text: None)
    print(json.dumps({"libraries": libraries, "peak": peak_rss(), "seconds": told["seconds"]}))  # noqa: T201
