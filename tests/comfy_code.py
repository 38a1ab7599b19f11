"""ComfyUI's real code for tests, where a copy is found; what it imports but these tests never run is stood in for."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

HEAVY = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops", "torchaudio",
         "torchaudio.functional")  # fmt: skip


def comfyui() -> Path:
    """DEADIFF_COMFYUI names a folder with ComfyUI's nodes.py in it; skips where there is none."""
    given = os.environ.get("DEADIFF_COMFYUI")
    if not given:
        pytest.skip("no ComfyUI here: name a copy of its code in DEADIFF_COMFYUI (comfyui/README.md says where one can be had)")
    folder = Path(given)
    if not (folder / "nodes.py").is_file():
        pytest.fail(f"DEADIFF_COMFYUI is '{given}': expected the folder with ComfyUI's nodes.py")
    return folder


def import_comfyui() -> Any:
    """ComfyUI's own `nodes` module, on the CPU."""
    folder = comfyui()
    missing = {name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name) is None}
    for name in HEAVY:
        if name.split(".")[0] in missing:
            stand_in = MagicMock(name=name)
            stand_in.__spec__, stand_in.__path__ = importlib.machinery.ModuleSpec(name, None), []
            sys.modules[name] = stand_in
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, ["comfyui", "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing(True)
        import nodes

        return nodes
    finally:
        sys.argv = arguments
