"""The mechanism: one softmax over text keys and the image keys of the layer's own role (paper section 3.2).

B batch, L latent tokens (h*w), T text tokens of one chunk, I image tokens of one role, N heads, D head width, C = N*D.
`encoder_hidden_states` arrive as [text | style | content]; its length alone tells whether images take part (TokenLayout).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from deadiff.errors import ConfigError
from deadiff.routes import BOTH, Role


def joint_attention(
    query: Float[Tensor, "B N L D"],
    key: Float[Tensor, "B N T D"],
    value: Float[Tensor, "B N T D"],
    image_key: Float[Tensor, "B N I D"],
    image_value: Float[Tensor, "B N I D"],
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B N L D"]:
    """softmax(Q [K_text ; K_image]^T * scale) [V_text ; V_image]: images and words compete for one attention mass.

    mask: additive or boolean, broadcastable to (B, N, L, T + I).
    """
    key, value = torch.cat([key, image_key], dim=2), torch.cat([value, image_value], dim=2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def separate_attention(
    query: Float[Tensor, "B N L D"],
    key: Float[Tensor, "B N T D"],
    value: Float[Tensor, "B N T D"],
    image_key: Float[Tensor, "B N I D"],
    image_value: Float[Tensor, "B N I D"],
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B N L D"]:
    """softmax(Q K_text^T) V_text + softmax(Q K_image^T) V_image: IP-Adapter's decoupled attention, for the ablation."""
    text_mask = None if mask is None else mask[..., : key.shape[2]]
    text = F.scaled_dot_product_attention(query, key, value, attn_mask=text_mask, scale=scale)
    return text + F.scaled_dot_product_attention(query, image_key, image_value, scale=scale)


ATTENTION = {"joint": joint_attention, "separate": separate_attention}


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How text and image tokens share `encoder_hidden_states`: n*T text tokens, or n*T text + I style + I content.

    The length must tell the two cases apart: where 2*I is a multiple of T (both 32) one empty token follows, read by no layer.
    """

    text_length: int  # tokens in one chunk of the text encoder
    num_tokens: int  # tokens of one role

    def __post_init__(self) -> None:
        if self.text_length < 2 or self.num_tokens < 1:
            raise ConfigError(f"text_length {self.text_length} and num_tokens {self.num_tokens}: expected at least 2 and 1")

    @property
    def image_length(self) -> int:
        """Tokens that follow the text when any role is live."""
        both = 2 * self.num_tokens
        return both + (both % self.text_length == 0)

    def text_tokens(self, length: int) -> int:
        """How many of `length` tokens are text. Raises ConfigError for a length that is neither case."""
        for text in (length, length - self.image_length):
            if text > 0 and text % self.text_length == 0:
                return text
        raise ConfigError(
            f"prompt_embeds hold {length} tokens: expected a multiple of {self.text_length} (text alone) "
            f"or {self.image_length} more (text + style + content): make them with adapter.embed()"
        )

    def image_slice(self, role: str) -> slice:
        """Where a layer's own tokens lie after the text."""
        i = self.num_tokens
        return {Role.STYLE.value: slice(0, i), Role.CONTENT.value: slice(i, 2 * i), BOTH: slice(0, 2 * i)}[str(role)]


class ImageKV(nn.Module):
    """One layer's image projections (official i_to_k, i_to_v): no bias, so scaling the tokens by w scales K and V by w."""

    def __init__(self, token_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(token_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(token_dim, inner_dim, bias=False)

    def forward(self, tokens: Float[Tensor, "B I C"]) -> tuple[Float[Tensor, "B I K"], Float[Tensor, "B I K"]]:
        """Weights stored in another precision or place follow the tokens, differentiably; when they agree nothing is copied."""
        return F.linear(tokens, self.to_k.weight.to(tokens)), F.linear(tokens, self.to_v.weight.to(tokens))


def split_heads(attn: Any, x: Tensor) -> Tensor:
    """(B, L, N*D) -> (B, N, L, D), for a diffusers Attention of N heads."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


class JointAttnProcessor:
    """A diffusers attention processor: text and this layer's role in one softmax; text alone goes through the original processor.

    A plain object on purpose: a Module would be registered in the U-Net and its weights would enter the U-Net's state_dict.
    Otherwise it is diffusers' AttnProcessor2_0 step for step, whatever wraps to_q, to_k, to_v (LoRA) or sits before them (norms).
    """

    def __init__(self, image_kv: ImageKV, role: str, layout: TokenLayout, original: Any, attention: str = "joint") -> None:
        self.image_kv, self.role, self.layout, self.original = image_kv, str(role), layout, original
        self.image_slice = layout.image_slice(role)
        self.attend = ATTENTION[attention]

    def __call__(
        self,
        attn: Any,  # diffusers Attention, whose parts are Optional to a type checker
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        length = hidden_states.shape[1] if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        text_tokens = length if encoder_hidden_states is None else self.layout.text_tokens(length)
        if encoder_hidden_states is None or text_tokens == length:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)

        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        spatial = hidden_states.shape if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, L, C)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        # [text | style | content] -> text, and this layer's own image tokens. Contiguous: for a strided slice torch's linear
        # copies the weights, once for each sample, which costs far more than these few tokens.
        text = encoder_hidden_states[:, :text_tokens].contiguous()
        image = encoder_hidden_states[:, text_tokens:][:, self.image_slice].contiguous()
        if attn.norm_cross is not None:
            text = attn.norm_encoder_hidden_states(text)
        mask = self._mask(attn, attention_mask, text_tokens, length, len(text))

        image_key, image_value = self.image_kv(image)
        query = split_heads(attn, attn.to_q(hidden_states))  # (B, N, L, D)
        key, value = split_heads(attn, attn.to_k(text)), split_heads(attn, attn.to_v(text))  # (B, N, T, D)
        image_key, image_value = split_heads(attn, image_key), split_heads(attn, image_value)  # (B, N, I, D)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key, image_key = attn.norm_k(key), attn.norm_k(image_key)

        hidden_states = self.attend(query, key, value, image_key, image_value, mask, attn.scale)
        hidden_states = hidden_states.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, L, D) -> (B, L, C)

        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))  # linear, dropout
        if spatial is not None:
            hidden_states = hidden_states.transpose(1, 2).reshape(spatial)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _mask(self, attn: Any, mask: Tensor | None, text_tokens: int, length: int, batch: int) -> Tensor | None:
        """A mask over all tokens, or over the text alone -> one over this layer's keys, (B, N, 1 or L, T + I)."""
        if mask is None:
            return None
        seen = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros
        if mask.shape[-1] == text_tokens:  # a mask made for the text: images are seen
            mask = torch.cat([mask, seen((*mask.shape[:-1], length - text_tokens))], dim=-1)
        prepared = attn.prepare_attention_mask(mask, length, batch).view(batch, attn.heads, -1, length)
        return torch.cat([prepared[..., :text_tokens], prepared[..., text_tokens:][..., self.image_slice]], dim=-1)


class TextOnlyAttnProcessor:
    """For a ControlNet: drops the image tokens, then the original processor as it was."""

    def __init__(self, layout: TokenLayout, original: Any) -> None:
        self.layout, self.original = layout, original

    def __call__(
        self,
        attn: Any,  # diffusers Attention, whose parts are Optional to a type checker
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if encoder_hidden_states is not None:
            text_tokens = self.layout.text_tokens(encoder_hidden_states.shape[1])
            encoder_hidden_states = encoder_hidden_states[:, :text_tokens].contiguous()
            attention_mask = None if attention_mask is None else attention_mask[..., :text_tokens]
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
