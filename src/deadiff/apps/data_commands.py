"""`deadiff data ...`: build the icons data set, and look at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, help="Build and look at the data that the icons model learns from.")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A user's mistake is one line on stderr and exit code 2; an interrupt leaves the finished parts."""
    from deadiff.errors import DEADiffError

    try:
        yield
    except DEADiffError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(2) from error
    except ImportError as error:
        typer.echo(f"MissingExtraError: '{error.name}' is needed for this: pip install 'deadiff[data]'", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        typer.echo(f"DataError: {error}: check the path, its permissions and the free space", err=True)
        raise typer.Exit(2) from error


@app.command()
def icons(
    out: Annotated[Path, typer.Option(help="The folder to write; a run that was killed goes on where it stopped.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 128,
    seed: Annotated[int, typer.Option(help="Of renditions, palettes and captions: the same seed gives the same bytes.")] = 0,
    renditions: Annotated[
        int, typer.Option(help="Seen renditions of each picture; one held-out rendition comes on top. 0: none.")
    ] = 3,
    limit: Annotated[Optional[int], typer.Option(help="Only so many subjects, for a miniature run.")] = None,  # noqa: UP045
    cache: Annotated[Path, typer.Option(help="Where the fetched packages are kept.")] = Path("~/.cache/deadiff/art"),
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing; fail if the cache lacks a package.")] = False,
    art: Annotated[
        Path | None, typer.Option(help="A folder with subjects.json and SET/HEXCODE.svg, instead of the packages.")
    ] = None,  # noqa: UP045
    processes: Annotated[Optional[int], typer.Option(min=1, help="Worker processes; default: one a core.")] = None,  # noqa: UP045
) -> None:
    """Fetch the art, draw it, render it in many styles, and write parquet shards, a data card and contact sheets.

    Example: deadiff data icons --out data/icons --renditions 3
    """
    with _one_line_errors():
        from deadiff.data.build import BuildConfig, build
        from deadiff.data.card import write_card
        from deadiff.data.look import contact_sheets

        config = BuildConfig(size=size, seed=seed, renditions=renditions, limit=limit)
        workers = processes or os.cpu_count() or 1
        with _progress() as report:
            build(out, config, cache=cache, art=art, offline=offline, processes=workers, progress=report)
        out = out.expanduser()
        write_card(out, out / "card.md")
        contact_sheets(out, out / "sheets")
    typer.echo(f"{out}: shards in plain/ and rendered/, what they hold in card.md, how they look in sheets/")


@app.command()
def look(
    folder: Annotated[Path, typer.Argument(help="A folder that `deadiff data icons` wrote.")],
    out: Annotated[Path, typer.Option(help="Where the contact sheets go.")],
    thumb: Annotated[int, typer.Option(min=16, max=256, help="Pixels a side of each picture on a sheet.")] = 80,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG files.")] = 82,
) -> None:
    """Write contact sheets: twelve subjects in every set, and in every rendition.

    Example: deadiff data look data/icons --out sheets
    """
    with _one_line_errors():
        from deadiff.data.look import contact_sheets

        for path in contact_sheets(folder.expanduser(), out.expanduser(), thumb=thumb, quality=quality):
            typer.echo(str(path))


@contextmanager
def _progress() -> Iterator:
    """A bar for each part, as build() reports it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = int(bars.add_task(what, total=total))
            bars.update(tasks[what], completed=done)  # type: ignore[arg-type]

        yield report
