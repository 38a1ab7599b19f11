"""Stage 2 of the icons model: the reader, a small text tower whose hidden states tell subjects, styles and meanings apart.

It learns from words alone, thousands of captions a second, before any picture is drawn: what a caption names must be plain in the
hidden states that the base will read. Words that no caption holds take their meaning from a sentence encoder.
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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from deadiff.training.loop import Task
from deadiff.training.samples import rng_of

# B batch, T text tokens, W tower width

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """Size of the text tower and weights of the losses."""

    vocab_size: int = 4096
    text_length: int = 30  # tokens, padding included; no divisor of the 32 image tokens, so that lengths stay unambiguous
    text_width: int = 256
    text_layers: int = 3
    subject_weight: float = 1.0  # of telling the subject from a caption
    style_weight: float = 0.5  # of telling the style from it, where it names one
    word_weight: float = 2.0  # of matching the sentence encoder on words and phrases


class ReaderBatch(NamedTuple):
    """One draw: captions, what they name, and words whose meaning is taught apart."""

    text: Tensor  # (B, T)
    subject: Tensor  # (B,) class
    style: Tensor  # (B,) class, -1 where the caption does not say it
    words: Tensor  # (B, T)
    meanings: Tensor  # (B, 384)


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


class ReaderHeads(nn.Module):
    """What training needs beside the tower and drawing does not."""

    def __init__(self, width: int, subjects: int, styles: int, meaning_dim: int) -> None:
        super().__init__()
        self.subject = nn.Linear(width, subjects)
        self.style = nn.Linear(width, styles)
        self.meaning = nn.Linear(width, meaning_dim)


class ReaderTask(Task):
    """`draw(draw, count)` -> (captions, subject classes, style classes or -1)."""

    def __init__(
        self,
        config: ReaderConfig,
        tokenizer: CLIPTokenizer,
        draw: Callable[[int, int], tuple[list[str], np.ndarray, np.ndarray]],
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
            "heads": ReaderHeads(config.text_width, subjects, styles, self.meanings.shape[1]),
        }

    def batch(self, draw: int, batch_size: int) -> ReaderBatch:
        captions, subject, style = self.draw(draw, batch_size)
        chosen = rng_of(0, draw, stream=7).integers(0, len(self.words), batch_size)
        return ReaderBatch(
            tokenize(self.tokenizer, captions),
            torch.from_numpy(subject),
            torch.from_numpy(style),
            tokenize(self.tokenizer, [self.words[i] for i in chosen]),
            torch.from_numpy(self.meanings[chosen]).float(),
        )

    def loss(self, batch: ReaderBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Subject and style of captions by cross-entropy + cosine distance to the meanings of words."""
        c, heads = self.config, self.modules["heads"]
        assert isinstance(heads, ReaderHeads)
        said = self.modules["text_encoder"](torch.cat([batch.text, batch.words])).pooler_output
        said, words = said[: len(batch.text)], said[len(batch.text) :]
        subject_logits, style_logits = heads.subject(said).float(), heads.style(said).float()
        subject = F.cross_entropy(subject_logits, batch.subject, label_smoothing=0.05)
        told = batch.style >= 0
        style = F.cross_entropy(style_logits, batch.style, ignore_index=-1, label_smoothing=0.05, reduction="sum")
        style = style / told.sum().clamp(min=1)
        meaning = 1 - F.cosine_similarity(heads.meaning(words).float(), batch.meanings, dim=-1).mean()
        loss = c.subject_weight * subject + c.style_weight * style + c.word_weight * meaning
        right = (style_logits.argmax(-1) == batch.style).float()
        shown = {
            "meaning": meaning,
            "subject_accuracy": (subject_logits.argmax(-1) == batch.subject).float().mean(),
            "style_accuracy": right.sum() / told.sum().clamp(min=1),
        }
        return loss, {name: value.detach() for name, value in shown.items()}


def text_config(config: ReaderConfig, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
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
