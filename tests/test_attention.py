"""The equation, and that the processor is diffusers' own in everything else."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

import small_models
from deadiff.attention import ImageKV, JointAttnProcessor, TokenLayout, joint_attention, separate_attention
from deadiff.errors import ConfigError
from deadiff.routes import BOTH, Role
from small_models import noise

LAYOUT = TokenLayout(text_length=5, num_tokens=3)
WIDTH, INNER, HEADS = 12, 16, 4


def layer(**options) -> Attention:
    return small_models.seeded(
        lambda: Attention(INNER, cross_attention_dim=WIDTH, heads=HEADS, dim_head=INNER // HEADS, **options)
    )


def image_kv() -> ImageKV:
    return small_models.seeded(lambda: ImageKV(WIDTH, INNER), seed=1)


def softmax_by_hand(query, key, value, mask=None):
    """softmax(q k^T / sqrt(d)) v in float64."""
    logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = (logits if mask is None else logits + mask).softmax(-1)
    return (weights @ value.double()).float()


def test_joint_attention_is_one_softmax_over_text_and_image_keys():
    q, k, v = noise(2, 4, 6, 8), noise(2, 4, 5, 8, seed=1), noise(2, 4, 5, 8, seed=2)
    ik, iv = noise(2, 4, 3, 8, seed=3), noise(2, 4, 3, 8, seed=4)
    expected = softmax_by_hand(q, torch.cat([k, ik], 2), torch.cat([v, iv], 2))
    torch.testing.assert_close(joint_attention(q, k, v, ik, iv), expected, atol=1e-6, rtol=0)


def test_separate_attention_adds_two_softmaxes():
    q, k, v = noise(2, 4, 6, 8), noise(2, 4, 5, 8, seed=1), noise(2, 4, 5, 8, seed=2)
    ik, iv = noise(2, 4, 3, 8, seed=3), noise(2, 4, 3, 8, seed=4)
    expected = softmax_by_hand(q, k, v) + softmax_by_hand(q, ik, iv)
    torch.testing.assert_close(separate_attention(q, k, v, ik, iv), expected, atol=1e-6, rtol=0)


def test_zero_tokens_still_take_their_share_of_the_softmax():
    """The idle role's keys and values are zero: each adds exp(0) to the sum and nothing to the result."""
    q, k, v = noise(1, 1, 2, 8), noise(1, 1, 5, 8, seed=1), noise(1, 1, 5, 8, seed=2)
    zeros = torch.zeros(1, 1, 3, 8)
    logits = (q.double() @ k.double().transpose(-1, -2) / 8**0.5).exp()
    expected = (logits @ v.double() / (logits.sum(-1, keepdim=True) + 3)).float()
    torch.testing.assert_close(joint_attention(q, k, v, zeros, zeros), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text_length", "num_tokens", "image_length"),
    [(77, 16, 32), (32, 16, 33), (16, 16, 33), (5, 3, 6), (24, 16, 32)],
)
def test_the_length_alone_tells_text_from_text_with_images(text_length, num_tokens, image_length):
    layout = TokenLayout(text_length=text_length, num_tokens=num_tokens)
    assert layout.image_length == image_length
    for chunks in (1, 2, 3):
        text = chunks * text_length
        assert layout.text_tokens(text) == text
        assert layout.text_tokens(text + image_length) == text


@pytest.mark.parametrize("length", [1, 32, 78, 93, 110])
def test_a_length_that_is_neither_is_refused(length):
    with pytest.raises(ConfigError, match=f"hold {length} tokens: expected a multiple of 77"):
        TokenLayout(text_length=77, num_tokens=16).text_tokens(length)


@pytest.mark.parametrize("role", [Role.STYLE, Role.CONTENT, BOTH])
def test_a_layer_reads_text_and_its_own_role_only(role):
    attn, kv = layer(), image_kv()
    processor = JointAttnProcessor(kv, role, LAYOUT, attn.processor)
    x, tokens = noise(2, 7, INNER), noise(2, 11, WIDTH, seed=1)  # 5 text, 3 style, 3 content
    own = {"style": [5, 6, 7], "content": [8, 9, 10], "both": [5, 6, 7, 8, 9, 10]}[str(role)]

    def heads(y):
        return y.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    image = tokens[:, own]
    key = torch.cat([heads(attn.to_k(tokens[:, :5])), heads(kv.to_k(image))], 2)
    value = torch.cat([heads(attn.to_v(tokens[:, :5])), heads(kv.to_v(image))], 2)
    expected = attn.to_out[0](softmax_by_hand(heads(attn.to_q(x)), key, value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(processor(attn, x, tokens), expected, atol=1e-6, rtol=0)

    others = [i for i in range(5, 11) if i not in own]
    changed = tokens.clone()
    changed[:, others] = 100.0
    assert torch.equal(processor(attn, x, changed), processor(attn, x, tokens))


OPTIONS = {
    "plain": {},
    "group norm and residual": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0},
    "normalised queries and keys": {"qk_norm": "layer_norm"},
    "unscaled": {"scale_qk": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("spatial", [False, True], ids=["sequence", "4-D input"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_text_as_image_tokens_equals_the_original_processor_on_the_longer_text(options, spatial, masked):
    """With the text's own K/V as image K/V, the joint processor must be diffusers' on text that is 3 tokens longer."""
    attn = layer(**options)
    kv = ImageKV(WIDTH, INNER)
    kv.to_k.weight, kv.to_v.weight = attn.to_k.weight, attn.to_v.weight
    x = noise(2, INNER, 2, 3) if spatial else noise(2, 6, INNER)
    tokens = noise(2, 11, WIDTH, seed=1)
    mask = torch.where(noise(2, 1, 11, seed=5) > 0.5, -10000.0, 0.0) if masked else None
    ours = JointAttnProcessor(kv, Role.STYLE, LAYOUT, attn.processor)(attn, x, tokens, mask)
    theirs = attn.processor(attn, x, tokens[:, :8], None if mask is None else mask[..., :8])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_image_tokens_get_neither_the_texts_bias_nor_its_norm():
    for options in ({"bias": True}, {"cross_attention_norm": "layer_norm"}):
        attn, kv = layer(**options), image_kv()
        x, tokens = noise(1, 6, INNER), noise(1, 11, WIDTH, seed=1)
        tokens[:, 5:] = 0
        text = attn.norm_encoder_hidden_states(tokens[:, :5]) if attn.norm_cross is not None else tokens[:, :5]
        k, v = (
            torch.cat([project(text), torch.zeros(1, 3, INNER)], 1).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (attn.to_k, attn.to_v)
        )
        q = attn.to_q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        expected = attn.to_out[0](softmax_by_hand(q, k, v).transpose(1, 2).flatten(2))
        processor = JointAttnProcessor(kv, Role.CONTENT, LAYOUT, attn.processor)
        torch.testing.assert_close(processor(attn, x, tokens), expected, atol=1e-6, rtol=0)


def test_a_mask_made_for_the_text_leaves_the_image_tokens_visible():
    attn, kv = layer(), image_kv()
    processor = JointAttnProcessor(kv, Role.STYLE, LAYOUT, attn.processor)
    x, tokens = noise(2, 6, INNER), noise(2, 11, WIDTH, seed=1)
    text_mask = torch.zeros(2, 1, 5)
    text_mask[:, :, 2] = -10000.0
    whole = torch.cat([text_mask, torch.zeros(2, 1, 6)], dim=-1)
    assert torch.equal(processor(attn, x, tokens, text_mask), processor(attn, x, tokens, whole))
    assert torch.equal(processor(attn, x, tokens, whole < 0), processor(attn, x, tokens, whole < 0))
    boolean = processor(attn, x, tokens, text_mask == 0)  # True: take part
    torch.testing.assert_close(boolean, processor(attn, x, tokens, text_mask), atol=1e-6, rtol=0)


def test_text_alone_goes_through_the_very_processor_that_was_there():
    calls = []

    class Original(AttnProcessor2_0):
        def __call__(self, *args, **kwargs):
            calls.append(len(args))
            return super().__call__(*args, **kwargs)

    attn = layer()
    processor = JointAttnProcessor(image_kv(), Role.STYLE, LAYOUT, Original())
    x, text = noise(2, 6, INNER), noise(2, 10, WIDTH, seed=1)  # two chunks of text
    assert torch.equal(processor(attn, x, text), attn.processor(attn, x, text)) and len(calls) == 1


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("running", [torch.float32, torch.bfloat16, torch.float16])
def test_image_weights_stored_in_one_precision_serve_a_unet_in_another(stored, running):
    attn, kv = layer().to(running), image_kv().to(stored)
    x, tokens = noise(2, 6, INNER).to(running), noise(2, 11, WIDTH, seed=1).to(running)
    out = JointAttnProcessor(kv, Role.STYLE, LAYOUT, attn.processor)(attn, x, tokens)
    exact = JointAttnProcessor(image_kv(), Role.STYLE, LAYOUT, None)(layer(), x.float(), tokens.float())
    assert out.dtype == running
    torch.testing.assert_close(out.float(), exact, atol=0.03, rtol=0)
    out.float().sum().backward()
    assert kv.to_k.weight.grad is not None and kv.to_k.weight.grad.dtype == stored  # the cast is differentiable
