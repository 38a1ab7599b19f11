"""A text tower that also says where things are: after the words come tokens that sketch the picture's latents, patch by patch.

A small base would have to learn every shape through its cross-attention, at the price of a U-Net pass for each look at a picture.
Here a plain network learns them from the pooled words at thousands of pictures a second, and the base only has to copy from
tokens what they say of each patch.

B batch, T text tokens, G sketch tokens, W tower width, P patch side, V = Z * P * P values of a patch of Z latent channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from deadiff.errors import ConfigError

PATCH = 2  # side of a patch, in latents


class SketchTextModel(CLIPTextModel):
    """CLIP's text tower whose last_hidden_state is (B, T + G, W): the words' states, then the sketch's.

    config: a CLIPTextConfig with `sketch_grid` (patches a side; G = grid * grid), `sketch_values` (V) and `sketch_hidden` beside
    its own. A sketch token is [the patch's V values | which patch it is]. Raises ConfigError where the width cannot hold both.
    """

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        tokens, values, width = sketch_tokens(config), config.sketch_values, config.hidden_size
        if width < values + tokens:
            raise ConfigError(
                f"the text tower is {width} wide: expected at least {values + tokens} for {values} values of {tokens} patches"
            )
        self.sketch = nn.Sequential(
            nn.Linear(width, config.sketch_hidden), nn.GELU(), nn.Linear(config.sketch_hidden, tokens * values)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """As CLIPTextModel.forward. Ids beyond T are cut: diffusers pads a negative prompt to the length of the states, T + G."""
        length: int = self.config.max_position_embeddings  # pyright: ignore[reportAssignmentType]
        if input_ids.shape[1] > length:
            input_ids = input_ids[:, :length].clone()
            input_ids[:, -1] = self.config.eos_token_id  # pyright: ignore[reportArgumentType]  # as a tokenizer ends what it cuts
            attention_mask = None if attention_mask is None else attention_mask[:, :length]
        said: Any = super().forward(input_ids, attention_mask=attention_mask, **options)
        said.last_hidden_state = torch.cat([said.last_hidden_state, self.sketch_states(said.pooler_output)], 1)
        return said

    def sketch_states(self, pooled: Tensor) -> Tensor:
        """(B, W) pooled words -> (B, G, W)."""
        tokens = sketch_tokens(self.config)
        patches = self.sketch(pooled).unflatten(1, (tokens, -1))
        room = self.config.hidden_size - self.config.sketch_values
        place = torch.eye(tokens, dtype=pooled.dtype, device=pooled.device)
        place = place.repeat(1, -(-room // tokens))[:, :room] * tokens**0.5  # about as large as the words' states
        return torch.cat([patches, place.expand(len(pooled), -1, -1)], -1)


def sketch_tokens(config: CLIPTextConfig) -> int:
    """How many tokens a tower of this config adds to the words'; 0 for CLIP's own."""
    return getattr(config, "sketch_grid", 0) ** 2


def total_tokens(config: CLIPTextConfig) -> int:
    """Length of its last_hidden_state: words and sketch."""
    return config.max_position_embeddings + sketch_tokens(config)


def text_tower(config: CLIPTextConfig) -> CLIPTextModel:
    """The class that a config asks for, with random weights."""
    return SketchTextModel(config) if sketch_tokens(config) else CLIPTextModel(config)


def load_text_tower(folder: Path) -> CLIPTextModel:
    """A text tower saved by save_pretrained, with its sketch if it has one."""
    cls = SketchTextModel if sketch_tokens(CLIPTextConfig.from_pretrained(folder)) else CLIPTextModel
    return cls.from_pretrained(folder)


def patches_of(latents: Tensor) -> Tensor:
    """(B, Z, h, w) -> (B, G, V), row by row."""
    b, z, h, w = latents.shape
    cells = latents.reshape(b, z, h // PATCH, PATCH, w // PATCH, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, z * PATCH * PATCH)


def latents_of(patches: Tensor, side: int) -> Tensor:
    """(B, G, V) -> (B, Z, side, side), the inverse of patches_of."""
    b, cells = len(patches), side // PATCH
    grid = patches.reshape(b, cells, cells, -1, PATCH, PATCH)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, side, side)
