"""The protocol: any number of models on the same prompts, references and seeds, drawn, scored, compared; resumable throughout.

OUT/references/   the references and references.json
OUT/pictures/     one folder a method (drawing.py)
OUT/scores/       one parquet file a method (table.py)
OUT/evaluation.json   what was compared, with which judges
OUT/report.html, report.md, plots/, sheets/   (report.py)
"""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.errors import ConfigError, DataError
from deadiff.evaluation.design import BASELINES, MODEL, PASTED, PLAIN, TRUE, WORDS, Cell, EvalRecipe, Method
from deadiff.evaluation.drawing import Progress, check_model, draw_missing, identity, open_method, picture_of
from deadiff.evaluation.reference_set import StyleReference, picture_path, reference_set
from deadiff.evaluation.scores import Column, Scorer, Shot
from deadiff.evaluation.table import Scores, read_scores, write_scores
from deadiff.writing import write_text_whole

INDEX = "evaluation.json"
MakeScorer = Callable[[Sequence[str]], Scorer]  # the subjects named by prompts and references -> the scorer


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was measured, for reports and verdicts."""

    out: Path
    recipe: EvalRecipe
    references: list[StyleReference]
    methods: list[Method]
    scores: dict[str, Scores]  # by method
    folders: dict[str, str]  # by method: the name of its pictures' folder and of its scores
    columns: tuple[Column, ...]
    scorer: str
    command: str = ""
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def main_cells(self) -> list[Cell]:
        """The grid at strength 1, the same for every method."""
        return [cell for cell in self.scores[self.methods[0].name].cells if cell.strength == 1]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)


def evaluate(
    recipe: EvalRecipe,
    models: Mapping[str, str],
    out: Path,
    make_scorer: MakeScorer,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
    opener: Callable[[Method, str | None], Any] = open_method,
    command: str = "",
) -> Evaluation:
    """Draw what is missing, score what is new. The same call goes on where a killed one stopped.

    models: name -> what `deadiff.load` takes, or a run folder. Raises ConfigError, DataError or CheckpointError.
    """
    if not models:
        raise ConfigError("no model to evaluate: name at least one with --model icons or --model NAME=FOLDER")
    methods = recipe.methods(models)
    known = {method.name for method in methods}
    claims = recipe.claims
    if claims.ours and claims.ours not in known:
        raise ConfigError(f"[claims] ours = {claims.ours!r} is none of the methods: expected one of {', '.join(sorted(known))}")
    if opener is open_method:
        for model in models.values():
            check_model(model)
    references = reference_set(recipe, out, data)
    scorer = make_scorer([*recipe.prompts.values(), *(reference.subject for reference in references)])
    scores: dict[str, Scores] = {}
    folders: dict[str, str] = {}
    for method in methods:
        if method.kind == WORDS and not any(reference.words for reference in references):
            continue  # nobody knows these styles in words
        if method.kind == TRUE and not any((out / "references" / "true").rglob("*.png")):
            continue  # nobody has drawn the prompts in these styles
        scores[method.name], folders[method.name] = _one(method, recipe, references, out, scorer, progress, opener)
    found = Evaluation(
        out=out,
        recipe=recipe,
        references=references,
        methods=[method for method in methods if method.name in scores],
        scores=scores,
        folders=folders,
        columns=scorer.columns,
        scorer=scorer.name,
        command=command,
        machine=machine(),
    )
    _write_index(found, models)
    return found


def _one(
    method: Method,
    recipe: EvalRecipe,
    references: list[StyleReference],
    out: Path,
    scorer: Scorer,
    progress: Progress | None,
    opener: Callable[[Method, str | None], Any],
) -> tuple[Scores, str]:
    """One method from its model to its scores, and the folder they are named after."""
    cells = list(recipe.cells(method, [reference.name for reference in references]))
    folder = method.kind
    if method.draws:
        stylizer = opener(method, recipe.dtype)
        folder = f"{method.name}-{identity(method, stylizer, recipe)}"
        drawn = draw_missing(method, stylizer, folder, cells, references, recipe, out, progress)
        del stylizer
        if drawn:
            gc.collect()  # U-Net and processors point at each other: without it several models stay in memory
    report = None if progress is None else lambda done, total: progress(f"{method.title}, scores", done, total)
    return score_new(method, folder, cells, recipe, references, out, scorer, report), folder


def score_new(
    method: Method,
    folder: str,
    cells: Sequence[Cell],
    recipe: EvalRecipe,
    references: Sequence[StyleReference],
    out: Path,
    scorer: Scorer,
    report: Callable[[int, int], None] | None = None,
) -> Scores:
    """The scores of these cells, whose pictures are drawn: those of earlier sittings from OUT/scores, the rest measured now."""
    path = out / "scores" / f"{folder}.parquet"
    kept = read_scores(path, scorer.name)
    have = set(kept.cells) if kept else set()
    new = [cell for cell in cells if cell not in have]
    if new:
        by_name = {reference.name: reference for reference in references}
        pictures = [picture_of(method, folder, cell, references, out) for cell in new]
        there = [i for i, path in enumerate(pictures) if method.kind != TRUE or path.is_file()]  # not every style drew everything
        shots = [
            Shot(
                picture=pictures[i],
                reference=by_name[new[i].reference],
                reference_picture=picture_path(out, by_name[new[i].reference]),
                prompt=new[i].prompt,
                subject=recipe.prompts[new[i].prompt],
            )
            for i in there
        ]
        columns = {column.name: np.full(len(new), np.nan) for column in scorer.columns}
        for name, values in (scorer.score(shots, report) if shots else {}).items():
            columns[name][there] = values
        found = set(there)
        paths = [str(path.relative_to(out)) if i in found else "" for i, path in enumerate(pictures)]
        kept = _joined(kept, Scores(cells=new, pictures=paths, columns=columns))
        write_scores(path, kept, scorer.name)
    assert kept is not None
    return kept.chosen(cells)


def _joined(old: Scores | None, new: Scores) -> Scores:
    if old is None:
        return new
    return Scores(
        cells=[*old.cells, *new.cells],
        pictures=[*old.pictures, *new.pictures],
        columns={name: np.concatenate([old.columns[name], new.columns[name]]) for name in new.columns},
    )


def _write_index(found: Evaluation, models: Mapping[str, str]) -> None:
    index = {
        "recipe": found.recipe.name,
        "models": dict(models),
        "methods": [asdict(method) for method in found.methods],
        "references": len(found.references),
        "prompts": list(found.recipe.prompts),
        "seeds": found.recipe.seeds,
        "scorer": found.scorer,
        "command": found.command,
        "machine": found.machine,
        "scores": {name: f"scores/{folder}.parquet" for name, folder in found.folders.items()},
    }
    write_text_whole(found.out / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def machine() -> dict[str, str]:
    """Where it ran, for the report."""
    import os
    import platform

    from deadiff.recipe import versions

    return {"processor": platform.machine(), "cores": str(os.cpu_count()), "python": platform.python_version(), **versions()}


def open_results(out: Path) -> dict[str, Any]:
    """evaluation.json of a finished run. Raises DataError where there is none."""
    try:
        return json.loads((out / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{out}' holds no finished evaluation ({INDEX}): run `deadiff eval RECIPE --out {out}` first") from error


__all__ = ["BASELINES", "MODEL", "PASTED", "PLAIN", "Evaluation", "evaluate", "open_results"]
