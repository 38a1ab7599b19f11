"""What a style reference looks like itself, beside the tokens that were read from it: its latents, used without any training.

Tokens say which style it is, as far as training has met it; the latents say how this very picture is drawn. Two things are taken:
  - shared attention (StyleAligned, arXiv 2312.02133; Visual Style Prompting, arXiv 2402.12974): where the U-Net is finest, the
    drawing's self-attention also reads the keys and values of the reference, which goes through the U-Net beside it;
  - tone (AdaIN, arXiv 1703.06868): the finished latents take a share of the reference's mean and spread, channel by channel.
Nothing of it is in the paper; docs/log.md has what each is worth.

B pictures drawn at once, R references mixed in one style, Z latent channels, h, w latent size, L = h * w, N heads, D head width,
T text tokens, U = T and image tokens, C token width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deadiff.adapter import Tokens
from deadiff.attention import split_heads
from deadiff.config import LookConfig
from deadiff.errors import ConfigError

MOST = 8  # references of a style that are looked at: each costs a pass of the U-Net at every step
_NOW: ContextVar["Shown | None"] = ContextVar("shown", default=None)  # of this thread's call, so that threads may share a U-Net


@dataclass(frozen=True, eq=False)
class Look:
    """The latents of one style's references, as the VAE encodes them (scaled), and what each counts."""

    latents: Float[Tensor, "R Z h w"]
    weights: tuple[float, ...]  # sum to 1

    @classmethod
    def mixed(cls, parts: Sequence[tuple["Look", float]]) -> "Look":
        """Several looks as one, of more than MOST references the heaviest; the weights need not sum to 1."""
        latents = torch.cat([look.latents for look, _ in parts])
        weights = [share * weight for look, weight in parts for share in look.weights]
        kept = sorted(sorted(range(len(weights)), key=lambda i: -weights[i])[:MOST])
        total = sum(weights[i] for i in kept)
        return cls(latents[kept], tuple(weights[i] / total for i in kept))

    def tone(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each channel, (Z, 1, 1): those of the references, averaged."""
        share = self.latents.new_tensor(self.weights).view(-1, 1, 1, 1)
        mean, spread = self.latents.mean((2, 3), keepdim=True), self.latents.std((2, 3), keepdim=True)
        return (mean * share).sum(0), (spread * share).sum(0)


class SeenTokens(Tokens):
    """Tokens with the look of the style reference, where the model uses one: what `Stylizer.encode` gives."""

    look: Look | None = None

    @classmethod
    def of(cls, style: Tensor | None, content: Tensor | None, look: Look | None) -> "SeenTokens":
        tokens = cls(style, content)
        tokens.look = look
        return tokens


class Shown:
    """The looks of one batch of drawings, one for each row, while they are drawn. Rows may share a look: it is seen once.

    strengths (B,): 1 is a look as the config has it, 0 none. embeds (B, U, C): what the U-Net is told of each row's references.
    """

    def __init__(self, looks: Sequence[Look], strengths: Tensor, embeds: Tensor, config: LookConfig, scheduler: Any) -> None:
        self.config, self.scheduler, self.strengths = config, scheduler, strengths.float()
        first = {id(look): row for row, look in reversed(list(enumerate(looks)))}  # look -> the first row that has it
        chosen = sorted(first.values())
        self.rows = torch.tensor([chosen.index(first[id(look)]) for look in looks])  # (B,), into the looks that are seen
        self.count = len(looks[0].weights)  # R
        self.latents = torch.cat([looks[row].latents.to(embeds.device) for row in chosen])  # (looks * R, Z, h, w)
        self.embeds = embeds[chosen].repeat_interleave(self.count, 0)
        weights = torch.tensor([look.weights for look in looks]) * self.strengths[:, None] * config.weight
        self.bias = weights.log().to(self.latents)  # (B, R); -inf where nothing is to be seen
        mean, spread = zip(*(look.tone() for look in looks), strict=True)
        self.mean, self.spread = (torch.stack([x.to(embeds.device) for x in tone]) for tone in (mean, spread))  # (B, Z, 1, 1)
        self.live = True
        self.seeing = False
        self.kept: dict[Any, tuple[Tensor, Tensor]] = {}  # layer -> keys, values of the present step, (B, N, R L, D)

    @contextmanager
    def while_drawing(self) -> Iterator["Shown"]:
        token = _NOW.set(self)
        try:
            yield self
        finally:
            _NOW.reset(token)

    def see(self, unet: nn.Module, timestep: Any) -> None:
        """The references through the U-Net at this timestep: its shared layers keep their keys and values.

        They come as faint as at that step, sqrt(alpha_t), but without its noise; every solver feeds the U-Net on this scale.
        """
        self.seeing = True
        try:
            faint = self.scheduler.alphas_cumprod[round(float(torch.as_tensor(timestep).reshape(-1)[0]))] ** 0.5
            with torch.no_grad():
                unet(
                    (self.latents * float(faint)).to(self.embeds), timestep, encoder_hidden_states=self.embeds, return_dict=False
                )
        finally:
            self.seeing = False

    def keep(self, layer: Any, key: Tensor, value: Tensor) -> None:
        """(looks * R, N, L, D) of the references -> what each drawing's row will read."""
        rows = self.rows.to(key.device)
        self.kept[layer] = tuple(  # pyright: ignore[reportArgumentType]
            x.unflatten(0, (-1, self.count)).transpose(1, 2).flatten(2, 3)[rows].contiguous() for x in (key, value)
        )

    def toned(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        """Finished latents with their share of the references' mean and spread."""
        share = (self.config.tone * self.strengths).clamp(0, 1).view(-1, 1, 1, 1).to(latents)
        mean, spread = latents.mean((2, 3), keepdim=True), latents.std((2, 3), keepdim=True).clamp(min=1e-6)
        there = (latents - mean) / spread * self.spread.to(latents) + self.mean.to(latents)
        return latents + share * (there - latents)


class SharedAttnProcessor:
    """A diffusers self-attention processor that also reads the references of the call at hand; without any, the original one.

    Of a guided batch [unconditional | conditional] only the second half reads them: guidance then strengthens what they bring.
    """

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shown = _NOW.get()
        if shown is None or not shown.live:
            return self.original(attn, hidden_states, *args, **kwargs)
        if shown.seeing:
            shown.keep(self, split_heads(attn, attn.to_k(hidden_states)), split_heads(attn, attn.to_v(hidden_states)))
            return self.original(attn, hidden_states, *args, **kwargs)
        count = len(shown.rows)
        if len(hidden_states) not in (count, 2 * count):
            raise ConfigError(f"the U-Net was given {len(hidden_states)} rows: expected {count} or, guided, {2 * count}")
        said = [self.original(attn, hidden_states[:-count], *args, **kwargs)] if len(hidden_states) > count else []
        return torch.cat([*said, self._shared(attn, hidden_states[-count:], shown)])

    def _shared(self, attn: Any, hidden_states: Float[Tensor, "B L C"], shown: Shown) -> Float[Tensor, "B L C"]:
        query, key, value = (split_heads(attn, linear(hidden_states)) for linear in (attn.to_q, attn.to_k, attn.to_v))
        reference_key, reference_value = shown.kept[self]
        own = key.new_zeros(len(key), key.shape[2])
        others = shown.bias.to(key).repeat_interleave(reference_key.shape[2] // shown.count, 1)  # (B, R L)
        mask = torch.cat([own, others], 1)[:, None, None]  # (B, 1, 1, L + R L)
        key, value = torch.cat([key, reference_key], 2), torch.cat([value, reference_value], 2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def share_attention(unet: nn.Module, config: LookConfig) -> None:
    """Make the U-Net's layers that the config names ready to read references; they stay as they were while none is shown.

    Raises ConfigError for a layer that the U-Net does not have.
    """
    layers = {name: module for name, module in unet.named_modules() if name.endswith(".attn1")}
    for path in config.shared:
        found = [module for name, module in layers.items() if name.startswith(f"{path}.")]
        if not found:
            raise ConfigError(f"look.shared names {path}: expected attention blocks of this U-Net, such as {_block(layers)}")
        for layer in found:
            if not isinstance(layer.processor, SharedAttnProcessor):
                layer.set_processor(SharedAttnProcessor(layer.processor))  # pyright: ignore[reportCallIssue]
    if config.shared and _see_first not in unet._forward_pre_hooks.values():
        unet.register_forward_pre_hook(_see_first, with_kwargs=True)


def _see_first(unet: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before each pass of drawings, one of their references at the same timestep."""
    shown = _NOW.get()
    if shown is not None and shown.live and not shown.seeing:
        shown.see(unet, args[1] if len(args) > 1 else kwargs["timestep"])


def _block(layers: Mapping[str, Any]) -> str:
    return next(iter(layers), "none").partition(".transformer_blocks")[0]


def emphasised(text: Float[Tensor, "B T C"], sketch: int, factor: float, strengths: Tensor) -> Float[Tensor, "B T C"]:
    """Prompts beside a style reference: their sketch, the last `sketch` tokens, is told louder: the style shall leave its shape.

    factor: at strength 1 and above; below, as much less.
    """
    if not sketch or math.isclose(factor, 1):
        return text
    louder = 1 + (factor - 1) * strengths.clamp(0, 1).view(-1, 1, 1).to(text)
    return torch.cat([text[:, :-sketch], text[:, -sketch:] * louder], 1)
