"""Stage 9 of the icons model: eye and content reader learn to keep what a picture shows, so that it can be drawn again.

An eye trained to name and to compare keeps too little of a picture to draw from. Here the content tokens learn to say the
latents of the picture as its artist drew it, whatever rendition of it is seen; the base adds what they say to its canvas
(deadiff.canvas). No U-Net runs. The style tokens are held to what they said before, so what reads them need not learn anew.

B batch, S picture side in pixels, I image tokens, C token width, V values of a patch of latents, Z latent channels.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from deadiff.adapter import DEADiffAdapter
from deadiff.autoencoder import PatchAutoencoder
from deadiff.errors import ConfigError
from deadiff.sketch import patches_of, sketch_tokens
from deadiff.training.alignment import empty_sketch
from deadiff.training.loop import Task
from deadiff.training.samples import to_pixels


@dataclass(frozen=True, kw_only=True)
class ContentConfig:
    style_weight: float = 4.0  # of what the style tokens say now against what they said


class Kept(NamedTuple):
    pixels: Tensor  # (B, 3, S, S), preprocessed
    latents: Tensor  # (B, Z, h, w), unit variance, of the plain drawing


class ContentTask(Task):
    """`draw(draw, count)` -> pictures and their plain drawings, uint8 (B, S, S, 3) each."""

    def __init__(
        self,
        config: ContentConfig,
        adapter: DEADiffAdapter,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: PatchAutoencoder,
        draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
        dtype: torch.dtype = torch.float32,  # of the training
    ) -> None:
        if sketch_tokens(text_encoder.config) != adapter.config.num_tokens:
            raise ConfigError("the content stage needs a text tower that sketches as many tokens as a reference has")
        self.config, self.draw, self.vae, self.adapter = config, draw, vae, adapter
        self.before = copy.deepcopy(adapter).requires_grad_(False).eval().to(dtype)
        extractors: Any = adapter.extractors
        self.modules = {"vision": adapter.vision.requires_grad_(True), "content": extractors["content"]}
        self.empty = empty_sketch(text_encoder, tokenizer)

    def batch(self, draw: int, batch_size: int) -> Kept:
        pictures, plain = (to_pixels(x) for x in self.draw(draw, batch_size))
        with torch.no_grad():
            latents = self.vae.encode(plain).latent_dist.mode() * self.vae.config.scaling_factor  # pyright: ignore
        return Kept(self.adapter.config.preprocess(pictures), latents)

    def loss(self, batch: Kept, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the drawing, plus that of the style tokens against those of the eye as it was."""
        vision: Any = self.modules["vision"]
        content = self.modules["content"]
        style: Any = self.before.extractors["style"]
        pixels = batch.pixels.to(vision.dtype)
        seen = vision(pixels).last_hidden_state
        drawn = content(seen).float()[..., : self.empty.shape[-1]]
        wrong = F.mse_loss(drawn, patches_of(batch.latents) - self.empty)
        with torch.no_grad():
            said = style(self.before.vision(pixels).last_hidden_state).float()
        moved = F.mse_loss(style(seen).float(), said)
        return wrong + self.config.style_weight * moved, {"content": wrong.detach(), "style": moved.detach()}
