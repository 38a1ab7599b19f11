"""`deadiff inspect`: what a file or folder is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A drawn PNG, a model or adapter folder, icons, a .ckpt or .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a checkpoint, adapter, model folder or drawn picture is: whose weights, which terms, how large, which routes.

    Example: deadiff inspect robots/a-robot_ref_7.png
    """
    from deadiff.what_is import what_is

    found = what_is(path)
    typer.echo(json.dumps(found) if as_json else "\n".join([f"{found.pop('path')}: {found.pop('what')}", *lines(found)]))


def lines(data: dict[str, Any], depth: int = 1) -> list[str]:
    """Nested data as indented lines; what is empty is left out."""
    result = []
    for name, value in data.items():
        if value in (None, "", [], (), {}):
            continue
        title = "  " * depth + name.replace("_", " ")
        if isinstance(value, dict) and set(value) == {"parameters", "megabytes", "numbers"}:
            value = f"{value['parameters']:,} parameters, {value['megabytes']:,} MB, {value['numbers']}"
        if isinstance(value, dict):
            result += [f"{title}:", *lines(value, depth + 1)]
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
            result += [f"{title}:", *(line for item in value for line in lines(item, depth + 1))]
        elif isinstance(value, (list, tuple)):
            result.append(f"{title}: {', '.join(map(str, value))}")
        else:
            result.append(f"{title}: {value:,}" if isinstance(value, int) and not isinstance(value, bool) and name != "seed"
                          else f"{title}: {value}")  # fmt: skip
    return result
