"""The released checkpoint (LDM naming, one .ckpt) -> a diffusers folder and our adapter; every key accounted for.

The file is mapped, nothing but tensors is unpickled, and tensors are written one by one: peak memory stays near the file's size.
"""

import hashlib
import importlib.util
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTokenizer

from deadiff import __version__
from deadiff.checkpoint import DOCS, open_checkpoint
from deadiff.clip_bpe import read_merges, tokenizer_from_merges
from deadiff.config import CONFIG_NAME
from deadiff.errors import CheckpointError, ConfigError
from deadiff.hub import ADAPTER_FOLDER, TOKENIZER_FILES, TOKENIZER_REPO, fetch, fetch_official
from deadiff.official_plan import Heads, Plan, make_plan
from deadiff.weights import WEIGHTS_NAME, stream_safetensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCHEDULER = {  # the released sampler: DDIM, eta 0
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
PART_FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "deadiff": f"{ADAPTER_FOLDER}/{WEIGHTS_NAME}",
}


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What became of every key."""

    out: Path
    dtype: str
    used: dict[str, int]  # part -> official keys used
    ignored: dict[str, int]  # reason -> official keys not used
    warnings: tuple[str, ...]
    bytes_written: int

    def lines(self) -> list[str]:
        """For people."""
        used = [f"  used      {count:5d}  {part}" for part, count in self.used.items()]
        ignored = [f"  not used  {count:5d}  {reason}" for reason, count in self.ignored.items()]
        total = sum(self.used.values()) + sum(self.ignored.values())
        head = f"{total} keys -> '{self.out}' ({self.dtype}, {self.bytes_written / 1e9:.2f} GB)"
        return [head, *used, *ignored, *(f"  warning: {text}" for text in self.warnings)]


def eyes_differ(state: Mapping[str, Tensor]) -> bool:
    """Whether the two copies of the frozen vision tower are not the same numbers (missing keys are make_plan's business)."""
    copies = [
        (key, key.replace("style_blip", "content_blip", 1)) for key in state if key.startswith("style_blip.visual_encoder.")
    ]
    return any(twin in state and not torch.equal(state[key], state[twin]) for key, twin in copies)


def check_schedule(state: Mapping[str, Tensor], source: str) -> None:
    """The stored betas, if any, must be the ones that our scheduler config makes."""
    if "betas" in state:
        ours = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
        stored = state["betas"].double()
        if stored.shape != ours.shape or not torch.allclose(stored, ours, rtol=1e-4, atol=0):
            raise CheckpointError(f"the betas of '{source}' are not Stable Diffusion's: expected 0.00085 to 0.012, {DOCS}")


def convert(
    ckpt: str | Path,
    out: str | Path,
    dtype: str = "fp16",
    *,
    tokenizer: str | Path | None = None,
    heads: Heads | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """deadiff_v1.ckpt -> OUT, a diffusers pipeline folder with the adapter in OUT/deadiff; whole or not at all.

    dtype: fp16, bf16 or fp32. tokenizer: see find_tokenizer. heads: only for models of other sizes than the published one.
    progress(bytes written, bytes in all). Peak memory stays below 1.3 x the file's size. Raises CheckpointError or ConfigError.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"'{out}' exists already: give a new folder, or remove it first")
    state = open_checkpoint(ckpt)
    check_schedule(state, str(ckpt))
    differ = eyes_differ(state)
    plan = make_plan({key: tuple(tensor.shape) for key, tensor in state.items()}, heads, differ, str(ckpt))
    words = find_tokenizer(tokenizer)
    total = sum(shape.numel() for part in plan.models for shape in plan.shapes(part).values()) * DTYPES[dtype].itemsize

    partial = _partial_folder(out, total)
    try:
        done = 0

        def read(key: str) -> Tensor:
            nonlocal done
            if progress is not None:
                done += state[key].numel() * DTYPES[dtype].itemsize
                progress(min(done, total), total)
            return _finite(state[key], key, DTYPES[dtype])

        _write_configs(plan, partial, words, _sha256(Path(ckpt).expanduser()))
        for part, name in PART_FILES.items():
            shapes = plan.shapes(part)
            if part == "text_encoder":  # files of SD 1.x carry this prefix; transformers reads them so
                shapes = {f"text_model.{key}": shape for key, shape in shapes.items()}
            stream_safetensors(partial / name, shapes, DTYPES[dtype], plan.tensors(part, read))
        if out.is_dir():
            out.rmdir()
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(f"cannot write '{out}': {error}: nothing was left there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    used = {part: len({key for key, _ in sources.values()}) for part, sources in plan.sources.items()}
    notes = ("the two copies of the vision tower differ, unlike the published ones: both are kept (two_eyes)",) if differ else ()
    return ConversionReport(
        out=out, dtype=dtype, used=used, ignored=dict(Counter(plan.ignored.values())), warnings=notes, bytes_written=total
    )


def _partial_folder(out: Path, total: int) -> Path:
    """A hidden folder beside `out` with room for the result. Raises CheckpointError when there is none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < total * 1.02:
            raise CheckpointError(f"'{out.parent}' has {free / 1e9:.1f} GB free: the converted model needs {total / 1e9:.1f} GB")
        return Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write into '{out.parent}': {error}") from error


def _finite(tensor: Tensor, key: str, dtype: torch.dtype) -> Tensor:
    """Cast; a number that the smaller dtype cannot hold is an error."""
    cast = tensor.to(dtype)
    if cast.dtype != tensor.dtype and not torch.isfinite(cast).all():
        raise CheckpointError(f"{key} holds numbers that {str(dtype).removeprefix('torch.')} cannot: convert to fp32")
    return cast


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_configs(plan: Plan, folder: Path, tokenizer: CLIPTokenizer, sha256: str) -> None:
    """Everything of the folder but the weights."""
    models: dict[str, Any] = plan.models
    models["unet"].save_config(folder / "unet")
    models["vae"].save_config(folder / "vae")
    models["text_encoder"].config.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULER).save_config(folder / "scheduler")  # pyright: ignore[reportArgumentType]
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = models["deadiff"].config.to_dict()
    config["provenance"] |= {"sha256 of the checkpoint": sha256, "converted by": f"deadiff {__version__}"}
    (folder / ADAPTER_FOLDER).mkdir()
    (folder / ADAPTER_FOLDER / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def find_tokenizer(source: str | Path | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer, the one thing that the checkpoint does not hold.

    source: a folder of SD 1.x or CLIP ViT-L/14 (or its tokenizer/), bpe_simple_vocab_16e6.txt.gz, or a hub id. By default the
    file inside an installed open_clip, else the hub. Raises CheckpointError with the ways to get it.
    """
    if source is None:
        installed = importlib.util.find_spec("open_clip")
        if installed is not None and installed.origin is not None:
            vocabulary = Path(installed.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
            if vocabulary.is_file():
                return tokenizer_from_merges(read_merges(vocabulary))
        source = TOKENIZER_REPO
    path = Path(source).expanduser()
    if path.is_file():
        return tokenizer_from_merges(read_merges(path))
    if not path.is_dir():
        path = fetch(str(source), TOKENIZER_FILES, None, "CLIP's tokenizer (or pass --tokenizer with such a folder)")
    for folder in (path / "tokenizer", path):
        if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    raise CheckpointError(f"no tokenizer in '{path}': expected vocab.json + merges.txt or tokenizer.json")


def sd15_folder(dtype: str = "fp16") -> Path:
    """The published model, converted: from the cache, or downloaded and converted now (7.43 GB, once)."""
    home = Path(os.environ.get("DEADIFF_HOME", "~/.cache/deadiff")).expanduser()
    folder = home / f"sd15-{dtype}"
    if not (folder / "model_index.json").is_file():
        convert(fetch_official(), folder, dtype)
    return folder
