"""load(): a model's name, folder or hub id -> a Stylizer. Everything that can be wrong with files ends here as one clear line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from deadiff import embedded
from deadiff.adapter import DEADiffAdapter
from deadiff.defaults import Defaults
from deadiff.errors import CheckpointError, ConfigError, DEADiffError, MissingExtraError
from deadiff.hub import ADAPTER_FOLDER, TOKENIZER_REPO, adapter_folder, fetch
from deadiff.pipelines import with_controlnet
from deadiff.references import one_line
from deadiff.stylizer import Origin, Stylizer

DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"  # renamed then
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SD15_REPO = TOKENIZER_REPO  # Stable Diffusion v1.5 on the hub
PIPELINE_FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)  # what a broken folder raises


def load(
    model: str | Path = "icons",
    base: str | Path | Any = None,
    controlnet: str | Path | Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    loras: Sequence[str | Path | tuple[str | Path, float]] = (),
    safety_checker: bool = False,
    revision: str | None = None,
) -> Stylizer:
    """A ready Stylizer.

    model: "icons" (embedded, no network), "sd15" (the published weights, from the cache or the hub), a model folder, an adapter
    folder, or a hub id. base: any other base of the same make: a diffusers folder, a single .safetensors file, a hub id, or a
    pipeline. controlnet: a folder, a hub id, a ControlNetModel, or a list of models. loras: files or folders, or (file, scale).
    device: default CUDA, then MPS, then CPU. dtype: "fp32", "fp16", "bf16"; default fp32 on CPU, else fp16.
    safety_checker: keep the base's own (icons and converted checkpoints have none). Raises CheckpointError or ConfigError.
    """
    place = find_device(device)
    precision = find_dtype(dtype, place)
    folder = model_folder(model, revision)
    if (folder / ADAPTER_FOLDER / embedded.WEIGHTS).is_file():
        own_base, adapter = embedded.load_embedded(folder, precision)
        if safety_checker and base is None:
            raise ConfigError(f"model '{model}' has no safety checker: load it without")
    else:
        own_base, adapter = None, DEADiffAdapter.from_pretrained(folder, dtype=precision)
    pipe = base_pipeline(own_base if base is None else base, folder, adapter, precision, safety_checker)
    if controlnet is not None:
        pipe = with_controlnet(pipe, find_controlnet(controlnet, precision))
    pipe.to(place)
    adapter.to(place)
    origin = Origin(
        model=str(model),
        base=None if base is None else str(base) if isinstance(base, (str, Path)) else type(base).__name__,
        controlnet=str(controlnet) if isinstance(controlnet, (str, Path)) else None if controlnet is None else "in memory",
        loras=tuple((str(item[0]), float(item[1])) if isinstance(item, tuple) else (str(item), 1.0) for item in loras),
        safety_checker=safety_checker,
        notes=dict(adapter.config.provenance),
    )
    defaults = Defaults.read(folder / ADAPTER_FOLDER if (folder / ADAPTER_FOLDER).is_dir() else folder, adapter.config.base)
    stylizer = Stylizer(pipe, adapter, defaults=defaults, origin=origin)
    add_loras(pipe, origin.loras)
    return stylizer


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """A name, folder or hub id -> a local folder with an adapter in it (a model's, or an adapter's alone)."""
    if str(model) == "icons":
        if not (embedded.ICONS / ADAPTER_FOLDER / embedded.WEIGHTS).is_file():
            raise CheckpointError(
                f"the embedded model is missing in '{embedded.ICONS}': reinstall deadiff, or name a model folder"
            )
        return embedded.ICONS
    if str(model) == "sd15":
        from deadiff.official import sd15_folder

        return sd15_folder()
    path = Path(model).expanduser()
    if path.is_file():
        advice = (
            "`deadiff convert FILE OUT` makes a model folder"
            if path.suffix in (".ckpt", ".pt", ".pth")
            else "give the folder it is in"
        )
        raise CheckpointError(f"model '{model}' is a file: expected a folder; {advice}")
    if path.is_dir():
        if not (path / ADAPTER_FOLDER / embedded.WEIGHTS).is_file():
            adapter_folder(path)  # raises where there is none
        return path
    names = "icons, sd15, a folder, or a hub id owner/name"
    if isinstance(model, Path) or str(model).count("/") != 1 or str(model).startswith((".", "~", "/")):
        raise CheckpointError(f"there is no model '{model}': expected {names}")
    return fetch(str(model), [*PIPELINE_FILES, "*.json", "*.safetensors"], revision, "the model")


def base_pipeline(base: Any, folder: Path, adapter: DEADiffAdapter, dtype: torch.dtype, safety_checker: bool) -> Any:
    """The base model's diffusers pipeline: as given, or the one in the model's folder, or what the adapter was made for."""
    if base is not None and not isinstance(base, (str, Path)):
        if not hasattr(base, "unet"):
            raise ConfigError(
                f"base is {type(base).__name__}: expected a folder, a .safetensors file, a hub id or a diffusers pipeline"
            )
        return base if base.unet.dtype == dtype else base.to(dtype=dtype)
    if base is not None:
        path = Path(base).expanduser()
        if path.is_file():
            return single_file(path, folder, dtype, safety_checker)
        source: str | Path = path if path.is_dir() else str(base)
    elif (folder / "model_index.json").is_file():
        source = folder
    elif adapter.config.base == "sd15":
        source = SD15_REPO
    elif adapter.config.base == "icons":
        return embedded.load_embedded(model_folder("icons"), dtype)[0]
    else:
        raise CheckpointError(f"'{folder}' is an adapter alone, for {adapter.config.base}: say which base model with base=")
    if isinstance(source, str):
        if source.count("/") != 1 or source.startswith((".", "~", "/")):
            raise CheckpointError(
                f"there is no base model '{source}': expected a folder, a .safetensors file or a hub id owner/name"
            )
        source = fetch(source, PIPELINE_FILES, purpose="the base model")
    if not (source / "model_index.json").is_file():
        raise CheckpointError(f"base '{source}' has no model_index.json: expected a diffusers pipeline's folder")
    return pipeline_folder(source, dtype, safety_checker)


def pipeline_folder(folder: Path, dtype: torch.dtype, safety_checker: bool = False) -> Any:
    """A diffusers pipeline's folder -> pipeline. Only safetensors are read and no code from the folder runs."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    parts: dict[str, Any] = {}
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        has_checker = bool((index.get("safety_checker") or [None])[0])
        if safety_checker and not has_checker:
            raise ConfigError(f"'{folder}' has no safety checker: load it without, or use a base that has one")
        if not safety_checker and "safety_checker" in index:
            parts = {"safety_checker": None, "requires_safety_checker": False}
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
        if vae.get("_class_name") == "PatchAutoencoder":
            from deadiff.autoencoder import PatchAutoencoder

            parts["vae"] = PatchAutoencoder.from_pretrained(folder / "vae", **{DTYPE: dtype}, use_safetensors=True)
        return DiffusionPipeline.from_pretrained(
            folder, **{DTYPE: dtype}, use_safetensors=True, local_files_only=True, trust_remote_code=False, **parts
        )
    except DEADiffError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors each raise what they like for a damaged file
        raise CheckpointError(f"the base model in '{folder}' cannot be loaded: {one_line(error)}") from error


def single_file(path: Path, folder: Path, dtype: torch.dtype, safety_checker: bool) -> Any:
    """One .safetensors file in the usual Stable Diffusion 1.x naming -> pipeline; tokenizer and sizes from the model's folder."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"base '{path}' is not a .safetensors file: expected one, or a diffusers folder (.ckpt may hold code)"
        )
    if safety_checker:
        raise ConfigError(f"'{path}' has no safety checker: single files never do; use a diffusers folder that has one")
    config = (
        folder
        if (folder / "model_index.json").is_file()
        else fetch(SD15_REPO, ["*.json", "*/*.json", "*/*.txt"], purpose="its configs")
    )
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config),
            **{DTYPE: dtype},
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except Exception as error:
        raise CheckpointError(f"base '{path}' cannot be loaded as Stable Diffusion 1.x: {one_line(error)}") from error


def find_controlnet(controlnet: Any, dtype: torch.dtype) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    if not isinstance(controlnet, (str, Path)):
        return controlnet
    path = Path(controlnet).expanduser()
    if not path.is_dir():
        if str(controlnet).count("/") != 1 or path.exists():
            raise CheckpointError(f"there is no ControlNet '{controlnet}': expected a diffusers folder or a hub id owner/name")
        path = fetch(str(controlnet), ["config.json", "*.safetensors"], purpose="the ControlNet")
    try:
        return ControlNetModel.from_pretrained(path, **{DTYPE: dtype}, use_safetensors=True, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"the ControlNet in '{path}' cannot be loaded: {one_line(error)}") from error


def add_loras(pipe: Any, loras: Sequence[tuple[str, float]]) -> None:
    """Load LoRA files beside each other, each at its scale."""
    names = []
    for number, (source, _) in enumerate(loras):
        path = Path(source).expanduser()
        if not path.exists():
            raise CheckpointError(f"there is no LoRA '{source}': expected a .safetensors file or a folder with one")
        try:
            where, which = (path.parent, {"weight_name": path.name}) if path.is_file() else (path, {})
            pipe.load_lora_weights(str(where), adapter_name=f"lora{number}", use_safetensors=True, **which)
        except (ImportError, ValueError) as error:
            if "PEFT" in str(error):
                raise MissingExtraError("LoRA files need peft: pip install 'deadiff[lora]'") from error
            raise CheckpointError(f"LoRA '{source}' cannot be loaded: {one_line(error)}") from error
        except Exception as error:
            raise CheckpointError(f"LoRA '{source}' cannot be loaded: {one_line(error)}") from error
        names.append(f"lora{number}")
    if names:
        pipe.set_adapters(names, [scale for _, scale in loras])


def find_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used here: expected cpu, cuda, cuda:1 or mps ({one_line(error)[:80]})"
        ) from error
    if found.type == "meta":
        raise ConfigError("device 'meta' holds no numbers: expected cpu, cuda or mps")
    return found


def find_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    names = {**DTYPES, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    found = dtype if isinstance(dtype, torch.dtype) else names.get(str(dtype))
    if found not in DTYPES.values():
        raise ConfigError(f"dtype is {str(dtype)!r}: expected one of {', '.join(DTYPES)}")
    return found  # pyright: ignore[reportReturnType]
