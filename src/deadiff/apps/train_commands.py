"""`deadiff train RECIPE`: run a stage of a training or go on with it; `--pack` makes a model folder of a finished run."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML file, such as recipes/icons/base.toml.")] = None,
    data: Annotated[Path, typer.Option(help="The folder made by `deadiff data icons`.")] = Path("data/icons"),
    run: Annotated[Path, typer.Option(help="The run folder, one sub-folder a stage; a killed run goes on from here.")] = Path(
        "runs/icons"
    ),
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so many minutes; the same command goes on later.")
    ] = None,
    pack: Annotated[Path | None, typer.Option(help="Instead of training: write the finished run as a model folder here.")] = None,
) -> None:
    """Train one stage of a model from a recipe.

    Example: deadiff train recipes/icons/base.toml --data data/icons --run runs/icons --minutes 60
    """
    from deadiff.errors import ConfigError, MissingExtraError

    try:
        from deadiff.training import stages
    except ImportError as error:
        raise MissingExtraError(f"training needs '{error.name}': pip install 'deadiff[train]'") from error

    if pack is not None:
        size = stages.pack(run, pack, stages.provenance_of(run))
        typer.echo(f"{pack}: {size / 1e6:.1f} MB")
        return
    if recipe is None:
        raise ConfigError("which recipe? Give a file such as recipes/icons/base.toml, or --pack OUT for a finished run")
    folder = stages.run_stage(stages.read_recipe(recipe), data, run, minutes, report=_print)
    typer.echo(f"{folder}: its curve is in curve.jsonl")


def _print(line: dict[str, Any]) -> None:
    typer.echo("  ".join(f"{name} {value}" for name, value in line.items()))
