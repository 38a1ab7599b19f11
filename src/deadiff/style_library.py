"""Named styles: the tokens of references kept under a name, with a thumbnail, as one safetensors file that can be shared.

I image tokens of one role, C token width, h, w pixels.
"""

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_to_bytes

from deadiff.adapter import DEADiffAdapter
from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import references, sources
from deadiff.recipe import Source, fingerprint
from deadiff.reference_look import MOST, Look, SeenTokens
from deadiff.references import Reference, one_line, read_bytes
from deadiff.writing import prepare_folder, write_at

log = logging.getLogger(__name__)

KEY = "deadiff"  # of the header's entry that holds the JSON
FORMAT = "deadiff style 1"
SUFFIX = ".style.safetensors"
THUMBNAIL = 128  # pixels, both sides
MAX_NAME = 80  # characters
MAX_BYTES = 16 * 2**20  # of a style file; SD 1.5's takes 100 kB
MAX_THUMBNAIL = 1024  # pixels a side, of a file from elsewhere


@dataclass(frozen=True, kw_only=True)
class SavedStyle:
    """A style that can be drawn with again, without its pictures. Equal bytes for equal styles: see `to_bytes`."""

    name: str
    tokens: torch.Tensor  # (1, I, C), float32: the weighted mean over the references
    thumbnail: Image.Image  # RGB
    look: Look | None = field(default=None, compare=False)  # where the model uses the references' latents
    model: str  # the fingerprint of the adapter that read the references
    model_name: str = ""  # as it was given to load(), for people
    resize: str = "squash"  # how the references became square
    sources: tuple[Source, ...] = ()  # sha256 and weight of each reference; its path is not kept: files are shared
    created: str = ""  # ISO 8601, UTC

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", clean_name(self.name))

    def tokens_for(self, stylizer: Any) -> SeenTokens:
        """What to give as style= of a Job or a call. Raises ReferenceError where the style was made for another model."""
        got, expected = self.model, adapter_fingerprint(stylizer.adapter)
        if got != expected:
            of = f"'{self.model_name}' ({got[:8]})" if self.model_name else got[:8]
            here = f"'{stylizer.origin.model}' ({expected[:8]})" if stylizer.origin.model else expected[:8]
            raise ReferenceError(
                f"the style '{self.name}' was made for another model: {of}, not {here}; make it again from its pictures"
            )
        config = stylizer.adapter.config
        if tuple(self.tokens.shape) != (1, config.num_tokens, config.token_dim):
            raise ReferenceError(f"the style '{self.name}' holds tokens of shape {tuple(self.tokens.shape)}: the file is damaged")
        if self.look is not None and tuple(self.look.latents.shape[1:]) != stylizer.look_shape:
            got, expected = tuple(self.look.latents.shape[1:]), stylizer.look_shape
            raise ReferenceError(
                f"the style '{self.name}' was made for another base: its latents are {got}, not {expected}; "
                "make it again from its pictures"
            )
        return SeenTokens.of(self.tokens, None, self.look)

    def to_bytes(self) -> bytes:
        """The style's file: tokens, thumbnail and look as tensors, and everything else as text in its header."""
        pixels = torch.frombuffer(bytearray(self.thumbnail.convert("RGB").tobytes()), dtype=torch.uint8)
        header = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "model_name": self.model_name,
            "resize": self.resize,
            "sources": [[s.sha256, s.weight] for s in self.sources],
            "created": self.created,
        }
        width, height = self.thumbnail.size
        tensors = {
            "style": self.tokens.detach().to("cpu", torch.float32).contiguous(),
            "thumbnail": pixels.view(height, width, 3).contiguous(),
        }
        if self.look is not None:
            tensors["look"] = self.look.latents.detach().to("cpu", torch.float32).contiguous()
            tensors["look_weights"] = torch.tensor(self.look.weights, dtype=torch.float64)
        return tensors_to_bytes(tensors, metadata={KEY: json.dumps(header, sort_keys=True)})  # several entries come in no order

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "style file") -> "SavedStyle":
        """Reads a stranger's file without trusting it. Raises ReferenceError for anything but a style."""
        if len(data) > MAX_BYTES:
            raise ReferenceError(f"{what} has {len(data) / 2**20:.0f} MiB: expected at most {MAX_BYTES // 2**20} MiB")
        header = _header(data)
        if header.get("format") != FORMAT:
            raise ReferenceError(f"{what} is not a style: expected a file that deadiff saved or exported as one (*{SUFFIX})")
        try:
            tensors = read_tensors(data)
            tokens, pixels = tensors["style"], tensors["thumbnail"]
            if tokens.dtype != torch.float32 or tokens.ndim != 3 or len(tokens) != 1 or not bool(tokens.isfinite().all()):
                raise ValueError(f"its tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, or not all finite")
            if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape) < 1:
                raise ValueError(f"its thumbnail is {pixels.dtype} of shape {tuple(pixels.shape)}")
            if max(pixels.shape) > MAX_THUMBNAIL:
                raise ValueError(f"its thumbnail has a side of {max(pixels.shape)} pixels")
            made_of = tuple(Source(path=None, sha256=_hex(sha), weight=float(w)) for sha, w in header["sources"])
            return cls(
                name=header["name"],
                tokens=tokens.clone(),
                thumbnail=Image.fromarray(pixels.numpy().copy()),
                look=_look(tensors),
                model=_hex(header["model"]),
                model_name=_line(header.get("model_name", ""))[:200],
                resize=_line(header.get("resize", "squash"))[:20],
                sources=made_of,
                created=_line(header.get("created", ""))[:40],
            )
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError, ConfigError) as error:
            raise ReferenceError(f"{what} is a damaged style: {one_line(error)}") from error


def make_style(stylizer: Any, name: str, style: Any, *, resize: str | None = None) -> SavedStyle:
    """References (what `Job.style` takes, save cached tokens) -> a style of that name, not yet saved. Raises ReferenceError."""
    name = clean_name(name)
    items = references(style, "style")
    if not items:
        raise ReferenceError(f"the style '{name}' has no reference: expected at least one picture")
    if wrong := [item for item in items if not isinstance(item, Reference)]:
        raise ReferenceError(f"a style is made of pictures, not of {type(wrong[0][0]).__name__}: give the references themselves")
    how = stylizer.adapter.config.preprocess.resize if resize is None else resize
    seen = stylizer.encode(style=items, resize=how)
    return SavedStyle(
        name=name,
        tokens=seen.style.detach().to("cpu", torch.float32),
        look=seen.look,
        thumbnail=thumbnail([item.picture for item in items]),
        model=adapter_fingerprint(stylizer.adapter),
        model_name=str(stylizer.origin.model or ""),
        resize=how,
        sources=tuple(replace(source, path=None) for source in sources(items)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def adapter_fingerprint(adapter: DEADiffAdapter) -> str:
    """What tokens depend on: the adapter alone, so that they serve every base it is put on."""
    return fingerprint({"adapter": adapter})


def thumbnail(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture whole on white; of several the first four as quarters."""
    shown = list(pictures[:4])
    side = THUMBNAIL if len(shown) == 1 else THUMBNAIL // 2
    sheet = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    for i, picture in enumerate(shown):
        small = ImageOps.pad(picture.convert("RGB"), (side, side), color="white")
        sheet.paste(small, (i % 2 * side, i // 2 * side))
    return sheet


def clean_name(name: Any) -> str:
    """A name for people: one line of visible text. Raises ConfigError where nothing is left, or too much."""
    if not isinstance(name, str):
        raise ConfigError(f"a style's name is {type(name).__name__}: expected text")
    kept = (c if unicodedata.category(c)[0] not in "CZ" else " " if c.isspace() or c == "\u00a0" else "" for c in name)
    text = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    if not text:
        raise ConfigError(f"a style's name is {name[:20]!a}: expected at least one visible character")
    if len(text) > MAX_NAME:
        raise ConfigError(f"a style's name has {len(text)} characters: expected at most {MAX_NAME}")
    return text


def file_name(name: str) -> str:
    """A name of letters, digits and dashes that is safe in every file system, and another one for every other name."""
    name = clean_name(name)
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40] or "style"
    return f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}{SUFFIX}"


class StyleLibrary:
    """A folder of style files. Nothing is remembered between calls: what is on disk is what there is.

    A file is written whole or not at all. Files from elsewhere may be dropped into the folder under any name that ends in
    .style.safetensors; what cannot be read is left alone and logged.
    """

    def __init__(self, folder: str | Path) -> None:
        """Makes the folder if need be. Raises ConfigError where it cannot be written to."""
        self.folder = prepare_folder(folder)

    def styles(self) -> list[SavedStyle]:
        """All styles, by name."""
        return [style for _, (_, style) in sorted(self._files().items(), key=lambda item: (item[0].casefold(), item[0]))]

    def names(self) -> list[str]:
        return [style.name for style in self.styles()]

    def get(self, name: str) -> SavedStyle:
        """Raises ConfigError where there is none of that name."""
        return self._find(name)[1]

    def save(self, style: SavedStyle, *, replace: bool = False) -> Path:
        """Raises ConfigError where the name is taken and not to be replaced."""
        if replace:
            self._remove_others(style.name)
        elif style.name in self._files():
            raise self._taken(style.name)
        path = self.folder / file_name(style.name)
        if not write_at(path, style.to_bytes(), replace=replace):
            raise self._taken(style.name)
        return path

    def rename(self, old: str, new: str) -> SavedStyle:
        """The renamed style. The new file is complete before the old one goes."""
        path, style = self._find(old)
        renamed = replace(style, name=new)
        if renamed.name != style.name:
            self.save(renamed)
            path.unlink(missing_ok=True)
        return renamed

    def delete(self, name: str) -> None:
        self._find(name)[0].unlink(missing_ok=True)

    def export(self, name: str) -> tuple[str, bytes]:
        """(a name for the file, its bytes)."""
        style = self.get(name)
        return file_name(style.name), style.to_bytes()

    def import_style(self, source: str | Path | bytes, name: str | None = None) -> SavedStyle:
        """A shared file into the library, under its own name or another; where that is taken it is numbered on: "neon (2)"."""
        data = source if isinstance(source, bytes) else read_bytes(source, "style file", MAX_BYTES)
        style = SavedStyle.from_bytes(data, "style file" if isinstance(source, bytes) else f"style file '{source}'")
        style = style if name is None else replace(style, name=name)
        taken, wanted, number = set(self._files()), style.name, 1
        while style.name in taken:
            number += 1
            tail = f" ({number})"
            style = replace(style, name=wanted[: MAX_NAME - len(tail)] + tail)
        self.save(style)
        return style

    def _files(self) -> dict[str, tuple[Path, SavedStyle]]:
        """name -> (file, style). Of two files with one name, the one that this library wrote counts."""
        found: dict[str, tuple[Path, SavedStyle]] = {}
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                style = SavedStyle.from_bytes(read_bytes(path, "style file", MAX_BYTES), f"style file '{path}'")
            except ReferenceError as error:
                log.warning("%s", error)
                continue
            if style.name not in found or path.name == file_name(style.name):
                found[style.name] = (path, style)
        return found

    def _find(self, name: str) -> tuple[Path, SavedStyle]:
        wanted, files = clean_name(name), self._files()
        if wanted not in files:
            there = ", ".join(sorted(files)[:8]) or "none yet"
            raise ConfigError(f"there is no style '{wanted}': expected one of those saved ({there})")
        return files[wanted]

    def _remove_others(self, name: str) -> None:
        """Files of that name which this library did not write, before one that it writes takes their place."""
        found = self._files().get(name)
        if found is not None and found[0].name != file_name(name):
            found[0].unlink(missing_ok=True)

    def _taken(self, name: str) -> ConfigError:
        return ConfigError(f"there is a style '{name}' already: choose another name, or delete or replace that one")


def _header(data: bytes) -> dict[str, Any]:
    """Our entry in a safetensors file's header (8 bytes of length, then JSON); {} for anything else."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, 2**20):
        return {}
    try:
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        return header if isinstance(header, dict) else {}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def _look(tensors: dict[str, torch.Tensor]) -> Look | None:
    """What a style of a model that shows its references keeps of them; ValueError where it is damaged."""
    if "look" not in tensors:
        return None
    latents, weights = tensors["look"], tensors["look_weights"]
    for what, dtype in ((latents, torch.float32), (weights, torch.float64)):
        if what.dtype != dtype or not bool(what.isfinite().all()):
            raise ValueError(f"its look is {what.dtype}, or not all finite")
    if latents.ndim != 4 or latents.shape[:1] != weights.shape or not 1 <= len(weights) <= MOST:
        raise ValueError(f"its look has shapes {tuple(latents.shape)} and {tuple(weights.shape)}")
    if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
        raise ValueError("the weights of its look are not shares of 1")
    return Look(latents.clone(), tuple(weights.tolist()))


def _hex(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("one of its fingerprints is not a sha256")
    return text


def _line(text: Any) -> str:
    """Text of a stranger's file, to be shown in one line."""
    return "".join(c for c in str(text) if unicodedata.category(c)[0] != "C")
