"""Features that never change, computed once: latents, vision features and text embeddings in memory-mapped shards.

CACHE/KIND/about.json            what the features depend on: the preprocessing and the encoder's fingerprint
CACHE/KIND/<hash>.safetensors    one tensor a field, (rows, ...); the header holds each row's key and checksum

A row's key is the hash of what went in (a picture's pixels, a caption). A changed picture is another key and is computed anew; a
changed encoder or preprocessing makes the whole folder stale, which is an error, since such folders take hours to make.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deadiff.errors import DataError

# N rows of a shard

ABOUT, FORMAT = "about.json", 1
SHARD_BYTES = 128 * 2**20  # about; at least one row

Compute = Callable[[Sequence[str]], Mapping[str, Tensor]]  # keys -> field -> (len(keys), ...)
Tick = Callable[[int], object]  # told how many rows were written


def text_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache:
    """One kind of features. Opening reads the headers of the shards; rows are read by memory map when asked for.

    about: whatever the features depend on beside the key, as plain data. Raises DataError for a stale folder or a damaged shard.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, {"format": FORMAT, **about}
        self._places: dict[str, tuple[Path, int, int]] = {}  # key -> shard, row, checksum
        self._open: dict[Path, Any] = {}
        self._check_about()
        for shard in sorted(folder.glob("[!.]*.safetensors")):
            self._read_header(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those that are not here yet, once each, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def __getitem__(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Field -> (len(keys), ...). Raises DataError for a row that is missing or not what was written."""
        rows = [self._row(key) for key in keys]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def fill(self, keys: Iterable[str], compute: Compute, batch_size: int, tick: Tick | None = None) -> None:
        """Compute what is missing, shard by shard: a killed run goes on after its last whole shard."""
        todo = self.missing(keys)
        rows: list[dict[str, Tensor]] = []
        done = 0
        for start in range(0, len(todo), batch_size):
            part = todo[start : start + batch_size]
            fields = {name: value.detach().cpu() for name, value in compute(part).items()}
            rows += [{name: value[i] for name, value in fields.items()} for i in range(len(part))]
            full = len(rows) * sum(value.nbytes for value in rows[0].values()) >= SHARD_BYTES
            if full or start + batch_size >= len(todo):
                self._write(todo[done : done + len(rows)], rows, len(todo) - done - len(rows))
                done += len(rows)
                rows = []
            if tick:
                tick(len(part))

    def refresh(self) -> None:
        """See the shards that other processes have written."""
        for shard in sorted(self.folder.glob("[!.]*.safetensors")):
            if shard not in self._open:
                self._read_header(shard)

    # ---- files ----

    def _check_about(self) -> None:
        path = self.folder / ABOUT
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise DataError(f"the cache's '{path}' cannot be read ({error}): delete '{self.folder}', it is made anew") from error
        expected = json.loads(json.dumps(self.about))
        if found != expected:
            names = [name for name in expected if not isinstance(found, dict) or found.get(name) != expected[name]]
            told = found.get(names[0]) if isinstance(found, dict) and names else found
            wanted = expected[names[0]] if names else expected
            raise DataError(
                f"the cache '{self.folder}' is stale: its {names[0] if names else 'format'} is {_short(told)}, this recipe's is "
                f"{_short(wanted)}: delete the folder, or name another with --cache"
            )

    def _read_header(self, shard: Path) -> None:
        try:
            opened = safe_open(shard, framework="pt")
            note = json.loads((opened.metadata() or {})["rows"])
            self._open[shard] = opened
            self._places.update({key: (shard, row, checksum) for row, (key, checksum) in enumerate(note)})
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise _damaged(shard, str(error)) from error

    def _row(self, key: str) -> dict[str, Tensor]:
        if key not in self._places:
            raise DataError(
                f"the cache '{self.folder}' lacks {key[:12]}...: the data has changed since it was filled; run the command again"
            )
        shard, row, checksum = self._places[key]
        opened = self._open[shard]
        try:
            fields = {name: opened.get_slice(name)[row : row + 1][0] for name in opened.keys()}  # noqa: SIM118  (not a dict)
        except (OSError, SafetensorError) as error:
            raise _damaged(shard, str(error)) from error
        if _checksum(fields) != checksum:
            raise _damaged(shard, f"row {row} is not what was written")
        return fields

    def _write(self, keys: Sequence[str], rows: list[dict[str, Tensor]], left: int) -> None:
        shard = self.folder / f"{hashlib.sha256(''.join(keys).encode()).hexdigest()[:24]}.safetensors"
        tensors = {name: torch.stack([row[name] for row in rows]).contiguous() for name in rows[0]}
        note = json.dumps([[key, _checksum(row)] for key, row in zip(keys, rows, strict=True)])
        partial = shard.with_name(f".{shard.name}.{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ABOUT).is_file():
                about = self.folder / f".{ABOUT}.{os.getpid()}.partial"
                about.write_text(json.dumps(self.about, indent=1) + "\n")
                os.replace(about, self.folder / ABOUT)
            save_file(tensors, partial, metadata={"rows": note})
            os.replace(partial, shard)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            free = _free(self.folder)
            why = " ".join(str(error).split())[:100]
            raise DataError(
                f"cannot write the cache '{self.folder}' ({why}; {free} free), {left + len(rows)} rows are still to come: "
                "free some disk space and run the same command again, it goes on from here"
            ) from error
        self._read_header(shard)


def _checksum(fields: Mapping[str, Tensor]) -> int:
    """CRC-32 over the fields in the order of their names."""
    value = 0
    for name in sorted(fields):
        value = zlib.crc32(fields[name].contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return value


def _damaged(shard: Path, why: str) -> DataError:
    reason = " ".join(why.split())[:100]
    return DataError(
        f"the cache's shard '{shard}' is damaged ({reason}): delete it and run again, only its rows are computed anew"
    )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:12]}...{text[-12:]}"


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"
