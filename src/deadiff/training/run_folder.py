"""A run folder: everything needed to repeat a training and to go on with it, readable after a kill at any moment.

RUN/recipe.toml          the recipe with everything filled in: `deadiff train RUN/recipe.toml` repeats the run
RUN/run.json             versions, hashes of data and models, machine, processes, the command
RUN/curve.jsonl          a line of losses every so many steps
RUN/checkpoint-*.safetensors   weights, their average and the optimiser's state of one step
RUN/preview-*.png, RUN/tensorboard/
RUN/adapter/             the averaged weights, as `deadiff stylize --model` takes them
"""

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deadiff.errors import DataError
from deadiff.recipe import versions

CURVE, RUN_NOTE, RECIPE = "curve.jsonl", "run.json", "recipe.toml"
WEIGHTS, AVERAGE, OPTIMIZER = "weights/", "average/", "optimizer/"  # prefixes of a checkpoint's tensors


class RunFolder:
    """The files of one run. Only the main process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, recipe: str, note: Mapping[str, Any]) -> None:
        """Write what the run is, or check that a folder with checkpoints belongs to the same run. Raises DataError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)
            if self.latest() is not None:
                self._check(note)
            started = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": sys.argv, **machine()}
            self.write(RECIPE, recipe)
            self.write(RUN_NOTE, json.dumps({**note, "sitting": started, "versions": versions()}, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"the run folder '{self.folder}' cannot be written: {error.strerror or error}") from error

    def _check(self, note: Mapping[str, Any]) -> None:
        try:
            before = json.loads((self.folder / RUN_NOTE).read_text())
        except (OSError, ValueError):
            return  # older than the first whole note: the checkpoint itself is checked when it is read
        for name, value in note.items():
            if before.get(name) != json.loads(json.dumps(value)):
                told = f"{_short(before.get(name))}, now {_short(value)}"
                raise DataError(
                    f"the run in '{self.folder}' was started with another {name} ({told}): "
                    "set it back to go on, or name a new run folder"
                )

    def write(self, name: str, text: str) -> None:
        """Whole or not at all. Raises DataError when it cannot be written."""
        partial = self.folder / f".{name}.partial"
        try:
            partial.write_text(text)
            os.replace(partial, self.folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(f"cannot write '{self.folder / name}': {error}: make room and run the same command again") from error

    # ---- checkpoints ----

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def latest(self) -> Path | None:
        """The newest checkpoint; each is whole, since it got its name only then."""
        found = self.checkpoints()
        return found[-1] if found else None

    def save(self, step: int, state: Mapping[str, Tensor], keep: int) -> Path:
        """Write a checkpoint whole or not at all, then drop the oldest. Raises DataError when it cannot be written."""
        path = self.folder / f"checkpoint-{step:08d}.safetensors"
        partial = path.with_name(f".{path.name}.partial")
        size = sum(tensor.nbytes for tensor in state.values())
        try:
            if shutil.disk_usage(self.folder).free < size:
                raise OSError(f"{size / 1e9:.2f} GB are needed")
            save_file(dict(state), partial, metadata={"step": str(step)})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            why = " ".join(str(error).split())[:100]
            raise DataError(
                f"no room for the checkpoint of step {step} in '{self.folder}' ({why}): "
                f"free some disk space and run the same command again, it goes on from {self._newest()}"
            ) from error
        for old in self.checkpoints()[:-keep]:
            old.unlink()
        return path

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(step, state) of the newest checkpoint, or None. Raises DataError if it is damaged."""
        path = self.latest()
        if path is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
                return int((file.metadata() or {})["step"]), state
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:100]
            raise DataError(
                f"the checkpoint '{path}' is damaged ({reason}): delete it and run again, the one before it is taken"
            ) from error

    def _newest(self) -> str:
        path = self.latest()
        return f"step {int(path.stem.rpartition('-')[2])}" if path else "the beginning"

    # ---- the curve ----

    def cut_curve(self, step: int) -> None:
        """Forget the lines after `step` and a half-written last one: what follows will be written again."""
        path = self.folder / CURVE
        kept = []
        for text in path.read_text(errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if line["step"] <= step:
                    kept.append(text + "\n")
        self.write(CURVE, "".join(kept))

    def add_to_curve(self, line: Mapping[str, Any]) -> None:
        try:
            with open(self.folder / CURVE, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DataError(
                f"'{self.folder / CURVE}' cannot be written ({error.strerror}): free some disk space, run again"
            ) from error

    def curve(self) -> list[dict[str, Any]]:
        """The whole lines."""
        path = self.folder / CURVE
        lines = []
        for text in path.read_text(errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One training at a time in a folder; a killed one leaves no lock behind. Raises DataError."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(
                    f"another training is running in '{self.folder}': wait for it, or name another run folder"
                ) from error
            yield


def machine() -> dict[str, Any]:
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "cores": os.cpu_count()}


def to_toml(tables: Mapping[str, Any]) -> str:
    """Plain data as TOML: scalars first, one level of tables, deeper ones inline. None is left out."""
    scalars = [
        f"{key} = {_value(value)}" for key, value in tables.items() if not isinstance(value, Mapping) and value is not None
    ]
    lines = ["\n".join(scalars)] if scalars else []
    for key, table in tables.items():
        if isinstance(table, Mapping):
            rows = [f"{name} = {_value(value)}" for name, value in table.items() if value is not None]
            lines.append("\n".join([f"[{key}]", *rows]))
    return "\n\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {_value(v)}" for k, v in value.items() if v is not None) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 48 else f"{text[:44]}..."
