"""What the app keeps on disk: pictures with their recipes, copies of the references they were drawn from, named styles."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deadiff.errors import ConfigError, DEADiffError
from deadiff.recipe import Recipe, png_bytes, read_recipe
from deadiff.references import Reference, read_bytes
from deadiff.style_library import StyleLibrary
from deadiff.writing import prepare_folder, write_new

SHOWN = 120  # pictures in the gallery, the newest; older ones stay in the folder


class Folder:
    """FOLDER/*.png, FOLDER/references/, FOLDER/styles/. Files are written whole or not at all, and none is ever replaced."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Makes it if need be. Raises ConfigError where it cannot be written to."""
        self.path = prepare_folder(folder).resolve()
        self.references = prepare_folder(self.path / "references")
        self.styles = StyleLibrary(self.path / "styles")
        self._recipes: dict[tuple[str, int], Recipe | None] = {}  # (path, mtime in ns): a picture's text is read once

    def save_picture(self, picture: Image.Image, recipe: Recipe) -> Path:
        return write_new(self.path, stem(recipe), ".png", png_bytes(picture, recipe))

    def save_sheet(self, data: bytes) -> Path:
        """A comparison's PNG, beside the pictures; it has no recipe, so the gallery leaves it out."""
        return write_new(self.path, "comparison", ".png", data)

    def keep_reference(self, path: str | os.PathLike[str], weight: float = 1.0) -> Reference:
        """An uploaded picture, copied here unless these very bytes are here already, so that it outlives the browser's page.

        Raises ReferenceError, naming the file without its folder, for anything that is not a picture.
        """
        source = Path(path)
        inside = source.resolve().is_relative_to(self.path)
        data = read_bytes(source, "reference picture")
        reference = named(data, source.name, weight)
        if inside:
            return Reference(str(source.resolve()), weight)
        start = reference.sha256[:16]
        there = sorted(self.references.glob(f"{start}-*"))
        if there:
            return Reference(str(there[0]), weight)
        plain = re.sub(r"[^\w.-]+", "-", source.stem).strip("-.")[:40] or "reference"
        suffix = source.suffix.lower() if re.fullmatch(r"\.\w{1,5}", source.suffix) else ".png"
        return Reference(str(write_new(self.references, f"{start}-{plain}", suffix, data)), weight)

    def pictures(self) -> list[Path]:
        """The newest drawn pictures, newest first: every PNG of the folder that carries a recipe."""
        found = []
        for path in self.path.glob("*.png"):
            try:
                found.append((path.stat().st_mtime_ns, path))
            except OSError:
                continue  # gone since the folder was listed
        newest = (path for _, path in sorted(found, key=lambda item: (-item[0], item[1].name)))
        drawn: list[Path] = []
        for path in newest:
            if len(drawn) == SHOWN:
                break
            if self._known(path) is not None:
                drawn.append(path)
        return drawn

    def recipe(self, path: str | os.PathLike[str]) -> Recipe:
        """Raises ConfigError or ReferenceError: also for a path outside this folder, which no page may ask for."""
        place = Path(path).resolve()
        if place.parent != self.path:
            raise ConfigError(f"'{place.name}' is not among the drawn pictures: choose one in the gallery")
        return read_recipe(place)

    def _known(self, path: Path) -> Recipe | None:
        key = str(path), path.stat().st_mtime_ns
        if key not in self._recipes:
            try:
                self._recipes[key] = read_recipe(path)
            except DEADiffError:
                self._recipes[key] = None
        return self._recipes[key]


def named(data: bytes, name: str, weight: float = 1.0) -> Reference:
    """Bytes of an upload -> Reference; an error names the file as the user knows it."""
    from deadiff.errors import ReferenceError

    try:
        return Reference(data, weight)
    except ReferenceError as error:
        raise ReferenceError(str(error).replace("reference picture", f"'{name}'", 1)) from error


def stem(recipe: Recipe) -> str:
    """A picture's file name: the prompt's words, the style's name, the seed."""
    styles = [source_name(source.path) for source in recipe.style if source.path][:1]
    words = [re.sub(r"\W+", "-", text).strip("-")[:40] for text in (recipe.prompt, *styles)]
    return "_".join([*(word for word in words if word), str(recipe.seed)])


def source_name(path: str) -> str:
    """What people call a reference: its file name without our hash, or the saved style's name."""
    if path.startswith(STYLE_PREFIX):
        return path.removeprefix(STYLE_PREFIX)
    return re.sub(r"^[0-9a-f]{16}-", "", Path(path).stem)


STYLE_PREFIX = "style:"  # of a recipe's source that is a saved style, not a picture's file


def names_of(items: Sequence[Any]) -> str:
    return " + ".join(source_name(item.path) for item in items if item.path)
