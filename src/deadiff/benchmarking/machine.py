"""What a figure depends on: processor, cores, memory, graphics card, versions, how busy the machine is."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from deadiff.recipe import versions

BUSY = 0.3  # load of the cores, before we start, above which seconds say little


def describe(device: torch.device) -> dict[str, Any]:
    """Plain data for the report. What this system does not tell is None."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": _cpu(),
        "cores": cores,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": _memory(),
        "system": platform.platform(terse=True),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "load": load,
        "busy": load is not None and load > BUSY * cores,
        "versions": {**versions(), "python": platform.python_version()},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
