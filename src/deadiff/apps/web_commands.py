"""`deadiff web`: the graphical app, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def web(
    model: Annotated[
        list[str] | None,
        typer.Option(help="icons, sd15, a folder or a hub id; repeat to offer several.  [default: icons]", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for pictures, references and styles; nothing in it is ever replaced.")] = Path(
        "pictures"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond this machine only with a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    password: Annotated[
        str | None, typer.Option(envvar="DEADIFF_WEB_PASSWORD", help="Asked for by the page, with the user name deadiff.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Draw in the browser: drop references, say what to draw, watch it come; a gallery, comparisons, named styles.

    Example: deadiff web --model icons --out pictures
    """
    from deadiff.web.server import is_loopback, start, wait

    running = start(out, model or ["icons"], host=host, port=port, password=password)
    typer.echo(f"{running.url}  (pictures in '{out}'; Ctrl-C ends it)")
    if browser and is_loopback(host):
        import webbrowser

        webbrowser.open(running.url)
    wait(running)
