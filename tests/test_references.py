"""Pictures from strangers become upright 8-bit sRGB, or one clear line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

import deadiff
from deadiff.jobs import references
from deadiff.references import MAX_PIXELS, Reference, pictures_in, read_picture
from tiny import picture


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(data, at=(0, 0)) -> tuple[int, ...]:
    return read_picture(data)[0].getpixel(at)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: the bomb."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "AVIF"])
def test_every_usual_format_is_read_as_rgb(kind):
    image, sha256 = read_picture(encoded(Image.new("RGB", (20, 10), (200, 30, 40)), kind))
    assert image.mode == "RGB" and image.size == (20, 10) and len(sha256) == 64
    assert np.abs(np.array(image.getpixel((5, 5))) - (200, 30, 40)).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_white_is_white_and_black_is_black_in_every_mode(mode):
    for value in (0, 255):
        if mode == "I;16":
            image = Image.fromarray(np.full((8, 8), value * 257, np.uint16))
        else:
            image = Image.new("L", (8, 8), value).convert("RGB" if mode == "CMYK" else mode).convert(mode)
        assert pixel(encoded(image, "TIFF" if mode == "CMYK" else "PNG")) == (value,) * 3


def test_sixteen_bits_are_scaled_not_cut():
    assert pixel(encoded(Image.fromarray(np.full((4, 4), 32896, np.uint16)))) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_falls_on_white(mode):
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0] * 256)
        data = encoded(image, transparency=0)
    else:
        data = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode))
    assert pixel(data) == (255, 255, 255)


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (20, 10), "white")
    image.paste("red", (0, 0, 5, 10))  # the left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the left edge belongs on top
    turned, _ = read_picture(encoded(image, exif=exif))
    assert turned.size == (10, 20) and turned.getpixel((5, 0)) == (255, 0, 0) and turned.getpixel((5, 19)) == (255, 255, 255)


def test_an_animation_is_read_at_its_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


def test_a_colour_profile_is_converted_to_srgb_and_a_broken_one_ignored():
    image = Image.new("RGB", (4, 4), (100, 150, 200))
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"broken", linear, srgb):
        assert pixel(encoded(image, icc_profile=profile)) == (100, 150, 200)
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    assert min(pixel(encoded(lab, "TIFF"))) > 240


def test_arrays_and_tensors_of_every_kind_are_the_same_picture():
    import torch

    pixels = np.array(picture(1))
    whole = read_picture(pixels)[0]
    for given in (
        picture(1),
        pixels / 255,
        pixels.astype(np.uint16) * 257,
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        torch.tensor(pixels).permute(2, 0, 1),
        torch.tensor(pixels / 255).permute(2, 0, 1).to(torch.float32),
    ):
        assert read_picture(given)[0].tobytes() == whole.tobytes()
    assert read_picture(pixels[:, :, 0])[0].size == whole.size
    assert read_picture(pixels[:, :, 0] > 100)[0].getextrema()[0][1] in (0, 255)


def test_a_large_jpeg_is_decoded_small():
    image, _ = read_picture(encoded(Image.new("RGB", (5000, 4000), "red"), "JPEG", quality=30))
    assert max(image.size) < 5000 and min(image.size) >= 1024


def test_the_file_is_hashed_by_its_bytes_and_metadata_goes_no_further(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(1), dpi=(72, 72)))
    reference = Reference(path, weight=0.7)
    import hashlib

    assert reference.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reference.path == str(path) and reference.weight == 0.7 and reference.picture.info == {}
    assert Reference(reference).sha256 == reference.sha256


def test_the_size_is_refused_before_anything_is_decoded():
    with pytest.raises(deadiff.ReferenceError, match="megapixels.*scale it down"):
        read_picture(png_of_size(10_000, 10_000))
    with pytest.raises(deadiff.ReferenceError, match="too large"):
        read_picture(png_of_size(60_000, 60_000))
    with pytest.raises(deadiff.ReferenceError, match="too large"):
        read_picture(picture(1), max_pixels=10)
    assert MAX_PIXELS < 100 * 10**6


REFUSED = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am no picture", "not a picture"),
    "an SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "a web page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"),
    "a PDF": (b"%PDF-1.7 ...", "PDF"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(system) run", "PostScript"),
    "a zip": (b"PK\x03\x04" + bytes(100), "zip"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "a film": (b"\0\0\0\x18ftypmp42" + bytes(100), "film"),
    "a truncated PNG": (encoded(Image.effect_noise((200, 200), 80))[:9000], "damaged or cut short"),
    "a truncated JPEG": (encoded(Image.effect_noise((200, 200), 80), "JPEG")[:4000], "damaged or cut short"),
    "a PNG header alone": (encoded(picture(1))[:20], "decoded|damaged|not a picture"),
    "a floating-point array out of range": (np.full((4, 4, 3), 2.0), "expected floats in"),
    "an array with NaN": (np.full((4, 4, 3), np.nan), "expected floats in"),
    "an array of whole numbers": (np.zeros((4, 4, 3), np.int64), "expected uint8"),
    "an array of five channels": (np.zeros((6, 6, 5), np.uint8), "expected HxW"),
    "an empty array": (np.zeros((0, 4, 3), np.uint8), "expected HxW"),
    "a number": (7, "expected a path"),
    "an address": ("https://example.org/a.png", "download it first"),
    "nothing there": ("/nowhere/a.png", "does not exist"),
    "a folder": (os.path.dirname(__file__), "folder"),
    "a device": ("/dev/null", "device"),
    "a path with a NUL": ("a\0b.png", "cannot be opened"),
    "a path that is too long": ("a" * 5000, "cannot be opened"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_line(name):
    given, message = REFUSED[name]
    with pytest.raises(deadiff.ReferenceError, match=message) as caught:
        Reference(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(deadiff.ReferenceError, match="pipe"):
        Reference(tmp_path / "pipe.png")


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "0.3", True])
def test_a_weight_is_a_number_of_at_least_zero(weight):
    with pytest.raises(deadiff.ReferenceError, match="weight"):
        Reference(picture(1), weight)


def test_references_are_given_in_many_ways():
    a, b = picture(1), Reference(picture(2), 0.3)
    assert references(None, "style") == [] and references((), "style") == []
    assert [r.weight for r in references(a, "style")] == [1.0]
    assert [r.weight for r in references((a, 0.5), "style")] == [0.5]
    assert [r.weight for r in references([(a, 0.7), b, a], "style")] == [0.7, 0.3, 1.0]
    for wrong in ([(a, 1, 2)], [(a, "x")]):
        with pytest.raises(deadiff.ReferenceError, match=r"\(picture, weight\)"):
            references(wrong, "style")
    with pytest.raises(deadiff.ReferenceError, match="weight 0"):
        references([(a, 0)], "style")


def test_a_folder_gives_its_pictures_by_name(tmp_path):
    with pytest.raises(deadiff.ReferenceError, match="holds no pictures"):
        pictures_in(tmp_path)
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(encoded(picture(1)))
    assert [path.name for path in pictures_in(tmp_path)] == ["a.JPG", "b.png"]
    with pytest.raises(deadiff.ReferenceError, match="does not exist"):
        pictures_in(tmp_path / "no")
