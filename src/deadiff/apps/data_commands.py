"""`deadiff data ...`: make the data that models learn from (icons, generate, import), pair it, and look at it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(no_args_is_help=True, help="Make, pair and look at the data that models learn from.")

Out = Annotated[Path, typer.Option(help="The folder to write; a run that was killed goes on where it stopped.")]
Processes = Annotated[Optional[int], typer.Option(min=1, help="Worker processes; default: one a core.")]  # noqa: UP045
RayWorkers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--ray", min=1, help="Work on a Ray cluster with so many workers: $RAY_ADDRESS, else this machine."),
]


@contextmanager
def _library_errors() -> Iterator[None]:
    """What the libraries raise for a missing extra or a full disk, as an error of ours, which cli.run says in one line."""
    from deadiff.errors import DataError, DEADiffError, MissingExtraError

    try:
        yield
    except DEADiffError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"'{error.name}' is needed for this: pip install 'deadiff[data]'") from error
    except OSError as error:
        raise DataError(f"{error}: check the path, its permissions and the free space") from error


@app.command()
def icons(
    out: Annotated[Path, typer.Option(help="The folder to write; a run that was killed goes on where it stopped.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 128,
    seed: Annotated[int, typer.Option(help="Of renditions, palettes and captions: the same seed gives the same bytes.")] = 0,
    renditions: Annotated[
        int, typer.Option(help="Seen renditions of each picture; one held-out rendition comes on top. 0: none.")
    ] = 3,
    house_renditions: Annotated[
        int, typer.Option(help="Seen renditions of the one drawing that stands for a subject where no style is named.")
    ] = 12,
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
    with _library_errors():
        from deadiff.data.build import BuildConfig, build
        from deadiff.data.card import write_card
        from deadiff.data.look import contact_sheets

        config = BuildConfig(size=size, seed=seed, renditions=renditions, house_renditions=house_renditions, limit=limit)
        workers = processes or os.cpu_count() or 1
        with _progress() as report:
            build(out, config, cache=cache, art=art, offline=offline, processes=workers, progress=report)
        out = out.expanduser()
        write_card(out, out / "card.md")
        contact_sheets(out, out / "sheets")
    typer.echo(f"{out}: shards in plain/ and rendered/, what they hold in card.md, how they look in sheets/")


@app.command()
def generate(
    out: Out,
    model: Annotated[str, typer.Option(help="icons, sd15, a folder or a hub id: any diffusers text-to-image model.")] = "icons",
    subjects: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Lines of GROUP, TAB, WORD under such a heading; default: 13,490 words in four groups."),
    ] = None,
    styles: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Lines of '[kind | frame]' and of words below them; default: 652 in seven kinds."),
    ] = None,
    styles_per_subject: Annotated[int, typer.Option(help="Pictures of each subject.")] = 14,
    limit: Annotated[Optional[int], typer.Option(help="Only so many subjects, as many of each group.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Of the plan and of each picture.")] = 0,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Denoising steps; default: the model's.")] = None,  # noqa: UP045
    guidance: Annotated[Optional[float], typer.Option(help="Guidance scale; default: the model's.")] = None,  # noqa: UP045
    negative: Annotated[Optional[str], typer.Option(help="Negative prompt; default: the model's.")] = None,  # noqa: UP045
    size: Annotated[Optional[int], typer.Option(min=16, help="Pixels a side; default: the model's.")] = None,  # noqa: UP045
    dtype: Annotated[Optional[str], typer.Option(help="fp32, fp16 or bf16; default: fp32 on a CPU, else fp16.")] = None,  # noqa: UP045
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1 or mps.")] = None,  # noqa: UP045
    safety_checker: Annotated[bool, typer.Option(help="Use the model's own; flagged pictures count as failed.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 8,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures of a file.")] = 256,
    licence: Annotated[str, typer.Option(help="Of the pictures, as the model's makers say.")] = "",
    unseen: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the styles, and of the other combinations, held out of training.")
    ] = 0.02,
    share: Annotated[str, typer.Option(help="This run's share, as 0/4 to 3/4: several runs draw into one folder.")] = "0/1",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Draw again the prompts that failed before.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the plan and stop.")] = False,
    ray: RayWorkers = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray worker.")] = 0,
) -> None:
    """Draw subjects in styles with a text-to-image model, the paper's way: every subject in about 14 styles, balanced.

    Example: deadiff data generate --out data/drawn --model icons --limit 40 --steps 8
    """
    with _library_errors():
        from deadiff.data import generate as work
        from deadiff.data.painter import PainterSpec
        from deadiff.data.plan import PlanConfig
        from deadiff.data.vocabulary import read_styles, read_subjects

        plan = PlanConfig(
            seed=seed, styles_per_subject=styles_per_subject, limit=limit, unseen_styles=unseen, unseen_combinations=unseen
        )
        painter = PainterSpec(
            model=model, steps=steps, guidance_scale=guidance, negative_prompt=negative, width=size, height=size,
            dtype=dtype, device=device, safety_checker=safety_checker,
        )  # fmt: skip
        config = work.GenerateConfig(shard_size=shard_size, batch_size=batch_size, licence=licence)
        mine = _share(share)
        out = out.expanduser()
        count = work.prepare(out, read_subjects(subjects), read_styles(styles), plan, painter, config)
        if plan_only:
            typer.echo(f"{out / 'plan.parquet'}: {count:,} pictures planned; the same command without --plan-only draws them")
            return
        with _progress() as report:
            found = work.generate(
                out,
                painter,
                config,
                retry_failed=retry_failed,
                share=mine,
                run=_runner(1, ray, gpus) if ray else None,
                progress=report,
            )
    failed = f", {found['failed']:,} prompts failed (the reasons are in failed/)" if found["failed"] else ""
    typer.echo(f"{out}: {found['drawn']:,} of {found['planned']:,} pictures drawn{failed}; next: deadiff data pairs {out}")


@app.command("import")
def import_(
    folder: Annotated[Optional[Path], typer.Argument(help="The folder of the pictures.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="The folder to write; a run that was killed goes on where it stopped.")] = ...,  # type: ignore[assignment]
    table: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV, TSV, JSON lines or parquet with the columns file, subject and style, perhaps caption, tags..."),
    ] = None,
    layout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What a picture's place says; default '{style}/{subject}'. Also {group} and {any}."),
    ] = None,
    tags: Annotated[
        bool, typer.Option("--tags", help="Nothing says the style: cluster it. Tags are in FILE.txt, the subject first.")
    ] = False,
    tag_table: Annotated[Optional[Path], typer.Option(help="As --tags, with a table of file and tags.")] = None,  # noqa: UP045
    clusters: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Styles to find with --tags; default: one in 30 pictures."),
    ] = None,
    clip: Annotated[Optional[str], typer.Option(help="A CLIP model whose view takes part in the clustering.")] = None,  # noqa: UP045
    size: Annotated[int, typer.Option(help="Greater pictures are shrunk to so many pixels on the shorter side.")] = 512,
    shard_size: Annotated[int, typer.Option(help="Pictures of a file.")] = 256,
    name: Annotated[str, typer.Option(help="Whose pictures these are: the column `set`.")] = "imported",
    licence: Annotated[str, typer.Option(help="Of pictures whose table names none.")] = "unknown",
    unseen: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the styles, and of the other combinations, held out of training.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of clusters and of what is held out.")] = 0,
    processes: Processes = None,
    ray: RayWorkers = None,
) -> None:
    """Bring your own pictures: a folder whose layout names style and subject, a table, or a folder with tags alone.

    Example: deadiff data import my-pictures --layout "{style}/{subject}" --out data/mine
    """
    with _library_errors():
        from deadiff.data.importing import ImportConfig, import_pictures

        config = ImportConfig(
            size=size, shard_size=shard_size, name=name, licence=licence, clusters=clusters, seed=seed,
            unseen_styles=unseen, unseen_combinations=unseen,
        )  # fmt: skip
        out = out.expanduser()
        with _progress() as report:
            found = import_pictures(
                out,
                folder.expanduser() if folder else None,
                config,
                table=table.expanduser() if table else None,
                layout=layout,
                tags=tag_table.expanduser() if tag_table else tags,
                clip=clip,
                run=_runner(processes, ray),
                progress=report,
            )
    left_out = f", {found['left_out']:,} left out (the reasons are in left_out/)" if found["left_out"] else ""
    typer.echo(f"{out}: {found['imported']:,} of {found['found']:,} pictures imported{left_out}; next: deadiff data pairs {out}")


@app.command()
def pairs(
    folder: Annotated[Path, typer.Argument(help="A folder that `deadiff data icons`, `generate` or `import` wrote.")],
    out: Annotated[Optional[Path], typer.Option(help="Where the index goes; default: FOLDER/pairs.")] = None,  # noqa: UP045
    split: Annotated[str, typer.Option(help="Which pictures are paired: train, unseen_combination or unseen_style.")] = "train",
    per_target: Annotated[int, typer.Option(help="Pairs of one target and task, at most.")] = 2,
    candidates: Annotated[int, typer.Option(help="References that a target looks at before it gives up.")] = 8,
    near_duplicate: Annotated[float, typer.Option(help="Pictures that differ less than this are one (0 to 1).")] = 0.02,
    looks_quantile: Annotated[
        float, typer.Option(help="A style pair looks more alike than this share of the pairs of different styles; 1: any.")
    ] = 0.5,
    alike_quantile: Annotated[
        float, typer.Option(help="A subject pair looks more different than this share of such pairs; 0: any.")
    ] = 0.02,
    balance: Annotated[
        float, typer.Option(help="No style or subject has more than this many times the median number of pairs; 0: no limit.")
    ] = 3.0,
    max_per_style: Annotated[Optional[int], typer.Option(help="Pairs, instead of --balance.")] = None,  # noqa: UP045
    max_per_subject: Annotated[Optional[int], typer.Option(help="Pairs, instead of --balance.")] = None,  # noqa: UP045
    clip: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A CLIP model: subject pairs that show two subjects are dropped too."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pairs.")] = 0,
    processes: Processes = None,
    ray: RayWorkers = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray worker, for CLIP.")] = 0,
) -> None:
    """Pair pictures of one style and two subjects (STRE), and of one subject and two styles (SERE); filter and balance them.

    Example: deadiff data pairs data/drawn
    """
    with _library_errors():
        from deadiff.data.pairs import PairConfig, make_pairs

        config = PairConfig(
            seed=seed, split=split, per_target=per_target, candidates=candidates, near_duplicate=near_duplicate,
            looks_quantile=looks_quantile, alike_quantile=alike_quantile, balance=balance,
            max_per_style=max_per_style, max_per_subject=max_per_subject,
        )  # fmt: skip
        folder = folder.expanduser()
        target = out.expanduser() if out else folder / "pairs"
        with _progress() as report:
            note = make_pairs(folder, target, config, clip=clip, run=_runner(processes, ray, gpus), progress=report)
    for task, found in note["statistics"].items():
        dropped = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in found["dropped"].items() if count)
        typer.echo(
            f"{task}: {found['pairs']:,} pairs of {found['targets']:,} targets in {found['pairs_per_style']['number']:,} styles "
            f"and {found['pairs_per_subject']['number']:,} subjects; dropped: {dropped or 'none'}"
        )
    typer.echo(f"{target}: pairs.parquet, dropped.parquet and pairs.json; next: deadiff data look {folder} --out sheets")


@app.command()
def look(
    folder: Annotated[Path, typer.Argument(help="A folder that `deadiff data icons`, `generate` or `import` wrote.")],
    out: Annotated[Path, typer.Option(help="Where the contact sheets go.")],
    pairs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The index whose pairs are shown; default: FOLDER/pairs, if there is one."),
    ] = None,
    number: Annotated[int, typer.Option(min=1, max=500, help="Pairs on a sheet.")] = 60,
    seed: Annotated[int, typer.Option(help="Which pairs and styles are shown.")] = 0,
    thumb: Annotated[int, typer.Option(min=16, max=256, help="Pixels a side of each picture on a sheet of sets.")] = 80,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG files.")] = 82,
) -> None:
    """Write contact sheets: sampled pairs and what was dropped, styles; of icons, every set and every rendition.

    Example: deadiff data look data/drawn --out sheets
    """
    with _library_errors():
        from deadiff.data.look import contact_sheets
        from deadiff.data.pair_sheet import pair_sheets, style_sheet

        folder, out = folder.expanduser(), out.expanduser()
        index = pairs.expanduser() if pairs else folder / "pairs"
        written: list[Path] = []
        if (folder / "pictures").is_dir():
            written.append(style_sheet(folder, out, seed=seed, quality=quality))
        else:
            written += contact_sheets(folder, out, thumb=thumb, quality=quality)
        if pairs or (index / "pairs.json").is_file():
            written += pair_sheets(folder, out, index, number=number, seed=seed, quality=quality)
    for path in written:
        typer.echo(str(path))


def _share(text: str) -> tuple[int, int]:
    """'2/4' -> (2, 4)."""
    from deadiff.errors import ConfigError

    worker, _, workers = text.partition("/")
    if not (worker.isdecimal() and workers.isdecimal() and int(worker) < int(workers)):
        raise ConfigError(f"--share is {text!r}: expected 0/N to N-1/N, such as 0/4")
    return int(worker), int(workers)


def _runner(processes: int | None, ray: int | None, gpus: float = 0) -> Any:
    """Where the parts are done: in processes of this machine (default: one a core), or on Ray."""
    if ray:
        from deadiff.data.ray_stages import run_on_ray

        return run_on_ray(ray, gpus=gpus)
    from deadiff.data.shard_jobs import run_here

    return run_here(processes or os.cpu_count() or 1)


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
