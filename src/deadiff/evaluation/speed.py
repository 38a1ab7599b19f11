"""Speed against quality: solver x steps x guidance against style, text and the distance to the long way round.

Every way of drawing gets the same references, prompts and seeds. The yardstick is the released sampler: DDIM, 50 steps. Cost is
counted in passes of one picture through the U-Net, which no other program on the machine disturbs; seconds stand beside it.

OUT/pictures/, OUT/scores/ as in protocol.py; OUT/speed.json, speed.md, speed.html, plots/.
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from deadiff.errors import ConfigError
from deadiff.evaluation.design import MODEL, Cell, EvalRecipe, Method, parse_eval_recipe
from deadiff.evaluation.drawing import Progress, draw_missing, identity, open_method
from deadiff.evaluation.intervals import Interval, difference, mean
from deadiff.evaluation.plots import Point, Series, scatter
from deadiff.evaluation.protocol import MakeScorer, machine, score_new
from deadiff.evaluation.reference_set import StyleReference, reference_set
from deadiff.evaluation.report import STYLE_SHEET, TextTable
from deadiff.evaluation.scores import read_pictures
from deadiff.evaluation.table import Scores
from deadiff.toml_tables import read_table

YARDSTICK = ("ddim", 50)  # solver and steps of the released app
MARGIN = 0.02  # how much of style + text a faster default may lose, beyond its interval
ALWAYS = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of drawing. `interval`: the part of the steps, from 0 to 1, in which guidance acts."""

    scheduler: str
    steps: int
    guidance: float
    interval: tuple[float, float] = ALWAYS

    @property
    def passes(self) -> int:
        """Passes of one picture through the U-Net: one a step, two where guidance acts."""
        guided = sum(self.interval[0] <= i / self.steps < self.interval[1] for i in range(self.steps)) if self.guidance > 1 else 0
        return self.steps + guided

    @property
    def title(self) -> str:
        part = "" if self.interval == ALWAYS else f" in {self.interval[0]:g}-{self.interval[1]:g}"
        return f"{self.scheduler} {self.steps}, guidance {self.guidance:g}{part}"

    @property
    def name(self) -> str:
        return "_".join(str(x) for x in (self.scheduler.replace("+", "p"), self.steps, self.guidance, *self.interval))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The ways to try: all solvers and steps at one guidance, then guidances and intervals at one solver and number of steps."""

    schedulers: tuple[str, ...] = ("ddim", "dpm++", "unipc")
    steps: tuple[int, ...] = (4, 8, 12, 20)
    guidance: float = 3.0  # of the first part
    guidances: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    intervals: tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.0, 0.7), (0.1, 0.7))
    at: tuple[str, int] = ("dpm++", 12)  # solver and steps of the second part

    def __post_init__(self) -> None:
        for start, end in self.intervals:
            if not 0 <= start < end <= 1:
                raise ConfigError(f"[grid] interval ({start}, {end}): expected fractions of the steps, the start before the end")
        if not self.schedulers or min((*self.steps, self.at[1]), default=0) < 1:
            raise ConfigError("[grid] needs schedulers and steps of at least 1")

    def ways(self) -> list[Way]:
        first = [
            Way(scheduler=solver, steps=steps, guidance=self.guidance)
            for solver, steps in itertools.product(self.schedulers, self.steps)
        ]
        second = [
            Way(scheduler=self.at[0], steps=self.at[1], guidance=guidance, interval=interval)
            for guidance, interval in itertools.product(self.guidances, self.intervals)
            if guidance > 1 or interval == ALWAYS
        ]
        yardstick = Way(scheduler=YARDSTICK[0], steps=YARDSTICK[1], guidance=self.guidance)
        return list(dict.fromkeys([yardstick, *first, *second]))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way and what it gave. The differences are to the yardstick, paired."""

    way: Way
    style: Interval
    text: Interval
    style_gap: Interval
    text_gap: Interval
    distance: float  # root mean square difference of pixels in [0, 1] to the yardstick's picture of the same seed
    seconds: float | None  # wall clock a picture, all cores; None where the way was drawn in several sittings
    enough: bool  # style + text not worse than the best way's by more than the margin


def read_speed_recipe(path: Path) -> tuple[EvalRecipe, Grid]:
    """An evaluation recipe with a [grid] table. Raises ConfigError."""
    table = read_table(path)
    grid = table.pop("grid", {})
    recipe = parse_eval_recipe(table, path)
    values: dict[str, Any] = {
        k: tuple(tuple(x) if isinstance(x, list) else x for x in v) if isinstance(v, list) else v for k, v in grid.items()
    }
    try:
        return recipe, Grid(**values)
    except TypeError as error:
        raise ConfigError(f"[grid] of '{path}': {str(error).removeprefix('Grid.__init__() ')}") from error


def measure_speed(
    recipe: EvalRecipe,
    grid: Grid,
    model: str,
    out: Path,
    make_scorer: MakeScorer,
    *,
    data: Path | None = None,
    progress: Progress | None = None,
    opener: Any = open_method,
    command: str = "",
) -> list[Measured]:
    """Draw and score every way, write the report, return what was measured. The same call goes on where a killed one stopped."""
    references = reference_set(recipe, out, data)
    scorer = make_scorer([*recipe.prompts.values(), *(reference.subject for reference in references)])
    base = Method(name="model", title="model", kind=MODEL, model=model)
    stylizer = opener(base, recipe.dtype)
    cells = [cell for cell in recipe.cells(base, [reference.name for reference in references]) if cell.strength == 1]
    found: dict[Way, Scores] = {}
    for way in grid.ways():
        found[way] = _one(way, base, stylizer, recipe, cells, references, out, scorer, progress)
    measured = _compare(found, out)
    _write_reports(measured, out, model, command, cells, references, scorer.name)
    return measured


def _one(
    way: Way,
    base: Method,
    stylizer: Any,
    recipe: EvalRecipe,
    cells: Sequence[Cell],
    references: Sequence[StyleReference],
    out: Path,
    scorer: Any,
    progress: Progress | None,
) -> Scores:
    """Draw and score one way."""
    drawn_by = replace(recipe, scheduler=way.scheduler, num_inference_steps=way.steps, guidance_scale=way.guidance)
    folder = f"{way.name}-{identity(base, stylizer, drawn_by)}"
    method = replace(base, name=way.name, title=way.title)
    with guided_in(stylizer.pipe.unet, way):
        started = time.perf_counter()
        drawn = draw_missing(method, stylizer, folder, cells, references, drawn_by, out, progress)
        seconds = time.perf_counter() - started
    timed = out / "scores" / f"{folder}.seconds"
    if drawn == len(cells):
        timed.parent.mkdir(parents=True, exist_ok=True)
        timed.write_text(f"{seconds / drawn}\n")
    return score_new(method, folder, cells, recipe, references, out, scorer)


@contextmanager
def guided_in(unet: Any, way: Way) -> Iterator[None]:
    """Guidance in a part of the steps alone (Kynkaanniemi et al. 2024, arXiv 2404.07724).

    Outside, the unconditional half of the U-Net's answer is replaced by the conditional one: guidance then adds nothing. The work
    of that half is done all the same: `Way.passes` counts what a sampler needs that leaves it out.
    """
    if way.interval == ALWAYS or way.guidance <= 1:
        yield
        return
    state = {"t": -1.0, "step": -1}

    def answer(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        t = float(args[1] if len(args) > 1 else kwargs["timestep"])
        if t > state["t"]:  # timesteps fall: a new batch has begun
            state["step"] = 0
        elif t < state["t"]:
            state["step"] += 1
        state["t"] = t
        if way.interval[0] <= state["step"] / way.steps < way.interval[1]:
            return output
        sample = output[0]
        conditional = sample.chunk(2)[1]
        return (conditional.repeat(2, *[1] * (sample.ndim - 1)), *output[1:])

    handle = unet.register_forward_hook(answer, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _compare(found: dict[Way, Scores], out: Path) -> list[Measured]:
    yardstick = next(way for way in found if (way.scheduler, way.steps) == YARDSTICK)
    far = found[yardstick]
    clusters = [cell.reference for cell in far.cells], [cell.prompt for cell in far.cells]
    total = {way: scores.columns["style"] + scores.columns["text"] for way, scores in found.items()}
    best = max(total, key=lambda way: float(total[way].mean()))
    rows = []
    for way, scores in found.items():
        gap = difference(total[way], total[best], *clusters)
        seconds = list((out / "scores").glob(f"{way.name}-*.seconds"))
        rows.append(
            Measured(
                way=way,
                style=mean(scores.columns["style"], *clusters),
                text=mean(scores.columns["text"], *clusters),
                style_gap=difference(scores.columns["style"], far.columns["style"], *clusters),
                text_gap=difference(scores.columns["text"], far.columns["text"], *clusters),
                distance=_distance(scores, far, out),
                seconds=float(seconds[0].read_text()) if len(seconds) == 1 else None,
                enough=gap.low >= -MARGIN,
            )
        )
    return rows


def proposed(measured: Sequence[Measured]) -> Measured | None:
    """The cheapest way that is good enough; of equally cheap ones that with the greatest style + text."""
    enough = [row for row in measured if row.enough]
    return min(enough, key=lambda row: (row.way.passes, -row.style.estimate - row.text.estimate), default=None)


def _distance(scores: Scores, far: Scores, out: Path, batch: int = 256) -> float:
    total, count = 0.0, 0
    for start in range(0, len(scores), batch):
        a, b = (
            read_pictures([out / p for p in s.pictures[start : start + batch]]).astype(np.float32) / 255 for s in (scores, far)
        )
        total += float(((a - b) ** 2).sum())
        count += a.size
    return (total / count) ** 0.5


# ---- the report ----


def _write_reports(
    measured: Sequence[Measured],
    out: Path,
    model: str,
    command: str,
    cells: Sequence[Cell],
    references: Sequence[StyleReference],
    scorer: str,
) -> None:
    best = proposed(measured)
    table = speed_table(measured, best)
    facts = [
        f"Model {model}; {len(references)} references x {len({c.prompt for c in cells})} prompts, {len(cells)} pictures a way; "
        f"judged by {scorer}.",
        ", ".join(f"{name} {value}" for name, value in machine().items()) + ".",
        f"Yardstick: {YARDSTICK[0]} {YARDSTICK[1]}. Good enough: style + text surely less than {MARGIN} below the "
        "best way's (interval). Proposed: the cheapest of those.",
        f"Proposed default: {best.way.title} ({best.way.passes} passes)." if best else "No way is good enough.",
    ]
    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plots = {f"speed-{name}": _plot(measured, name) for name in ("style", "text", "distance")}
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    title = "Speed against quality"
    made = f"Made by `{command}`." if command else ""
    lines = [f"# {title}", "", made, "", *(f"- {fact}" for fact in facts), "", table.markdown()]
    lines += [f"![{name}](plots/{name}.svg)\n" for name in plots]
    (out / "speed.md").write_text("\n".join(lines), encoding="utf-8")
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title><style>{STYLE_SHEET}</style></head><body><h1>{title}</h1><p>{escape(made)}</p>",
        "<ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul>",
        table.html(),
        *(f"<figure>{svg}</figure>" for svg in plots.values()),
        "</body></html>",
    ]
    (out / "speed.html").write_text("\n".join(page), encoding="utf-8")
    rows = [
        {
            **asdict(row.way),
            "passes": row.way.passes,
            **{name: getattr(row, name).to_dict() for name in ("style", "text", "style_gap", "text_gap")},
            "distance": row.distance,
            "seconds": row.seconds,
            "enough": row.enough,
        }
        for row in measured
    ]
    proposal = None if best is None else asdict(best.way)
    text = json.dumps({"model": model, "command": command, "proposed": proposal, "ways": rows}, indent=1)
    (out / "speed.json").write_text(text + "\n", encoding="utf-8")


def speed_table(measured: Sequence[Measured], best: Measured | None) -> TextTable:
    header = ["way", "passes", "s a picture", "style", "text", "style - yardstick", "text - yardstick", "distance", "good enough"]
    rows = [
        [
            row.way.title,
            str(row.way.passes),
            "-" if row.seconds is None else f"{row.seconds:.2f}",
            str(row.style),
            str(row.text),
            str(row.style_gap),
            str(row.text_gap),
            f"{row.distance:.3f}",
            "yes" if row.enough else "no",
        ]
        for row in sorted(measured, key=lambda row: (row.way.passes, row.way.title))
    ]
    return TextTable(title="", header=header, rows=rows, strong=best.way.title if best else "")


def _plot(measured: Sequence[Measured], what: str) -> str:
    """One curve a solver at the common guidance; the other guidances as points."""
    common = measured[0].way.guidance
    series = []
    for solver in dict.fromkeys(row.way.scheduler for row in measured):
        rows = [r for r in measured if r.way.scheduler == solver and r.way.guidance == common and r.way.interval == ALWAYS]
        points = [_point(row, what, str(row.way.steps)) for row in sorted(rows, key=lambda row: row.way.steps)]
        series.append(Series(title=solver, points=points, joined=True))
    for row in measured:
        if row.way.guidance != common or row.way.interval != ALWAYS:
            series.append(Series(title=row.way.title, points=[_point(row, what, "")]))
    return scatter(series, "passes through the U-Net a picture", what, f"{what} against cost")


def _point(row: Measured, what: str, label: str) -> Point:
    if what == "distance":
        return Point(x=row.way.passes, y=row.distance, label=label)
    value: Interval = getattr(row, what)
    return Point(x=row.way.passes, y=value.estimate, y_interval=(value.low, value.high), label=label)
