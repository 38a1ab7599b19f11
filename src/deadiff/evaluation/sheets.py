"""Contact sheets of an evaluation, chosen by rule, not by taste: evenly spaced references and prompts, and the worst cases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deadiff.contact_sheet import FAINT, GAP, INK, LINE, MARGIN, PAPER, clip, paste
from deadiff.evaluation.design import PASTED, RANDOM, Cell, spaced
from deadiff.evaluation.protocol import Evaluation
from deadiff.evaluation.reference_set import picture_path

CELL, NAME = 96, 190  # pixels: side of a picture, width of the names of methods
ACROSS, WORST = 8, 12  # columns of a comparison, worst cases of a kind


def comparison(evaluation: Evaluation, one_prompt: bool = False) -> tuple[Image.Image, str]:
    """A row a method, a column a reference, each with its own prompt (or all with one); and the rule in words."""
    recipe = evaluation.recipe
    references = spaced(evaluation.references, ACROSS)
    prompts = spaced(list(recipe.prompts), len(references))
    prompts = [prompts[len(prompts) // 2]] * len(references) if one_prompt else [*prompts, *prompts][: len(references)]
    while len(prompts) < len(references):
        prompts.append(prompts[-1])
    cells = [
        Cell(reference=reference.name, prompt=prompt, seed=recipe.seed_of(prompt, 0))
        for reference, prompt in zip(references, prompts, strict=True)
    ]
    methods = [method for method in evaluation.methods if method.kind not in (PASTED, RANDOM)]
    step, top = CELL + GAP // 3, MARGIN + CELL + 2 * LINE
    sheet = Image.new("RGB", (2 * MARGIN + NAME + len(cells) * step, top + len(methods) * step + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    draw.text((MARGIN, MARGIN), "reference", font=font, fill=FAINT)
    for number, (reference, cell) in enumerate(zip(references, cells, strict=True)):
        x = MARGIN + NAME + number * step
        with Image.open(picture_path(evaluation.out, reference)) as picture:
            paste(sheet, picture, x, MARGIN, CELL)
        draw.text((x, MARGIN + CELL + 4), clip(cell.prompt, small, CELL), font=small, fill=INK)
    for row, method in enumerate(methods):
        y = top + row * step
        draw.text((MARGIN, y + CELL // 2 - 8), clip(method.title, font, NAME - 8), font=font, fill=INK)
        scores = evaluation.scores[method.name].chosen(cells)
        for number, path in enumerate(scores.pictures):
            if path:
                with Image.open(evaluation.out / path) as picture:
                    paste(sheet, picture, MARGIN + NAME + number * step, y, CELL)
    rule = f"every {len(evaluation.references) / len(references):.3g}th reference"
    rule += f", the prompt in the middle of the list ({prompts[0]})" if one_prompt else ", prompts evenly spaced"
    return sheet, f"{rule}; the first seed of each"


def worst(evaluation: Evaluation, method: str, column: str, highest: bool) -> tuple[Image.Image, str]:
    """The WORST pictures of a method by one score, each beside its reference, at most two of one reference."""
    cells = evaluation.main_cells
    scores = evaluation.scores[method].chosen(cells)
    values = scores.columns[column]
    order = [int(i) for i in np.argsort(-values if highest else values, kind="stable") if not np.isnan(values[i])]
    chosen: list[int] = []
    for i in order:
        if len(chosen) < WORST and sum(cells[j].reference == cells[i].reference for j in chosen) < 2:
            chosen.append(i)
    names = {reference.name: reference for reference in evaluation.references}
    columns = 4
    wide, high = 2 * CELL + GAP, CELL + 2 * LINE
    rows = -(-max(1, len(chosen)) // columns)
    sheet = Image.new("RGB", (2 * MARGIN + columns * (wide + GAP), 2 * MARGIN + rows * high), PAPER)
    draw = ImageDraw.Draw(sheet)
    small = ImageFont.load_default(11)
    for place, i in enumerate(chosen):
        x, y = MARGIN + place % columns * (wide + GAP), MARGIN + place // columns * high
        with Image.open(picture_path(evaluation.out, names[cells[i].reference])) as picture:
            paste(sheet, picture, x, y, CELL)
        with Image.open(evaluation.out / scores.pictures[i]) as picture:
            paste(sheet, picture, x + CELL + 6, y, CELL)
        draw.text((x, y + CELL + 3), clip(f"{cells[i].prompt}: {values[i]:.2f}", small, wide), font=small, fill=INK)
    which = "highest" if highest else "lowest"
    return sheet, f"the {len(chosen)} {which} by {column}, at most two of one reference; reference left, drawn right"


def save_sheets(sheets: Sequence[tuple[str, Image.Image]], folder: Path) -> dict[str, Path]:
    """name, sheet -> FOLDER/name.jpg, quality 88: contact sheets are for the eye."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {}
    for name, sheet in sheets:
        saved[name] = folder / f"{name}.jpg"
        sheet.save(saved[name], quality=88, subsampling=0)
    return saved
