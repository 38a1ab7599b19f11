"""The models that the page offers: each loaded when it is first drawn with, one kept in memory."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from deadiff.defaults import FOR_BASE, Defaults
from deadiff.errors import ConfigError, DEADiffError

Loader = Callable[[str], Any]  # a model's name, folder or hub id -> Stylizer


class Models:
    """Names -> Stylizers. Only the names given at the start can be asked for: a page cannot make the app fetch or open others."""

    def __init__(self, names: Sequence[str], loader: Loader | None = None) -> None:
        if not names:
            raise ConfigError("there is no model: expected at least one, such as icons")
        self.names = tuple(dict.fromkeys(names))
        self._load = loader or quiet_load
        self._lock = threading.Lock()
        self._name, self._stylizer = "", None

    def get(self, name: str) -> Any:
        """The Stylizer of that name; the one before it leaves memory. Raises ConfigError or CheckpointError."""
        self.check(name)
        with self._lock:
            if self._name != name or self._stylizer is None:
                self._name, self._stylizer = "", None  # its memory is free before the next is read
                self._stylizer = self._load(name)
                self._name = name
            return self._stylizer

    def loaded(self, name: str) -> bool:
        return self._name == name

    def check(self, name: str) -> None:
        if name not in self.names:
            there = ", ".join(self.names)
            raise ConfigError(f"the model '{name}' is not among those of this page ({there}): start the app with --model {name}")

    def defaults(self, name: str) -> Defaults:
        """What the model draws with when nothing is said, without loading or fetching it."""
        from deadiff.hub import ADAPTER_FOLDER
        from deadiff.loading import model_folder

        self.check(name)
        if self._name == name and self._stylizer is not None:
            return self._stylizer.defaults
        if name == "sd15":
            return FOR_BASE["sd15"]
        if name.count("/") == 1 and not name.startswith((".", "~", "/")):
            return Defaults()  # perhaps a hub id: known once it is loaded
        try:
            folder = model_folder(name)
            return Defaults.read(folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder)
        except DEADiffError:
            return Defaults()  # drawing will say what is wrong with it


def quiet_load(name: str) -> Any:
    import diffusers
    import transformers

    from deadiff.loading import load

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return load(name)
