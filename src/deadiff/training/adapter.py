"""Stage 8: the DEADiff adapter. The base is frozen; image K/V, Q-Formers with their queries and projections learn from pairs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.errors import ConfigError
from deadiff.training.base import check_shift, even_timesteps
from deadiff.training.loop import Task
from deadiff.training.objectives import Live, Objective, diffusion_loss, keep_text, live_parts
from deadiff.training.reader import tokenize
from deadiff.training.samples import to_pixels

# B batch, S reference side in pixels, Z latent channels, T text tokens


@dataclass(frozen=True, kw_only=True)
class AdapterTrainingConfig:
    """Which tasks, how often, and what is dropped. Defaults: the paper's; the rest are switches for rivals and ablations."""

    objectives: tuple[str, ...] = ("stre", "sere", "reconstruction")  # taken in turn: 1:1:1
    text_drop: float = 0.1  # share of the paired samples whose prompt is empty
    timestep_shift: float = 1.0  # above 1 more of the samples are noisy, where references decide; 1: uniform, the paper's
    paired: bool = True  # False: the reference is the target itself, and its caption the prompt (reconstructive training)
    train_image_kv: bool = True  # False: image tokens go through the text's keys and values, as words do (T2I-Adapter's way)
    adapter: dict[str, Any] = field(default_factory=dict)  # SWITCHES of the AdapterConfig: routes, attention, ...

    def __post_init__(self) -> None:
        names = [objective.value for objective in Objective]
        if not self.objectives or (unknown := [name for name in self.objectives if name not in names]):
            got = repr(unknown[0]) if self.objectives else "empty"
            raise ConfigError(f"objectives: {got}; expected some of {', '.join(names)}")
        if not 0 <= self.text_drop < 1:
            raise ConfigError(f"text_drop is {self.text_drop}: expected a share below 1")
        check_shift(self.timestep_shift)
        if unknown := sorted(self.adapter.keys() - SWITCHES):
            raise ConfigError(f"[model.adapter] has {unknown[0]!r}: expected some of {', '.join(sorted(SWITCHES))}")


SWITCHES = {"routes", "attention", "instructions", "look"}  # what the same weights can be run with: none of them changes a shape


def switched(adapter: DEADiffAdapter, changes: dict[str, Any]) -> DEADiffAdapter:
    """The same weights under another route table, attention or instruction. Raises ConfigError for values that do not fit."""
    if not changes:
        return adapter
    return DEADiffAdapter.from_weights(replace(adapter.config, **changes), adapter.state_dict())


class Pairs(NamedTuple):
    """One draw of one task: references, their targets and what is said of the targets."""

    objective: Objective
    references: Tensor  # (B, 3, S, S) preprocessed
    latents: Tensor  # (B, Z, h, w), scaled
    text: Tensor  # (B, T) token ids


def adapter_loss(
    adapter: DEADiffAdapter,  # injected into the U-Net
    unet: UNet2DConditionModel,
    schedule,
    latents: Tensor,  # (B, Z, h, w), scaled
    tokens: Tokens,  # of the references; a role that is idle in all samples may be None
    text: Tensor,  # (B, T, C) of the targets' captions
    empty: Tensor,  # (1, T, C) of the empty prompt
    live: Live,
    generator: torch.Generator,  # on the CPU, whatever the device: the same noise everywhere
    weighting: str = "plain",  # of objectives.LOSS_WEIGHTS
    timestep_shift: float = 1.0,  # of base.even_timesteps
    **conditions: Any,  # what else the U-Net is told (SDXL: added_cond_kwargs)
) -> Tensor:
    """The base's own diffusion loss on the targets, told what is live: the one function that every adapter training minimises."""
    text = keep_text(text, empty, live.text).to(unet.dtype)
    prompt_embeds = adapter.embed(text, tokens.style, tokens.content, live.style.float(), live.content.float())
    timesteps = even_timesteps(len(latents), generator, shift=timestep_shift).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    noisy = schedule.add_noise(latents, noise, timesteps)
    predicted = unet(noisy.to(unet.dtype), timesteps, prompt_embeds, **conditions).sample
    return diffusion_loss(predicted, latents, noise, timesteps, schedule, weighting)


class AdapterTask(Task):
    """`draw(objective, draw, count)` -> (uint8 references (B, S, S, 3), unscaled latents of the targets, target captions)."""

    def __init__(
        self,
        config: AdapterTrainingConfig,
        adapter: DEADiffAdapter,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule,
        scaling_factor: float,
        draw: Callable[[Objective, int, int], tuple[np.ndarray, np.ndarray, Sequence[str]]],
    ) -> None:
        self.config, self.draw, self.schedule, self.scaling_factor = config, draw, schedule, scaling_factor
        self.objectives = [Objective(name) for name in config.objectives]
        self.empty = tokenize(tokenizer, [""])  # (1, T) ids of the empty prompt
        self.text_encoder, self.tokenizer = text_encoder.requires_grad_(False).eval(), tokenizer
        self.unet = unet.requires_grad_(False).eval()
        adapter.image_kv.requires_grad_(config.train_image_kv)
        adapter.inject(self.unet)
        self.modules: dict[str, nn.Module] = {"adapter": adapter.train()}

    def batch(self, draw: int, batch_size: int) -> Pairs:
        objective = self.objectives[draw % len(self.objectives)]
        references, latents, captions = self.draw(objective, draw, batch_size)
        adapter = self.modules["adapter"]
        assert isinstance(adapter, DEADiffAdapter)
        pixels = adapter.config.preprocess(to_pixels(references))
        return Pairs(
            objective, pixels, torch.from_numpy(latents).float() * self.scaling_factor, tokenize(self.tokenizer, captions)
        )

    def loss(self, batch: Pairs, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The base's own diffusion loss under the task's condition; the curve keeps the tasks apart."""
        adapter = self.modules["adapter"]
        assert isinstance(adapter, DEADiffAdapter)
        live = live_parts(batch.objective, len(batch.latents), generator, self.config.text_drop)
        style = batch.references if batch.objective is not Objective.SERE else None
        content = batch.references if batch.objective is not Objective.STRE else None
        tokens = adapter(style=style, content=content)
        with torch.no_grad():
            said = self.text_encoder(torch.cat([self.empty, batch.text])).last_hidden_state
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is slow on a CPU (docs/log.md)
            loss = adapter_loss(
                adapter,
                self.unet,
                self.schedule,
                batch.latents,
                tokens,
                said[1:],
                said[:1],
                live,
                generator,
                timestep_shift=self.config.timestep_shift,
            )
        return loss, {str(batch.objective.value): loss.detach() * len(self.objectives)}

    def replicate(self) -> "AdapterTask":
        """An adapter of its own needs a U-Net of its own, since the processors point from one to the other."""
        adapter = self.modules["adapter"]
        assert isinstance(adapter, DEADiffAdapter)
        adapter.eject()
        replica = copy.copy(self)
        replica.unet, copied = copy.deepcopy((self.unet, adapter))
        replica.modules = {"adapter": copied}
        adapter.inject(self.unet)
        copied.inject(replica.unet)
        return replica
