"""Stage 7 of the icons model: teach both Q-Formers to say in tokens what the text tower says in words.

The paper starts from BLIP-Diffusion's Q-Formers, whose tokens a text encoder's reader understands already. Such a start is made
here in minutes and without the U-Net: the style tokens of a picture should equal the hidden states of a phrase for its style,
the content tokens those of its label. Image K/V begin as copies of the text's, so the base can read them from the first step.

Where the tower sketches, content tokens say what the label's sketch has over the empty prompt's; the base adds that to its
canvas.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from deadiff.adapter import DEADiffAdapter
from deadiff.sketch import sketch_tokens
from deadiff.training.loop import Task
from deadiff.training.reader import tokenize
from deadiff.training.samples import to_pixels

# B batch, S picture side in pixels, T text tokens, I image tokens


class Said(NamedTuple):
    """Pictures and what is said of them."""

    pixels: Tensor  # (B, 3, S, S), preprocessed
    style: Tensor  # (B, T) ids of a phrase for the style
    content: Tensor  # (B, T) ids of a phrase for the subject


@torch.no_grad()
def empty_sketch(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Tensor:
    """(1, I, V): what a tower sketches of the empty prompt."""
    said = text_encoder(tokenize(tokenizer, [""])).last_hidden_state
    return said[:, -sketch_tokens(text_encoder.config) :, : text_encoder.config.sketch_values]


class AlignmentTask(Task):
    """`draw(draw, count)` -> (uint8 pictures (B, S, S, 3), style phrases, subject phrases)."""

    def __init__(
        self,
        adapter: DEADiffAdapter,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        draw: Callable[[int, int], tuple[np.ndarray, Sequence[str], Sequence[str]]],
    ) -> None:
        self.draw, self.tokenizer = draw, tokenizer
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        adapter.image_kv.requires_grad_(False)
        self.image_kv = copy.deepcopy(adapter.image_kv.state_dict())
        self.modules = {"adapter": adapter.train()}
        self.empty_sketch: Tensor | None = None  # (1, I, V) of the empty prompt
        if sketch_tokens(text_encoder.config) == adapter.config.num_tokens:
            self.empty_sketch = empty_sketch(text_encoder, tokenizer)

    def added_sketch(self, said: Tensor) -> Tensor:
        """(B, T, C) states of labels -> (B, I, C): their sketches less the empty prompt's."""
        assert self.empty_sketch is not None
        tokens, values = self.empty_sketch.shape[1:]
        return torch.cat([said[:, -tokens:, :values] - self.empty_sketch, said[:, -tokens:, values:]], -1)

    @property
    def adapter(self) -> DEADiffAdapter:
        return self.modules["adapter"]  # pyright: ignore[reportReturnType]

    def batch(self, draw: int, batch_size: int) -> Said:
        pictures, style, content = self.draw(draw, batch_size)
        pixels = self.adapter.config.preprocess(to_pixels(pictures))
        return Said(pixels, tokenize(self.tokenizer, style), tokenize(self.tokenizer, content))

    def loss(self, batch: Said, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared difference between tokens and hidden states of the phrases, role by role."""
        tokens, count = self.adapter(style=batch.pixels, content=batch.pixels), self.adapter.config.num_tokens
        with torch.no_grad():
            style_said, content_said = self.text_encoder(torch.cat([batch.style, batch.content])).last_hidden_state.chunk(2)
        content_said = self.added_sketch(content_said) if self.empty_sketch is not None else content_said[:, :count]
        style = F.mse_loss(tokens.style.float(), style_said[:, :count])
        content = F.mse_loss(tokens.content.float(), content_said)
        return style + content, {"style": style.detach(), "content": content.detach()}
