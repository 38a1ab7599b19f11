"""Reading pictures from strangers: any file, bytes, array or PIL image -> an upright 8-bit sRGB picture, or one clear error.

Nothing is decoded before its type and size are known; formats that run programs or fetch files (EPS, WMF,
SVG, PDF) are never opened.
"""

import hashlib
import io
import logging
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from deadiff.errors import ReferenceError

log = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI")
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".tga",
    ".ico",
    ".qoi",
)
MAX_PIXELS = 89_478_485  # where Pillow itself begins to warn of decompression bombs
MAX_BYTES = 512 * 2**20  # of an encoded file
DRAFT_PIXELS = 16_000_000  # JPEGs above this are decoded at 1/2, 1/4 or 1/8: models read references at about 224 pixels
DRAFT_SIDE = 1024  # and no side gets smaller than this by it
WHITE = (255, 255, 255)

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)
_LOOKS_LIKE = (  # what people hand over instead of a picture: the first bytes, its name, what to do
    ((b"<svg", b"<?xml"), "an SVG drawing", "export it as PNG first"),
    ((b"<!doctype html", b"<html"), "a web page", "the download saved the page around the picture; save the picture itself"),
    ((b"%pdf",), "a PDF document", "export the page as PNG first"),
    ((b"%!ps",), "a PostScript file", "export it as PNG first"),
    ((b"pk\x03\x04",), "a zip archive or a document", "take the picture out of it first"),
    ((b"\x1f\x8b",), "a gzip file", "unpack it first"),
    ((b"8bps",), "a Photoshop file", "export it as PNG first"),
)


@dataclass(frozen=True)
class Reference:
    """A reference picture, read and checked once, and how much it counts among others.

    source is a path, bytes, a PIL image, a numpy array or torch tensor (HxW, HxWx1/3/4, 3xHxW; uint8, uint16, bool or floats
    in [0, 1]), or another Reference. `picture` is RGB, upright, sRGB, transparency on white; `sha256` is of the file's bytes, or
    of the pixels where there is no file. Raises ReferenceError, in one line.
    """

    source: Any = field(repr=False)
    weight: float = 1.0
    picture: Image.Image = field(init=False, repr=False, compare=False)
    sha256: str = field(init=False)
    path: str | None = field(init=False)  # where it was read from

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if isinstance(self.source, Reference):
            picture, sha256, path = self.source.picture, self.source.sha256, self.source.path
        else:
            picture, sha256 = read_picture(self.source)
            path = str(self.source) if isinstance(self.source, (str, os.PathLike)) else None
        for name, value in {"picture": picture, "sha256": sha256, "path": path, "source": None}.items():
            object.__setattr__(self, name, value)  # the source is not kept: bytes and arrays may be large


def check_weight(weight: Any) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise ReferenceError(f"a reference's weight is {weight!r}: expected a number of 0 or more, such as 0.3")


def read_picture(source: Any, *, what: str = "reference picture", max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Any picture -> (RGB picture, sha256). Raises ReferenceError naming `what`."""
    if isinstance(source, (str, os.PathLike)):
        return decode(read_bytes(source, what), name=f"{what} '{source}'", max_pixels=max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), name=what, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        check_size(source.size, what, max_pixels)
        try:
            picture = to_rgb(source)
        except _BROKEN as error:
            raise ReferenceError(f"{what} cannot be decoded: {one_line(error)}") from error
    elif isinstance(source, np.ndarray) or hasattr(source, "detach"):  # a torch tensor, without importing torch
        picture = from_array(source, what, max_pixels)
    else:
        got = f"{type(source).__name__} {str(source)[:60]!r}"
        raise ReferenceError(f"{what} is {got}: expected a path, bytes, a PIL image, a numpy array or a Reference")
    return picture, pixels_sha256(picture)


def pixels_sha256(picture: Image.Image) -> str:
    """What stands for a file's sha256 where there is no file."""
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()


def read_bytes(path: str | os.PathLike[str], what: str = "file", max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file; a device, a pipe, a folder, an empty or a giant file is refused without reading it."""
    text = os.fspath(path)
    if text.startswith(("http://", "https://", "ftp://", "s3://")):
        raise ReferenceError(f"{what} '{text}' is an address: expected a file; download it first")
    try:
        descriptor = os.open(Path(text).expanduser(), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ReferenceError(f"{what} '{text}' does not exist: check the path") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL in the name, too long a name, no such home
        raise ReferenceError(f"{what} '{text[:200]}' cannot be opened: {one_line(error)}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ReferenceError(f"{what} '{text}' is a folder: expected a file")
        if not stat.S_ISREG(status.st_mode):
            raise ReferenceError(f"{what} '{text}' is a device or a pipe: expected a regular file")
        if status.st_size == 0:
            raise ReferenceError(f"{what} '{text}' is empty (0 bytes): the download or copy may have failed")
        if status.st_size > max_bytes:
            got = f"{status.st_size / 2**20:.0f} MiB"
            raise ReferenceError(f"{what} '{text}' has {got}: expected at most {max_bytes // 2**20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise ReferenceError(f"{what} '{text}' cannot be read: {one_line(error)}") from error
    finally:
        os.close(descriptor)


def decode(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """Encoded bytes -> (RGB picture, sha256 of the bytes). The size is checked before any pixel is decoded."""
    if not data:
        raise ReferenceError(f"{name} is empty (0 bytes)")
    refuse_lookalikes(data, name)
    Image.init()  # all of Pillow's formats are known from here on; without some libraries it lacks some
    try:
        image = Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"expected at most {max_pixels / 1e6:.0f} megapixels; scale it down"
        raise ReferenceError(f"{name} is too large: {one_line(error)}; {limit}") from error
    except Image.UnidentifiedImageError:
        raise ReferenceError(f"{name} is not a picture: expected PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF") from None
    except _BROKEN as error:
        raise ReferenceError(f"{name} cannot be decoded: {one_line(error)}") from error
    check_size(image.size, name, max_pixels)
    width, height = image.size
    if image.format == "JPEG" and width * height > DRAFT_PIXELS:
        image.draft(None, (min(width, DRAFT_SIDE), min(height, DRAFT_SIDE)))
    try:
        image.load()  # an animated file stands at its first frame
        return to_rgb(image), hashlib.sha256(data).hexdigest()
    except MemoryError:
        raise ReferenceError(f"{name} of {width}x{height} pixels does not fit into memory: scale it down") from None
    except _BROKEN as error:
        raise ReferenceError(f"{name} is damaged or cut short: {one_line(error)}") from error


def refuse_lookalikes(data: bytes, name: str) -> None:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for openings, kind, advice in _LOOKS_LIKE:
        if start.startswith(openings) and (kind != "an SVG drawing" or b"<svg" in data[:4096].lower()):
            raise ReferenceError(f"{name} is {kind}, not a picture: {advice}")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        raise ReferenceError(f"{name} is a HEIC photo, which cannot be read: export it as JPEG or PNG first")
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        raise ReferenceError(f"{name} is a film, not a picture: save one frame of it as PNG")


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ReferenceError(f"{name} has no pixels ({width}x{height})")
    if width * height > max_pixels:
        got = f"{width}x{height} = {width * height / 1e6:.0f} megapixels"
        raise ReferenceError(f"{name} is too large: {got}; expected at most {max_pixels / 1e6:.0f}; scale it down")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image -> RGB: turned upright by EXIF, 16 bits scaled to 8, transparency on white, colours in sRGB."""
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        image = to_8_bit(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        profile = image.info.get("icc_profile")
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*WHITE, 255)), rgba).convert("RGB")
        image.info["icc_profile"] = profile
    if image.mode == "P":
        profile = image.info.get("icc_profile")
        image = image.convert("RGB")
        image.info["icc_profile"] = profile
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return bare(ImageCms.profileToProfile(image, lab, ImageCms.createProfile("sRGB"), outputMode="RGB") or image)
    return bare(to_srgb(image).convert("RGB"))


def bare(image: Image.Image) -> Image.Image:
    """A copy of the pixels alone: no profile, EXIF or comments of the file go any further."""
    copy = image.copy()
    copy.info = {}
    return copy


def upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN as error:  # unreadable EXIF says nothing about the pixels
        log.info("EXIF ignored: %s", error)
        return image


def to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit integer and float greyscale -> "L". 16 bits are divided by 257; floats are in [0, 1], else in [0, 255]."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not numbers")
    if image.mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0
    else:
        scale = 1 / 257 if image.mode.startswith("I;16") or values.max() > 255 else 1.0
    return Image.fromarray((values * scale + 0.5).clip(0, 255).astype(np.uint8))


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB, grey or CMYK with an embedded colour profile -> sRGB. A broken or unfitting profile is ignored."""
    embedded = image.info.get("icc_profile")
    if not embedded or image.mode not in ("RGB", "L", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        space = getattr(profile.profile, "xcolor_space", "").strip()
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) != image.mode:
            return image
        if space == "RGB" and "sRGB" in ImageCms.getProfileDescription(profile):
            return image  # already; a transform would only add rounding
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, *_BROKEN) as error:
        log.info("colour profile ignored: %s", error)
        return image


def from_array(source: Any, what: str, max_pixels: int) -> Image.Image:
    """An array or tensor -> RGB. HxW, HxWx1/3/4 or (tensors' order) 1/3/4xHxW; uint8, uint16, bool, or floats in [0, 1]."""
    array = source.detach().cpu().float().numpy() if hasattr(source, "detach") and source.is_floating_point() else source
    array = np.asarray(array.detach().cpu()) if hasattr(array, "detach") else np.asarray(array)
    shape = "x".join(map(str, array.shape)) or "scalar"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ReferenceError(f"{what} is an array of shape {shape}: expected HxW, HxWx3 or HxWx4")
    check_size((array.shape[1], array.shape[0]), what, max_pixels)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array.astype(np.float64) / 257 + 0.5).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            got = f"{array.dtype} from {array.min():g} to {array.max():g}"
            raise ReferenceError(f"{what} is an array of {got}: expected floats in [0, 1] or uint8")
        array = (array.astype(np.float64) * 255 + 0.5).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ReferenceError(f"{what} is an array of {array.dtype}: expected uint8, uint16, bool, or floats in [0, 1]")
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def pictures_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files of a folder, sorted by name; subfolders are not entered."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        got = "is not a folder" if path.exists() else "does not exist"
        raise ReferenceError(f"folder of references '{folder}' {got}: check the path")
    files: Iterable[Path] = (file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not (found := sorted(files)):
        raise ReferenceError(
            f"folder of references '{folder}' holds no pictures: expected .png, .jpg, .webp, ... files directly in it"
        )
    return found


def one_line(error: BaseException) -> str:
    """An error of another library or of the system as one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
