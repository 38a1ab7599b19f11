"""What only a fresh process can tell: peak memory of a variant, cold start. Each child prints one JSON object."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deadiff.errors import DEADiffError

MIB = 2**20
BOOT = """
import time
began = time.perf_counter()
import deadiff
seconds = time.perf_counter() - began
from deadiff.benchmarking.children import answer
answer(seconds)
"""


def ask(*arguments: str) -> dict[str, Any]:
    """Run one child and read its answer, with "process": seconds of its life. Raises DEADiffError with its last line."""
    start = time.perf_counter()
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    child = subprocess.run(
        [sys.executable, "-c", BOOT, *arguments], capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        killed = " (killed: probably too little memory)" if child.returncode < 0 else ""
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise DEADiffError(f"measuring {' '.join(arguments[:3])} ended with {child.returncode}{killed}: {reason}")
    return {**json.loads(lines[-1]), "process": seconds}


def peak_rss() -> float | None:
    """MiB, the greatest resident size of this process so far; None where the system does not tell.

    Linux: VmHWM, since getrusage's figure includes what the parent had when it started us.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / MIB
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def memory(size_name: str, variant: str, dtype_name: str, device_name: str, threads: str, seed: str) -> dict[str, Any]:
    """Peak MiB of loading a variant's weights, reading a reference, and one U-Net step at batch 2."""
    import torch

    from deadiff.benchmarking import variants as v
    from deadiff.benchmarking.models import SIZES, build_adapter, build_unet, build_vision
    from deadiff.loading import find_device, find_dtype

    torch.set_num_threads(int(threads))
    size, device = SIZES[size_name], find_device(device_name)
    dtype = find_dtype(dtype_name, device)
    told = {"libraries": peak_rss()}

    unet = build_unet(size, dtype, device, int(seed))
    inputs = v.make_inputs(size, dtype, device, int(seed))
    if variant == v.PLAIN:
        enter = v.plain_variant(unet, inputs)
    elif variant == v.DEADIFF:
        adapter = build_adapter(size, unet, dtype, device, int(seed))
        enter = v.deadiff_variant(unet, inputs, adapter, adapter.encode(inputs.picture, inputs.picture))
    else:
        image_encoder = build_vision(size.ip_vision, dtype, device, int(seed))
        ip = v.IPAdapterPlus(size, unet, dtype, device, int(seed))
        enter = v.ip_adapter_variant(unet, inputs, ip, v.ip_read(image_encoder, inputs.picture))
    with enter() as step:
        step()
    told["peak"] = peak_rss()
    told["peak_cuda"] = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return told


def start(model: str, device: str, threads: str) -> dict[str, Any]:
    """Seconds from nothing: loading the model with torch's import, its first picture, one more. Nothing if model is ""."""
    if not model:
        return {}
    began = time.perf_counter()
    import torch

    import deadiff

    torch.set_num_threads(int(threads))
    stylizer = deadiff.load(model, device=device)
    told = {"load": time.perf_counter() - began}
    from PIL import Image

    reference = Image.linear_gradient("L").convert("RGB")
    for name in ("first_picture", "next_picture"):
        began = time.perf_counter()
        stylizer("a robot", style=reference, seed=0)
        told[name] = time.perf_counter() - began
    return told


def answer(import_seconds: float) -> None:
    """The child's side: run what the command line names, print the result."""
    told = {"memory": memory, "start": start}[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"import": import_seconds, **told}))  # noqa: T201  (this is how the parent reads it)
