"""A style reference that is looked at itself: shared attention, tone, a louder sketch; off, nothing of it is there."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

import deadiff
from deadiff.config import AdapterConfig, LookConfig, read_config
from deadiff.defaults import Defaults
from deadiff.embedded import ICONS
from deadiff.errors import ConfigError, ReferenceError
from deadiff.jobs import Job
from deadiff.reference_look import Look, SharedAttnProcessor, Shown, emphasised, share_attention
from deadiff.style_library import SavedStyle, make_style
from deadiff.stylizer import Stylizer
from small_models import noise
from tiny import picture, pixels, tiny_adapter, tiny_pipeline

FINEST = {"icons": "up_blocks.2.attentions.2", "sd15": "up_blocks.3.attentions.2"}
A, B = picture(1), picture(2)


def make(layout: str = "icons", **look) -> Stylizer:
    pipe = tiny_pipeline(layout)
    adapter = tiny_adapter(pipe.unet, layout)
    adapter.config = replace(adapter.config, look=LookConfig(**look))
    return Stylizer(pipe, adapter, defaults=Defaults(num_inference_steps=3, guidance_scale=4.0))


@pytest.fixture(scope="module", params=["icons", "sd15"])
def looking(request) -> Stylizer:
    return make(request.param, shared=[FINEST[request.param]], tone=0.5)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


def shown(looks: list[Look], strengths=(1.0, 1.0), **config) -> Shown:
    embeds = torch.zeros(len(looks), 3, 8)
    return Shown(looks, torch.tensor(strengths[: len(looks)]), embeds, LookConfig(**config), DDIMScheduler())


# ---- the attention ----


def seen(layer, hidden, references, of: Shown):
    """Outputs of a shared layer for (rows, L, C), after it has kept what it sees of (looks * R, L, C)."""
    with of.while_drawing(), torch.no_grad():
        of.seeing = True
        layer(references)
        of.seeing = False
        return layer(hidden)


@pytest.fixture
def layer():
    unet = tiny_pipeline().unet
    share_attention(unet, LookConfig(shared=[FINEST["icons"]]))
    return unet.up_blocks[2].attentions[2].transformer_blocks[0].attn1


def test_a_layer_reads_its_own_and_the_references_keys_in_one_softmax(layer) -> None:
    look = Look(noise(2, 4, 8, 8), (0.75, 0.25))
    hidden, references = noise(1, 5, 16), noise(2, 7, 16, seed=1)
    said = seen(layer, hidden, references, shown([look], strengths=(0.8,), weight=2.0))

    keys = torch.cat([hidden[0], *references])  # (5 + 7 + 7, 16)
    counts = torch.tensor([1.0] * 5 + [0.75 * 0.8 * 2] * 7 + [0.25 * 0.8 * 2] * 7)  # how often each key counts
    projected = layer.to_q(hidden[0]), layer.to_k(keys), layer.to_v(keys)
    query, key, value = (x.unflatten(-1, (layer.heads, -1)).transpose(0, 1) for x in projected)
    mass = (query @ key.transpose(1, 2) * layer.scale).exp() * counts
    expected = (mass / mass.sum(-1, keepdim=True)) @ value
    expected = layer.to_out[0](expected.transpose(0, 1).flatten(1))
    torch.testing.assert_close(said[0], expected, atol=1e-5, rtol=1e-5)


def test_only_the_conditional_half_reads_and_each_row_its_own(layer) -> None:
    looks = [Look(noise(1, 4, 8, 8), (1.0,)), Look(noise(1, 4, 8, 8, seed=1), (1.0,))]
    hidden, references = noise(4, 5, 16), noise(2, 5, 16, seed=1)
    plain = layer(hidden)
    said = seen(layer, hidden, references, shown(looks))
    assert torch.equal(said[:2], layer(hidden[:2])) and (said[2:] - plain[2:]).abs().amax((1, 2)).min() > 1e-4
    second = seen(layer, hidden[3:], references[1:], shown(looks[1:]))
    torch.testing.assert_close(said[3:], second, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="was given 3 rows: expected 2 or, guided, 4"):
        seen(layer, hidden[:3], references, shown(looks))


def test_rows_of_one_look_see_it_once_and_a_look_twice_counts_once(layer) -> None:
    look = Look(noise(1, 4, 8, 8), (1.0,))
    both = shown([look, look])
    assert len(both.latents) == 1 and both.rows.tolist() == [0, 0]
    hidden, reference = noise(1, 5, 16), noise(1, 5, 16, seed=1)
    once = seen(layer, hidden, reference, shown([look]))
    twice = seen(layer, hidden, reference.repeat(2, 1, 1), shown([Look.mixed([(look, 2.0), (look, 1.0)])]))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-5)
    nothing = seen(layer, hidden, reference, shown([look], strengths=(0.0,)))
    torch.testing.assert_close(nothing, layer(hidden), atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_not_there_is_refused_and_none_is_wrapped_twice() -> None:
    unet = tiny_pipeline().unet
    with pytest.raises(ConfigError, match=r"look\.shared names up_blocks\.9: expected .* such as down_blocks\.0\.attentions\.0"):
        share_attention(unet, LookConfig(shared=["up_blocks.9"]))
    for _ in range(2):
        share_attention(unet, LookConfig(shared=[FINEST["icons"]]))
    ours = [p for p in unet.attn_processors.values() if isinstance(p, SharedAttnProcessor)]
    assert len(ours) == 1 and not isinstance(ours[0].original, SharedAttnProcessor) and len(unet._forward_pre_hooks) == 1


def test_references_are_seen_as_faint_as_the_drawing_is_at_that_step() -> None:
    of = shown([Look(noise(1, 4, 8, 8), (1.0,))])
    alphas = DDIMScheduler().alphas_cumprod
    for timestep in (torch.tensor(0), 500, torch.tensor([998.6])):
        passes = []
        of.see(lambda sample, t, passes=passes, **_: passes.append((sample, t)), timestep)  # pyright: ignore[reportArgumentType]
        expected = alphas[round(float(torch.as_tensor(timestep)))] ** 0.5 * of.latents
        torch.testing.assert_close(passes[0][0], expected)
        assert passes[0][1] is timestep and not of.seeing


def test_of_many_references_the_heaviest_are_looked_at() -> None:
    parts = [(Look(torch.full((1, 1, 2, 2), float(i)), (1.0,)), float(i)) for i in range(1, 11)]
    look = Look.mixed(parts)
    assert look.latents[:, 0, 0, 0].tolist() == [float(i) for i in range(3, 11)]
    assert look.weights == pytest.approx([i / 52 for i in range(3, 11)])


# ---- tone and sketch ----


def test_tone_moves_mean_and_spread_of_every_channel_by_its_share() -> None:
    latents, reference = 2 * noise(1, 4, 8, 8) + 1, noise(1, 4, 8, 8, seed=1)
    look = Look(reference, (1.0,))
    whole = shown([look], tone=1.0).toned(latents)
    torch.testing.assert_close(whole.mean((2, 3)), reference.mean((2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.std((2, 3)), reference.std((2, 3)), atol=1e-5, rtol=1e-5)
    half = shown([look], strengths=(0.5,), tone=1.0).toned(latents)
    torch.testing.assert_close(half, (whole + latents) / 2)
    assert torch.equal(shown([look], tone=0.0).toned(latents), latents)
    flat = shown([look], tone=1.0).toned(torch.zeros(1, 4, 8, 8))  # no spread to stretch
    torch.testing.assert_close(flat, reference.mean((2, 3), keepdim=True).expand_as(flat))
    mixed = Look.mixed([(look, 3.0), (Look(latents, (1.0,)), 1.0)])
    torch.testing.assert_close(mixed.tone()[1], (0.75 * reference.std((2, 3)) + 0.25 * latents.std((2, 3))).view(-1, 1, 1))


def test_the_sketch_alone_is_told_louder_by_strength() -> None:
    text = noise(3, 6, 4)
    louder = emphasised(text, 2, 1.5, torch.tensor([0.0, 0.5, 3.0]))
    assert torch.equal(louder[:, :4], text[:, :4])
    torch.testing.assert_close(louder[:, 4:] / text[:, 4:], torch.tensor([1.0, 1.25, 1.5]).view(3, 1, 1).expand(3, 2, 4))
    assert emphasised(text, 0, 1.5, torch.ones(3)) is text and emphasised(text, 2, 1.0, torch.ones(3)) is text


@pytest.mark.parametrize("wrong", [{"tone": 2}, {"weight": -1}, {"tone": True}, {"sketch": "loud"}, {"colour": 1}])
def test_a_wrong_look_is_one_clear_line(wrong) -> None:
    with pytest.raises(ConfigError, match="look") as caught:
        AdapterConfig.from_dict({"look": wrong})
    assert "\n" not in str(caught.value)


def test_a_config_keeps_its_look_and_the_released_one_has_none() -> None:
    look = LookConfig(shared=["up_blocks.2.attentions.2"], weight=7.4, tone=0.5, tokens=0.7, sketch=1.4)
    assert AdapterConfig.from_dict(AdapterConfig(look=look).to_dict()).look == look
    assert not AdapterConfig().look.used and AdapterConfig().look.sketch == 1
    assert read_config(ICONS / "deadiff").look == look


# ---- drawing ----


def test_each_part_changes_the_drawing_and_no_reference_is_still_the_plain_model() -> None:
    layer = FINEST["icons"]
    off, shared, toned = make(), make(shared=[layer]), make(tone=0.5)
    drawn = [stylizer("a robot", style=A, seed=7).images[0] for stylizer in (off, shared, toned)]
    softer, half = make(shared=[layer], weight=0.0, tokens=0.5), {"style": A, "seed": 7, "strength": 0.5}
    assert apart(softer("a robot", style=A, seed=7).images[0], off("a robot", **half).images[0]) <= 2
    assert all(apart(a, b) > 2 for i, a in enumerate(drawn) for b in drawn[:i])
    plain = off("a robot", seed=7).images[0]
    assert all(same(stylizer("a robot", seed=7).images[0], plain) for stylizer in (shared, toned))
    by_content = off("a robot", content=A, seed=7).images[0]  # it brings no look
    assert all(same(stylizer("a robot", content=A, seed=7).images[0], by_content) for stylizer in (shared, toned))


def test_at_strength_zero_and_outside_the_window_nothing_is_looked_at(looking) -> None:
    off = make(looking.adapter.config.base)
    zero = {"style": A, "strength": 0.0, "seed": 7}
    assert apart(looking("a robot", **zero).images[0], off("a robot", **zero).images[0]) <= 2
    plain, closed = (looking("a robot", seed=7, **o).images[0] for o in ({}, {"style": A, "style_window": (0.0, 0.0)}))
    assert same(plain, closed)
    half, whole = (looking("a robot", style=A, seed=7, style_window=(0.0, end)).images[0] for end in (0.5, 1.0))
    assert apart(half, whole) > 2 and apart(half, plain) > 2


def test_a_drawing_depends_on_its_own_references_alone(looking) -> None:
    jobs = [Job(prompt="a robot", style=A), Job(prompt="a boat", style=B), Job(prompt="a boat", style=[(A, 3.0), (B, 1.0)]),
            Job(prompt="a boat", style=A, strength=0.5), Job(prompt="a boat"), Job(prompt="a robot", style=A)]  # fmt: skip
    together = looking(jobs, seed=7).images
    for image, job in zip(together, jobs, strict=True):
        assert apart(image, looking(job, seed=7).images[0]) <= 2
    assert apart(together[1], together[2]) > 2


def test_references_tokens_and_recipes_give_the_same_drawing(looking) -> None:
    fresh = looking("a robot", style=[(A, 0.7), (B, 0.3)], seed=7)
    assert same(fresh.images[0], looking("a robot", style=looking.encode(style=[(A, 0.7), (B, 0.3)]), seed=7).images[0])
    one = looking("a robot", style=A, seed=7)
    assert same(one.images[0], looking("a robot", style=[(A, 1.0), (B, 0.0)], seed=7).images[0])
    assert same(one.images[0], looking.again(one.recipes[0], style=deadiff.Reference(A)).images[0])
    bare, off = looking.adapter.encode(style=A), make(looking.adapter.config.base)  # no look: by the tokens alone
    assert same(looking("a robot", style=bare, seed=7).images[0], off("a robot", style=A, seed=7).images[0])


def test_threads_that_share_a_model_do_not_see_each_others_references(looking) -> None:
    def draw(reference) -> Image.Image:
        return looking("a robot", style=reference, seed=7).images[0]

    alone = [draw(A), draw(B), looking("a robot", seed=7).images[0]]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            for image, expected in zip(pool.map(draw, (A, B, None)), alone, strict=True):
                assert apart(image, expected) <= 2


def test_every_way_of_drawing_takes_it(looking) -> None:
    for scheduler in ("ddim", "euler_a", "dpm++"):
        plain, styled = (looking("a robot", style=s, seed=7, scheduler=scheduler).images[0] for s in (None, A))
        assert apart(plain, styled) > 2
    mask = Image.new("L", B.size, 255)
    photos = {"image": B, "image_strength": 0.7}, {"image": B, "mask_image": mask}, {"guidance_scale": 1.0}
    for options in photos:
        assert apart(*(looking("a robot", style=s, seed=7, **options).images[0] for s in (A, B))) > 2


# ---- saved styles ----


def test_a_saved_style_keeps_its_look_and_strangers_looks_are_checked(looking) -> None:
    references = [(A, 0.7), (B, 0.3)]
    saved = SavedStyle.from_bytes(make_style(looking, "neon", references).to_bytes())
    drawn = looking("a robot", style=saved.tokens_for(looking), seed=7).images[0]
    assert same(drawn, looking("a robot", style=references, seed=7).images[0])
    assert saved.look is not None and saved.look.latents.shape[0] == 2
    assert SavedStyle.from_bytes(make_style(make(), "plain", A).to_bytes()).look is None
    for latents, weights in (
        (torch.full((1, 4, 8, 8), float("nan")), (1.0,)), (torch.zeros(2, 4, 8, 8), (1.0,)), (torch.zeros(4, 8, 8), (1.0,)),
        (torch.zeros(1, 4, 8, 8), (-1.0,)), (torch.zeros(1, 4, 8, 8), (0.0,)),
    ):  # fmt: skip
        with pytest.raises(ReferenceError, match="damaged style") as caught:
            SavedStyle.from_bytes(replace(saved, look=Look(latents, weights)).to_bytes())
        assert "\n" not in str(caught.value)
    channels = saved.look.latents.shape[1]
    for latents in (torch.zeros(1, 99, 8, 8), torch.zeros(1, channels, 300, 300)):  # another autoencoder's; a bomb
        other = replace(saved, look=Look(latents, (1.0,)))
        with pytest.raises(ReferenceError, match="'neon' was made for another base"):
            other.tokens_for(looking)
