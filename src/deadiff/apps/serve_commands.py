"""`deadiff serve`: drawing over HTTP."""

import os
from pathlib import Path
from typing import Annotated

import typer

from deadiff.errors import ConfigError, MissingExtraError

app = typer.Typer(rich_markup_mode=None, add_completion=False)
TOKEN, DATABASE = "DEADIFF_TOKEN", "DEADIFF_DATABASE"  # environment variables: command lines are seen by all users of a machine


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond this machine a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    data: Annotated[Path, typer.Option(help="Folder for pictures, references, styles and the database.")] = Path("deadiff-data"),
    model: Annotated[str, typer.Option(help="icons, sd15, a folder or a hub id.")] = "icons",
    base: Annotated[str | None, typer.Option(help="Another base: a folder, a .safetensors file or a hub id.")] = None,
    controlnet: Annotated[str | None, typer.Option(help="A ControlNet: a folder or a hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. Default: the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16. Default: fp32 on a CPU, else fp16.")] = None,
    safety_checker: Annotated[bool, typer.Option("--safety-checker", help="Keep the base's safety checker.")] = False,
    database: Annotated[
        str | None,
        typer.Option(
            help=f"postgresql://USER@HOST/NAME; a password is better in {DATABASE}. Default: SQLite.", show_default=False
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help=f"File with the bearer token. Default: {TOKEN}.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=1000, help="Pictures drawn at once.")] = 8,
    max_queue: Annotated[int, typer.Option(min=1, max=1_000_000, help="Pictures that may wait; above it, 429.")] = 256,
    max_mib: Annotated[int, typer.Option(min=1, max=1024, help="Of a request's body.")] = 16,
    max_megapixels: Annotated[float, typer.Option(min=0.01, max=89, help="Of a reference.")] = 16,
    max_side: Annotated[int, typer.Option(min=8, max=8192, help="Pictures to draw have at most this squared, in pixels.")] = 1024,
    max_prompt: Annotated[int, typer.Option(min=1, max=100_000, help="Characters.")] = 1000,
    max_images: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of one job.")] = 16,
    max_steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of the solver.")] = 100,
    keep_hours: Annotated[float | None, typer.Option(min=0, help="Delete jobs and pictures after that. Default: never.")] = None,
    lease: Annotated[
        float, typer.Option(min=1, help="Seconds after which another process takes over from one that died (PostgreSQL).")
    ] = 60,
    grace: Annotated[float, typer.Option(min=0, max=3600, help="Seconds a batch may still take when told to stop.")] = 10,
) -> None:
    """Serve drawing over HTTP: jobs, named styles, metrics. Accepted jobs survive a crash and are drawn after it.

    Example: deadiff serve --port 8000 --data deadiff-data

    Then: curl -F prompt="a robot" -F style=@ref.png http://127.0.0.1:8000/v1/jobs/form
    """
    try:
        from deadiff.service.server import address_of, bind
        from deadiff.service.server import serve as run
        from deadiff.service.settings import Settings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("deadiff"):
            raise
        raise MissingExtraError(f"deadiff serve needs {error.name}: pip install 'deadiff[service]'") from error

    settings = Settings(
        folder=data,
        database=database or os.environ.get(DATABASE) or None,
        host=host,
        port=port,
        token=_token(token_file),
        max_batch=max_batch,
        max_queue=max_queue,
        max_bytes=max_mib * 2**20,
        max_pixels=round(max_megapixels * 1e6),
        max_drawn_pixels=max_side**2,
        max_prompt=max_prompt,
        max_images=max_images,
        max_steps=max_steps,
        keep_hours=keep_hours,
        lease=lease,
        grace=grace,
    )
    with bind(settings) as listening:
        from deadiff.loading import load

        typer.echo(f"loading {model}", err=True)
        stylizer = load(model, base, controlnet, device, dtype, safety_checker=safety_checker)
        said = f"serving {model} on {address_of(listening)}, everything is kept in '{data}'; Ctrl-C stops"
        run(settings, listening, stylizer, lambda: typer.echo(said, err=True))
    typer.echo("stopped; what was accepted and not drawn waits in the queue", err=True)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the token file '{file}' cannot be read: expected a text file with the token in it") from error
