"""The Stylizer over tiny random models of both layouts: every task, every way of giving references, batches, threads, recipes."""

import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image

import deadiff
from deadiff.contact_sheet import Row, contact_sheet, is_table
from deadiff.defaults import OFFICIAL_NEGATIVE_PROMPT, Defaults
from deadiff.jobs import Job
from deadiff.pipelines import make_pipeline, with_controlnet
from deadiff.recipe import Recipe, png_bytes, read_recipe
from deadiff.routes import cross_attention_layers
from deadiff.schedulers import SCHEDULERS, make_scheduler
from deadiff.stylizer import Stylizer, _warn_of_length
from tiny import SIDE, picture, pixels, tiny_adapter, tiny_controlnet, tiny_model_folder, tiny_pipeline

FEW = {"num_inference_steps": 2, "guidance_scale": 4.0}
A, B = picture(1), picture(2)


def make(layout: str, **options) -> Stylizer:
    pipe = tiny_pipeline(layout)
    return Stylizer(pipe, tiny_adapter(pipe.unet, layout), defaults=Defaults(**{**FEW, **options}))


@pytest.fixture(scope="module", params=["icons", "sd15"])
def stylizer(request) -> Stylizer:
    return make(request.param)


@pytest.fixture(scope="module")
def icons() -> Stylizer:
    return make("icons")


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in 1/255."""
    return float(np.abs(pixels(a) - pixels(b)).mean())


def test_no_reference_equals_the_plain_base_model_bit_for_bit(stylizer):
    layout = stylizer.adapter.config.base
    plain = tiny_pipeline(layout)
    plain.set_progress_bar_config(disable=True)
    seeds = [7, 8]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    expected = plain("a robot", negative_prompt="blurry", num_images_per_prompt=2, generator=generators, **FEW).images
    drawn = stylizer("a robot", negative_prompt="blurry", num_images=2, seed=seeds).images
    assert all(same(a, b) for a, b in zip(expected, drawn, strict=True))
    assert drawn[0].size == (SIDE[layout],) * 2 and not same(*drawn)


def test_style_and_content_change_the_picture_each_in_its_own_way(stylizer):
    plain, by_style, by_content, by_both, other = (
        stylizer("a robot", seed=7, style=style, content=content).images[0]
        for style, content in ((None, None), (A, None), (None, A), (A, A), (B, None))
    )
    pictures = [plain, by_style, by_content, by_both, other]
    assert all(apart(a, b) > 1 for i, a in enumerate(pictures) for b in pictures[:i])


def test_strength_scales_the_style_and_zero_is_not_plain_as_in_the_released_code(stylizer):
    plain = stylizer("a robot", seed=7).images[0]
    zero, half, whole = (stylizer("a robot", seed=7, style=A, strength=w).images[0] for w in (0.0, 0.5, 1.0))
    assert apart(zero, whole) > apart(half, whole) > 0.5 and apart(zero, plain) > 0


def test_a_seed_gives_the_same_picture_again_and_the_next_ones_count_on(stylizer):
    first = stylizer("a robot", style=A, num_images=3, seed=7)
    again = stylizer("a robot", style=A, num_images=3, seed=7)
    assert first.seeds == [7, 8, 9]
    assert all(same(a, b) for a, b in zip(first.images, again.images, strict=True))
    assert stylizer("a robot").seeds != stylizer("a robot").seeds


def test_a_picture_does_not_depend_on_its_batch(stylizer):
    together = stylizer("a robot", style=A, num_images=4, seed=7, batch_size=4).images
    apart_ = stylizer("a robot", style=A, num_images=4, seed=7, batch_size=3).images
    alone = stylizer("a robot", style=A, seed=9).images[0]
    for a, b in [*zip(together, apart_, strict=True), (together[2], alone)]:
        assert np.abs(pixels(a) - pixels(b)).max() <= 2  # matrix products of other shapes round differently in the last bits


def test_jobs_with_their_own_references_equal_single_calls(stylizer):
    jobs = [
        Job(prompt="a robot", style=A),
        Job(prompt="a boat", style=B, content=A, strength=0.5),
        Job(prompt="a robot"),
        "a boat",
    ]
    drawn = stylizer(jobs, seed=7, style=None)
    singles = [
        stylizer("a robot", style=A, seed=7),
        stylizer("a boat", style=B, content=A, strength=0.5, seed=7),
        stylizer("a robot", seed=7),
        stylizer("a boat", seed=7),
    ]
    for image, single in zip(drawn.images, singles, strict=True):
        assert np.abs(pixels(image) - pixels(single.images[0])).max() <= 2
    shared = stylizer([Job(prompt="a robot"), Job(prompt="a robot", style=())], style=A, seed=7)
    assert same(shared.images[0], singles[0].images[0]) and same(shared.images[1], singles[2].images[0])


def test_mixing_with_weights_one_and_zero_is_the_single_reference(icons):
    alone = icons("a robot", style=A, seed=7).images[0]
    assert same(icons("a robot", style=[(A, 1), (B, 0)], seed=7).images[0], alone)
    assert same(icons("a robot", style=[deadiff.Reference(A, 3.0)], seed=7).images[0], alone)
    mixed = icons("a robot", style=[(A, 0.7), (B, 0.3)], seed=7).images[0]
    assert apart(mixed, alone) > 0.5
    tokens = icons.encode(style=[(A, 0.7), (B, 0.3)]).style
    singles = [icons.encode(style=x).style for x in (A, B)]
    torch.testing.assert_close(tokens, 0.7 * singles[0] + 0.3 * singles[1])
    torch.testing.assert_close(tokens, icons.adapter.encode(style=[(A, 0.7), (B, 0.3)]).style)


def test_cached_tokens_equal_fresh_ones(icons):
    tokens = icons.encode(style=A, content=B)
    fresh = icons("a robot", style=A, content=B, seed=7)
    cached = icons("a robot", style=tokens, content=tokens, seed=7)
    assert same(cached.images[0], fresh.images[0])
    assert cached.recipes[0].unrecorded == ("cached style tokens", "cached content tokens")
    with pytest.raises(deadiff.ConfigError, match="cannot be made again"):
        icons.again(cached.recipes[0])
    with pytest.raises(deadiff.ReferenceError, match="cached tokens"):
        icons("a robot", style=icons.encode(content=A))


def test_outside_its_window_the_style_is_absent(stylizer):
    options = {"seed": 7, "num_inference_steps": 4}
    plain = stylizer("a robot", **options).images[0]
    whole = stylizer("a robot", style=A, **options).images[0]
    never = stylizer("a robot", style=A, style_window=(0, 0), **options).images[0]
    always = stylizer("a robot", style=A, style_window=(0, 1), **options).images[0]
    late, early = (stylizer("a robot", style=A, style_window=w, **options).images[0] for w in ((0.5, 1), (0, 0.5)))
    assert same(never, plain) and same(always, whole)
    assert min(apart(late, plain), apart(late, whole), apart(early, plain), apart(early, whole), apart(early, late)) > 0.1
    both, content = (stylizer("a robot", style=s, content=B, style_window=(0, 0), **options).images[0] for s in (A, None))
    assert same(both, content)


def test_a_window_begins_and_ends_at_its_step(icons):
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append(tensors["prompt_embeds"].shape[1])
        return {}

    icons(
        "a robot",
        style=A,
        num_inference_steps=4,
        style_window=(0.25, 0.75),
        seed=1,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    with_style = icons.adapter.config.text_length + icons.adapter.config.layout.image_length
    assert seen == [32, with_style, with_style, 32]


@pytest.mark.parametrize("mask", [None, "half"])
def test_a_photo_is_redrawn_in_the_style_and_only_inside_the_mask(stylizer, mask):
    side = SIDE[stylizer.adapter.config.base]
    photo = picture(5, (3 * side, 2 * side))
    white = None
    if mask:
        white = Image.new("L", photo.size, 0)
        white.paste(255, (0, 0, photo.width // 2, photo.height))
    options = {"image": photo, "mask_image": white, "seed": 7, "num_inference_steps": 4}
    plain, styled = (stylizer("a robot", style=s, **options).images[0] for s in (None, A))
    assert apart(plain, styled) > 0.3
    assert abs(plain.width / plain.height - 1.5) < 0.15 and plain.width * plain.height < 1.3 * side * side
    batch = stylizer("a robot", style=A, num_images=2, **options)
    assert np.abs(pixels(batch.images[0]) - pixels(styled)).max() <= 2
    if mask:  # latents outside the mask are the photo's, whatever the style; only the decoder's reach carries some of it over
        half = plain.width // 2
        left, right = (np.abs(pixels(plain) - pixels(styled))[:, cut].mean() for cut in (slice(0, half), slice(half, None)))
        assert left > 2 * right


def test_img2img_equals_the_plain_pipeline_without_reference(icons):
    plain = StableDiffusionImg2ImgPipeline(**tiny_pipeline("icons").components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    photo = picture(5, (128, 128))
    options = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 4.0}
    expected = plain("a robot", image=photo, generator=[torch.Generator().manual_seed(7)], **options).images[0]
    drawn = icons("a robot", image=photo, image_strength=0.5, num_inference_steps=4, seed=7).images[0]
    assert same(drawn, expected)


def test_a_controlnet_sees_the_text_alone(stylizer):
    layout = stylizer.adapter.config.base
    pipe = tiny_pipeline(layout)
    pipe = with_controlnet(pipe, tiny_controlnet(pipe.unet, layout))
    assert isinstance(pipe, StableDiffusionControlNetPipeline)
    controlled = Stylizer(pipe, tiny_adapter(pipe.unet, layout), defaults=Defaults(**FEW))
    edges = picture(3, (SIDE[layout],) * 2)
    free = stylizer("a robot", style=A, seed=7).images[0]
    one, two = (controlled("a robot", style=A, seed=7, control_image=c).images[0] for c in (edges, picture(4, edges.size)))
    assert apart(one, free) > 0.3 and apart(one, two) > 0.05
    assert apart(one, controlled("a robot", style=B, seed=7, control_image=edges).images[0]) > 0.1
    assert apart(one, controlled("a robot", style=A, seed=7, control_image=edges, image=picture(2, edges.size)).images[0]) > 0.1
    assert one.size == edges.size
    lengths = set()
    hooks = [
        layer.to_k.register_forward_hook(lambda _, given, __: lengths.add(given[0].shape[1]))
        for layer in cross_attention_layers(pipe.controlnet).values()
    ]
    controlled("a robot", style=A, seed=7, control_image=edges)
    assert hooks and lengths == {stylizer.adapter.config.text_length}
    with pytest.raises(deadiff.ConfigError, match="control_image"):
        controlled("a robot")
    with pytest.raises(deadiff.ConfigError, match="no ControlNet"):
        stylizer("a robot", control_image=edges)


def test_a_lora_loaded_after_injection_works_and_the_style_still_does(tmp_path):
    pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    donor = tiny_pipeline("icons")
    donor.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for name, parameter in donor.unet.named_parameters():
            if "lora" in name:
                parameter.data.normal_(std=0.5)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(donor.unet))
    type(donor).save_lora_weights(tmp_path, unet_lora_layers=layers, safe_serialization=True)

    stylizer = make("icons")
    before = (
        {s: stylizer("a robot", style=s, seed=7).images[0] for s in (None,)}[None],
        stylizer("a robot", style=A, seed=7).images[0],
    )
    from deadiff.loading import add_loras

    add_loras(stylizer.pipe, [(str(tmp_path / "pytorch_lora_weights.safetensors"), 1.0)])
    after = [stylizer("a robot", style=s, seed=7) for s in (None, A)]
    assert apart(before[0], after[0].images[0]) > 0.5 and apart(before[1], after[1].images[0]) > 0.5
    assert apart(after[0].images[0], after[1].images[0]) > 0.5
    assert after[0].recipes[0].loras == (("lora0", 1.0),)
    stylizer.pipe.unload_lora_weights()
    assert same(stylizer("a robot", style=A, seed=7).images[0], before[1])


def test_two_threads_get_what_they_get_alone(icons):
    calls = [
        {"prompt": "a robot", "style": A, "seed": 1, "scheduler": "euler_a", "num_inference_steps": 4},
        {"prompt": "a boat", "content": B, "seed": 2, "scheduler": "dpm++", "num_inference_steps": 5, "style_window": (0, 0.5)},
        {"prompt": "a boat", "seed": 3, "image": B, "guidance_scale": 2.0, "num_inference_steps": 4},
    ]
    alone = [icons(**call).images[0] for call in calls]
    together: list = [None] * 9

    def draw(i: int) -> None:
        together[i] = icons(**calls[i % 3]).images[0]

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(len(together))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(image, alone[i % 3]) for i, image in enumerate(together))


def test_prompts_read_by_many_threads_keep_their_length(icons):
    """Fast tokenizers keep the padding and truncation of a call in themselves; here they are handed from thread to thread."""
    tokens, deep = set(), " ".join(["boat"] * 90)

    def read(i: int) -> None:
        for j in range(60):
            prompt = f"{deep} {i} {j}" if j % 2 else f"a boat {i} {j}"
            _warn_of_length(icons.pipe, prompt)
            text = icons._text(icons.pipe, Job(prompt=prompt), True, {}, {})[0]
            tokens.add(text.shape[1])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert tokens == {icons.pipe.tokenizer.model_max_length}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_by_name_draws_and_repeats(icons, name):
    first, again = (icons("a robot", style=A, seed=7, scheduler=name, num_inference_steps=3, num_images=2) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first.images, again.images, strict=True))
    assert pixels(first.images[0]).std() > 1


def test_ddim_by_name_is_the_released_sampler():
    scheduler = make_scheduler("ddim", tiny_pipeline("sd15").scheduler)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == 981 and scheduler.timesteps[-1] == 1
    assert not scheduler.config.clip_sample and not scheduler.config.set_alpha_to_one
    assert Defaults.read(__import__("pathlib").Path("/nowhere"), "sd15").negative_prompt == OFFICIAL_NEGATIVE_PROMPT


def test_a_recipe_makes_the_same_bytes_again(icons, tmp_path):
    out = icons(
        "a robot\nin the rain \U0001f327", style=[(A, 0.7), (B, 0.3)], content=B, seed=7, num_images=3, style_window=(0, 0.8)
    )
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes(out.images[1], out.recipes[1]))
    recipe = read_recipe(path)
    assert recipe == out.recipes[1] == Recipe.from_json(recipe.to_json())
    assert (recipe.seed, recipe.place, recipe.style[0].weight) == (8, (1, 3), 0.7)
    again = icons.again(recipe, style=[(A, 0.7), (B, 0.3)], content=B)
    assert png_bytes(again.images[0], again.recipes[0]) == path.read_bytes()
    with Image.open(path) as image:
        assert "Seed: 8" in image.text["parameters"] and image.text["parameters"].startswith("a robot")


def test_latents_callbacks_and_pipeline_arguments_are_passed_through(icons):
    steps, done = [], []
    latents = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))

    def on_step(pipe, step, timestep, tensors):
        steps.append(step)
        return tensors

    out = icons(
        "a robot",
        style=A,
        num_images=2,
        batch_size=1,
        latents=latents,
        callback_on_step_end=on_step,
        progress=lambda d, n: done.append((d, n)),
        guidance_rescale=0.5,
        output_type="np",
    )
    assert steps == [0, 1, 0, 1] and done[-1] == (4, 4) and out.images[0].shape == (128, 128, 3)
    assert (
        np.abs(
            out.images[0] - icons("a robot", style=A, latents=latents[:1], guidance_rescale=0.5, output_type="np").images[0]
        ).max()
        < 1e-4
    )
    assert (
        set(out.recipes[0].unrecorded) == {"latents", "callback_on_step_end"}
        and out.recipes[0].arguments["guidance_rescale"] == 0.5
    )


def test_pictures_are_handed_over_as_soon_as_each_batch_is_done(icons):
    got = []
    icons("a robot", num_images=3, batch_size=2, seed=1, on_picture=lambda i, image, recipe: got.append((i, recipe.seed)))
    assert got == [(0, 1), (1, 2), (2, 3)]


def test_without_guidance_and_with_other_sizes_it_draws_too(stylizer):
    assert apart(*(stylizer("a robot", style=s, seed=7, guidance_scale=1.0).images[0] for s in (A, B))) > 0.3
    assert stylizer("a robot", style=A, width=96, height=64).images[0].size == (96, 64)


def test_a_loaded_folder_draws_like_the_model_in_memory(tmp_path):
    for layout in ("icons", "sd15"):
        loaded = deadiff.load(tiny_model_folder(tmp_path / layout, layout), device="cpu")
        memory = make(layout, num_inference_steps=3)
        assert same(loaded("a robot", style=A, seed=7).images[0], memory("a robot", style=A, seed=7).images[0])
        assert loaded.defaults.num_inference_steps == 3 and loaded.fingerprint == memory.fingerprint
    bare = deadiff.load(tmp_path / "icons" / "deadiff", base=tmp_path / "icons")
    assert same(bare("a robot", style=A, seed=7, **FEW).images[0], make("icons")("a robot", style=A, seed=7).images[0])
    half = deadiff.load(tmp_path / "sd15", dtype="bf16")
    assert half.pipe.unet.dtype == half.adapter.dtype == torch.bfloat16
    assert half("a robot", style=A, seed=7).images[0].size == (64, 64)


def test_a_call_leaves_the_pipeline_as_it_was(icons):
    scheduler, config = icons.pipe.scheduler, dict(icons.pipe.scheduler.config)
    icons("a robot", image=A, mask_image=B, scheduler="euler_a", seed=1)
    assert icons.pipe.scheduler is scheduler and dict(scheduler.config) == config and scheduler.num_inference_steps is None
    shell = make_pipeline(icons.pipe, "", make_scheduler("model", scheduler))
    assert shell.unet is icons.pipe.unet and shell.scheduler is not scheduler


def test_a_converted_checkpoint_draws_by_the_released_recipe_and_takes_a_single_file_as_base(tmp_path):
    from recorded import reduced_state, write_vocabulary
    from safetensors.torch import save_file

    from deadiff.official import convert
    from deadiff.official_plan import Heads

    state = reduced_state()
    torch.save({"state_dict": state}, tmp_path / "released.ckpt")
    words = write_vocabulary(tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    heads = Heads(unet=4, text=4, vision=4, qformer=4)
    convert(tmp_path / "released.ckpt", tmp_path / "model", "fp32", tokenizer=words, heads=heads)
    parts = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    base = {k: v.float().contiguous() for k, v in state.items() if k.startswith(parts) and "i_to_" not in k}
    save_file(base, tmp_path / "base.safetensors")

    folder, file = (deadiff.load(tmp_path / "model", base=b) for b in (None, tmp_path / "base.safetensors"))
    released = (50, 8.0, "ddim", OFFICIAL_NEGATIVE_PROMPT)
    d = folder.defaults
    assert (d.num_inference_steps, d.guidance_scale, d.scheduler, d.negative_prompt) == released
    options = {"style": A, "seed": 1, "num_inference_steps": 2, "width": 64, "height": 64}
    assert same(folder("a robot", **options).images[0], file("a robot", **options).images[0])


def test_a_sheet_of_every_prompt_in_every_style_is_a_table() -> None:
    """A column a reference, a row a prompt; anything less regular stays a list."""
    white, red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("white", "red", "blue"))

    def row(prompt: str, label: str, drawn: Image.Image) -> Row:
        return Row(prompt=prompt, references=[(white, label)], pictures=[(drawn, "seed 1")])

    rows = [row(prompt, label, red if label == "a" else blue) for prompt in ("cat", "dog", "owl") for label in ("a", "b")]
    assert is_table(rows)
    sheet = contact_sheet(rows)
    assert sheet.height > 1.5 * sheet.width
    colours = [{sheet.getpixel((x, y)) for y in range(sheet.height)} for x in (sheet.width // 4, 3 * sheet.width // 4)]
    assert (255, 0, 0) in colours[0] and (0, 0, 255) not in colours[0]
    assert (0, 0, 255) in colours[1] and (255, 0, 0) not in colours[1]
    assert not is_table(rows[:-1]) and not is_table(rows[::2])
