"""`deadiff convert`: the published checkpoint -> a model folder."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="deadiff_v1.ckpt, as published.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    dtype: Annotated[str, typer.Option(help="Numbers in the result: fp16, bf16 or fp32.")] = "fp16",
    tokenizer: Annotated[str | None, typer.Option(help="Where CLIP's tokenizer is: a folder, a file or a hub id.")] = None,
) -> None:
    """Turn the published checkpoint into a diffusers folder with the adapter in it; every key is accounted for.

    Example: deadiff convert deadiff_v1.ckpt models/sd15
    """
    from tqdm import tqdm

    from deadiff.official import convert as run

    with tqdm(total=1, unit="B", unit_scale=True, leave=False, delay=0.5) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = run(checkpoint, out, dtype, tokenizer=tokenizer, progress=report)
    typer.echo("\n".join(result.lines()))
