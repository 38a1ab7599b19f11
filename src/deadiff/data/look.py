"""Contact sheets: the same twelve subjects in every set and in every rendition, for somebody to look at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from deadiff.data.build import generator
from deadiff.data.renditions import RENDITIONS, render
from deadiff.data.splits import HELD_OUT_RENDITIONS, HELD_OUT_SETS
from deadiff.data.store import decode_png, read_rows, shards
from deadiff.errors import DataError
from deadiff.writing import write_whole

# car, cat face, guitar, crown, grinning face, tree, house, pizza, thumbs up, fox, sunflower, rocket
SUBJECTS = ("1F697", "1F431", "1F3B8", "1F451", "1F600", "1F333", "1F3E0", "1F355", "1F44D", "1F98A", "1F33B", "1F680")
HANDS = (
    "twemoji",
    "noto",
    "fluent-3d",
    "emojione",
    "fluent-emoji-flat",
    "noto-v1",
    "noto-mono",
    "emojione-monotone",
    "fluent-emoji-high-contrast",
    "symbola",
    "noto",
    "symbola",
)
ROWS_PER_SHEET = 10
LABEL_PX = 104


def contact_sheets(folder: Path, out: Path, *, thumb: int = 80, quality: int = 82) -> list[Path]:
    """Writes OUT/sets.jpg and OUT/renditions-N.jpg from the plain pictures of the data set in `folder`; returns their paths."""
    pictures = plain_pictures(folder)
    written = [_write(out / "sets.jpg", sheet_of_sets(pictures, thumb), quality)]
    names = list(RENDITIONS)
    for start in range(0, len(names), ROWS_PER_SHEET):
        sheet = sheet_of_renditions(pictures, names[start : start + ROWS_PER_SHEET], thumb)
        written.append(_write(out / f"renditions-{start // ROWS_PER_SHEET + 1}.jpg", sheet, quality))
    return written


def plain_pictures(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """(set, subject) -> (H, W, 3) uint8, as drawn, for the subjects of the sheets and some more where those are missing."""
    pictures: dict[tuple[str, str], bytes] = {}
    for shard in shards(folder, ("plain",)):
        for row in read_rows(shard, ["image", "set", "subject"]):
            pictures[row["set"], row["subject"]] = row["image"]["bytes"]
    if not pictures:
        raise DataError(f"'{folder}' holds no plain pictures: build them with `deadiff data icons --out {folder}`")
    wanted = set(subjects_shown(pictures))
    return {key: decode_png(png) for key, png in pictures.items() if key[1] in wanted}


def subjects_shown(pictures: dict[tuple[str, str], bytes]) -> list[str]:
    """The twelve, or in a miniature data set those of them that it has, filled up with others."""
    there = list(dict.fromkeys(subject for _, subject in pictures))
    return ([subject for subject in SUBJECTS if subject in there] + [subject for subject in there if subject not in SUBJECTS])[
        : len(SUBJECTS)
    ]


def sheet_of_sets(pictures: dict[tuple[str, str], np.ndarray], thumb: int) -> np.ndarray:
    """One row a set, one column a subject; grey where a set does not draw it."""
    subjects = list(
        dict.fromkeys([s for s in SUBJECTS if any(s == subject for _, subject in pictures)] + [s for _, s in pictures])
    )
    rows = []
    for name in dict.fromkeys(name for name, _ in pictures):
        cells = [_thumb(pictures[name, subject], thumb) if (name, subject) in pictures else _grey(thumb) for subject in subjects]
        rows.append(np.hstack([_label(name + (" (held out)" if name in HELD_OUT_SETS else ""), thumb), *cells]))
    return np.vstack(rows)


def sheet_of_renditions(pictures: dict[tuple[str, str], np.ndarray], names: list[str], thumb: int) -> np.ndarray:
    """One row a rendition, one column a subject, each drawn by another hand, line art among them."""
    keys: list[tuple[str, str]] = [key for key in zip(HANDS, SUBJECTS, strict=True) if key in pictures]
    for key in pictures:
        if len(keys) == len(SUBJECTS):
            break
        if key[0] not in HELD_OUT_SETS and key[1] not in {subject for _, subject in keys}:
            keys.append(key)
    rows = []
    for name in names:
        cells = [_thumb(render(pictures[key], name, generator(0, "look", name, *key))[0], thumb) for key in keys]
        rows.append(np.hstack([_label(name + (" (held out)" if name in HELD_OUT_RENDITIONS else ""), thumb), *cells]))
    return np.vstack(rows)


def _thumb(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) if image.shape[0] != size else image


def _grey(size: int) -> np.ndarray:
    return np.full((size, size, 3), 214, np.uint8)


def _label(text: str, height: int) -> np.ndarray:
    """The row's name in black on white, broken at ' ' and '-' to fit."""
    strip = np.full((height, LABEL_PX, 3), 255, np.uint8)
    lines: list[str] = [""]
    for word in text.replace("-", "- ").replace("_", " ").split():
        joined = f"{lines[-1]}{'' if lines[-1].endswith('-') or not lines[-1] else ' '}{word}"
        if len(joined) <= 14:
            lines[-1] = joined
        else:
            lines.append(word)
    for number, line in enumerate(lines):
        at = (4, height // 2 + 4 + int((number - (len(lines) - 1) / 2) * 14))
        cv2.putText(strip, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _write(path: Path, image: np.ndarray, quality: int) -> Path:
    done, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    write_whole(path, lambda partial: partial.write_bytes(jpeg.tobytes()))
    return path
