"""Models by name or folder, and the pictures they draw, kept on disk: a killed run goes on where it stopped.

OUT/pictures/METHOD-HASH/REFERENCE/PROMPT_SEED.png: the hash is that of the weights, the routes and how they draw, so that a model
that was trained on draws anew and never mixes with its former self.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deadiff.errors import ConfigError
from deadiff.evaluation.design import PASTED, PLAIN, RANDOM, TRUE, WORDS, Cell, EvalRecipe, Method
from deadiff.evaluation.reference_set import StyleReference, picture_path, slug, true_path
from deadiff.jobs import Job
from deadiff.recipe import png_bytes
from deadiff.writing import write_whole

Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def check_model(model: str) -> None:
    """Whether there is such a model, before hours of work with others. Raises CheckpointError."""
    from deadiff.loading import model_folder

    if not is_run(Path(model).expanduser()):
        model_folder(model)


def is_run(folder: Path) -> bool:
    """A run folder of `deadiff train` with a finished adapter."""
    return (folder / "adapter" / "adapter" / "config.json").is_file()


def open_model(model: str, dtype: str | None = None) -> Any:
    """A model's name, folder or hub id, or the run folder of a training, -> Stylizer."""
    from deadiff.loading import find_dtype, load

    folder = Path(model).expanduser()
    if not is_run(folder):
        return load(model, dtype=dtype)
    import torch

    from deadiff.defaults import FOR_BASE, Defaults
    from deadiff.stylizer import Origin, Stylizer
    from deadiff.training.stages import assemble

    pipe, adapter = assemble(folder)
    precision = find_dtype(dtype, torch.device("cpu"))
    pipe.to(dtype=precision)
    pipe.set_progress_bar_config(disable=True)
    defaults = FOR_BASE.get(adapter.config.base, Defaults())
    return Stylizer(pipe, adapter.to(dtype=precision).eval(), defaults=defaults, origin=Origin(model=str(model)))


def routed(stylizer: Any, routes: str | dict[str, str]) -> Any:
    """The same model with other routes at inference: InstantStyle is IP-Adapter with some layers only."""
    from deadiff.adapter import DEADiffAdapter
    from deadiff.stylizer import Stylizer

    stylizer.adapter.eject()
    config = replace(stylizer.adapter.config, routes=routes)
    adapter = DEADiffAdapter.from_weights(config, stylizer.adapter.state_dict()).to(stylizer.pipe.unet.dtype).eval()
    return Stylizer(stylizer.pipe, adapter, defaults=stylizer.defaults, origin=stylizer.origin)


def open_method(method: Method, dtype: str | None = None) -> Any:
    """The Stylizer of a method that draws; for baselines that of the model whose base they use."""
    stylizer = open_model(method.model, dtype)
    return stylizer if method.routes is None else routed(stylizer, method.routes)


def identity(method: Method, stylizer: Any, recipe: EvalRecipe) -> str:
    """Ten hexadecimal digits: the weights, the adapter's config and the way of drawing."""
    config = stylizer.adapter.config.to_dict() if method.kind not in (PLAIN, WORDS) else {}
    config.pop("provenance", None)
    how = [recipe.num_inference_steps, recipe.guidance_scale, recipe.scheduler, str(stylizer.pipe.unet.dtype)]
    what = [method.kind, stylizer.fingerprint, config, how, asdict(stylizer.defaults)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]


def picture_of(method: Method, folder: str, cell: Cell, references: Sequence[StyleReference], out: Path) -> Path:
    """Where a cell's picture is. The plain base knows no reference: one picture serves them all. So does a pasted reference."""
    by_name = {reference.name: number for number, reference in enumerate(references)}
    if method.kind == PASTED:
        return picture_path(out, references[by_name[cell.reference]])
    if method.kind == TRUE:  # not every style has drawn every subject
        return true_path(out, references[by_name[cell.reference]], cell.prompt)
    if method.kind == RANDOM:  # any reference but this one, by a lot of the cell's
        digest = hashlib.sha256(f"{cell.reference}|{cell.prompt}|{cell.seed}".encode()).digest()
        step = 1 + int.from_bytes(digest[:8], "big") % max(1, len(references) - 1)
        return picture_path(out, references[(by_name[cell.reference] + step) % len(references)])
    reference = "no-reference" if method.kind == PLAIN else cell.reference
    strength = "" if cell.strength == 1 else f"_x{cell.strength:g}"
    return out / "pictures" / folder / reference / f"{slug(cell.prompt)}_{cell.seed}{strength}.png"


def draw_missing(
    method: Method,
    stylizer: Any,
    folder: str,
    cells: Sequence[Cell],
    references: Sequence[StyleReference],
    recipe: EvalRecipe,
    out: Path,
    progress: Progress | None = None,
) -> int:
    """Draw the cells whose picture is not there, reference by reference; returns how many were drawn."""
    by_name = {reference.name: reference for reference in references}
    wanted: dict[Path, Cell] = {picture_of(method, folder, cell, references, out): cell for cell in cells}
    missing = {path: cell for path, cell in wanted.items() if not path.is_file()}
    done = len(wanted) - len(missing)
    options = {
        name: value
        for name, value in (
            ("num_inference_steps", recipe.num_inference_steps),
            ("guidance_scale", recipe.guidance_scale),
            ("scheduler", recipe.scheduler),
            ("batch_size", recipe.batch_size),
        )
        if value is not None
    }
    for paths in _batches(missing, 256):
        jobs = [_job(method, missing[path], by_name[missing[path].reference], out) for path in paths]

        def keep(index: int, picture: Any, recipe_of_picture: Any, paths: Sequence[Path] = paths, done: int = done) -> None:
            write_picture(paths[index], png_bytes(picture, recipe_of_picture))
            if progress is not None:
                progress(method.title, done + sum(path.is_file() for path in paths), len(wanted))

        stylizer(jobs, num_images=1, on_picture=keep, **options)
        done += len(paths)
    return len(missing)


def write_picture(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    try:
        write_whole(path, lambda partial: partial.write_bytes(data))
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}; make room and run the same command again") from error


def _job(method: Method, cell: Cell, reference: StyleReference, out: Path) -> Job:
    if method.kind == PLAIN:
        return Job(prompt=cell.prompt, seed=cell.seed)
    if method.kind == WORDS:
        return Job(prompt=f"{cell.prompt}, {reference.words}" if reference.words else cell.prompt, seed=cell.seed)
    return Job(prompt=cell.prompt, seed=cell.seed, style=str(picture_path(out, reference)), strength=cell.strength)


def _batches(missing: dict[Path, Cell], size: int) -> list[list[Path]]:
    paths = list(missing)
    return [paths[start : start + size] for start in range(0, len(paths), size)]
