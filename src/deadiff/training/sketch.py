"""Stage 3 of the icons model: the reader learns to sketch, from its pooled words, the latents that a caption stands for.

The text tower is frozen and its states are computed once for a bank of captions, so a step costs two matrix products: a thousand
captions' worth of pictures in tens of milliseconds. Latents are scaled to unit variance.

N captions of the bank, W tower width, G patches of V values.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from deadiff.sketch import PATCH, SketchTextModel, patches_of
from deadiff.training.loop import Task
from deadiff.training.reader import tokenize
from deadiff.training.samples import rng_of


@dataclass(frozen=True, kw_only=True)
class SketchConfig:
    """Size of the network, and the captions that each kind of drawing brings to the bank."""

    sketch_hidden: int = 1024
    plain_captions: int = 16  # of each house drawing, without its style
    styled_captions: int = 2  # of every drawing and rendition, with it
    plain_share: float = 0.6  # of the samples are captions without a style


class Bank(NamedTuple):
    """Captions as the tower reads them, and the picture that each stands for."""

    states: Tensor  # (N, W) pooled
    pictures: np.ndarray  # (N,) numbers
    is_plain: np.ndarray  # (N,) no style is named


class Sketched(NamedTuple):
    states: Tensor  # (B, W)
    latents: Tensor  # (B, Z, h, w), unit variance


@torch.no_grad()
def read_bank(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Sequence[str], batch_size: int = 256) -> Tensor:
    """(N,) captions -> (N, W) pooled states; in bf16 and on all cores, whatever the loop is told to use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            states = [
                text_encoder(tokenize(tokenizer, captions[i : i + batch_size])).pooler_output.float()
                for i in range(0, len(captions), batch_size)
            ]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(states)


class SketchTask(Task):
    """From a bank of captions and all latents (N, Z, h, w), unscaled."""

    def __init__(
        self, config: SketchConfig, text_encoder: CLIPTextModel, bank: Bank, latents: np.ndarray, scaling_factor: float
    ) -> None:
        self.config, self.bank, self.latents, self.scaling_factor = config, bank, latents, scaling_factor
        self.plain, self.styled = np.flatnonzero(bank.is_plain), np.flatnonzero(~bank.is_plain)
        goes_on = isinstance(text_encoder, SketchTextModel)
        self.tower = text_encoder if goes_on else self._with_new_sketch(text_encoder)
        self.modules = {"sketch": self.tower.sketch}

    def _with_new_sketch(self, text_encoder: CLIPTextModel) -> SketchTextModel:
        channels, side = self.latents.shape[1:3]
        sizes = copy.deepcopy(text_encoder.config)
        sizes.sketch_grid, sizes.sketch_values = side // PATCH, channels * PATCH * PATCH
        sizes.sketch_hidden = self.config.sketch_hidden
        tower = SketchTextModel(sizes)
        sketch = {f"sketch.{name}": value for name, value in tower.sketch.state_dict().items()}
        tower.load_state_dict({**text_encoder.state_dict(), **sketch})
        mean = self.latents[self.bank.pictures[self.plain]].astype(np.float32).mean(0) * self.scaling_factor
        whiten_(tower.sketch, self.bank.states, patches_of(torch.from_numpy(mean)[None])[0])
        return tower

    def batch(self, draw: int, batch_size: int) -> Sketched:
        rng = rng_of(0, draw, stream=8)
        plain = rng.random(batch_size) < self.config.plain_share
        chosen = np.where(plain, rng.choice(self.plain, batch_size), rng.choice(self.styled, batch_size))
        latents = torch.from_numpy(self.latents[self.bank.pictures[chosen]].astype(np.float32))
        return Sketched(self.bank.states[torch.from_numpy(chosen)], latents * self.scaling_factor)

    def loss(self, batch: Sketched, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the patches: what is learned is the mean of all that a caption may stand for."""
        sketch = self.modules["sketch"]
        drawn = sketch(batch.states.to(next(sketch.parameters()).dtype))
        return F.mse_loss(drawn.float(), patches_of(batch.latents).flatten(1)), {}


@torch.no_grad()
def whiten_(sketch: nn.Module, states: Tensor, mean: Tensor, floor: float = 0.05) -> None:
    """Start where all directions of the pooled states count alike and every caption is drawn as the mean.

    The first layer's random weights are turned into the states' own axes: subjects differ along directions whose variance is a
    hundredth of the largest. `floor` is a variance below which a direction is noise.
    """
    first, last = sketch[0], sketch[-1]  # pyright: ignore[reportIndexIssue]
    centre = states.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov((states - centre).T))
    first.weight.copy_(first.weight @ (axes * (variance.clamp(min=0) + floor).rsqrt()).T)
    first.bias.sub_(first.weight @ centre)
    last.weight.mul_(0.1)
    last.bias.copy_(mean.flatten())
