"""Shared by all tests: no network, shapes of public tensor functions checked, greatest parity differences printed at the end."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent / "parity"))

# jaxtyping's annotations are checked in tests only; shapes.check is in shapes.py
install_import_hook(["deadiff.attention", "deadiff.extractor", "deadiff.adapter"], "shapes.check")


def pytest_terminal_summary(terminalreporter) -> None:
    recorded = sys.modules.get("recorded")
    if recorded is None or not recorded.DIFFERENCES:
        return
    terminalreporter.section("greatest differences from the released code")
    for label, (difference, tolerance) in sorted(recorded.DIFFERENCES.items()):
        terminalreporter.write_line(f"{label:48s} {difference:.1e}  (tolerance {tolerance:.0e})")
