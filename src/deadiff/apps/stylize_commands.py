"""`deadiff stylize`: prompts and references from the command line to PNG files and a contact sheet."""

import json
import logging
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from deadiff.contact_sheet import MOST, Row, contact_sheet
from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import Job, as_jobs, open_picture, references, weight_of
from deadiff.prompts_file import read_jobs
from deadiff.recipe import Recipe, Source, png_bytes, read_recipe
from deadiff.references import Reference, pictures_in, pixels_sha256
from deadiff.writing import prepare_folder, write_new

app = typer.Typer(rich_markup_mode=None, add_completion=False)
log = logging.getLogger("deadiff")


@app.command()
def stylize(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.", show_default=False)] = None,
    style: Annotated[list[str] | None, typer.Option(help="Reference for the style, FILE or FILE:WEIGHT; repeat to mix.")] = None,
    content: Annotated[list[str] | None, typer.Option(help="Reference for the subject, FILE or FILE:WEIGHT.")] = None,
    style_dir: Annotated[Path | None, typer.Option(help="Draw every prompt in the style of every picture of a folder.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts from a file: one a line, or .jsonl with references, seeds...")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A photo to redraw.")] = None,
    image_strength: Annotated[float | None, typer.Option(min=0, max=1, help="How far the photo is redrawn.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Redraw the photo only where this picture is white.")] = None,
    control: Annotated[Path | None, typer.Option(help="The picture that --controlnet reads: edges, depth, pose...")] = None,
    model: Annotated[
        str | None, typer.Option(help="icons, sd15, a folder or a hub id.  [default: icons]", show_default=False)
    ] = None,
    base: Annotated[str | None, typer.Option(help="Another base: a folder, a .safetensors file or a hub id.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA file for the base, FILE or FILE:SCALE; repeat for more.")] = None,
    controlnet: Annotated[str | None, typer.Option(help="A ControlNet: a folder or a hub id.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures; existing files are kept, new ones numbered on.")] = Path(
        "pictures"
    ),
    num: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures of each prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first picture; the next count on. Default: random.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps of the solver. Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=1000, help="How closely to follow the prompt.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Solver: ddim, dpm++, unipc, euler, euler_a, lcm... or model.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep out. Default: the model's.")] = None,
    strength: Annotated[float, typer.Option(min=0, max=100, help="Of the style.")] = 1.0,
    content_strength: Annotated[float, typer.Option(min=0, max=100, help="Of the content reference.")] = 1.0,
    window: Annotated[str, typer.Option(help="START:END, the fractions of the steps in which the style acts.")] = "0:1",
    resize: Annotated[str | None, typer.Option(help="How references become square: squash, pad or crop.")] = None,
    width: Annotated[int | None, typer.Option(min=8, max=8192, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(min=8, max=8192, help="Pixels.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=1000, help="Pictures at once.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. Default: the best there is.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16. Default: fp32 on a CPU, else fp16.")] = None,
    safety_checker: Annotated[bool, typer.Option("--safety-checker", help="Keep the base's safety checker.")] = False,
    sheet: Annotated[bool, typer.Option(help="Also write a contact sheet, with the references in its margin.")] = True,
    again: Annotated[Path | None, typer.Option(help="Make the picture of this PNG again, from the recipe it carries.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the files' names.")] = False,
) -> None:
    """Draw what the prompt says in the style of a reference picture.

    Example: deadiff stylize "a robot" --style ref.png --num 4 --seed 7 --out robots

    Without --style it is the plain base model. Every PNG carries its recipe: deadiff stylize --again robots/a-robot_ref_7.png
    """
    pictures = {"style": style or None, "content": content or None, "image": image, "mask_image": mask, "control_image": control}
    where = {
        "base": base,
        "controlnet": controlnet,
        "loras": [_weighted(item) for item in lora or []],
        "device": device,
        "dtype": dtype,
    }
    where["safety_checker"] = safety_checker
    if again is not None:
        if prompt is not None or prompts is not None or style_dir is not None:
            raise ConfigError("--again takes the prompt from the picture: leave PROMPT, --prompts and --style-dir out")
        folder = prepare_folder(out)
        _make_again(again, pictures, model, where, folder, as_json)
        return

    jobs = _jobs(prompt, prompts, style_dir, pictures)
    folder = prepare_folder(out)

    from tqdm import tqdm

    start, end = _window(window)
    stylizer = _load(model or "icons", where)
    saved: list[tuple[Path, Recipe]] = []

    def save(index: int, picture: Any, recipe: Recipe) -> None:
        path = write_new(folder, _stem(recipe), ".png", png_bytes(picture, recipe))
        saved.append((path, recipe))
        if not as_json:
            tqdm.write(str(path))  # above the progress bar
            sys.stdout.flush()

    try:
        output = stylizer(
            jobs,
            strength=strength,
            content_strength=content_strength,
            negative_prompt=negative,
            num_images=num,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
            batch_size=batch_size,
            style_window=(start, end),
            scheduler=scheduler,
            resize=resize,
            image_strength=image_strength,
            width=width,
            height=height,
            progress=True,
            on_picture=save,
        )
    except KeyboardInterrupt:
        typer.echo(f"stopped: {len(saved)} finished pictures are in '{folder}'", err=True)
        raise
    made: dict[str, Any] = {
        "pictures": [{"path": str(path), "seed": recipe.seed, "recipe": asdict(recipe)} for path, recipe in saved]
    }
    if sheet:
        path = _write_sheet(jobs, output, num, folder)
        made["sheet"] = str(path)
        if not as_json:
            typer.echo(str(path))
    if any(output.flagged):
        log.warning("%d pictures were blackened by the safety checker", sum(output.flagged))
    if as_json:
        typer.echo(json.dumps(made))


def _jobs(prompt: str | None, prompts: Path | None, style_dir: Path | None, pictures: dict[str, Any]) -> list[Job]:
    """The command line's pictures are opened here, once, before the model is loaded."""
    if (prompt is None) == (prompts is None):
        got = "neither a prompt nor --prompts" if prompt is None else "both a prompt and --prompts"
        raise ConfigError(f'got {got}: expected one of them, as in: deadiff stylize "a robot" --style ref.png')
    jobs = as_jobs(prompt) if prompts is None else read_jobs(prompts)  # pyright: ignore[reportArgumentType]
    if style_dir is not None and pictures["style"]:
        raise ConfigError("got both --style and --style-dir: expected one of them")
    shared = Job(
        style=_opened("style", pictures["style"]),
        content=_opened("content", pictures["content"]),
        image=open_picture(pictures["image"], "image"),
        mask_image=open_picture(pictures["mask_image"], "mask image"),
        control_image=open_picture(pictures["control_image"], "control image"),
    )
    jobs = [job.or_else(shared) for job in jobs]
    if style_dir is not None:
        styles = [Reference(path) for path in pictures_in(style_dir)]
        jobs = [job if job.style is not None else replace(job, style=one) for job in jobs for one in styles]
    return [replace(job, style=_refs(job.style, "style"), content=_refs(job.content, "content")) for job in jobs]


def _refs(given: Any, role: str) -> Any:
    return None if given is None else references(given, role)


def _opened(role: str, given: list[str] | None) -> Any:
    return None if given is None else references([_weighted(item) for item in given], role)


def _weighted(item: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT, where FILE itself may hold a colon."""
    path, colon, weight = item.rpartition(":")
    if colon and not Path(item).expanduser().exists():
        try:
            return path, float(weight)
        except ValueError:
            pass
    return item, 1.0


def _window(text: str) -> tuple[float, float]:
    start, colon, end = text.partition(":")
    try:
        return float(start), float(end if colon else "x")
    except ValueError:
        raise ConfigError(f"--window is {text!r}: expected START:END as fractions of the steps, such as 0:0.6") from None


def _load(model: str, where: dict[str, Any]) -> Any:
    import diffusers
    import transformers

    from deadiff.loading import load

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return load(model, **where)


def _stem(recipe: Recipe) -> str:
    """A file's name: the prompt, the style's name, the seed."""
    style = [Path(source.path).stem for source in recipe.style if source.path][:1]
    words = [re.sub(r"\W+", "-", text).strip("-")[:40] for text in (recipe.prompt, *style)]
    return "_".join([*(word for word in words if word), str(recipe.seed)])


def _write_sheet(jobs: list[Job], output: Any, num: int, folder: Path) -> Path:
    rows, at = [], 0
    for job in jobs:
        count = job.num_images or num
        beside = [
            (ref.picture, _label(role, ref))
            for role in ("style", "content")
            for ref in getattr(job, role) or []
            if weight_of(ref) > 0
        ]
        others = {"photo": job.image, "mask": job.mask_image, "control": job.control_image}
        beside += [(ref.picture, name) for name, ref in others.items() if isinstance(ref, Reference)]
        drawn = [(output.images[i], f"seed {output.seeds[i]}") for i in range(at, at + count)]
        rows.append(Row(prompt=job.prompt, references=beside, pictures=drawn))
        at += count
    if at > MOST:
        log.warning("the contact sheet shows the first %d of %d pictures", MOST, at)
        kept, room = [], MOST
        for row in rows:
            kept.append(replace(row, pictures=row.pictures[: max(0, room)]))
            room -= len(row.pictures)
        rows = [row for row in kept if row.pictures]
    import io

    buffer = io.BytesIO()
    contact_sheet(rows).save(buffer, "PNG")
    return write_new(folder, "sheet", ".png", buffer.getvalue())


def _label(role: str, reference: Reference) -> str:
    weight = "" if reference.weight == 1 else f" {reference.weight:g}"
    return f"{role}{weight}" + (f": {Path(reference.path).name}" if reference.path else "")


def _make_again(png: Path, given: dict[str, Any], model: str | None, where: dict[str, Any], folder: Path, as_json: bool) -> None:
    recipe = read_recipe(png)
    if model is None and recipe.model is None:
        raise ConfigError(f"'{png}' was drawn with a pipeline made in Python: say with which --model to draw it again")
    sources: dict[str, Any] = {}
    for role in ("style", "content"):
        wanted = getattr(recipe, role)
        paths = [path for path, _ in map(_weighted, given[role] or [])]
        if paths and len(paths) != len(wanted):
            raise ConfigError(f"'{png}' was drawn with {len(wanted)} {role} references: got {len(paths)} --{role}")
        found = [_find(w, paths[i] if paths else None, png, role) for i, w in enumerate(wanted)]
        sources[role] = found or ()
    for name, option in (("image", "image"), ("mask_image", "mask"), ("control_image", "control")):
        wanted = getattr(recipe, name)
        sources[name] = None if wanted is None else _find(wanted, given[name], png, option)

    for name, value in (
        ("base", recipe.base),
        ("controlnet", recipe.controlnet),
        ("device", recipe.device),
        ("dtype", recipe.dtype),
    ):
        where[name] = value if where[name] is None else where[name]
    where["loras"] = where["loras"] or recipe.loras
    where["safety_checker"] = where["safety_checker"] or recipe.safety_checker
    where["device"] = _device(where["device"])
    stylizer = _load(model or recipe.model or "", where)
    output = stylizer.again(recipe, progress=True, **sources)
    new = replace(output.recipes[0], style=recipe.style, content=recipe.content, image=recipe.image, mask_image=recipe.mask_image,
                  control_image=recipe.control_image, place=recipe.place)  # fmt: skip
    for name, what in (("fingerprint", "model's weights"), ("versions", "versions"), ("device", "device"), ("dtype", "dtype")):
        then, now = getattr(recipe, name), getattr(new, name)
        if then != now:
            log.warning(
                "the %s differ from the picture's (%s, now %s): it may come out different", what, _brief(then), _brief(now)
            )
    new = replace(new, model=recipe.model if new.fingerprint == recipe.fingerprint else new.model)
    path = write_new(folder, _stem(recipe), ".png", png_bytes(output.images[0], new))
    typer.echo(json.dumps({"pictures": [{"path": str(path), "seed": new.seed, "recipe": asdict(new)}]}) if as_json else str(path))


def _find(wanted: Source, given: Any, png: Path, option: str) -> Reference:
    """The very picture that a recipe names: as given now, at its old path, or beside the PNG. Raises ReferenceError."""
    places = (
        [Path(given)]
        if given is not None
        else []
        if wanted.path is None
        else [Path(wanted.path), png.parent / Path(wanted.path).name]
    )
    there = [place for place in places if place.expanduser().exists()]
    name = f"'{wanted.path}'" if wanted.path else "a picture from memory"
    if given is not None:
        there = places
    if not there:
        raise ReferenceError(f"the {option} reference of '{png}', {name}, is not there any more: give it with --{option} FILE")
    for place in there:
        reference = Reference(str(place), wanted.weight)
        if wanted.sha256 in (reference.sha256, pixels_sha256(reference.picture)):
            return reference
    raise ReferenceError(
        f"'{there[0]}' is not the {option} reference that '{png}' was drawn with (sha256 {wanted.sha256[:12]}...): "
        f"give the original with --{option} FILE"
    )


def _device(name: str | None) -> str | None:
    """The picture's device if this machine has it, else the default; the difference is reported afterwards."""
    from deadiff.loading import find_device

    try:
        return None if name is None else str(find_device(name))
    except ConfigError:
        return None


def _brief(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)[:12]
