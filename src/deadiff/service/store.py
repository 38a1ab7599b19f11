"""Files by the sha256 of their bytes: written whole or not at all, never changed, so that the same bytes are kept once."""

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from deadiff.errors import ConfigError, DataError
from deadiff.writing import prepare_folder, write_at

SHA256 = re.compile(r"[0-9a-f]{64}")
HOUR = 3600.0  # seconds


class DiskError(Exception):
    """The disk is full or cannot be written to: no fault of the request, which may be tried again later."""


class Store:
    """FOLDER/ab/abcd...SUFFIX. `put` before the database learns of a file; `sweep` takes those it never learnt of, or forgot."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self.folder, self.suffix = prepare_folder(folder), suffix
        self._lock = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Where a file is, or would be. Raises DataError for anything but a sha256: nothing else can become a path."""
        if not SHA256.fullmatch(sha256):
            raise DataError(f"{sha256[:20]!a} is not a sha256: expected 64 hexadecimal digits")
        return self.folder / sha256[:2] / (sha256 + self.suffix)

    def put(self, data: bytes) -> str:
        """The sha256 under which the bytes are on the disk from now on. Raises DiskError."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        try:
            with self._lock:
                if not self._touch(path):
                    prepare_folder(path.parent)
                    write_at(path, data, replace=True)
                    _sync_folder(path.parent)
        except (ConfigError, OSError) as error:
            raise DiskError(str(error)) from error
        return sha256

    def touch(self, sha256: str) -> bool:
        """Whether the file is there; if so it counts as new, and is safe from `sweep` for a while."""
        path = self.path(sha256)
        with self._lock:
            return self._touch(path)

    def _touch(self, path: Path) -> bool:
        try:
            os.utime(path)
            return True
        except FileNotFoundError:
            return False

    def get(self, sha256: str) -> bytes:
        """Raises DataError where it is missing or was changed on the disk."""
        try:
            data = self.path(sha256).read_bytes()
        except OSError as error:
            raise DataError(f"the file {sha256[:12]} is missing from '{self.folder}': restore it from a backup") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"the file {sha256[:12]} in '{self.folder}' was changed on the disk: restore it from a backup")
        return data

    def sweep(self, used: Callable[[list[str]], set[str]], older: float, now: float | None = None) -> int:
        """Remove files last touched more than `older` seconds ago of which `used` (sha256s -> those in use) does not know."""
        before, removed = (time.time() if now is None else now) - older, 0
        for shard in self.folder.iterdir():
            old = []
            for path in shard.iterdir() if shard.is_dir() else ():
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        old.append(path)
            names = {path: path.name.removesuffix(self.suffix) for path in old}
            kept = used([name for name in names.values() if SHA256.fullmatch(name)]) if names else set()
            for path, name in names.items():
                with self._lock, contextlib.suppress(FileNotFoundError):
                    if name not in kept and path.stat().st_mtime < before:  # nobody has touched it since
                        path.unlink()
                        removed += 1
        return removed


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
