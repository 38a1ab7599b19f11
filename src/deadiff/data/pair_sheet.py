"""Contact sheets for somebody to judge by eye: sampled pairs of each task, what was dropped and why, styles of a data set."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deadiff.contact_sheet import FAINT, GAP, INK, LINE, MARGIN, PAPER, Row, clip, contact_sheet, paste
from deadiff.data.pair_index import PAIRED, read_note
from deadiff.data.picture_store import PictureStore
from deadiff.data.records import Records, read_records
from deadiff.errors import DataError
from deadiff.writing import write_whole

COLUMNS = 10  # pictures of a style beside each other
ACROSS, SIDE, INNER = 6, 96, 4  # pairs beside each other; pixels of a picture, and between the two of a pair
STYLES_SHOWN = 24
REASONS_SHOWN = ("near_duplicate", "looks_diverge", "looks_alike", "subjects_diverge", "same_picture")
TITLES = {"stre": "STRE: one style, two subjects", "sere": "SERE: one subject, two styles"}


def pair_sheets(
    data: Path, out: Path, pairs: Path | None = None, *, number: int = 60, seed: int = 0, quality: int = 85
) -> list[Path]:
    """Writes OUT/stre.jpg, OUT/sere.jpg (reference beside target) and OUT/dropped-REASON.jpg; returns their paths."""
    import pyarrow.parquet

    records = read_records(data)
    folder = pairs or data / "pairs"
    if read_note(folder).get("pictures_sha256") != records.fingerprint:
        raise DataError(f"the pairs in '{folder}' are not of these pictures: run `deadiff data pairs {data}` again")
    store = PictureStore(records)
    written = []
    kept = pyarrow.parquet.read_table(folder / "pairs.parquet")
    for task in PAIRED:
        own = _sample(kept, _is(kept, "objective", task), number, seed)
        if own:
            written.append(_write(out / f"{task}.jpg", _sheet(TITLES[task], own, records, store), quality))
    dropped = pyarrow.parquet.read_table(folder / "dropped.parquet")
    for reason in REASONS_SHOWN:
        own = _sample(dropped, _is(dropped, "reason", reason), number, seed)
        if own:
            title = f"dropped: {reason.replace('_', ' ')}"
            written.append(_write(out / f"dropped-{reason.replace('_', '-')}.jpg", _sheet(title, own, records, store), quality))
    if not written:
        raise DataError(f"'{folder}' holds no pairs to look at: see the reasons in '{folder / 'pairs.json'}'")
    return written


def style_sheet(data: Path, out: Path, *, seed: int = 0, quality: int = 85) -> Path:
    """Writes OUT/styles.jpg: some styles of a generated or imported data set, a row each."""
    records = read_records(data)
    store = PictureStore(records)
    rng = np.random.default_rng([seed, 5])
    counts = np.bincount(records.style, minlength=len(records.styles))
    shown = np.sort(rng.permutation(len(counts))[:STYLES_SHOWN])
    rows = []
    for style in shown:
        own = np.flatnonzero(records.style == style)
        own = own[np.sort(rng.permutation(len(own))[:COLUMNS])]
        pictures = [(Image.fromarray(store[number]), records.subjects[records.subject[number]]) for number in own]
        rows.append(Row(prompt=f"{records.styles[style]} ({counts[style]:,})", references=[], pictures=pictures))
    return _write(out / "styles.jpg", contact_sheet(rows, COLUMNS), quality)


def _sample(table: Any, chosen: np.ndarray, number: int, seed: int) -> list[dict[str, Any]]:
    """Some of the chosen rows, in the order of the index."""
    numbers = np.flatnonzero(chosen)
    picked = np.sort(np.random.default_rng([seed, 6]).permutation(len(numbers))[:number])
    return table.take(numbers[picked]).to_pylist()


def _is(table: Any, column: str, value: str) -> np.ndarray:
    import pyarrow.compute

    compute: Any = pyarrow.compute
    return np.asarray(compute.equal(table[column], value).to_numpy())


def _sheet(title: str, pairs: list[dict[str, Any]], records: Records, store: PictureStore) -> Image.Image:
    """Every cell holds a reference and its target side by side, how far apart their looks are, and in what they differ."""
    width, height = 2 * SIDE + INNER, SIDE + LINE
    down = -(-len(pairs) // ACROSS)
    size = 2 * MARGIN - GAP + ACROSS * (width + GAP), 2 * MARGIN + LINE + down * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    draw.text((MARGIN, MARGIN - 2), title, font=font, fill=INK)
    for number, pair in enumerate(pairs):
        x, y = MARGIN + number % ACROSS * (width + GAP), MARGIN + LINE + number // ACROSS * (height + GAP)
        ends = [int(pair[end]) for end in ("reference", "target")]
        for place, end in enumerate(ends):
            paste(sheet, Image.fromarray(store[end]), x + place * (SIDE + INNER), y, SIDE)
        labels = [records.label[end].as_py() for end in ends]
        styles = [records.styles[records.style[end]] for end in ends]
        first, second = labels if styles[0] == styles[1] else styles
        said = f"{pair['style_distance']:.2f}  {first} > {second}"
        draw.text((x, y + SIDE + 3), clip(said, small, width), font=small, fill=FAINT)
    return sheet


def _write(path: Path, sheet: Image.Image, quality: int) -> Path:
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=quality)
    write_whole(path, lambda partial: partial.write_bytes(buffer.getvalue()))
    return path
