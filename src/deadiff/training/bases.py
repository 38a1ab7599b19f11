"""The frozen models that an adapter is trained with: text-to-image base (SD 1.5, SDXL, icons) and the eye of the references.

B batch, S side of a target in pixels, Z latent channels, T text tokens, C their width, P width of SDXL's pooled text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.config import AdapterConfig
from deadiff.embedded import WEIGHTS, load_embedded
from deadiff.errors import CheckpointError, ConfigError
from deadiff.extractor import Preprocess
from deadiff.hub import ADAPTER_FOLDER, fetch
from deadiff.loading import PIPELINE_FILES, model_folder, pipeline_folder
from deadiff.references import one_line
from deadiff.routes import ROUTES, cross_attention_layers
from deadiff.training.samples import to_pixels
from deadiff.training.stages import icons_adapter_config


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """Which models. Paths and hub ids may also be given on the command line."""

    layout: str = "sd15"  # sd15 | sdxl | icons: the route table, and the adapter's make
    model: str = ""  # the base: a diffusers folder, a hub id, or "icons"
    vision: str = ""  # the eye: a CLIPVisionModel's folder or hub id, or a folder with an adapter whose eye is taken
    resolution: int = 512  # pixels, side of the targets

    def __post_init__(self) -> None:
        if self.layout not in ROUTES:
            raise ConfigError(f"layout = {self.layout!r} is unknown; expected one of {', '.join(ROUTES)}")
        if self.resolution < 8 or self.resolution % 8:
            raise ConfigError(f"resolution = {self.resolution} pixels: expected a multiple of 8")


class Base:
    """A diffusers pipeline's parts, frozen, with what training asks of them."""

    def __init__(self, pipe: Any, resolution: int) -> None:
        self.pipe, self.resolution = pipe, resolution
        self.unet: UNet2DConditionModel = pipe.unet.requires_grad_(False).eval()
        self.vae = pipe.vae.requires_grad_(False).eval()
        self.readers = [(pipe.tokenizer, pipe.text_encoder)]
        self.is_xl = getattr(pipe, "text_encoder_2", None) is not None
        if self.is_xl:
            self.readers.append((pipe.tokenizer_2, pipe.text_encoder_2))
        for _, encoder in self.readers:
            encoder.requires_grad_(False).eval()
        self.schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        self.scaling: float = self.vae.config.scaling_factor
        self.shift: float = getattr(self.vae.config, "shift_factor", None) or 0.0
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> "Base":
        self.device = device
        for module in (self.unet, self.vae, *(encoder for _, encoder in self.readers)):
            module.to(device)  # pyright: ignore[reportArgumentType]
        return self

    @torch.no_grad()
    def read_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Captions -> {"text": (B, T, C)}, for SDXL with "pooled": (B, P).

        SDXL reads an empty prompt as zeros, as its pipeline does.
        """
        hidden, pooled = [], None
        for tokenizer, encoder in self.readers:
            ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids.to(self.device)
            read = encoder(ids, output_hidden_states=self.is_xl)
            hidden.append(read.hidden_states[-2] if self.is_xl else read.last_hidden_state)
            pooled = read[0]
        found = {"text": torch.cat(hidden, dim=-1)}
        if self.is_xl:
            assert pooled is not None
            found["pooled"] = pooled
            if getattr(self.pipe.config, "force_zeros_for_empty_prompt", True):
                said = torch.tensor([bool(text) for text in texts], device=self.device)
                found = {name: value * said.view(-1, *[1] * (value.ndim - 1)) for name, value in found.items()}
        return found

    @torch.no_grad()
    def see_latents(self, pictures: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, 2Z, h, w): mean and log variance of the posterior, unscaled."""
        pixels = to_pixels(pictures).to(self.device, self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.logvar], dim=1).float()

    def draw_latents(self, moments: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 2Z, h, w) -> (B, Z, h, w), sampled from the posterior (as the released code trains) and scaled."""
        mean, logvar = moments.float().chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        return (mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise - self.shift) * self.scaling

    def told(self, pooled: Tensor | None) -> dict[str, Any]:
        """What else the U-Net is told: nothing, or SDXL's pooled text, sizes and crop."""
        if pooled is None:
            return {}
        sizes = torch.tensor([self.resolution, self.resolution, 0, 0, self.resolution, self.resolution])
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.to(pooled).expand(len(pooled), -1)}}


def load_base(choice: BaseChoice, dtype: torch.dtype) -> Base:
    """Raises CheckpointError or ConfigError, one line. The VAE stays fp32: SDXL's overflows in half precision."""
    if not choice.model:
        raise ConfigError("which base model? Give [base] model in the recipe, or --base: a diffusers folder or a hub id")
    if choice.model == "icons":
        pipe = load_embedded(model_folder("icons"), dtype)[0]
    else:
        folder = Path(choice.model).expanduser()
        if not folder.exists() and choice.model.count("/") == 1 and not choice.model.startswith((".", "~", "/")):
            folder = fetch(choice.model, PIPELINE_FILES, purpose="the base model")
        if (folder / ADAPTER_FOLDER / WEIGHTS).is_file():
            pipe = load_embedded(folder, dtype)[0]
        elif (folder / "model_index.json").is_file():
            pipe = pipeline_folder(folder, dtype)
        else:
            raise CheckpointError(
                f"base '{choice.model}' has no model_index.json: expected a diffusers pipeline's folder or a hub id"
            )
    pipe.vae.float()
    return check_base(Base(pipe, choice.resolution), choice)


def check_base(base: Base, choice: BaseChoice) -> Base:
    """Does the base have the layers of its layout, and can it be drawn at that size? Raises ConfigError."""
    found, expected = cross_attention_layers(base.unet).keys(), ROUTES[choice.layout].keys()
    if found != expected:
        raise ConfigError(
            f"base '{choice.model}' has {len(found)} cross-attention layers, layout {choice.layout} has {len(expected)} "
            "of other names: choose the layout of this base"
        )
    return base


def load_eye(source: str) -> CLIPVisionModel:
    """A CLIPVisionModel with its last block, whatever it comes from. Raises CheckpointError or ConfigError."""
    if not source:
        raise ConfigError("which eye? Give [base] vision in the recipe, or --vision: CLIP's folder or hub id")
    if source == "icons":
        return _whole_eye(load_embedded(model_folder("icons"))[1])
    folder = Path(source).expanduser()
    for place in (folder, folder / ADAPTER_FOLDER):
        if (place / WEIGHTS).is_file():
            return _whole_eye(load_embedded(folder)[1])
        if (place / "config.json").is_file() and '"routes"' in (place / "config.json").read_text():
            return _whole_eye(DEADiffAdapter.from_pretrained(place))
    if not folder.exists() and source.count("/") == 1 and not source.startswith((".", "~", "/")):
        folder = fetch(source, ["config.json", "*.safetensors"], purpose="the eye")
    try:
        return CLIPVisionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except Exception as error:  # transformers and safetensors raise many kinds for a folder that is not theirs
        raise CheckpointError(f"the eye '{source}' cannot be loaded as a CLIPVisionModel: {one_line(error)}") from error


def _whole_eye(adapter: DEADiffAdapter) -> CLIPVisionModel:
    """An adapter's eye with a last block again, which nobody reads: from_base takes it off."""
    sizes = {**adapter.config.vision, "num_hidden_layers": adapter.config.vision["num_hidden_layers"] + 1}
    eye = CLIPVisionModel(CLIPVisionConfig(**sizes))
    eye.load_state_dict({**eye.state_dict(), **adapter.vision.state_dict()})
    return eye


def adapter_config(base: Base, choice: BaseChoice, eye: CLIPVisionModel, changes: dict[str, Any]) -> AdapterConfig:
    """The released adapter's make (for icons: the small one's) at this base's widths, with the recipe's changes."""
    if choice.layout == "icons":
        given = icons_adapter_config(base.readers[0][1], eye).to_dict()
    else:
        given = {
            "base": choice.layout,
            "routes": choice.layout,
            "token_dim": base.unet.config.cross_attention_dim,  # pyright: ignore[reportAttributeAccessIssue]
            "text_length": base.readers[0][0].model_max_length,
            "preprocess": Preprocess(size=eye.config.image_size),  # pyright: ignore[reportArgumentType]
        }
    return AdapterConfig.from_dict({**given, **changes})
