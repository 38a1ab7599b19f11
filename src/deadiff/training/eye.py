"""Stage 4 of the icons model: the eye, an image tower whose penultimate layer is what the Q-Formers look at.

Three signals shape it: pictures against their captions as the reader understands them (Radford et al. 2021, figure 3; the reader
stays as it is), and the labels of subject and style, read from the very hidden states that the adapter will see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from deadiff.extractor import Preprocess
from deadiff.training.loop import Task
from deadiff.training.reader import tokenize
from deadiff.training.samples import to_pixels

# B batch, T text tokens, V vision tokens, W tower width


@dataclass(frozen=True, kw_only=True)
class EyeConfig:
    """Size of the image tower and weights of the losses."""

    vision_width: int = 192
    vision_layers: int = 6  # the eye is all but the last
    picture_size: int = 128  # pixels
    patch_size: int = 16  # pixels
    projection_dim: int = 256
    subject_weight: float = 1.0  # of telling the subject from the eye's hidden states
    style_weight: float = 0.5  # of telling the style from them


class EyeBatch(NamedTuple):
    """One draw: pictures, what is said of them, what they are."""

    pixels: Tensor  # (B, 3, S, S), normalised for the eye
    text: Tensor  # (B, T)
    subject: Tensor  # (B,) class
    style: Tensor  # (B,) class


class EyeHeads(nn.Module):
    """What training needs beside the tower and inference does not."""

    def __init__(self, config: EyeConfig, text_width: int, subjects: int, styles: int) -> None:
        super().__init__()
        self.text_projection = nn.Linear(text_width, config.projection_dim, bias=False)
        self.picture_projection = nn.Linear(config.vision_width, config.projection_dim, bias=False)
        self.attend = nn.Linear(config.vision_width, 4)  # four gazes over the tokens, for the subject
        self.subject = nn.Linear(4 * config.vision_width, subjects)
        self.style = nn.Linear(config.vision_width, styles)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))  # log of 1 / temperature


class EyeTask(Task):
    """`draw(draw, count)` -> (uint8 pictures (B, S, S, 3), captions, subject classes, style classes)."""

    def __init__(
        self,
        config: EyeConfig,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        draw: Callable[[int, int], tuple[np.ndarray, list[str], np.ndarray, np.ndarray]],
        subjects: int,
        styles: int,
    ) -> None:
        self.config, self.tokenizer, self.draw = config, tokenizer, draw
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.modules = {
            "image_encoder": CLIPVisionModel(vision_config(config)),
            "heads": EyeHeads(config, text_encoder.config.hidden_size, subjects, styles),
        }
        self.preprocess = Preprocess(size=config.picture_size)

    def batch(self, draw: int, batch_size: int) -> EyeBatch:
        pictures, captions, subject, style = self.draw(draw, batch_size)
        return EyeBatch(
            self.preprocess(to_pixels(pictures)),
            tokenize(self.tokenizer, captions),
            torch.from_numpy(subject),
            torch.from_numpy(style),
        )

    def loss(self, batch: EyeBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast of pictures and captions + subject and style from the penultimate layer."""
        c, heads = self.config, self.modules["heads"]
        assert isinstance(heads, EyeHeads)
        dtype = heads.subject.weight.dtype
        with torch.no_grad():
            said = self.text_encoder(batch.text).pooler_output.to(dtype)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward is slow on a CPU (docs/log.md)
            seen = self.modules["image_encoder"](batch.pixels.to(dtype), output_hidden_states=True)
        eye = F.layer_norm(seen.hidden_states[-2].float(), (c.vision_width,)).to(dtype)  # (B, V, W)

        text = F.normalize(heads.text_projection(said).float(), dim=-1)
        picture = F.normalize(heads.picture_projection(seen.pooler_output).float(), dim=-1)
        logits = heads.logit_scale.float().exp().clamp(max=100) * picture @ text.T  # (B, B)
        target = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        gazes = heads.attend(eye).float().softmax(1).to(dtype).transpose(1, 2) @ eye  # (B, 4, W)
        subject_logits, style_logits = heads.subject(gazes.flatten(1)).float(), heads.style(eye.mean(1)).float()
        subject = F.cross_entropy(subject_logits, batch.subject, label_smoothing=0.05)
        style = F.cross_entropy(style_logits, batch.style, label_smoothing=0.05)
        loss = contrast + c.subject_weight * subject + c.style_weight * style
        shown = {
            "contrast": contrast,
            "subject_accuracy": (subject_logits.argmax(-1) == batch.subject).float().mean(),
            "style_accuracy": (style_logits.argmax(-1) == batch.style).float().mean(),
            "caption_accuracy": (logits.argmax(-1) == target).float().mean(),
        }
        return loss, {name: value.detach() for name, value in shown.items()}


def vision_config(config: EyeConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_width // 64,
        image_size=config.picture_size,
        patch_size=config.patch_size,
    )
