"""Stage 5 of the icons model: the text-to-image base, a latent U-Net with SD 1.5's sixteen cross-attention layers.

Words and sketch are told apart while it learns, so that it takes the subject from the canvas and the style from what attention
reads: a sample's sketch may be that of its subject without the style, as under a style reference, or that of its style with the
subject's added, as under a content reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from deadiff.autoencoder import PatchAutoencoder
from deadiff.canvas import CanvasUNet
from deadiff.errors import ConfigError
from deadiff.sketch import sketch_tokens, total_tokens
from deadiff.training.fast_attention import MatmulAttnProcessor
from deadiff.training.loop import Task
from deadiff.training.reader import tokenize
from deadiff.training.samples import Drawn

# B batch, Z latent channels, h = w = 8, T words, G sketch tokens, C text width

SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Size of the U-Net and what is dropped while it learns."""

    block_out_channels: tuple[int, int, int] = (192, 192, 256)
    head_dim: int = 64
    text_drop: float = 0.1  # share of the samples whose prompt is empty, for classifier-free guidance
    timestep_shift: float = 1.0  # above 1 more of the samples are noisy, where the words decide; 1: uniform

    def __post_init__(self) -> None:
        check_shift(self.timestep_shift)


class BaseBatch(NamedTuple):
    latents: Tensor  # (B, Z, h, w), unit variance
    text: Tensor  # (3, B, T) token ids: words, sketched, added


def build_unet(config: BaseConfig, latent_channels: int, text: CLIPTextConfig, sample_size: int = 8) -> UNet2DConditionModel:
    """Three cross-attention levels of two layers each: 6 layers down, 1 in the middle, 9 up, as Stable Diffusion 1.5 has.

    With a canvas where the text tower sketches.
    """
    levels = len(config.block_out_channels)
    sketches: dict[str, Any] = {"text_length": total_tokens(text)} if sketch_tokens(text) else {}
    return (CanvasUNet if sketches else UNet2DConditionModel)(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=2,
        cross_attention_dim=text.hidden_size,
        attention_head_dim=tuple(c // config.head_dim for c in config.block_out_channels),  # pyright: ignore # the number of heads
        **sketches,
    )


def check_shift(shift: float) -> None:
    """Raises ConfigError for a timestep_shift that is not above 0."""
    if not shift > 0:
        raise ConfigError(f"timestep_shift is {shift}: expected a number above 0; 1 is uniform")


def even_timesteps(count: int, generator: torch.Generator, total: int = 1000, shift: float = 1.0) -> Tensor:
    """(count,) timesteps, one from each of `count` equal bands in random order: uniform, with less variance.

    shift: s moves them to s u / (1 + (s - 1) u), as Esser et al. 2024 (Stable Diffusion 3), equation 23.
    """
    bands = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    if shift != 1:
        bands = shift * bands / (1 + (shift - 1) * bands)
    return (bands * total).long()


class BaseTask(Task):
    """`draw(draw, count)` -> Drawn."""

    def __init__(
        self,
        config: BaseConfig,
        draw: Callable[[int, int], Drawn],
        vae: PatchAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        prompts: Sequence[str] = (),
        sample_size: int = 8,  # side of the latents
    ) -> None:
        self.config, self.draw, self.prompts = config, draw, list(prompts)
        self.empty = tokenize(tokenizer, [""])  # (1, T) ids of the empty prompt
        self.vae, self.text_encoder, self.tokenizer = vae.eval(), text_encoder.requires_grad_(False).eval(), tokenizer
        unet = build_unet(config, vae.config.latent_channels, text_encoder.config, sample_size)  # pyright: ignore
        unet.set_attn_processor(MatmulAttnProcessor())  # pyright: ignore[reportArgumentType]
        self.modules = {"unet": unet}
        self.schedule = DDPMScheduler(**SCHEDULE)  # pyright: ignore[reportArgumentType]

    def batch(self, draw: int, batch_size: int) -> BaseBatch:
        return self.prepared(self.draw(draw, batch_size))

    def prepared(self, drawn: Drawn) -> BaseBatch:
        """Latents of unit variance and token ids."""
        scaled = torch.from_numpy(drawn.latents).float() * self.vae.config.scaling_factor  # pyright: ignore
        return BaseBatch(scaled, tokenize(self.tokenizer, [*drawn.words, *drawn.sketched, *drawn.added]).view(3, len(scaled), -1))

    @torch.no_grad()
    def read(self, text: Tensor, dtype: torch.dtype) -> Tensor:
        """(3, B, T) ids -> (B, T + G, C): the words' states and the composed sketch. Each caption is read once."""
        captions, of = torch.cat([self.empty, *text]).unique(dim=0, return_inverse=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            said = self.text_encoder(captions).last_hidden_state.to(dtype)
        empty, (words, sketched, added) = said[of[:1]], said[of[1:]].unflatten(0, (3, -1))
        count = words.shape[1] - text.shape[2]
        return torch.cat([words[:, :-count], (sketched + added - empty)[:, -count:]], 1) if count else words

    def loss(self, batch: BaseBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity v = sqrt(a) * noise - sqrt(1 - a) * latents (Salimans and Ho 2022, section 4)."""
        unet, (latents, text) = self.modules["unet"], batch
        dropped = torch.rand(len(latents), generator=generator) < self.config.text_drop
        text = torch.where(dropped[:, None], self.empty, text)  # words and both sketches
        timesteps = even_timesteps(len(latents), generator, shift=self.config.timestep_shift)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.schedule.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        target = self.schedule.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        dtype = next(unet.parameters()).dtype
        drawn = unet(noisy.to(dtype), timesteps, self.read(text, dtype)).sample
        loss = F.mse_loss(drawn.float(), target)
        return loss, {}

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], guidance_scale: float = 4.0, steps: int = 20, seed: int = 0) -> np.ndarray:
        """Draw each prompt once: uint8 (B, S, S, 3)."""
        unet = self.modules["unet"]
        dtype = next(unet.parameters()).dtype
        solver = DPMSolverMultistepScheduler(**{k: v for k, v in SCHEDULE.items() if k != "clip_sample"})  # pyright: ignore
        solver.set_timesteps(steps)
        said = self.text_encoder(tokenize(self.tokenizer, ["", *prompts])).last_hidden_state.to(dtype)
        said = torch.cat([said[:1].expand(len(prompts), -1, -1), said[1:]])
        size: int = unet.config.sample_size  # pyright: ignore
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        channels: int = unet.config.in_channels  # pyright: ignore
        latents = torch.stack([torch.randn(channels, size, size, generator=g) for g in generators])
        for t in solver.timesteps:
            empty, prompted = unet(torch.cat([latents, latents]).to(dtype), t, said).sample.float().chunk(2)
            latents = solver.step(empty + guidance_scale * (prompted - empty), t, latents).prev_sample  # pyright: ignore
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()  # pyright: ignore
        return pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()

    def preview(self, step: int, folder: Path) -> None:
        """The prompts of the recipe, eight to a row, with the same noise every time."""
        if not self.prompts:
            return
        drawn = self.sample(self.prompts)
        rows = [np.concatenate(drawn[i : i + 8], axis=1) for i in range(0, len(drawn) - 7, 8)]
        Image.fromarray(np.concatenate(rows)).save(folder / f"preview-{step:08d}.png")
