"""One whole picture by a recipe: computed from its measured parts, or really drawn through diffusers' own pipeline.

B = 1 picture, so 2 rows under classifier-free guidance; T text tokens, C token width.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel

from deadiff.adapter import DEADiffAdapter
from deadiff.benchmarking.models import Size, build_text_encoder, build_vae
from deadiff.benchmarking.timing import Tick, quickest
from deadiff.benchmarking.variants import Inputs, conditioned
from deadiff.schedulers import make_scheduler

GUIDANCE = 8.0  # of the released app; anything above 1 costs the same


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a picture is drawn. Both solvers call the U-Net once a step."""

    scheduler: str  # a name of schedulers.py
    steps: int
    dtype: str


RELEASED = Recipe(scheduler="ddim", steps=50, dtype="fp32")
PROPOSED = {  # by device; on a CPU whose bf16 is slower than fp32, fp32 (propose())
    "cpu": Recipe(scheduler="dpm++", steps=20, dtype="bf16"),
    "cuda": Recipe(scheduler="dpm++", steps=20, dtype="fp16"),
    "mps": Recipe(scheduler="dpm++", steps=20, dtype="fp16"),
}


def propose(device: str, seconds_a_step: dict[str, float]) -> Recipe:
    """The faster default for this device, in the measured dtype ({dtype: seconds}) whose step is fastest."""
    recipe = PROPOSED[device]
    fastest = min(seconds_a_step, key=lambda dtype: seconds_a_step[dtype])
    return Recipe(scheduler=recipe.scheduler, steps=recipe.steps, dtype=fastest)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Seconds of what a picture needs beside the U-Net's steps."""

    text: float  # prompt and negative prompt through the text encoder
    reference: float  # one picture through the eye and both Q-Formers
    decode: float  # latents -> pixels

    def picture(self, recipe: Recipe, step: float) -> float:
        """Seconds of a whole picture, computed; what the solver itself does is left out (milliseconds)."""
        return self.text + self.reference + recipe.steps * step + self.decode


class Painter:
    """The parts around the U-Net, in one dtype."""

    def __init__(
        self,
        size: Size,
        unet: UNet2DConditionModel,
        adapter: DEADiffAdapter,
        inputs: Inputs,
        sync: Callable[[], None],
        seed: int = 0,
    ) -> None:
        self.size, self.unet, self.adapter, self.inputs, self.sync = size, unet, adapter, inputs, sync
        dtype, device = inputs.latents.dtype, inputs.latents.device
        self.text_encoder: CLIPTextModel = build_text_encoder(size, dtype, device, seed)
        self.vae: AutoencoderKL = build_vae(size, dtype, device, seed)
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 1000, (2, size.text_length), generator=generator).to(device)

    @torch.no_grad()
    def text(self) -> Tensor:
        """(2, T, C)."""
        return self.text_encoder(self.ids).last_hidden_state

    def reference(self) -> Tensor:
        """(2, T + 2*I, C): text given, the reference read for both roles."""
        return conditioned(self.adapter, self.inputs.text, self.adapter.encode(self.inputs.picture, self.inputs.picture))

    @torch.no_grad()
    def decode(self) -> Tensor:
        """(1, 3, S, S)."""
        return self.vae.decode(self.inputs.latents[:1], return_dict=False)[0]  # pyright: ignore[reportArgumentType]

    def parts(self, tick: Tick) -> Parts:
        """Each measured on its own."""
        seconds = {}
        for name in ("text", "reference", "decode"):
            tick(name)
            seconds[name] = quickest(getattr(self, name), self.sync)
        return Parts(**seconds)

    def draw(self, recipe: Recipe, tick: Tick) -> float:
        """Seconds of one picture, drawn for real with random weights: text, reference, every step of the solver, pixels."""
        scheduler = make_scheduler(
            recipe.scheduler, DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        )
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=None,  # pyright: ignore[reportArgumentType]  (random token ids stand for a prompt)
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)

        def on_step(pipe: object, step: int, timestep: int, tensors: dict) -> dict:
            tick(f"{recipe.scheduler} {recipe.steps} {recipe.dtype}")
            return tensors

        self.adapter.inject(self.unet)
        try:
            self.sync()
            start = time.perf_counter()
            tokens = self.adapter.encode(self.inputs.picture, self.inputs.picture)
            embeds = conditioned(self.adapter, self.text(), tokens)
            pipe(
                prompt_embeds=embeds[1:],
                negative_prompt_embeds=embeds[:1],
                latents=self.inputs.latents[:1],
                num_inference_steps=recipe.steps,
                guidance_scale=GUIDANCE,
                callback_on_step_end=on_step,  # pyright: ignore[reportArgumentType]
            )
            self.sync()
            return time.perf_counter() - start
        finally:
            self.adapter.eject()
