"""`deadiff train RECIPE`: run a stage of a training or go on with it; the recipe says which loop."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deadiff.errors import ConfigError, MissingExtraError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML file, such as recipes/icons/base.toml or recipes/sd15/adapter.toml.")
    ] = None,
    data: Annotated[Path, typer.Option(help="The folder made by `deadiff data`.")] = Path("data/icons"),
    run: Annotated[
        Path | None,
        typer.Option(help="The run folder; a killed run goes on from here.  [default: runs/ and the recipe's name]"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so many minutes; the same command goes on later.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Another icons run, whose stages serve where this one has none.", show_default=False),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="A finished icons model (a folder, or icons for the shipped one) to go on from.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of an icons stage, in all, instead of the recipe's steps.", show_default=False)
    ] = None,
    pack: Annotated[Path | None, typer.Option(help="Instead of training: write the finished icons run here.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="The index made by `deadiff data pairs`.  [default: DATA/pairs]", show_default=False)
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Another such index: pairs that are only looked at.", show_default=False)
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model: a diffusers folder, a hub id or icons.")] = None,
    vision: Annotated[str | None, typer.Option(help="The eye: CLIP's folder or hub id, or an adapter's folder.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Where features are kept.  [default: DATA/cache and the base's layout]", show_default=False),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run the encoders at every step: no disk, slower steps.")
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: loop.steps=50, base.model=FOLDER; repeat.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything up to the first step, print plan, memory and cost; train nothing.")
    ] = False,
) -> None:
    """Train one stage of the icons model, a judge, or an adapter for a real base, from a recipe.

    Example: deadiff train recipes/sd15/adapter.toml --data data/mine --base BASE --vision CLIP --run runs/mine
    """
    try:
        from deadiff.toml_tables import read_table
        from deadiff.training import adapter_recipe, stages
    except ImportError as error:
        raise MissingExtraError(f"training needs '{error.name}': pip install 'deadiff[train]'") from error

    if pack is not None:
        from_run = run or Path("runs/icons")
        size = stages.pack(from_run, pack, stages.provenance_of(from_run))
        typer.echo(f"{pack}: {size / 1e6:.1f} MB")
        return
    if recipe is None:
        raise ConfigError("which recipe? Give a file such as recipes/icons/base.toml, or --pack OUT for a finished run")
    table = read_table(recipe)
    if "judge" in table:
        from deadiff.evaluation import judge_training

        folder = judge_training.run(recipe, data, run or Path("runs/judges"), minutes, _print)
        typer.echo(f"{folder}: when both judges are there, python -m deadiff.evaluation.judge_training --run RUN --pack OUT")
        return
    if table.get("stage") != adapter_recipe.STAGE:
        adapter_only = {"--pairs": pairs, "--validation": validation, "--base": base, "--vision": vision, "--cache": cache,
                        "--no-cache": no_cache, "--set": set_, "--dry-run": dry_run}  # fmt: skip
        if given := [name for name, value in adapter_only.items() if value]:
            raise ConfigError(
                f'{given[0]} is for recipes of stage = "{adapter_recipe.STAGE}": this one\'s is {table.get("stage")!r}'
            )
        from deadiff.loading import model_folder

        where, model = run or Path("runs/icons"), None if init is None else model_folder(init)
        folder = stages.run_stage(
            stages.read_recipe(recipe), data, where, minutes, _print, start=start, init=model, samples=samples
        )
        typer.echo(f"{folder}: its curve is in curve.jsonl")
        return

    if start is not None or samples is not None or init is not None:
        raise ConfigError("--from, --init and --samples are for the stages of the icons model: use --set here")
    changes = dict(_setting(text) for text in set_ or ())
    changes |= {f"base.{name}": f'"{value}"' for name, value in {"model": base, "vision": vision}.items() if value}
    parsed = adapter_recipe.parse_recipe(table, f"recipe '{recipe}'", changes)
    if dry_run:
        from deadiff.training.plan import dry_run as check

        for line in check(parsed, report=_say):
            typer.echo(line)
        return
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils.logging import disable_progress_bar as disable_bars

    from deadiff.training.accelerated import Training
    from deadiff.training.sources import open_source

    disable_progress_bar()
    disable_bars()
    side, seed = parsed.base.resolution, parsed.loop.seed
    training = Training(
        parsed,
        open_source(data, pairs, seed=seed, size=side),
        run or Path("runs") / f"{recipe.parent.name}-{recipe.stem}".lstrip("-"),
        validation=None if validation is None else open_source(data, validation, seed=seed, size=side),
        cache=None if no_cache else cache or data / "cache" / f"{parsed.base.layout}-{side}",
        report=_print,
    )
    out = training.run(minutes)
    if training.accelerator.is_main_process:
        typer.echo(f'{out}: draw with it by `deadiff stylize "a robot" --style REF.png --model {out}`')


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: expected NAME=VALUE such as loop.steps=50")
    return name.strip(), value.strip()


def _print(line: dict[str, Any]) -> None:
    typer.echo("  ".join(f"{name} {value}" for name, value in line.items()))


def _say(text: str) -> None:
    typer.echo(text, err=True)
