"""What a training will need, before it runs: memory per device and arithmetic from a simulated step, GPU-hours from that.

The simulation runs the very step of the training on full-size models whose tensors have shapes but no numbers, and adds up what
is alive at each moment. `dry_run` also takes one real optimiser step on full-size random weights.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.autoencoder import PatchAutoencoder
from deadiff.benchmarking.models import SIZES, making
from deadiff.config import AdapterConfig
from deadiff.errors import ConfigError
from deadiff.extractor import Preprocess
from deadiff.training.adapter_recipe import AdapterRecipe
from deadiff.training.adapter_step import AdapterStep, Sample
from deadiff.training.average import Average, seeded
from deadiff.training.bases import Base
from deadiff.training.initialise import select_trained
from deadiff.training.loop import learning_rate
from deadiff.training.objectives import Live, Objective

GIB, TERA = 2**30, 1e12
DEVICES = {"A100": 312 * TERA, "H100": 989 * TERA, "RTX 4090": 165 * TERA}  # dense bf16 operations a second, by their makers
UTILISATION = 0.4  # of those: what well-run diffusion training reaches
_CPU_ATTENTION = {  # which torch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
_SDXL_UNET = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SDXL_TEXT = ({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
              {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one draw of `batch_size` samples on one device, in bytes and operations."""

    trained: int  # parameters
    frozen_bytes: int  # U-Net, eye, VAE, text encoders
    state_bytes: int  # weights, two moments and the average of what is trained: 16 bytes each
    activation_bytes: int  # greatest sum of what is alive beside them during forward and backward, gradients among it
    operations: float  # forward and backward of a draw, recomputation included
    encoder_operations: float  # of eye, VAE and text encoder, which caches save

    @property
    def total_bytes(self) -> int:
        return self.frozen_bytes + self.state_bytes + self.activation_bytes


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def ignore(self, tensors: Iterator[Tensor]) -> None:
        """Weights are counted elsewhere, and an in-place change must not count them here."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def full_size_base(layout: str, resolution: int, dtype: torch.dtype, seed: int = 0) -> Base:
    """The base's networks at full size, random, on the default device; without tokenizers."""
    texts = _SDXL_TEXT if layout == "sdxl" else (SIZES[layout].text,)
    length = 77 if layout == "sdxl" else SIZES[layout].text_length
    vae_sizes = {**SIZES["sd15"].vae, "scaling_factor": 0.13025} if layout == "sdxl" else SIZES[layout].vae
    with making(dtype, torch.device("cpu"), seed):  # in the final precision: full-size models are not cast afterwards
        unet = UNet2DConditionModel(**(_SDXL_UNET if layout == "sdxl" else SIZES[layout].unet))  # pyright: ignore
        encoders = [CLIPTextModel(CLIPTextConfig(**text, max_position_embeddings=length)) for text in texts]  # pyright: ignore
    with making(torch.float32, torch.device("cpu"), seed):
        vae = PatchAutoencoder(latent_channels=vae_sizes["latent_channels"]) if layout == "icons" else AutoencoderKL(**vae_sizes)
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "tokenizer": None, "text_encoder": encoders[0]}
    if layout == "sdxl":
        parts |= {"tokenizer_2": None, "text_encoder_2": encoders[1]}
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return Base(SimpleNamespace(**parts, scheduler=scheduler), resolution)


def full_size_adapter(base: Base, recipe: AdapterRecipe) -> DEADiffAdapter:
    """The released adapter's make with CLIP ViT-L/14 for an eye (icons: the embedded model's size), fp32."""
    size = SIZES["icons" if recipe.base.layout == "icons" else "sd15"]
    given = {
        "base": recipe.base.layout, "routes": recipe.base.layout, "text_length": 77 if recipe.base.layout != "icons" else 32,
        "token_dim": base.unet.config.cross_attention_dim,  # pyright: ignore[reportAttributeAccessIssue]
        "qformer": size.qformer, "projection_dim": size.projection_dim, "preprocess": Preprocess(size=size.vision["image_size"]),
    }  # fmt: skip
    if recipe.base.layout == "icons":
        given["instructions"] = {"style": [0, 1, 2], "content": [0, 3, 2]}
    vision = {**size.vision, "num_hidden_layers": size.vision["num_hidden_layers"] + 1}
    eye = CLIPVisionModel(CLIPVisionConfig(**vision))
    return DEADiffAdapter.from_base(base.unet, eye, AdapterConfig.from_dict({**given, **recipe.adapter}))


def random_sample(base: Base, adapter: DEADiffAdapter, layout: str, count: int) -> tuple[Sample, dict[str, Tensor]]:
    """Features of `count` random samples in the right shapes, and of the empty prompt."""
    vision, side = adapter.config.vision, base.resolution // 2 ** (len(base.vae.config.block_out_channels) - 1)
    if layout == "icons":
        side = SIZES["icons"].latents[1]
    seen = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    width, length, channels = adapter.config.token_dim, adapter.config.text_length, base.vae.config.latent_channels
    pooled = torch.randn(count, 1280) if layout == "sdxl" else None
    sample = Sample(
        Objective.RECONSTRUCTION,
        torch.randn(count, seen, vision["hidden_size"]),
        torch.randn(count, 2 * channels, side, side).clamp(-3, 3),
        torch.randn(count, length, width),
        pooled,
    )
    empty = {"text": torch.randn(1, length, width)} | ({"pooled": torch.randn(1, 1280)} if pooled is not None else {})
    return sample, empty


def estimate(recipe: AdapterRecipe, batch_size: int | None = None) -> Cost:
    """Simulate a draw at full size. Seconds, and hardly any memory: tensors have shapes alone."""
    count = batch_size or recipe.loop.batch_size
    layout, dtype = recipe.base.layout, _dtype(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        base = full_size_base(layout, recipe.base.resolution, dtype)
        adapter = full_size_adapter(base, recipe)
        if recipe.loop.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()
        trained = select_trained(adapter, recipe.loop.train_ln_vision, recipe.model.train_image_kv)
        sample, empty = random_sample(base, adapter, layout, count)
        step = AdapterStep(adapter, base, empty, recipe.loop.loss_weighting, recipe.model.timestep_shift)
        frozen = [*base.unet.parameters(), *base.vae.parameters(), *adapter.vision.parameters()]
        frozen += [p for _, encoder in base.readers for p in encoder.parameters()]
        memory, flops = LiveBytes(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        memory.ignore(iter([*frozen, *trained.values()]))
        live = Live(*torch.ones(3, count, dtype=torch.bool))
        with flops, memory, _autocast(recipe):
            loss = step(sample, live, torch.Generator().manual_seed(0))
            loss.backward()
        encoders = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        with encoders, torch.no_grad():
            side = adapter.config.preprocess.size
            adapter.vision(torch.randn(count, 3, side, side))
            if layout != "icons":  # their encoder is one linear layer
                base.vae.encode(torch.randn(count, 3, base.resolution, base.resolution))
            for _, encoder in base.readers:
                encoder(torch.ones(count, adapter.config.text_length, dtype=torch.long))
        adapter.eject()
    numbers = sum(p.numel() for p in trained.values())
    return Cost(
        trained=numbers,
        frozen_bytes=sum(p.nbytes for p in frozen),
        state_bytes=16 * numbers,
        activation_bytes=memory.peak,
        operations=float(flops.get_total_flops()),
        encoder_operations=float(encoders.get_total_flops()),
    )


def hours(recipe: AdapterRecipe, cost: Cost, operations_per_second: float, cached: bool = True) -> float:
    """Device-hours of the whole training."""
    draw = cost.operations + (0 if cached else cost.encoder_operations)
    return draw / cost_batch(recipe) * recipe.loop.global_batch * recipe.loop.steps / operations_per_second / 3600


def cost_batch(recipe: AdapterRecipe) -> int:
    return recipe.loop.batch_size


def describe(recipe: AdapterRecipe, cost: Cost) -> list[str]:
    """The plan in lines for people."""
    loop = recipe.loop
    samples = loop.steps * loop.global_batch
    lines = [
        f"plan        {recipe.base.layout}, {recipe.base.resolution} px, {loop.precision}, "
        f"gradient checkpointing {'on' if loop.gradient_checkpointing else 'off'}, tasks {' '.join(recipe.model.objectives)}",
        f"            {loop.steps:,} steps of {loop.global_batch} samples = {samples:,} samples; "
        f"learning rate {loop.learning_rate:g} after {loop.warmup_steps:,} steps of warm-up",
        f"            {loop.draws} draws of {loop.batch_size} a step: on 1 process {loop.draws} are accumulated"
        + "".join(f", on {n} {loop.draws // n}" for n in (2, 4, 8, 16) if loop.draws % n == 0),
        f"trained     {cost.trained / 1e6:,.1f} M weights; a checkpoint takes {16 * cost.trained / GIB:.1f} GiB",
        f"memory      {cost.total_bytes / GIB:.1f} GiB a device = {cost.frozen_bytes / GIB:.1f} frozen models + "
        f"{cost.state_bytes / GIB:.1f} weights, moments, average + {cost.activation_bytes / GIB:.1f} activations and gradients",
        f"arithmetic  {cost.operations / loop.batch_size / TERA:.2f} TFLOP a sample; without caches "
        f"{cost.encoder_operations / loop.batch_size / TERA:.2f} more",
    ]
    for name, speed in DEVICES.items():
        cached, uncached = (hours(recipe, cost, UTILISATION * speed, kept) for kept in (True, False))
        lines.append(
            f"cost        {cached:,.0f} {name} hours at {UTILISATION:.0%} of its bf16 peak ({uncached:,.0f} without caches)"
        )
    return lines


def first_step(recipe: AdapterRecipe, batch_size: int = 1, report: Callable[[str], object] = print) -> dict[str, float]:
    """One real optimiser step on full-size random weights: forward, backward, clipping, AdamW, average. Raises ConfigError."""
    layout, dtype = recipe.base.layout, _dtype(recipe)
    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.start.seed)
        base = full_size_base(layout, recipe.base.resolution, dtype)
        adapter = full_size_adapter(base, recipe).train()
        sample, empty = random_sample(base, adapter, layout, batch_size)
    if recipe.loop.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    trained = select_trained(adapter, recipe.loop.train_ln_vision, recipe.model.train_image_kv)
    report(f"models of full size made in {time.monotonic() - began:.0f} s; {len(adapter.image_kv)} layers routed")
    step = AdapterStep(adapter, base, empty, recipe.loop.loss_weighting, recipe.model.timestep_shift)
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate(recipe.loop, 0), betas=recipe.loop.betas)  # pyright: ignore
    average = Average(trained)
    for p in trained.values():
        p.grad = torch.zeros_like(p)
    with torch.no_grad():  # AdamW makes its moments at its first step: they exist in every later one
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.loop, 0)  # pyright: ignore
    live, began = Live(*torch.ones(3, batch_size, dtype=torch.bool)), time.monotonic()
    with seeded(0, torch.device("cpu")), _autocast(recipe):
        loss = step(sample, live, torch.Generator().manual_seed(0))
    forward = time.monotonic() - began
    loss.backward()
    both = time.monotonic() - began
    if unreached := [name for name, p in trained.items() if p.grad is None]:
        raise ConfigError(f"no gradient reaches {len(unreached)} of {len(trained)} weights, first {unreached[0]}")
    norm = float(nn.utils.clip_grad_norm_(trained.values(), recipe.loop.clip_norm or float("inf")))
    optimizer.step()
    average.update(0.1)
    adapter.eject()
    report(f"first step taken: loss {float(loss.detach()):.3f}, gradient {norm:.3g}, forward {forward:.1f} s, both {both:.1f} s")
    return {"loss": float(loss.detach()), "gradient": norm, "forward_seconds": forward, "seconds": both}


def dry_run(recipe: AdapterRecipe, report: Callable[[str], object]) -> list[str]:
    """Everything up to the first optimiser step, then the plan in lines. SDXL at 1024 px is simulated only."""
    if recipe.base.layout == "sdxl":
        report("SDXL: simulated at full size; the first step is left to a device with the memory for it")
    else:
        first_step(recipe, report=report)
    return describe(recipe, estimate(recipe))


def _dtype(recipe: AdapterRecipe) -> torch.dtype:
    return torch.bfloat16 if recipe.loop.precision == "bf16" else torch.float32


def _autocast(recipe: AdapterRecipe) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.loop.precision == "bf16")
