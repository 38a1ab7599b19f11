"""A contact sheet: the references in the margin, the prompt above each row, the seed below each picture.

Where every prompt was drawn once in the style of every reference it is a table: a column a reference, a row a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, LINE = 24, 12, 20  # pixels: around the sheet, between cells, height of a line of text
CELL, MANY, SMALL_CELL = 192, 120, 96  # side of a picture on the sheet; with more pictures than MANY, of each
INK, FAINT, PAPER, RULE = "#1b1b1f", "#6b6b76", "#ffffff", "#e4e4ea"
MOST = 2_000  # pictures on one sheet


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt: its references (picture, label) and what was drawn (picture, label)."""

    prompt: str
    references: Sequence[tuple[Image.Image, str]]
    pictures: Sequence[tuple[Image.Image, str]]


def contact_sheet(rows: Sequence[Row], columns: int = 4) -> Image.Image:
    """Rows of pictures, at most `columns` beside each other, with the references of each row in the left margin; or a table."""
    if is_table(rows):
        return table(rows)
    cell = CELL if sum(len(row.pictures) for row in rows) <= MANY else SMALL_CELL
    columns = max(1, min(columns, max(len(row.pictures) for row in rows)))
    thumb = cell * 5 // 8
    references = max(len(row.references) for row in rows)
    stacked = min(references, 3)  # references below each other, then in a further column
    margin = (thumb + GAP) * -(-references // 3) + 2 * GAP if references else 0
    grid = columns * (cell + GAP) - GAP
    width = 2 * MARGIN + margin + max(grid, 2 * CELL)

    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    texts = [wrap(row.prompt or "(no prompt)", font, width - 2 * MARGIN - margin, lines=2) for row in rows]
    heights = []
    for row, lines in zip(rows, texts, strict=True):
        drawn = len(lines) * LINE + 6 + -(-len(row.pictures) // columns) * (cell + LINE + 4)
        heights.append(max(drawn, min(stacked, len(row.references)) * (thumb + LINE + 4) if row.references else 0) + GAP)
    sheet = Image.new("RGB", (width, 2 * MARGIN - GAP + sum(heights) + (len(rows) - 1) * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)

    top = MARGIN
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for number, (picture, label) in enumerate(row.references):
            x, y = MARGIN + number // 3 * (thumb + GAP), top + number % 3 * (thumb + LINE + 4)
            paste(sheet, picture, x, y, thumb)
            draw.text((x, y + thumb + 3), clip(label, small, thumb), font=small, fill=FAINT)
        left = MARGIN + margin
        if margin:
            draw.line((left - GAP - 1, top, left - GAP - 1, top + height - GAP), fill=RULE, width=1)
        for number, line in enumerate(lines):
            draw.text((left, top + number * LINE - 2), line, font=font, fill=INK)
        for number, (picture, label) in enumerate(row.pictures):
            x = left + number % columns * (cell + GAP)
            y = top + len(lines) * LINE + 6 + number // columns * (cell + LINE + 4)
            paste(sheet, picture, x, y, cell)
            draw.text((x, y + cell + 3), clip(label, small, cell), font=small, fill=FAINT)
        top += height + GAP
    return sheet


def is_table(rows: Sequence[Row]) -> bool:
    """Every prompt with every one of several references, one picture each, prompt by prompt in the same order."""
    if any(len(row.references) != 1 or len(row.pictures) != 1 for row in rows):
        return False
    prompts, labels = (list(dict.fromkeys(x)) for x in ((r.prompt for r in rows), (r.references[0][1] for r in rows)))
    wanted = [(prompt, label) for prompt in prompts for label in labels]
    return len(labels) > 1 and wanted == [(row.prompt, row.references[0][1]) for row in rows]


def table(rows: Sequence[Row]) -> Image.Image:
    """The references above their columns, the prompts above their rows."""
    cell = CELL * 2 // 3 if len(rows) <= MANY else SMALL_CELL
    columns = len({row.references[0][1] for row in rows})
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    height, step = cell + LINE + GAP, cell + GAP
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (2 * MARGIN - GAP + columns * step, 2 * MARGIN + (1 + lines) * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        x, y = MARGIN + number % columns * step, MARGIN + GAP + (1 + number // columns) * height
        if number < columns:
            (picture, label) = row.references[0]
            paste(sheet, picture, x, MARGIN, cell)
            draw.text((x, MARGIN + cell + 3), clip(label, small, cell), font=small, fill=FAINT)
        if number % columns == 0:
            draw.line((MARGIN, y - GAP // 2, sheet.width - MARGIN, y - GAP // 2), fill=RULE, width=1)
            draw.text((x, y), clip(row.prompt or "(no prompt)", font, sheet.width - 2 * MARGIN), font=font, fill=INK)
        paste(sheet, row.pictures[0][0], x, y + LINE, cell)
    return sheet


def paste(sheet: Image.Image, picture: Image.Image, x: int, y: int, side: int) -> None:
    """Fit the whole picture into a square, centred, on a hair line."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    resample = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    left, top = x + (side - size[0]) // 2, y + (side - size[1]) // 2
    sheet.paste(picture.convert("RGB").resize(size, resample), (left, top))
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline=RULE)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> list[str]:
    """Text -> at most `lines` lines no wider than `width` pixels; what does not fit ends in an ellipsis."""
    words, result = " ".join(text.split())[:600].split(" "), []
    while words and len(result) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        result.append(clip(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*result, clip(" ".join(words), font, width)] if words else result


def clip(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    text = text[:400]
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
