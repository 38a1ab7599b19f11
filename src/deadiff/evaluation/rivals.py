"""`make paper`: rivals and ablations trained on one base, data and budget, then compared.

Every stage is skipped when done, resumed when half done, and needs nothing but the recipes:

RECIPES/rivals/*.toml         a rival each; `start` says from which alignment
RECIPES/icons/alignment.toml  the start with roles; RECIPES/rivals/start/captions.toml the one without
OUT/base/                     the shipped model's base, unless another run is given
OUT/start-roles, OUT/start-captions, OUT/NAME/    a run folder each
OUT/evaluation/, OUT/speed/   what is measured
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deadiff.errors import ConfigError
from deadiff.evaluation.design import EvalRecipe
from deadiff.toml_tables import build
from deadiff.training.from_model import unpack
from deadiff.training.icon_art import IconArt
from deadiff.training.loop import LoopConfig, latest_checkpoint
from deadiff.training.stages import Recipe, read_recipe, run_stage, shortened

Say = Callable[[str], None]
OURS = "deadiff"
STARTS = {"roles": Path("icons/alignment.toml"), "captions": Path("rivals/start/captions.toml")}  # below RECIPES


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is trained, from what, how far, where."""

    data: Path  # of `deadiff data icons`
    out: Path
    recipes: Path = Path("recipes")
    base: Path | None = None  # a run with autoencoder, reader, eye and base; None: the shipped model
    model: Path | None = None  # the model folder whose base is taken; None: the shipped one
    budget: int = 40_000  # samples a rival
    start_budget: int = 60_000  # samples an alignment
    only: tuple[str, ...] = ()  # rivals by name; all of them unless given

    def __post_init__(self) -> None:
        if min(self.budget, self.start_budget) < 1:
            raise ConfigError(f"budget is {self.budget}: expected samples, at least 1")

    def rivals(self) -> dict[str, Recipe]:
        """Name -> recipe: ours, the rivals, the ablations. Raises ConfigError."""
        found = {path.stem: read_recipe(path) for path in sorted((self.recipes / "rivals").glob("*.toml"))}
        found = dict(sorted(found.items(), key=lambda item: (item[0] != OURS, item[1].model.get("paired", True), item[0])))
        if not found:
            raise ConfigError(f"'{self.recipes / 'rivals'}' holds no recipes: name the folder of the recipes with --recipes")
        if unknown := [name for name in self.only if name not in found]:
            raise ConfigError(f"there is no rival {unknown[0]!r}: expected some of {', '.join(found)}")
        for name, recipe in found.items():
            if recipe.stage != "adapter" or recipe.start not in STARTS:
                got = f"stage {recipe.stage!r}, start {recipe.start!r}"
                raise ConfigError(f"rival {name!r} has {got}: expected an adapter that starts from roles or captions")
            recipe.model["adapter"] = {"look": {}, **recipe.model.get("adapter", {})}  # what each learns is compared
        return {name: recipe for name, recipe in found.items() if not self.only or name in self.only}


def train_rivals(
    bench: Bench, say: Say = lambda text: None, report: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, str]:
    """Train what is not trained yet; returns name -> run folder for the evaluation, ours first."""
    rivals = bench.rivals()
    aligned = bench.base is not None and (bench.base / "alignment" / "adapter" / "config.json").is_file()
    ready = {"roles": bench.base} if aligned else {}  # the given run has that start already
    wanted = {recipe.start for recipe in rivals.values()} - ready.keys()
    starts = {name: read_recipe(bench.recipes / path) for name, path in STARTS.items() if name in wanted}
    jobs = [(f"start-{name}", recipe, bench.start_budget) for name, recipe in starts.items()]
    jobs += [(name, recipe, bench.budget) for name, recipe in rivals.items()]
    missing = [name for name, recipe, budget in jobs if not finished(bench.out / name, recipe, budget)]
    threads = torch.get_num_threads()
    if missing:
        say(f"to train: {', '.join(missing)}")
        art = IconArt(bench.data)
        base = bench.base or unpack(bench.out / "base", art, *([bench.model] if bench.model else []))
        torch.set_num_threads(1)  # the loop's workers are threads of their own
        try:
            for name, recipe, budget in jobs:
                if name in missing:
                    start = base if name.startswith("start-") else ready.get(recipe.start) or bench.out / f"start-{recipe.start}"
                    say(f"training {name}: {budget:,} samples")
                    art.plain_share = recipe.plain_share
                    run_stage(recipe, bench.data, bench.out / name, report=report, start=start, samples=budget, art=art)
                    gc.collect()
        finally:
            torch.set_num_threads(threads)
    return {name: str(bench.out / name) for name in rivals}


def finished(run: Path, recipe: Recipe, budget: int) -> bool:
    """Whether the run has all its steps and has left its adapter."""
    loop = shortened(build(LoopConfig, recipe.loop, "[loop]"), budget)
    folder = run / recipe.stage
    checkpoint = latest_checkpoint(folder) if folder.is_dir() else None
    made = folder / "adapter" / "model.safetensors"
    if checkpoint is None or not made.is_file():
        return False
    return int(checkpoint.stem.rpartition("-")[2]) >= loop.steps and made.stat().st_mtime >= checkpoint.stat().st_mtime


def with_titles(recipe: EvalRecipe, rivals: dict[str, Recipe]) -> EvalRecipe:
    """The evaluation's recipe with the rivals' own titles."""
    return replace(recipe, titles={**{name: r.title for name, r in rivals.items() if r.title}, **recipe.titles})


def run_bench(
    bench: Bench,
    evaluate: Callable[[dict[str, str], Path], Any],
    speed: Callable[[str, Path], Any] | None,
    say: Say = lambda text: None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, str]:
    """Train, evaluate(models, OUT/evaluation), speed(our run, OUT/speed). Returns the models."""
    models = train_rivals(bench, say, report)
    evaluate(models, bench.out / "evaluation")
    if speed is not None and OURS in models:
        speed(models[OURS], bench.out / "speed")
    return models
