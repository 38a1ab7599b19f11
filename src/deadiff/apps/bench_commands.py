"""`deadiff bench`: time the model on this machine, beside plain Stable Diffusion and IP-Adapter."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from deadiff.errors import ConfigError

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    small: Annotated[bool, typer.Option("--small", help="A reduced model: seconds instead of minutes.")] = False,
    part: Annotated[Optional[list[str]], typer.Option(help="start, memory, steps or picture; repeat. Default: all.")] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda, mps. Default: the best there is.")] = None,  # noqa: UP045
    dtype: Annotated[Optional[list[str]], typer.Option(help="fp32, fp16 or bf16; repeat. Default: two of them.")] = None,  # noqa: UP045
    rounds: Annotated[Optional[int], typer.Option(min=1, max=10_000, help="Timings of each variant. Default: 4 or more.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(min=1, max=1024, help="Of the processor. Default: torch's choice.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the random weights and inputs.")] = 0,
    full_picture: Annotated[bool, typer.Option("--full-image", help="Draw whole pictures too: many minutes.")] = False,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the figures there; - prints them.")] = None,  # noqa: UP045
) -> None:
    """Time a step, a picture, the memory and the start on this machine, side by side with plain Stable Diffusion and IP-Adapter.

    Example: deadiff bench --small --json bench.json

    Full size (Stable Diffusion 1.5 at 512 px, random weights, no download) takes 10 minutes on two cores and 10 GB.
    """
    if context.invoked_subcommand is not None:
        return
    printed = json_file is not None and str(json_file) == "-"
    if json_file is not None and not printed:
        _check(json_file)
    from deadiff.benchmarking.report import heading, tables
    from deadiff.benchmarking.run import PARTS, Options, benchmark

    options = Options(
        small=small,
        parts=tuple(part or PARTS),
        device=device,
        dtypes=tuple(dtype or ()),
        rounds=rounds,
        threads=threads,
        seed=seed,
        full_picture=full_picture,
    )
    report = _with_progress(options, benchmark)
    text = json.dumps(report, indent=2)
    if printed:
        typer.echo(text)
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 118
    console.print(heading(report), highlight=False)
    for table in tables(report):
        console.print(table, highlight=False)
    if json_file is not None:
        _write(json_file, text + "\n")
        console.print(str(json_file), highlight=False)


@app.command()
def train(
    layout: Annotated[str, typer.Option(help="icons, or sd15 at full size: minutes a step on a CPU.")] = "icons",
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Steps with and without caches, in turn.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Samples of a step.")] = 8,
    memory: Annotated[
        bool, typer.Option("--memory", help="Instead: one full-size step with and without gradient checkpointing, 15 GB.")
    ] = False,
    precision: Annotated[str, typer.Option(help="bf16 or fp32, of --memory.")] = "bf16",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Of the processor.")] = 1,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Write the figures there.")] = None,  # noqa: UP045
) -> None:
    """Time adapter training with and without caches; with --memory compare the predicted memory of a step with the real one.

    Example: deadiff bench train --rounds 8
    """
    if layout not in ("icons", "sd15"):
        raise ConfigError(f"layout is {layout!r}: expected icons or sd15")
    if json_file is not None:
        _check(json_file)
    import torch

    from deadiff.benchmarking import training

    torch.set_num_threads(threads)
    told: Any
    if memory:
        told = [training.memory(layout, on, precision, batch_size, threads) for on in (True, False)]
        for row in told:
            state = "on " if row["gradient_checkpointing"] else "off"
            typer.echo(
                f"gradient checkpointing {state}  predicted {row['predicted_mib']:,} MiB  "
                f"measured {row['measured_mib']:,} MiB  ratio {row['ratio']}  {row['seconds']} s"
            )
    else:
        told = training.caches(layout, rounds, batch_size, tick=lambda what: typer.echo(what, err=True))
        for name, rate in told["images_per_second"].items():
            typer.echo(f"{name:16s} {rate:8.2f} images/s")
        typer.echo(f"{'speed-up':16s} {told['speed_up']:8.2f} x, median of {rounds} rounds in turn, {layout}, batch {batch_size}")
    if json_file is not None:
        _write(json_file, json.dumps(told, indent=2) + "\n")


def _with_progress(options: Any, benchmark: Any) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from deadiff.benchmarking.run import planned

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=planned(options))
        return benchmark(options, lambda what: bar.update(task, advance=1, description=what))


def _check(path: Path) -> None:
    """Before minutes of work: can the file be written? Raises ConfigError."""
    if path.is_dir():
        raise ConfigError(f"--json '{path}' is a folder: expected a file")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ConfigError(f"--json '{path}' cannot be written: expected an existing folder that you may write to")


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises ConfigError."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"--json '{path}' cannot be written: {error.strerror}") from error
