"""Art -> pictures: aligns every set by hexcode, renders it on white, and screens blanks and duplicates."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deadiff.data.art import EMOJIBASE, EMOJILIB, SETS_BY_NAME, ArtSet
from deadiff.data.subjects import Subject, hexcode_of, match_by_name, read_subjects
from deadiff.errors import DataError

MIN_INK = 0.004  # share of pixels that must differ from the paper
FONT_PX = 512  # glyphs are drawn large and averaged down
FONT_FILL = 0.94  # share of the square that a glyph may take


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One subject by one hand, not yet pixels: an SVG text, a WEBP's bytes, or a glyph's characters."""

    subject: str
    kind: str  # "svg" | "webp" | "glyph"
    source: str | bytes


# ---------------------------------------------------------------- reading the packages


def read_drawings(art_set: ArtSet, archive: Path, subjects: list[Subject]) -> list[Drawing]:
    """Every subject that the set draws, in the order of `subjects`."""
    readers = {"iconify": _read_iconify, "openmoji": _read_openmoji, "webp": _read_webp, "font": _read_font}
    found = readers[art_set.kind](art_set, archive, subjects)
    return [found[subject.hexcode] for subject in subjects if subject.hexcode in found]


def _read_iconify(art_set: ArtSet, archive: Path, subjects: list[Subject]) -> dict[str, Drawing]:
    with tarfile.open(archive) as tar:
        icons = json.load(_member(tar, "package/icons.json"))
        chars = json.load(_member(tar, "package/chars.json"))
    names = {hexcode_of(code): name for code, name in chars.items()}
    if not names:  # no code points recorded: align by the name
        aliases = icons.get("aliases", {})
        same = {name: alias["parent"] for name, alias in aliases.items() if set(alias) == {"parent"}}  # others are mirrored
        names = match_by_name(subjects, [*icons["icons"], *aliases], art_set.name, same)
    wanted = {subject.hexcode for subject in subjects}
    return {
        code: Drawing(subject=code, kind="svg", source=_iconify_svg(icons, name))
        for code, name in names.items()
        if code in wanted
    }


def _iconify_svg(icons: dict, name: str) -> str:
    """The icon as a whole SVG file; an alias is its parent, perhaps mirrored."""
    flips = [False, False]
    while name in icons.get("aliases", {}):
        alias = icons["aliases"][name]
        flips = [flips[0] ^ alias.get("hFlip", False), flips[1] ^ alias.get("vFlip", False)]
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top, width, height = (icon.get(key, icons.get(key, 0)) for key in ("left", "top", "width", "height"))
    body = icon["body"]
    if any(flips):
        x, y = (2 * left + width if flips[0] else 0), (2 * top + height if flips[1] else 0)
        body = f'<g transform="translate({x} {y}) scale({-1 if flips[0] else 1} {-1 if flips[1] else 1})">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _read_openmoji(art_set: ArtSet, archive: Path, subjects: list[Subject]) -> dict[str, Drawing]:
    found = _read_members(archive, art_set.member, ".svg", {subject.hexcode for subject in subjects})
    return {code: Drawing(subject=code, kind="svg", source=content.decode()) for code, content in found.items()}


def _read_webp(art_set: ArtSet, archive: Path, subjects: list[Subject]) -> dict[str, Drawing]:
    found = _read_members(archive, art_set.member, ".webp", {subject.hexcode for subject in subjects})
    return {code: Drawing(subject=code, kind="webp", source=content) for code, content in found.items()}


def _read_members(archive: Path, folder: str, suffix: str, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.startswith(folder) and member.name.endswith(suffix):
                code = hexcode_of(member.name[len(folder) : -len(suffix)])
                if code in wanted and code not in found:
                    found[code] = _member(tar, member.name).read()
    return found


def _member(tar: tarfile.TarFile, name: str):
    file = tar.extractfile(name)
    if file is None:
        raise DataError(f"'{tar.name}' holds no file '{name}': delete it from the cache and run again")
    return file


def read_font(art_set: ArtSet, archive: Path) -> bytes:
    """The font file as TrueType bytes."""
    from fontTools.ttLib import TTFont

    if archive.suffix == ".deb":
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(files)) as tar:
            return _member(tar, f"./{art_set.member}").read()
    with tarfile.open(archive) as tar:
        font = TTFont(io.BytesIO(_member(tar, art_set.member).read()))
    font.flavor = None  # woff2 -> plain TrueType
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


def _read_font(art_set: ArtSet, archive: Path, subjects: list[Subject]) -> dict[str, Drawing]:
    """The subjects whose whole sequence the font draws as one glyph."""
    from fontTools.ttLib import TTFont

    content = read_font(art_set, archive)
    drawn = set(TTFont(io.BytesIO(content)).getBestCmap() or ())
    font = ImageFont.truetype(io.BytesIO(content), FONT_PX, layout_engine=ImageFont.Layout.RAQM)
    found: dict[str, Drawing] = {}
    for subject in subjects:
        points = [int(part, 16) for part in subject.hexcode.split("-")]
        if not all(point in drawn for point in points if point != 0x200D):
            continue
        text = "".join(map(chr, points))
        # a sequence that the font does not join comes out as several glyphs side by side
        if len(points) > 1 and font.getlength(text) > 1.25 * max(font.getlength(chr(point)) for point in points):
            continue
        found[subject.hexcode] = Drawing(subject=subject.hexcode, kind="glyph", source=text)
    return found


# ---------------------------------------------------------------- rendering


def render(drawing: Drawing, size: int, font: ImageFont.FreeTypeFont | None = None) -> np.ndarray:
    """(size, size, 3) uint8 RGB on white."""
    if drawing.kind == "svg":
        return _render_svg(drawing.source, size)
    if drawing.kind == "webp":
        return _render_webp(drawing.source, size)
    assert font is not None and isinstance(drawing.source, str)
    return _render_glyph(drawing.source, size, font)


def _render_svg(svg: str | bytes, size: int) -> np.ndarray:
    import resvg_py

    assert isinstance(svg, str)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True))
    return _on_white(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), size)


def _render_webp(content: str | bytes, size: int) -> np.ndarray:
    assert isinstance(content, bytes)
    return _on_white(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), size)


def _on_white(bgra: np.ndarray | None, size: int) -> np.ndarray:
    """Composites, pads to a square, averages down to `size`, and turns BGR(A) into RGB."""
    if bgra is None:
        raise DataError("a drawing cannot be decoded as a picture: delete the cache of art and run again")
    pixels = bgra.astype(np.float32)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:] / 255
        pixels = pixels[..., :3] * alpha + 255 * (1 - alpha)
    return fit_square(np.round(pixels).astype(np.uint8)[..., ::-1], size)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Pads the shorter side with white and scales to (size, size, 3)."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height != width:
        square = np.full((side, side, 3), 255, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = image
        image = square
    if side != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)
    return np.ascontiguousarray(image)


def _render_glyph(text: str, size: int, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Black on white, centred; a glyph keeps its natural size unless it would leave the square."""
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    side = max(int(FONT_PX * 1.22), int(max(width, height) / FONT_FILL)) + 1
    canvas = Image.new("L", (side, side), 255)
    ImageDraw.Draw(canvas).text(((side - width) / 2 - left, (side - height) / 2 - top), text, font=font, fill=0)
    grey = cv2.resize(np.asarray(canvas), (size, size), interpolation=cv2.INTER_AREA)
    return np.repeat(grey[..., None], 3, axis=2)


def is_blank(image: np.ndarray) -> bool:
    """True where fewer than MIN_INK of the pixels differ from the paper (a missing glyph, an empty SVG)."""
    return float((image.min(axis=2) < 230).mean()) < MIN_INK


# ---------------------------------------------------------------- a whole set

_worker_font: ImageFont.FreeTypeFont | None = None


def _start_worker(font: bytes | None) -> None:
    global _worker_font
    cv2.setNumThreads(1)
    _worker_font = ImageFont.truetype(io.BytesIO(font), FONT_PX, layout_engine=ImageFont.Layout.RAQM) if font else None


def _render_in_worker(drawing: Drawing, size: int) -> np.ndarray:
    return render(drawing, size, _worker_font)


def render_all(drawings: list[Drawing], size: int, *, font: bytes | None = None, processes: int = 1) -> Iterator[np.ndarray]:
    """One image a drawing, in order."""
    job: Callable[[Drawing], np.ndarray] = partial(_render_in_worker, size=size)
    if processes == 1:
        _start_worker(font)
        yield from map(job, drawings)
        return
    with get_context("spawn").Pool(processes, initializer=_start_worker, initargs=(font,)) as pool:
        yield from pool.imap(job, drawings, chunksize=16)


def pixel_sha256(image: np.ndarray) -> str:
    """The sha256 of shape and pixels: equal exactly when the pictures are."""
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()


def screen(images: list[np.ndarray], known: set[str]) -> list[tuple[int, str]]:
    """(index, sha256) of the pictures worth keeping: not blank, not the pixels of an earlier one. Adds them to `known`."""
    kept = []
    for index, image in enumerate(images):
        sha256 = pixel_sha256(image)
        if not is_blank(image) and sha256 not in known:
            known.add(sha256)
            kept.append((index, sha256))
    return kept


# ---------------------------------------------------------------- a folder of art instead of packages


def read_art_folder(folder: Path) -> tuple[list[Subject], dict[str, list[Drawing]]]:
    """`folder`/subjects.json ([{hexcode, label, tags, group}]) and `folder`/SET/HEXCODE.svg -> subjects, and drawings by set."""
    index = folder / "subjects.json"
    if not index.is_file():
        raise DataError(
            f"'{folder}' holds no subjects.json: expected a list of {{hexcode, label, tags, group}} beside one folder a set"
        )
    subjects = [
        Subject(hexcode=row["hexcode"], label=row["label"], tags=tuple(row["tags"]), group=row["group"], names=())
        for row in json.loads(index.read_text())
    ]
    drawings: dict[str, list[Drawing]] = {}
    for name in SETS_BY_NAME:
        files = {hexcode_of(file.stem): file for file in sorted((folder / name).glob("*.svg"))}
        found = [
            Drawing(subject=subject.hexcode, kind="svg", source=files[subject.hexcode].read_text())
            for subject in subjects
            if subject.hexcode in files
        ]
        if found:
            drawings[name] = found
    if not drawings:
        raise DataError(f"'{folder}' holds no art: expected SET/HEXCODE.svg with SET one of {', '.join(SETS_BY_NAME)}")
    return subjects, drawings


PACKAGES_BESIDE_ART = (EMOJIBASE, EMOJILIB)
__all__ = ["Drawing", "read_art_folder", "read_drawings", "read_font", "read_subjects", "render", "render_all", "screen"]
