"""Models that travel inside the package: an ordinary model folder whose weights are stored in eight bits.

FOLDER/{unet,vae,text_encoder,deadiff}/{config.json,weights.safetensors}, FOLDER/tokenizer/, FOLDER/scheduler/; the adapter's eye
in FOLDER/image_encoder/weights.safetensors, its sizes in the adapter's config.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from deadiff import eight_bit
from deadiff.adapter import DEADiffAdapter
from deadiff.autoencoder import PatchAutoencoder
from deadiff.canvas import unet_class
from deadiff.config import read_config
from deadiff.errors import CheckpointError
from deadiff.sketch import text_tower
from deadiff.weights import check_weights

WEIGHTS = "weights.safetensors"
EYE = "image_encoder"
LEVELS = {  # by part and by how the weights' names begin, in order; fewer pack smaller in a wheel, for what docs/log.md says
    "unet": {"": 63},
    "vae": {"decoder.conv_": 127, "decoder.up_blocks.2": 63, "decoder.up_blocks.1": 23, "decoder.up_blocks.0": 11, "decoder.": 7},
    EYE: {"": 15},
    "deadiff": {"extractors.content.places.": 31, "extractors.content.": 7},
}
ICONS = Path(__file__).parent / "icons"


def load_embedded(folder: Path = ICONS, dtype: torch.dtype = torch.float32) -> tuple[StableDiffusionPipeline, DEADiffAdapter]:
    """The base as a diffusers pipeline, and its adapter, not injected yet. Raises CheckpointError if the folder is not whole."""
    if not (folder / "deadiff" / WEIGHTS).is_file():
        raise CheckpointError(f"the embedded model is missing in '{folder}': reinstall deadiff, or name a model folder instead")
    vae = PatchAutoencoder.from_config(_config(folder / "vae"))
    sizes = _config(folder / "unet")
    unet = unet_class(sizes).from_config(sizes)
    text_encoder = text_tower(CLIPTextConfig(**_config(folder / "text_encoder")))
    for name, module in {"vae": vae, "unet": unet, "text_encoder": text_encoder}.items():
        assert isinstance(module, nn.Module)
        weights = eight_bit.load(folder / name / WEIGHTS)
        check_weights(module.state_dict(), weights, str(folder / name / WEIGHTS))
        module.load_state_dict(weights)
        module.to(dtype).eval()  # pyright: ignore
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler.from_config(_config(folder / "scheduler", "scheduler_config.json"))
    pipe = pipeline_of(vae, unet, text_encoder, tokenizer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    weights = folder / "deadiff" / WEIGHTS
    parts = eight_bit.load(weights)
    if (folder / EYE / WEIGHTS).is_file():
        parts |= {f"vision.{name}": value for name, value in eight_bit.load(folder / EYE / WEIGHTS).items()}
    adapter = DEADiffAdapter.from_weights(read_config(folder / "deadiff"), parts, str(weights))
    return pipe, adapter.to(dtype).eval()


def pipeline_of(vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> StableDiffusionPipeline:
    """The parts of a small base as diffusers' own pipeline; it has no safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def save_embedded(pipe: StableDiffusionPipeline, adapter: DEADiffAdapter, folder: Path) -> None:
    """Write a pipeline and its adapter in the form that `load_embedded` reads: all of it, or nothing where there is no room.

    Other files of the folder (a model card, defaults) stay. Raises CheckpointError.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
            _write(pipe, adapter, Path(partial))
            for path in [path for path in Path(partial).rglob("*") if path.is_file()]:
                final = folder / path.relative_to(partial)
                final.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)
                path.replace(final)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model into '{folder}': {error}: make room and pack it again") from error


def _write(pipe: StableDiffusionPipeline, adapter: DEADiffAdapter, folder: Path) -> None:
    for name in ("unet", "vae", "text_encoder"):
        module = getattr(pipe, name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        eight_bit.save(module.state_dict(), folder / name / WEIGHTS, LEVELS.get(name, {}))
        if name == "text_encoder":
            module.config.to_json_file(folder / name / "config.json")
        else:
            module.save_config(folder / name)
            _forget_place(folder / name / "config.json")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    pipe.scheduler.save_config(folder / "scheduler")
    (folder / "deadiff").mkdir(parents=True, exist_ok=True)
    (folder / "deadiff" / "config.json").write_text(json.dumps(adapter.config.to_dict(), indent=2) + "\n")
    (folder / EYE).mkdir(parents=True, exist_ok=True)
    eight_bit.save(adapter.vision.state_dict(), folder / EYE / WEIGHTS, LEVELS[EYE])
    rest = {name: value for name, value in adapter.state_dict().items() if not name.startswith("vision.")}
    eight_bit.save(rest, folder / "deadiff" / WEIGHTS, LEVELS["deadiff"])


def _forget_place(config: Path) -> None:
    """Where a module was loaded from concerns this machine alone."""
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2) + "\n")
