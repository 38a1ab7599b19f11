"""Stage 2 of the icons model: a small CLIP, whose text tower is the reader and whose image tower is the eye.

Three signals shape it: pictures against their captions (Radford et al. 2021, figure 3), the labels of subject and style read from
the very hidden states that the adapter will see, and, for words that no caption holds, a sentence encoder's embeddings.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from deadiff.extractor import Preprocess
from deadiff.training.loop import Task
from deadiff.training.samples import rng_of, to_pixels

# B batch, T text tokens, V vision tokens, W tower width, P projection width

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Sizes of both towers and weights of the losses."""

    vocab_size: int = 4096
    text_length: int = 30  # tokens, padding included; no divisor of the 32 image tokens, so that lengths stay unambiguous
    text_width: int = 256
    text_layers: int = 3
    vision_width: int = 192
    vision_layers: int = 6  # the eye is all but the last
    picture_size: int = 128  # pixels
    patch_size: int = 16  # pixels
    projection_dim: int = 256
    subject_weight: float = 0.5  # of telling the subject from the eye's hidden states
    style_weight: float = 0.5  # of telling the style from them
    word_weight: float = 1.0  # of matching the sentence encoder on words and phrases


class ClipBatch(NamedTuple):
    """One draw: pictures, what is said of them, what they are, and words whose meaning is taught apart."""

    pixels: Tensor  # (B, 3, S, S), normalised for the eye
    text: Tensor  # (B, T)
    subject: Tensor  # (B,) class
    style: Tensor  # (B,) class
    words: Tensor  # (W, T)
    meanings: Tensor  # (W, 384)


def train_tokenizer(texts: Sequence[str], vocab_size: int, text_length: int) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's own file format (lower case, `</w>` ends a word), learned from `texts`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # pyright: ignore
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [
            pre_tokenizers.Split(r"\s+", "removed"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(alphabet) - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in _merges(bpe)]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    vocab = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,  # pyright: ignore[reportArgumentType]
        model_max_length=text_length,
    )


def _merges(bpe: Tokenizer) -> list[list[str]]:
    return [m if isinstance(m, list) else m.split(" ") for m in json.loads(bpe.to_str())["model"]["merges"]]


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Texts -> (B, T) ids, padded and cut to the tokenizer's length."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


class Heads(nn.Module):
    """What training needs beside the towers and inference does not."""

    def __init__(self, config: ClipConfig, subjects: int, styles: int, meaning_dim: int) -> None:
        super().__init__()
        self.text_projection = nn.Linear(config.text_width, config.projection_dim, bias=False)
        self.picture_projection = nn.Linear(config.vision_width, config.projection_dim, bias=False)
        self.meaning = nn.Linear(config.text_width, meaning_dim)
        self.subject = nn.Linear(config.vision_width, subjects)
        self.style = nn.Linear(config.vision_width, styles)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))  # log of 1 / temperature


class ClipTask(Task):
    """`draw(draw, count)` -> (uint8 pictures (B, S, S, 3), captions, subject classes, style classes)."""

    def __init__(
        self,
        config: ClipConfig,
        tokenizer: CLIPTokenizer,
        draw: Callable[[int, int], tuple[np.ndarray, list[str], np.ndarray, np.ndarray]],
        subjects: int,
        styles: int,
        words: Sequence[str],
        meanings: np.ndarray | None,  # (len(words), 384), unit length; None: no teacher
    ) -> None:
        self.config, self.tokenizer, self.draw = config, tokenizer, draw
        self.words = list(words)
        self.meanings = np.zeros((len(self.words), 1), np.float16) if meanings is None else meanings
        self.modules = {
            "text_encoder": CLIPTextModel(text_config(config, tokenizer)),
            "image_encoder": CLIPVisionModel(vision_config(config)),
            "heads": Heads(config, subjects, styles, self.meanings.shape[1]),
        }
        self.preprocess = Preprocess(size=config.picture_size)

    def batch(self, draw: int, batch_size: int) -> ClipBatch:
        pictures, captions, subject, style = self.draw(draw, batch_size)
        chosen = rng_of(0, draw, stream=7).integers(0, len(self.words), batch_size)
        return ClipBatch(
            self.preprocess(to_pixels(pictures)),
            tokenize(self.tokenizer, captions),
            torch.from_numpy(subject),
            torch.from_numpy(style),
            tokenize(self.tokenizer, [self.words[i] for i in chosen]),
            torch.from_numpy(self.meanings[chosen]).float(),
        )

    def loss(self, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast of pictures and captions + subject and style from the penultimate layer + meanings of words."""
        c, heads = self.config, self.modules["heads"]
        assert isinstance(heads, Heads)
        dtype = heads.subject.weight.dtype
        said = self.modules["text_encoder"](torch.cat([batch.text, batch.words])).pooler_output
        said, words = said[: len(batch.text)], said[len(batch.text) :]
        seen = self.modules["image_encoder"](batch.pixels.to(dtype), output_hidden_states=True)
        eye = F.layer_norm(seen.hidden_states[-2].mean(1).float(), (c.vision_width,)).to(dtype)  # (B, W)

        text = F.normalize(heads.text_projection(said).float(), dim=-1)
        picture = F.normalize(heads.picture_projection(seen.pooler_output).float(), dim=-1)
        logits = heads.logit_scale.float().exp().clamp(max=100) * picture @ text.T  # (B, B)
        target = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        subject_logits, style_logits = heads.subject(eye).float(), heads.style(eye).float()
        subject = F.cross_entropy(subject_logits, batch.subject, label_smoothing=0.05)
        style = F.cross_entropy(style_logits, batch.style, label_smoothing=0.05)
        meaning = 1 - F.cosine_similarity(heads.meaning(words).float(), batch.meanings, dim=-1).mean()
        loss = contrast + c.subject_weight * subject + c.style_weight * style + c.word_weight * meaning
        shown = {
            "contrast": contrast,
            "meaning": meaning,
            "subject_accuracy": (subject_logits.argmax(-1) == batch.subject).float().mean(),
            "style_accuracy": (style_logits.argmax(-1) == batch.style).float().mean(),
            "caption_accuracy": (logits.argmax(-1) == target).float().mean(),
        }
        return loss, {name: value.detach() for name, value in shown.items()}


def text_config(config: ClipConfig, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 64,
        max_position_embeddings=config.text_length,
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        **ids,
    )


def vision_config(config: ClipConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_width // 64,
        image_size=config.picture_size,
        patch_size=config.patch_size,
    )
