"""One loop for every stage: batches and noise are pure functions of (seed, step), so a resumed run equals an unbroken one.

`train(task, config, run_dir)` runs a `Task` from wherever its last whole checkpoint stands. A checkpoint is written beside the
others and renamed into place, so a kill leaves the folder readable and costs at most `checkpoint_minutes` of work.
"""

import copy
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deadiff.errors import ConfigError, DataError
from deadiff.training.master_weights import MasterWeights, OptimizerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How to optimise; what to optimise is the task's."""

    steps: int  # optimiser steps in all
    batch_size: int  # samples per optimiser step
    workers: int = 1  # threads that each take a share of the batch through a replica; on a CPU run with OMP_NUM_THREADS=1
    learning_rate: float = 1e-3  # peak
    warmup_steps: int = 200  # linear, from zero
    decay_steps: int = 0  # linear to zero over the last so many steps; 0 keeps the rate constant
    optimizer: str = "adamw"  # adamw | muon (torch.optim.Muon on matrices and convolutions, AdamW on the rest)
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    ns_steps: int = 5  # of Muon's Newton-Schulz iteration, which takes a third of a step of small batches
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of the whole gradient; 0 switches it off
    ema_decay: float = 0.999  # of the weights' moving average, ramped up as (1 + t) / (10 + t)
    precision: str = "bf16"  # bf16: weights and activations in bf16 with fp32 masters; fp32: everything in fp32
    seed: int = 0
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    log_steps: int = 50  # steps between lines of the curve
    preview_steps: int = 0  # steps between previews; 0 = none

    def __post_init__(self) -> None:
        for name, allowed in {"optimizer": ("adamw", "muon"), "precision": ("bf16", "fp32")}.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is unknown; expected one of {', '.join(allowed)}")
        for name in ("steps", "batch_size", "log_steps", "keep_checkpoints", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"optimizer = 'muon' needs torch 2.9 or newer, this is {torch.__version__}: use adamw or upgrade")
        if self.batch_size % self.workers:
            raise ConfigError(f"batch_size = {self.batch_size} must be a multiple of workers = {self.workers}")


class Task:
    """What a stage brings to the loop: a subclass says what is trained, drawn and minimised."""

    modules: dict[str, nn.Module]  # what is trained, by the name under which it is saved; loss() reads them from here

    def batch(self, draw: int, batch_size: int) -> Any:
        """The samples of one draw: a pure function of (task, draw). A step makes `workers` draws."""
        raise TypeError(f"{type(self).__name__} does not say how to draw a batch")

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The scalar to minimise and what else the curve shows; all randomness comes from `generator`."""
        raise TypeError(f"{type(self).__name__} does not say what to minimise")

    def preview(self, step: int, folder: Path) -> None:
        """Write pictures of the present state (the averaged weights are in the modules). None, unless a subclass draws some."""

    def replicate(self) -> "Task":
        """The same task on copies of its trained modules."""
        replica = copy.copy(self)
        replica.modules = {name: copy.deepcopy(module) for name, module in self.modules.items()}
        return replica


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay over the last `decay_steps`."""
    up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    down = min(1.0, (config.steps - step) / config.decay_steps) if config.decay_steps else 1.0
    return config.learning_rate * up * down


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(run_dir.glob("checkpoint-*.pt"))
    return found[-1] if found else None


def save_checkpoint(run_dir: Path, step: int, weights: MasterWeights, keep: int) -> Path:
    """Write a checkpoint whole or not at all, then drop the oldest."""
    path = run_dir / f"checkpoint-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    if shutil.disk_usage(run_dir).free < 6 * weights.bytes:
        raise DataError(
            f"no room for a checkpoint of step {step} in '{run_dir}': free some disk space and run the same command again"
        )
    torch.save({"step": step, **weights.state_dict()}, partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in sorted(run_dir.glob("checkpoint-*.pt"))[:-keep]:
        old.unlink()
    return path


@contextmanager
def stop_signals(asked: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `asked` instead of breaking a step in the middle; only the main thread may listen to them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    task: Task,
    config: LoopConfig,
    run_dir: str | Path,
    minutes: float | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, nn.Module]:
    """Run `task` to `config.steps` (or for `minutes` of this sitting) and leave the averaged weights in its modules.

    The curve goes to RUN/curve.jsonl, a line every `log_steps`, and to `report` when given. Ctrl-C or SIGTERM ends the step,
    writes a checkpoint and raises KeyboardInterrupt.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "loop.json").write_text(json.dumps(asdict(config), indent=2))
    threads = ThreadPoolExecutor(config.workers)
    rates = OptimizerConfig(
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        ns_steps=config.ns_steps,
    )
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    weights = MasterWeights(task.modules, rates, dtype, threads, config.workers)
    step = 0
    if found := latest_checkpoint(run_dir):
        state = torch.load(found, map_location="cpu", weights_only=True, mmap=True)
        weights.load_state_dict(state)
        step = state["step"]
        log.info("resumed %s at step %d", found, step)

    tasks = [task, *(task.replicate() for _ in range(config.workers - 1))]
    for replica in tasks[1:]:
        weights.add_replica(replica.modules)

    def gradient(worker: int, step: int) -> dict[str, float]:
        """One worker's share of one step: draw, forward, backward."""
        draw = step * config.workers + worker
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + draw)
        loss, shown = tasks[worker].loss(tasks[worker].batch(draw, config.batch_size // config.workers), generator)
        (loss / config.workers).backward()
        return {name: float(value) / config.workers for name, value in {"loss": loss.detach(), **shown}.items()}

    asked = threading.Event()
    started = saved = time.monotonic()
    sums: dict[str, float] = {}
    window = (time.monotonic(), step)
    with open(run_dir / "curve.jsonl", "a") as curve, stop_signals(asked):
        while step < config.steps and (minutes is None or time.monotonic() - started < 60 * minutes) and not asked.is_set():
            shown = list(threads.map(gradient, range(config.workers), [step] * config.workers))
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            norm = weights.step(learning_rate(config, step), decay, config.clip_norm)
            step += 1

            for name, value in [item for part in shown for item in part.items()] + [("grad_norm", norm)]:
                sums[name] = sums.get(name, 0.0) + value
            if step % config.log_steps == 0:
                now, count = time.monotonic(), step - window[1]
                line = {"step": step, **{k: round(v / count, 5) for k, v in sums.items()},
                        "samples_per_second": round(count * config.batch_size / (now - window[0]), 1)}  # fmt: skip
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                if report:
                    report(line)
                sums, window = {}, (now, step)
            if config.preview_steps and step % config.preview_steps == 0:
                weights.show(average=True)
                task.preview(step, run_dir)
                weights.show(average=False)
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save_checkpoint(run_dir, step, weights, config.keep_checkpoints)
                saved = time.monotonic()
    save_checkpoint(run_dir, step, weights, config.keep_checkpoints)
    weights.show(average=True)
    if asked.is_set():
        raise KeyboardInterrupt
    return task.modules
