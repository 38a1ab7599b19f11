"""Files are written whole or not at all, and a new file never replaces one that exists: it is numbered on."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from deadiff.errors import ConfigError
from deadiff.references import one_line

MOST = 100_000  # names tried before giving up


def prepare_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder if need be and prove that a file can be written in it, before any long work. Raises ConfigError."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"folder '{folder}' cannot be written to: {one_line(error)}; choose another with --out") from error
    return path


def write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """FOLDER/stem.suffix, or stem_2... if that exists. Raises ConfigError (disk full, no permission), leaving nothing behind."""
    try:
        with _beside(folder, data) as temporary:
            for number in range(1, MOST):
                path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}")
                if _publish(temporary, path):
                    return path
    except OSError as error:
        raise ConfigError(f"'{folder / (stem + suffix)}' cannot be written: {one_line(error)}") from error
    raise ConfigError(f"folder '{folder}' already holds {MOST} pictures called '{stem}': choose another with --out")


def write_at(path: Path, data: bytes, *, replace: bool = False) -> bool:
    """A file of this very name, whole or not at all; False, and nothing changed, where it exists and is not to be replaced.

    Raises ConfigError (disk full, no permission), leaving nothing behind.
    """
    try:
        with _beside(path.parent, data) as temporary:
            if not replace:
                return _publish(temporary, path)
            os.replace(temporary, path)
            return True
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {one_line(error)}") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary file beside `path` and renames it: a killed run leaves no half file under the real name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def _beside(folder: Path, data: bytes) -> Iterator[Path]:
    """A complete temporary file in the folder, gone afterwards."""
    path = folder / f".deadiff-{secrets.token_hex(8)}"
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> bool:
    """Give the complete file its name in one step; False if the name is taken, even by a process a moment ago."""
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
