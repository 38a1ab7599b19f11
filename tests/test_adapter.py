"""The adapter: what it does to a U-Net and takes back, what references turn into, what its files hold."""

import copy
import gc
import json
import os
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

import small_models
from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.attention import JointAttnProcessor
from deadiff.config import AdapterConfig
from deadiff.errors import CheckpointError, ConfigError, ReferenceError
from deadiff.extractor import Preprocess
from deadiff.hub import fetch, fetch_official
from deadiff.routes import ROUTES, cross_attention_layers
from small_models import TEXT, WIDTH, noise

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def unet():
    return small_models.unet()


@pytest.fixture
def adapter(unet):
    adapter = small_models.adapter(unet)
    yield adapter
    adapter.eject()


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


X, TEXTS = noise(2, 4, 8, 8), noise(2, TEXT, WIDTH, seed=1)


def predict(unet, embeds, x=X):
    return unet(x, 500, embeds[: len(x)]).sample


# ---- the U-Net ----


def test_no_reference_equals_the_plain_base_model(unet, adapter):
    plain = predict(unet, TEXTS)
    adapter.inject(unet)
    assert adapter.embed(TEXTS) is TEXTS
    assert torch.equal(predict(unet, adapter.embed(TEXTS)), plain)


def test_a_reference_changes_the_prediction(unet, adapter):
    plain = predict(unet, TEXTS)
    adapter.inject(unet)
    assert (predict(unet, adapter.embed(TEXTS, *adapter.encode(style=picture()))) - plain).abs().max() > 1e-3


def test_inject_and_eject_twice_leave_the_unet_bit_identical(unet, adapter):
    processors = dict(unet.attn_processors)
    weights = copy.deepcopy(unet.state_dict())
    plain = predict(unet, TEXTS)
    for _ in range(2):
        adapter.inject(unet)
        assert sum(isinstance(p, JointAttnProcessor) for p in unet.attn_processors.values()) == 16
        assert list(unet.state_dict()) == list(weights), "the adapter's weights must not enter the U-Net's"
        adapter.eject()
        assert all(unet.attn_processors[name] is p for name, p in processors.items()), "the very processors come back"
        assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), weights.values(), strict=True))
        assert torch.equal(predict(unet, TEXTS), plain)


def test_self_attention_processors_are_never_touched(unet, adapter):
    before = {name: p for name, p in unet.attn_processors.items() if "attn1" in name}
    adapter.inject(unet)
    assert all(unet.attn_processors[name] is p for name, p in before.items()) and len(before) == 16


def test_the_unet_is_never_a_child_of_the_adapter(unet, adapter):
    adapter.inject(unet)
    ours = {id(p) for p in adapter.parameters()}
    assert not ours & {id(p) for p in unet.parameters()}
    assert {name.partition(".")[0] for name in adapter.state_dict()} == {"vision", "extractors", "image_kv"}


def test_an_ejected_unet_keeps_no_hold_on_the_adapter():
    net = small_models.unet()
    adapter = small_models.adapter(net)
    adapter.inject(net)
    adapter.eject()
    gone = weakref.ref(adapter)
    del adapter
    gc.collect()
    assert gone() is None


def test_a_processor_that_was_set_after_inject_stays(unet, adapter):
    adapter.inject(unet)
    layer = cross_attention_layers(unet)["mid_block.attentions.0"]
    chosen = AttnProcessor2_0()
    layer.set_processor(chosen)
    adapter.eject()
    assert layer.processor is chosen


def test_injecting_twice_or_beside_another_adapter_is_refused(unet, adapter):
    adapter.inject(unet)
    with pytest.raises(ConfigError, match="injected already"):
        adapter.inject(unet)
    with pytest.raises(ConfigError, match="already carries an adapter"):
        small_models.adapter(unet).inject(unet)


def test_an_ip_adapter_is_refused_and_the_unet_left_as_it_was():
    net = small_models.unet()
    layer = cross_attention_layers(net)["up_blocks.2.attentions.2"]
    layer.set_processor(IPAdapterAttnProcessor2_0(8, WIDTH, num_tokens=(4,)))
    before = dict(net.attn_processors)
    with pytest.raises(ConfigError, match="IPAdapterAttnProcessor2_0"):
        small_models.adapter(net).inject(net)
    assert all(net.attn_processors[name] is p for name, p in before.items())


def test_a_unet_of_another_shape_is_refused(adapter):
    with pytest.raises(ConfigError, match="do not exist in it"):
        adapter.inject(small_models.unet("sd15"))
    wider = small_models.unet(block_out_channels=(8, 16, 24))
    with pytest.raises(
        ConfigError, match=r"K/V of down_blocks.2.attentions.0 are \(24, 24\) in this U-Net, \(24, 16\) in the adapter"
    ):
        adapter.inject(wider)


def test_sample_i_does_not_depend_on_its_batch(unet, adapter):
    """Each sample has its own reference. Tolerance: a batch of another size may add up in another order, in float32."""
    adapter.inject(unet)
    tokens = adapter.encode(style=[picture(1), picture(2)], content=[picture(3), picture(4)])
    together = predict(unet, adapter.embed(TEXTS, *tokens))
    for i in range(2):
        alone = adapter.encode(style=picture(1 + i), content=picture(3 + i))
        one = predict(unet, adapter.embed(TEXTS[i : i + 1], *alone), X[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changed", ["style", "content"])
def test_a_change_of_one_role_never_reaches_the_other_roles_image_keys(unet, adapter, changed):
    adapter.inject(unet)
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in ROUTES["icons"]}
    hooks = [
        adapter.kv(path).register_forward_hook(lambda _, args, out, path=path: seen[path].append(torch.stack(out)))
        for path in ROUTES["icons"]
    ]
    fixed = picture(9)
    for seed in (1, 2):
        references = {"style": fixed, "content": fixed, changed: picture(seed)}
        predict(unet, adapter.embed(TEXTS, *adapter.encode(**references)))
    for hook in hooks:
        hook.remove()
    for path, role in ROUTES["icons"].items():
        first, second = seen[path]
        assert torch.equal(first, second) == (role != changed), path


def test_strength_scales_the_image_keys_and_values(unet, adapter):
    """Official img_weight: w * K and w * V, which w * tokens gives because the projections have no bias."""
    tokens = adapter.encode(style=picture())
    kv = adapter.kv("down_blocks.0.attentions.0")
    whole, half = kv(tokens.style), kv(adapter.embed(TEXTS, tokens.style, strength=0.5)[:1, TEXT : TEXT + 4])
    for a, b in zip(whole, half, strict=True):
        torch.testing.assert_close(b, 0.5 * a, atol=1e-7, rtol=0)


def test_strength_may_differ_from_sample_to_sample(adapter):
    tokens = adapter.encode(style=picture())
    out = adapter.embed(TEXTS, tokens.style, strength=torch.tensor([0.25, 2.0]))
    assert torch.equal(out[0], adapter.embed(TEXTS, tokens.style, strength=0.25)[0])
    assert torch.equal(out[1], adapter.embed(TEXTS, tokens.style, strength=2.0)[1])


def test_long_prompts_of_two_chunks_take_the_image_tokens_too(unet, adapter):
    long = noise(2, 2 * TEXT, WIDTH, seed=7)
    plain = predict(unet, long)
    adapter.inject(unet)
    assert torch.equal(predict(unet, long), plain)
    assert (predict(unet, adapter.embed(long, *adapter.encode(style=picture()))) - plain).abs().max() > 1e-3


def test_a_prompt_of_another_length_is_refused(unet, adapter):
    adapter.inject(unet)
    with pytest.raises(ConfigError, match="make them with adapter.embed"):
        predict(unet, noise(2, TEXT + 3, WIDTH))


def test_a_lora_on_text_keys_and_values_is_kept(unet):
    net = small_models.unet()
    adapter = small_models.adapter(net)
    net.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v", "to_q"], init_lora_weights=False))
    embeds = adapter.embed(TEXTS, *adapter.encode(style=picture()))
    plain = predict(net, TEXTS)
    adapter.inject(net)
    assert torch.equal(predict(net, TEXTS), plain)
    with_lora = predict(net, embeds)
    net.disable_adapters()
    assert (predict(net, embeds) - with_lora).abs().max() > 1e-4


def test_a_controlnet_sees_the_text_alone(unet, adapter):
    net = small_models.controlnet()
    hint, plain_processors = noise(2, 3, 64, 64), dict(net.attn_processors)
    down, mid = net(X, 500, TEXTS, controlnet_cond=hint, return_dict=False)
    adapter.inject(unet, controlnet=net)
    tokens = adapter.encode(style=picture(), content=picture(1))
    got_down, got_mid = net(X, 500, adapter.embed(TEXTS, *tokens), controlnet_cond=hint, return_dict=False)
    assert (
        torch.equal(mid, got_mid) and all(torch.equal(a, b) for a, b in zip(down, got_down, strict=True)) and mid.abs().max() > 0
    )
    adapter.eject()
    assert all(net.attn_processors[name] is p for name, p in plain_processors.items())


def test_several_controlnets_are_all_injected(unet, adapter):
    nets = [small_models.controlnet(), small_models.controlnet()]
    adapter.inject(unet, controlnet=nets)
    assert all("TextOnly" in str(p) for net in nets for name, p in net.attn_processors.items() if "attn2" in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_unet_in_half_precision_takes_an_adapter_in_single(adapter, dtype):
    net = small_models.unet()
    exact_tokens = adapter.encode(style=picture())
    adapter.inject(net)
    exact = predict(net, adapter.embed(TEXTS, *exact_tokens))
    net.to(dtype)
    embeds = adapter.embed(TEXTS.to(dtype), *exact_tokens)
    assert embeds.dtype == dtype
    torch.testing.assert_close(predict(net, embeds, X.to(dtype)).float(), exact, atol=0.15, rtol=0)


def test_sdxl_takes_the_adapter_in_all_70_layers():
    net = small_models.unet("sdxl")
    plain = predict(net, TEXTS)
    qformer = {**small_models.config().qformer, "hidden_size": 16}  # narrower than SDXL's tokens: the projection widens
    adapter = small_models.adapter(net, base="sdxl", routes="sdxl", qformer=qformer)
    adapter.inject(net)
    assert torch.equal(predict(net, TEXTS), plain) and len(adapter.image_kv) == 70
    tokens = adapter.encode(style=picture())
    assert tokens.style.shape == (1, 4, WIDTH)
    assert (predict(net, adapter.embed(TEXTS, *tokens)) - plain).abs().max() > 1e-4


# ---- the ablations are data ----


def test_without_disentangling_every_layer_reads_both_roles(unet):
    adapter = small_models.adapter(unet, routes=dict.fromkeys(ROUTES["icons"], "both"))
    adapter.inject(unet)
    try:
        one = predict(unet, adapter.embed(TEXTS, *adapter.encode(style=picture(1), content=picture(2))))
        two = predict(unet, adapter.embed(TEXTS, *adapter.encode(style=picture(2), content=picture(1))))
        assert (one - two).abs().max() > 1e-4
    finally:
        adapter.eject()


def test_separate_attention_is_another_model(unet):
    embeds, out = None, []
    for kind in ("joint", "separate"):
        adapter = small_models.adapter(unet, attention=kind)
        embeds = adapter.embed(TEXTS, *adapter.encode(style=picture()))
        adapter.inject(unet)
        out.append(predict(unet, embeds))
        adapter.eject()
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_the_instruction_word_can_be_left_out(unet):
    adapter = small_models.adapter(unet, instructions={"style": [], "content": []})
    assert adapter.encode(style=picture()).style.shape == (1, 4, WIDTH)


def test_the_instruction_word_tells_the_readers_apart(adapter):
    """The same reader, told the other word, reads something else."""
    reader = adapter.extractors["style"]
    seen = adapter.see(adapter.config.preprocess(picture()))
    told_style = reader(seen)
    reader.instruction = adapter.config.instructions["content"]
    assert (reader(seen) - told_style).abs().max() > 1e-4


# ---- references ----


def test_the_eye_is_the_penultimate_layer_of_the_given_tower(adapter):
    pixels = adapter.config.preprocess(picture())
    hidden = small_models.vision()(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(adapter.see(pixels), hidden, atol=1e-6, rtol=0)


def test_one_picture_for_both_roles_is_looked_at_once(adapter):
    looks = []
    handle = adapter.vision.register_forward_hook(lambda *_: looks.append(1))
    both = adapter.encode(style=(same := picture()), content=same)
    handle.remove()
    assert len(looks) == 1
    apart = Tokens(adapter.encode(style=picture()).style, adapter.encode(content=picture()).content)
    assert all(torch.equal(a, b) for a, b in zip(both, apart, strict=True))


def test_pictures_arrays_and_tensors_give_the_same_tokens(adapter):
    square = picture(size=(28, 28))
    array = np.asarray(square)
    pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
    expected = adapter.encode(style=square).style
    for same in ([square], array, array[None], pixels, pixels[None]):
        torch.testing.assert_close(adapter.encode(style=same).style, expected, atol=1e-5, rtol=0)


def test_weighted_references_are_mixed_into_one(adapter):
    a, b = adapter.encode(style=picture(1)).style, adapter.encode(style=picture(2)).style
    mixed = adapter.encode(style=[(picture(1), 3), (picture(2), 1.0)]).style
    torch.testing.assert_close(mixed, 0.75 * a + 0.25 * b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [float("nan"), 1], [float("inf"), 1]])
def test_weights_that_make_no_mean_are_refused(adapter, weights):
    with pytest.raises(ConfigError, match="reference weights"):
        adapter.encode(style=[(picture(i), w) for i, w in enumerate(weights)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "the list is empty"),
        (np.zeros((4, 4, 4), np.uint8), "expected uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (torch.zeros(1, 1, 8, 8), "expected floats in"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "expected floats in"),
        (["picture.png"], "reference is a str"),
    ],
)
def test_what_is_no_picture_is_refused(adapter, bad, message):
    with pytest.raises(ReferenceError, match=message):
        adapter.encode(style=bad)


@pytest.mark.parametrize("resize", ["squash", "pad", "crop"])
def test_tensors_are_resized_as_pictures_are(resize):
    """Within 2 of 255 levels: PIL rounds to bytes between its two passes."""
    smooth = Image.fromarray(np.linspace(0, 255, 60 * 40 * 3).astype(np.uint8).reshape(40, 60, 3))
    preprocess = Preprocess(size=28, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = torch.from_numpy(np.asarray(smooth).copy()).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(preprocess(pixels), preprocess(smooth), atol=2 / 255, rtol=0)


def test_pad_keeps_all_and_crop_keeps_the_centre():
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste("red", (20, 0, 40, 20))
    padded = np.asarray(Preprocess(size=30, resize="pad").fit(wide))
    cropped = np.asarray(Preprocess(size=30, resize="crop").fit(wide))
    assert padded[0].min() == 255 and padded[15, 2].max() == 0 and tuple(padded[15, 15]) == (255, 0, 0)
    assert (cropped.reshape(-1, 3) == (255, 0, 0)).all()


def test_transparent_pixels_fall_on_white():
    assert np.asarray(Preprocess(size=8).fit(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))).min() == 255


def test_embed_puts_each_role_in_its_place(adapter):
    tokens = Tokens(noise(1, 4, WIDTH, seed=2), noise(2, 4, WIDTH, seed=3))
    out = adapter.embed(TEXTS, *tokens, strength=2.0, content_strength=0.5)
    assert out.shape == (2, TEXT + 8, WIDTH)
    assert torch.equal(out[:, :TEXT], TEXTS)
    assert torch.equal(out[:, TEXT : TEXT + 4], 2 * tokens.style.expand(2, -1, -1))
    assert torch.equal(out[:, TEXT + 4 :], 0.5 * tokens.content)
    idle = adapter.embed(TEXTS, None, tokens.content)
    assert (idle[:, TEXT : TEXT + 4] == 0).all()
    assert (adapter.embed(TEXTS, *adapter.idle(tokens))[:, TEXT:] == 0).all()
    assert adapter.embed(TEXTS, *adapter.idle(Tokens())) is TEXTS


@pytest.mark.parametrize("shape", [(3, 4, WIDTH), (1, 5, WIDTH), (1, 4, WIDTH + 1), (4, WIDTH)])
def test_tokens_that_do_not_fit_the_prompts_are_refused(adapter, shape):
    with pytest.raises(ConfigError, match="style tokens are"):
        adapter.embed(TEXTS, torch.zeros(shape))


def test_text_of_32_tokens_and_two_times_16_image_tokens_cannot_be_confused():
    net = small_models.unet()
    adapter = small_models.adapter(net, text_length=32, num_tokens=16)
    one_chunk, two_chunks = noise(2, 32, WIDTH), noise(2, 64, WIDTH)
    plain = predict(net, two_chunks)
    adapter.inject(net)
    assert torch.equal(predict(net, two_chunks), plain)
    embeds = adapter.embed(one_chunk, *adapter.encode(style=picture()))
    assert embeds.shape[1] == 65 and (embeds[:, 48:] == 0).all()
    assert (predict(net, embeds) - predict(net, one_chunk)).abs().max() > 1e-4


# ---- training ----


def test_gradients_reach_readers_and_image_weights_but_never_the_eye_or_the_unet(unet):
    net = small_models.unet().requires_grad_(False)
    adapter = small_models.adapter(net).train()
    adapter.inject(net)
    with torch.enable_grad():
        pixels = adapter.config.preprocess([picture(1), picture(2)])
        tokens = adapter(style=pixels, content=pixels)
        predict(net, adapter.embed(TEXTS, *tokens)).square().mean().backward()
    trained = {name: p for name, p in adapter.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None or p.grad.abs().max() == 0]
    # In the last Q-Former block the instruction's own output is thrown away; no key's bias changes a softmax (up to rounding).
    dead_ends = [name for name in without if "layer.1.output" not in name and "layer.1.intermediate." not in name]
    assert all("embeddings" in name or ".key.bias" in name for name in dead_ends), dead_ends
    assert not any(name.startswith("vision") for name in trained) and all(p.grad is None for p in adapter.vision.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert {name.split(".")[0] for name in trained} == {"extractors", "image_kv"}


def test_an_untrained_adapter_starts_from_the_texts_keys_and_values_and_the_same_seed(unet):
    made = [DEADiffAdapter.from_base(unet, small_models.vision(), small_models.config(), seed=s) for s in (3, 3, 4)]
    layer = cross_attention_layers(unet)["up_blocks.1.attentions.1"]
    kv = made[0].kv("up_blocks.1.attentions.1")
    assert torch.equal(kv.to_k.weight, layer.to_k.weight) and torch.equal(kv.to_v.weight, layer.to_v.weight)
    queries = [adapter.extractors["style"].query_tokens for adapter in made]
    assert torch.equal(queries[0], queries[1]) and not torch.equal(queries[0], queries[2])
    assert not torch.equal(queries[0], made[0].extractors["content"].query_tokens)


def test_making_an_adapter_leaves_the_global_random_state_alone(unet):
    before = torch.random.get_rng_state()
    DEADiffAdapter.from_base(unet, small_models.vision(), small_models.config())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_of_another_width_than_the_unets_are_refused(unet):
    with pytest.raises(ConfigError, match=r"token_dim is 32, but this U-Net reads tokens of width \[24\]"):
        DEADiffAdapter.from_base(unet, small_models.vision(), small_models.config(token_dim=32))


# ---- files ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saving_and_loading_round_trips_in_every_dtype(adapter, tmp_path, dtype):
    adapter.save_pretrained(tmp_path / "a", dtype)
    loaded = DEADiffAdapter.from_pretrained(tmp_path / "a")
    assert loaded.config == adapter.config and loaded.dtype == dtype and not loaded.training
    expected = {name: value.to(dtype) for name, value in adapter.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/config.json").read_bytes() == (tmp_path / "b/config.json").read_bytes()


def test_a_loaded_adapter_makes_the_same_tokens_and_runs_in_another_dtype(adapter, tmp_path):
    adapter.save_pretrained(tmp_path)
    loaded = DEADiffAdapter.from_pretrained(str(tmp_path))
    expected = adapter.encode(style=picture(), content=picture(1))
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(style=picture(), content=picture(1)), expected, strict=True))
    half = DEADiffAdapter.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(half.encode(style=picture()).style.float(), expected.style, atol=0.1, rtol=0)


def test_the_eye_is_in_the_file_once_and_frozen_after_loading(adapter, tmp_path):
    adapter.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert sum("patch_embedding" in name for name in names) == 1 and not any("post_layernorm" in name for name in names)
    loaded = DEADiffAdapter.from_pretrained(tmp_path)
    assert not any(p.requires_grad for p in loaded.vision.parameters())
    assert all(p.requires_grad for p in (*loaded.extractors.parameters(), *loaded.image_kv.parameters()))


def test_two_eyes_are_kept_where_a_checkpoint_has_two(adapter, tmp_path):
    two = DEADiffAdapter(AdapterConfig.from_dict({**adapter.config.to_dict(), "two_eyes": True})).eval()
    two.load_state_dict(
        adapter.state_dict() | {f"content_{k}": v + 0.1 for k, v in adapter.state_dict().items() if k.startswith("vision.")}
    )
    two.save_pretrained(tmp_path)
    loaded = DEADiffAdapter.from_pretrained(tmp_path)
    same = picture()
    ours, theirs = loaded.encode(style=same, content=same), adapter.encode(style=same, content=same)
    assert torch.equal(ours.style, theirs.style) and not torch.equal(ours.content, theirs.content)


def test_a_model_folder_holds_its_adapter_in_deadiff(adapter, tmp_path):
    adapter.save_pretrained(tmp_path / "model/deadiff")
    (tmp_path / "model/config.json").write_text("{}")  # of something else
    assert DEADiffAdapter.from_pretrained(tmp_path / "model").config == adapter.config


def test_saving_again_replaces_the_adapter_and_leaves_other_files(adapter, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    adapter.save_pretrained(tmp_path)
    adapter.save_pretrained(tmp_path, torch.float16)
    assert DEADiffAdapter.from_pretrained(tmp_path).dtype == torch.float16
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.safetensors"]


def test_a_full_disk_leaves_the_old_adapter_whole(adapter, tmp_path, monkeypatch):
    adapter.save_pretrained(tmp_path / "old")
    before = (tmp_path / "old/model.safetensors").read_bytes()

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deadiff.adapter.save_file", full)
    for folder in ("old", "new"):
        with pytest.raises(CheckpointError, match=r"No space left on device.*nothing was written"):
            adapter.save_pretrained(tmp_path / folder)
    assert (tmp_path / "old/model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "old")) == ["config.json", "model.safetensors"] and not (tmp_path / "new").exists()


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


BAD_FOLDERS = {
    "missing weight": (
        lambda f: edit_weights(f, lambda w: w.pop("extractors.style.query_tokens")),
        CheckpointError,
        "1 of .* missing in",
    ),
    "unknown weight": (
        lambda f: edit_weights(f, lambda w: w.update(x=torch.zeros(1))),
        CheckpointError,
        "1 weights of .* unknown, first x",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda w: w.update({"extractors.style.query_tokens": torch.zeros(1, 3, 24)})),
        CheckpointError,
        r"extractors.style.query_tokens .* has shape \(1, 3, 24\): expected \(1, 4, 24\)",
    ),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 5000), CheckpointError, "cannot read .* as safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "cannot read .* as safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, "no adapter in"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), CheckpointError, "cannot read .*config.json"),
    "another model's config": (
        lambda f: (f / "config.json").write_text('{"model_type": "clip"}'),
        CheckpointError,
        "not the config of",
    ),
    "unknown key": (lambda f: edit_config(f, code="os.system('x')"), ConfigError, "unknown keys in adapter config: code"),
    "unknown nested key": (lambda f: edit_config(f, vision={"hidden_sise": 3}), ConfigError, "unknown vision keys hidden_sise"),
    "unknown preprocess key": (lambda f: edit_config(f, preprocess={"sise": 3}), ConfigError, "unknown keys in preprocess: sise"),
    "bad resize": (lambda f: edit_config(f, preprocess={"resize": "stretch"}), ConfigError, "expected squash, pad or crop"),
    "bad attention": (lambda f: edit_config(f, attention="cross"), ConfigError, "expected one of joint, separate"),
    "bad routes": (lambda f: edit_config(f, routes="sd21"), ConfigError, "no route table is called"),
    "bad tokens": (lambda f: edit_config(f, num_tokens=0), ConfigError, "num_tokens 0"),
    "bad words": (lambda f: edit_config(f, instructions={"style": [9], "content": []}), ConfigError, "below vocab_size 8"),
    "other words": (lambda f: edit_config(f, instructions={"mood": [1]}), ConfigError, "expected style and content"),
    "impossible sizes": (
        lambda f: edit_config(f, vision={"hidden_size": 30, "num_attention_heads": 4}),
        ConfigError,
        "vision or qformer sizes cannot be built",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_cannot_be_loaded_says_why_in_one_line(adapter, tmp_path, spoil, error, message):
    adapter.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message) as caught:
        DEADiffAdapter.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "no adapter at './nowhere'"),
        ("nowhere", "no adapter at 'nowhere'"),
        ("owner/name", "cannot download .*`hf download owner/name --local-dir DIR`"),
    ],
)
def test_a_source_that_is_not_there_says_what_to_do(source, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        DEADiffAdapter.from_pretrained(source)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_file_is_not_an_adapter_folder(tmp_path):
    (tmp_path / "deadiff_v1.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file: expected an adapter's folder .*deadiff convert"):
        DEADiffAdapter.from_pretrained(tmp_path / "deadiff_v1.ckpt")


def test_without_a_network_the_published_weights_error_names_file_place_and_command():
    with pytest.raises(
        CheckpointError, match=r"deadiff_v1.ckpt \(7.43 GB\) from the hub repository qth/DEADiff.*deadiff convert"
    ):
        fetch_official()
    with pytest.raises(CheckpointError, match="neither a folder here nor a hub id"):
        fetch("not a valid id!", ["x"])


def test_pushing_to_the_hub_uploads_weights_config_and_a_card_with_the_terms(adapter, monkeypatch):
    uploads = {}

    class Hub:
        def __init__(self, token=None):
            uploads["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            uploads["private"] = private

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploads["files"] = sorted(os.listdir(folder_path))
            uploads["card"] = Path(folder_path, "README.md").read_text()
            return type("Commit", (), {"commit_url": "https://hub/commit/1"})()

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    made = DEADiffAdapter(AdapterConfig.from_dict({**adapter.config.to_dict(), "provenance": {"licence": "OpenRAIL-M"}}))
    assert made.push_to_hub("me/mine", private=True, token="t") == "https://hub/commit/1"
    assert uploads["files"] == ["README.md", "config.json", "model.safetensors"] and uploads["private"] is True
    assert "licence: OpenRAIL-M" in uploads["card"] and uploads["token"] == "t"


def test_a_config_says_what_it_lacks():
    with pytest.raises(ConfigError, match="use DEADiffAdapter.from_base"):
        DEADiffAdapter(small_models.config())
    with pytest.raises(ConfigError, match="image_kv and routes name different layers"):
        small_models.config(image_kv={"mid_block.attentions.0": 4})


def test_loading_and_injecting_warn_of_nothing(adapter, unet, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.save_pretrained(tmp_path)
        loaded = DEADiffAdapter.from_pretrained(tmp_path)
        loaded.inject(unet)
        predict(unet, loaded.embed(TEXTS, *loaded.encode(style=picture())))
        loaded.eject()
