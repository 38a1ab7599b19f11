"""The loop that trains an adapter on a real base, on one device or many, through accelerate.

Every draw, its noise and its dropout depend on (seed, draw number) alone, and an optimiser step consists of the same draws
however many processes share them: a resumed run equals an unbroken one, and two processes equal one that accumulates.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deadiff.adapter import DEADiffAdapter
from deadiff.errors import ConfigError, DataError, MissingExtraError
from deadiff.recipe import fingerprint
from deadiff.training.adapter import switched
from deadiff.training.adapter_recipe import AdapterRecipe, ScaleConfig
from deadiff.training.adapter_step import AdapterStep, Sample
from deadiff.training.average import Average, put, seeded, whole
from deadiff.training.bases import Base, adapter_config, load_base, load_eye
from deadiff.training.features import Features
from deadiff.training.initialise import select_trained, start_from_blip_diffusion
from deadiff.training.loop import learning_rate, stop_signals
from deadiff.training.objectives import Live, Objective, live_parts
from deadiff.training.preview import draw_preview
from deadiff.training.run_folder import AVERAGE, OPTIMIZER, WEIGHTS, RunFolder
from deadiff.training.sources import VALIDATION, Source

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
FREE = {  # what may change between the sittings of a run
    *("steps", "decay_steps", "gradient_checkpointing", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints"),
    *("log_steps", "validate_steps", "validation_draws", "preview_steps", "trackers"),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def start_adapter(recipe: AdapterRecipe, base: Base) -> DEADiffAdapter:
    """The adapter as training begins: an existing one, or a new one with image K/V copied from the text's."""
    if recipe.start.adapter:
        if recipe.start.adapter == "icons":
            from deadiff.embedded import load_embedded

            return load_embedded()[1].float()
        return DEADiffAdapter.from_pretrained(recipe.start.adapter, dtype=torch.float32)
    eye = load_eye(recipe.base.vision)
    config = adapter_config(base, recipe.base, eye, recipe.adapter)
    adapter = DEADiffAdapter.from_base(base.unet, eye, config, seed=recipe.start.seed).float()
    if recipe.start.qformer:
        start_from_blip_diffusion(adapter, Path(recipe.start.qformer).expanduser())
    return adapter


class Training:
    """One run: built, resumed if its folder holds a checkpoint, and run. Every process builds its own."""

    def __init__(
        self,
        recipe: AdapterRecipe,
        source: Source,
        run: Path,
        *,
        base: Base | None = None,
        validation: Source | None = None,
        cache: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.recipe, self.config = recipe, recipe.loop
        self.source, self.validation = source, validation or source
        self.report = report or (lambda line: None)
        self.folder = RunFolder(run)
        self.accelerator = make_accelerator(self.config, run)
        self.accumulated = self.config.accumulated(self.accelerator.num_processes)
        self.device = self.accelerator.device
        self.objectives = [Objective(name) for name in recipe.model.objectives]
        dtype = DTYPES[self.config.precision]

        self.base = (base or load_base(recipe.base, dtype)).to(self.device)
        self.adapter = switched(start_adapter(recipe, self.base), recipe.model.adapter).to(self.device)
        if self.config.gradient_checkpointing:
            self.base.unet.enable_gradient_checkpointing()
        self.features = Features(self.base, self.adapter, source, recipe.model.paired)
        if cache is not None:
            self._fill_caches(cache)
        empty = {name: value.float() for name, value in self.base.read_text([""]).items()}
        select_trained(self.adapter, self.config.train_ln_vision, recipe.model.train_image_kv)
        optimizer = torch.optim.AdamW(
            [p for p in self.adapter.parameters() if p.requires_grad],
            lr=self.config.learning_rate, betas=self.config.betas, weight_decay=self.config.weight_decay,
        )  # fmt: skip
        step = AdapterStep(self.adapter.train(), self.base, empty, self.config.loss_weighting, recipe.model.timestep_shift)
        self.model, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.trained = {name: p for name, p in self.adapter.named_parameters() if p.requires_grad}
        self.average = Average(self.trained)
        self.step = 0
        self.window = torch.zeros(len(self.objectives) + 1, 2, dtype=torch.float64)  # (sum, count) by task, and of the norm

    # ---- what is trained on ----

    def _fill_caches(self, cache: Path) -> None:
        sources = list({id(s): s for s in (self.source, self.validation)}.values())
        self.features.open_caches(cache)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        told = time.monotonic()

        def tick(kind: str, done: int, total: int) -> None:
            nonlocal told
            if rank == 0 and (done == total or time.monotonic() - told > 10):
                told = time.monotonic()
                self.report({"cache": kind, "done": done, "of": total})

        self.features.fill(sources, self.config.batch_size, rank, ranks, tick)
        self.accelerator.wait_for_everyone()
        self.features.check(sources)

    def _sample(self, number: int) -> Sample:
        return self.features.sample(self.objectives[number % len(self.objectives)], number, self.config.batch_size)

    def _samples(self, step: int) -> Iterator[tuple[int, Sample]]:
        """This process's (draw number, sample) from `step` on. Cached features are read while the step before is computed."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        numbers = (
            s * self.config.draws + i * ranks + rank for s in range(step, self.config.steps) for i in range(self.accumulated)
        )
        if not self.features.caches:
            yield from ((number, self._sample(number)) for number in numbers)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead: list[tuple[int, Future[Sample]]] = []
            for number in numbers:
                ahead.append((number, reader.submit(self._sample, number)))
                if len(ahead) > 2:
                    first, future = ahead.pop(0)
                    yield first, future.result()
            for number, future in ahead:
                yield number, future.result()

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)

    # ---- the loop ----

    def run(self, minutes: float | None = None) -> Path:
        """Train to the last step, or for `minutes`; returns RUN/adapter, the averaged weights.

        Ctrl-C or SIGTERM ends the step, keeps it and raises KeyboardInterrupt.
        """
        main, asked, started = self.accelerator.is_main_process, threading.Event(), time.monotonic()
        with self.folder.lock() if main else nullcontext(), stop_signals(asked), self._attention():
            self._begin()
            saved, window = time.monotonic(), (time.monotonic(), self.step)
            samples = self._samples(self.step)
            stop = self.step >= self.config.steps
            while not stop:
                self._optimise(samples)
                now = time.monotonic()
                over = asked.is_set() or (minutes is not None and now - started > 60 * minutes)
                due = now - saved > 60 * self.config.checkpoint_minutes
                stop, save = self._agree(over, due)
                if self._every(self.config.log_steps):
                    rate = (self.step - window[1]) * self.config.global_batch / (now - window[0])
                    self._log(self._losses() | {"samples_per_second": round(rate, 2)})
                    window = (time.monotonic(), self.step)
                if self._every(self.config.validate_steps):
                    self._log(self.validate())
                if self._every(self.config.preview_steps):
                    self.preview()
                stop = stop or self.step >= self.config.steps
                if save or stop or self._every(self.config.checkpoint_steps):
                    self.save()
                    saved = time.monotonic()
            samples.close()  # pyright: ignore[reportAttributeAccessIssue]
            out = self._finish()
        if asked.is_set():
            raise KeyboardInterrupt
        return out

    def _begin(self) -> None:
        """The folder is this run's; go on from its newest checkpoint."""
        if self.accelerator.is_main_process:
            self.folder.prepare(self.recipe.to_toml(), self._note())
        if found := self.folder.load():
            self.load(*found)
        if self.accelerator.is_main_process:
            self.folder.cut_curve(self.step)
        self.accelerator.wait_for_everyone()
        flat = {f"{table}.{key}": value for table, values in self.recipe.to_dict().items() if isinstance(values, dict)
                for key, value in values.items() if isinstance(value, (int, float, str))}  # fmt: skip
        if self.accelerator.log_with:
            self.accelerator.init_trackers("", config=flat)

    def _optimise(self, samples: Iterator[tuple[int, Sample]]) -> None:
        """One optimiser step over this process's draws."""
        for i in range(self.accumulated):
            number, sample = next(samples)
            last = i == self.accumulated - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self._loss(number, sample)
                self.accelerator.backward(loss / self.accumulated)
            self.window[self.objectives.index(sample.objective)] += torch.tensor([float(loss.detach()), 1.0])
        for p in self.trained.values():
            if p.grad is None:  # a task alone may leave weights out: they get the same treatment whoever had which draw
                p.grad = torch.zeros_like(p)
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.config.clip_norm or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)  # pyright: ignore[reportArgumentType]  # the same names
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(min(self.config.ema_decay, (1 + self.step) / (10 + self.step)))
        if self.accelerator.is_main_process:
            self.window[-1] += torch.tensor([float(norm if norm is not None else 0.0), 1.0])
        self.step += 1

    def _loss(self, number: int, sample: Sample) -> Tensor:
        generator = self._generator(number)
        live = live_parts(sample.objective, len(sample.vision), generator, self.recipe.model.text_drop)
        with seeded(int(generator.initial_seed()), self.device):
            return self.model(sample.to(self.device), live, generator)

    def _attention(self) -> Any:
        """On a CPU the fused kernel's backward is slow where there are few tokens (docs/log.md), as in the icons' U-Net."""
        slow = self.device.type == "cpu" and self.recipe.base.layout == "icons"
        return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()

    def _agree(self, *flags: bool) -> list[bool]:
        """True where any process says so."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        said = torch.tensor([float(flag) for flag in flags], device=self.device)
        return [bool(x > 0) for x in self.accelerator.reduce(said, "sum")]  # pyright: ignore[reportGeneralTypeIssues]

    def _every(self, steps: int) -> bool:
        return steps > 0 and self.step % steps == 0

    # ---- what is shown ----

    def _gather_window(self) -> None:
        """The sums of all processes, at the first one."""
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(self.window.to(self.device), "sum")
            assert isinstance(total, Tensor)
            self.window = total.cpu() if self.accelerator.is_main_process else torch.zeros_like(self.window)

    def _losses(self) -> dict[str, float]:
        """Means since the last line, over all processes."""
        self._gather_window()
        sums, counts = self.window.T
        line = {str(o.value): float(sums[i] / counts[i]) for i, o in enumerate(self.objectives) if counts[i]}
        line = {"loss": float(sums[:-1].sum() / counts[:-1].sum().clamp(min=1)), **line}
        line |= {"grad_norm": float(sums[-1] / counts[-1].clamp(min=1)), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.window.zero_()
        return {name: round(value, 8) for name, value in line.items()}

    def _log(self, line: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.folder.add_to_curve({"step": self.step, **line})
            self.report({"step": self.step, **{name: round(value, 6) for name, value in line.items()}})
        if self.accelerator.log_with:
            self.accelerator.log(line, step=self.step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The averaged weights' loss of each task on draws that are never trained on, always the same, with nothing dropped."""
        count, found = self.config.batch_size, {}
        everyone = torch.ones(count, dtype=torch.bool)
        self.adapter.eval()
        with self.average.shown():
            for place, objective in enumerate(self.objectives):
                live = Live(
                    everyone & (objective is not Objective.SERE),
                    everyone & (objective is not Objective.STRE),
                    everyone & (objective is not Objective.RECONSTRUCTION),
                )
                total = 0.0
                for i in range(self.config.validation_draws):
                    number = VALIDATION + i * len(self.objectives) + place
                    sample = self.features.sample(objective, number, count, self.validation).to(self.device)
                    total += float(self.model(sample, live, self._generator(number)))
                found[f"validation_{objective.value}"] = total / self.config.validation_draws
        self.adapter.train()
        return {name: round(value, 8) for name, value in found.items()}

    def preview(self) -> None:
        """RUN/preview-STEP.png: the averaged weights draw in the style of the first validation references."""
        if self.accelerator.distributed_type.value == "FSDP":  # one process alone holds a part of the weights only
            log.warning("no previews under FSDP: draw with RUN/adapter when the run has ended")
            return
        if self.accelerator.is_main_process:
            self.adapter.eval()
            with self.average.shown():
                sheet = draw_preview(self.base, self.adapter, self.features, self.validation, self.recipe.preview_prompts)
            self.adapter.train()
            sheet.save(self.folder.folder / f"preview-{self.step:08d}.png")
        self.accelerator.wait_for_everyone()

    # ---- files ----

    def state(self) -> dict[str, Tensor]:
        """Weights, their average, the optimiser's state by weight, and the sums of the curve's next line."""
        found = {f"{WEIGHTS}{name}": whole(p) for name, p in self.trained.items()}
        found |= {f"{AVERAGE}{name}": whole(value) for name, value in self.average.values.items()}
        for name, p in self.trained.items():
            found |= {f"{OPTIMIZER}{key}/{name}": whole(value).clone() for key, value in self.optimizer.state[p].items()}
        self._gather_window()
        return {**found, "window": self.window.clone()}

    def save(self) -> None:
        state = self.state()
        if self.accelerator.is_main_process:
            self.folder.save(self.step, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def load(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Raises DataError for the state of another adapter."""
        if {key.removeprefix(WEIGHTS) for key in state if key.startswith(WEIGHTS)} != self.trained.keys():
            raise DataError(f"the checkpoints in '{self.folder.folder}' are of another adapter: name a new run folder")
        for name, p in self.trained.items():
            put(p, state[f"{WEIGHTS}{name}"])
            put(self.average.values[name], state[f"{AVERAGE}{name}"])
            self.optimizer.state[p] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = state[f"{OPTIMIZER}{key}/{name}"]
                place = torch.zeros_like(value) if key == "step" else torch.zeros_like(p)
                put(place, value)
                self.optimizer.state[p][key] = place
        self.window = state["window"].clone() if self.accelerator.is_main_process else torch.zeros_like(self.window)
        self.step = step

    def _note(self) -> dict[str, Any]:
        """What must not change between the sittings of a run."""
        loop = asdict(self.config)
        parts = {"unet": self.base.unet, "vae": self.base.vae, "eye": self.adapter.vision}
        return {
            "optimisation": {name: value for name, value in loop.items() if name not in FREE},
            "tasks": asdict(self.recipe.model),
            "adapter": self.adapter.config.to_dict(),
            "seed": self.config.seed,
            "data": self.source.fingerprint,
            "base": fingerprint(parts),
        }

    def _finish(self) -> Path:
        """Write the averaged weights as an adapter and give the U-Net back."""
        weights = {name: whole(tensor) for name, tensor in self.adapter.state_dict().items()}
        weights |= {name: whole(value) for name, value in self.average.values.items()}
        out = self.folder.folder / "adapter"
        if self.accelerator.is_main_process:
            seen = f"{self.step:,} steps, {self.step * self.config.global_batch:,} samples"
            base = f"{self.recipe.base.layout} {self.recipe.base.model}".rstrip()
            provenance = {
                **self.adapter.config.provenance,
                "training": f"deadiff train, {seen}, on base {base}, pairs {self.source.fingerprint[:16]}",
            }
            config = replace(self.adapter.config, provenance=provenance)
            DEADiffAdapter.from_weights(config, weights).save_pretrained(out)
        self.accelerator.wait_for_everyone()
        if self.accelerator.log_with:
            self.accelerator.end_training()
        self.adapter.eject()
        return out


def make_accelerator(config: ScaleConfig, run: Path) -> Accelerator:
    """accelerate's own environment (`accelerate launch`, `accelerate config`) decides on devices, DDP and FSDP."""
    from importlib.util import find_spec

    trackers = []
    for name in config.trackers:
        if find_spec(name) is not None:
            trackers.append(name)
        elif name == "tensorboard":
            log.warning("TensorBoard is not installed (pip install 'deadiff[track]'): the curve is in curve.jsonl alone")
        else:
            raise MissingExtraError(f"tracker {name!r} is not installed: pip install {name}, or leave it out of trackers")
    project = ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "tensorboard"))
    try:
        AcceleratorState._reset_state()  # an earlier run in this process, in a notebook say, may have had another precision
        return Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            log_with=trackers or None,  # pyright: ignore[reportArgumentType]
            project_config=project,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise ConfigError(f"accelerate refuses this set-up: {' '.join(str(error).split())[:200]}") from error
