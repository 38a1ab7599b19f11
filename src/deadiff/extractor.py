"""What one role reads out of a reference picture: preprocessing, Q-Former told a word, projection (paper section 3.1).

B batch, S picture side in pixels, V vision tokens (class token and patches), W vision width, I image tokens, C token width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from deadiff.errors import ConfigError, ReferenceError


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Pictures -> what the vision tower expects. The one place where references are resized and normalised."""

    size: int = 224  # pixels, side of the square the vision tower sees
    resize: str = "squash"  # squash (the released code: aspect ratio is lost) | pad (white bars) | crop (centre)
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in [0, 1]
    std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "pad", "crop"):
            raise ConfigError(f"preprocess resize is {self.resize!r}: expected squash, pad or crop")
        if self.size < 1:
            raise ConfigError(f"preprocess size is {self.size}: expected pixels, at least 1")
        for name in ("mean", "std"):
            value = tuple(float(x) for x in getattr(self, name))
            if len(value) != 3:
                raise ConfigError(f"preprocess {name} has {len(value)} numbers: expected one for each of R, G, B")
            object.__setattr__(self, name, value)

    def __call__(self, pictures: Any) -> Float[Tensor, "B 3 S S"]:
        """PIL, uint8 arrays ([B,] H, W, 3), tensors in [-1, 1] ([B,] 3, H, W), or a list of them, whose sizes may differ."""
        if isinstance(pictures, Tensor | np.ndarray) and pictures.ndim == 4:
            batch = [self._pixels(x) for x in pictures] if isinstance(pictures, np.ndarray) else [self._resize_tensor(pictures)]
        elif isinstance(pictures, Image.Image | np.ndarray | Tensor):
            batch = [self._pixels(pictures)]
        else:
            batch = [self._pixels(x) for x in pictures]
        if not batch:
            raise ReferenceError("no reference picture: the list is empty")
        x = torch.cat(batch)  # (B, 3, S, S) in [0, 1]
        mean, std = x.new_tensor(self.mean).view(3, 1, 1), x.new_tensor(self.std).view(3, 1, 1)
        return (x - mean) / std

    def _pixels(self, picture: Any) -> Tensor:
        """One picture -> (1, 3, S, S) in [0, 1]."""
        if isinstance(picture, Tensor):
            return self._resize_tensor(picture[None] if picture.ndim == 3 else picture)
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ReferenceError(f"reference array is {picture.dtype} {picture.shape}: expected uint8 (H, W, 3) of RGB")
            picture = Image.fromarray(picture)
        if not isinstance(picture, Image.Image):
            raise ReferenceError(f"reference is a {type(picture).__name__}: expected a PIL image, an array or a tensor")
        return torch.from_numpy(np.array(self.fit(picture))).permute(2, 0, 1)[None].float() / 255

    def fit(self, picture: Image.Image) -> Image.Image:
        """RGB, S x S. BICUBIC on uint8, as the released code does; transparency falls on white."""
        if picture.has_transparency_data:
            rgba = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        picture = picture.convert("RGB")
        (w, h), s = picture.size, self.size
        if self.resize == "squash" or w == h:
            return picture.resize((s, s), Image.Resampling.BICUBIC)
        side = max(w, h) if self.resize == "pad" else min(w, h)
        left, top = (w - side) // 2, (h - side) // 2  # negative when padding
        if self.resize == "pad":
            square = Image.new("RGB", (side, side), "white")
            square.paste(picture, (-left, -top))
            return square.resize((s, s), Image.Resampling.BICUBIC)
        return picture.crop((left, top, left + side, top + side)).resize((s, s), Image.Resampling.BICUBIC)

    def _resize_tensor(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 3, S, S) in [0, 1], on the tensor's device: for pictures that are tensors already."""
        if not x.is_floating_point() or x.ndim != 4 or x.shape[1] != 3:
            raise ReferenceError(f"reference tensor is {x.dtype} {tuple(x.shape)}: expected floats in [-1, 1], (B, 3, H, W)")
        x = (x + 1) / 2
        h, w, s = *x.shape[2:], self.size
        if self.resize == "pad" and h != w:
            side = max(h, w)
            left, top = (side - w) // 2, (side - h) // 2
            x = F.pad(x, (left, side - w - left, top, side - h - top), value=1.0)
        elif self.resize == "crop" and h != w:
            side = min(h, w)
            left, top = (w - side) // 2, (h - side) // 2
            x = x[:, :, top : top + side, left : left + side]
        if x.shape[2:] != (s, s):
            x = F.interpolate(x, (s, s), mode="bicubic", antialias=True).clamp(0, 1)
        return x


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * torch.sigmoid(1.702 * x)


class Projection(nn.Module):
    """x + dropout(dense2(quick_gelu(dense1(LayerNorm(x))))): the residual is the un-normalised input (official proj_layer).

    Where the base reads wider tokens than the Q-Former writes (SDXL), one more linear layer follows; the released model has none.
    """

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dense1 = nn.Linear(dim, hidden_dim)
        self.dense2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, out_dim) if out_dim != dim else nn.Identity()

    def forward(self, x: Float[Tensor, "B I Q"]) -> Float[Tensor, "B I C"]:
        return self.out(x + self.dropout(self.dense2(quick_gelu(self.dense1(self.norm(x))))))


class Places(nn.Module):
    """Image token i says what the eye sees at place i: a linear map of the vision tokens of its square, no attention to learn.

    For bases that lay tokens out as a picture (deadiff.canvas); nothing of it is in the paper. It starts silent.
    """

    def __init__(self, vision_dim: int, side: int, num_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.grid = math.isqrt(num_tokens)
        if self.grid**2 != num_tokens or side % self.grid:
            raise ConfigError(f"{num_tokens} tokens cannot be placed on {side} x {side} patches: expected squares of them")
        self.side, self.cell = side, side // self.grid
        self.linear = nn.Linear(self.cell**2 * vision_dim, token_dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "B V W"]) -> Float[Tensor, "B I C"]:
        rows = hidden[:, 1:].unflatten(1, (self.grid, self.cell, self.grid, self.cell))  # without the class token
        return self.linear(rows.transpose(2, 3).flatten(3).flatten(1, 2))


class RoleExtractor(nn.Module):
    """Vision tokens -> image tokens of one role: LayerNorm, Q-Former told a word ("style" or "content"), projection."""

    def __init__(
        self,
        *,
        qformer: dict[str, Any],  # InstructBlipQFormerConfig without encoder_hidden_size
        vision_dim: int,
        num_tokens: int,
        token_dim: int,
        projection_dim: int,
        dropout: float,
        instruction: Sequence[int],  # token ids of "[CLS] word [SEP]"; empty: no instruction (ablation)
        places: Places | None = None,
    ) -> None:
        super().__init__()
        config = InstructBlipQFormerConfig(**{"cross_attention_frequency": 1, **qformer, "encoder_hidden_size": vision_dim})
        self.instruction = list(instruction)
        self.ln_vision = nn.LayerNorm(vision_dim, eps=1e-5)
        self.query_tokens = nn.Parameter(torch.randn(1, num_tokens, config.hidden_size) * config.initializer_range)
        self.qformer = InstructBlipQFormerModel(config)
        self.projection = Projection(config.hidden_size, projection_dim, token_dim, dropout)
        self.places = places

    def read(self, vision_hidden: Float[Tensor, "B V W"]) -> Float[Tensor, "B J Q"]:
        """All J = I + instruction tokens of the Q-Former; the first I are the queries'."""
        batch = len(vision_hidden)
        ids = torch.tensor([self.instruction], device=vision_hidden.device).expand(batch, -1) if self.instruction else None
        queries = self.query_tokens.expand(batch, -1, -1)
        hidden = self.ln_vision(vision_hidden)
        return self.qformer(input_ids=ids, query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state

    def forward(self, vision_hidden: Float[Tensor, "B V W"]) -> Float[Tensor, "B I C"]:
        tokens = self.projection(self.read(vision_hidden)[:, : self.query_tokens.shape[1]])
        return tokens if self.places is None else tokens + self.places(self.ln_vision(vision_hidden))
