"""Previews: the estimate of the finished picture at every step, for every solver, without a change to what is drawn."""

import pytest
import torch

from deadiff.defaults import Defaults
from deadiff.previews import SIDE, Watch, finished, preview_pictures
from deadiff.schedulers import SCHEDULERS, make_scheduler
from deadiff.stylizer import Stylizer
from tiny import picture, tiny_adapter, tiny_pipeline


@pytest.fixture(scope="module")
def stylizer() -> Stylizer:
    pipe = tiny_pipeline("icons")
    return Stylizer(pipe, tiny_adapter(pipe.unet, "icons"), defaults=Defaults(num_inference_steps=4, guidance_scale=4.0))


@pytest.fixture(scope="module")
def sd15_scheduler():
    return tiny_pipeline("sd15").scheduler


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["model", *SCHEDULERS])
def test_a_model_that_knows_the_picture_is_seen_to_know_it_from_the_first_step(name, kind, sd15_scheduler):
    base = sd15_scheduler
    scheduler = make_scheduler(name, type(base).from_config(base.config, prediction_type=kind))
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(1)
    known, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    timestep = scheduler.timesteps[0]
    alpha = scheduler.alphas_cumprod[int(timestep)]
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    mixed = a * known + s * noise
    output = {"epsilon": noise, "v_prediction": a * noise - s * known, "sample": known}[kind]
    scaled = mixed / a if float(scheduler.init_noise_sigma) != 1.0 else mixed
    torch.testing.assert_close(finished(scheduler, output, timestep, scaled), known, atol=2e-5, rtol=1e-4)


def test_watching_changes_nothing_in_the_pictures_nor_in_their_recipes(stylizer):
    seen, steps = [], []

    def look(indices, pictures) -> None:
        steps.append(indices)
        seen.append(pictures())

    options = {"style": picture(1), "num_images": 2, "seed": 7, "scheduler": "ddim"}
    plain = stylizer("a robot", **options)
    watched = stylizer("a robot", **options, on_preview=look)
    assert [x.tobytes() for x in plain.images] == [x.tobytes() for x in watched.images]
    assert watched.recipes == plain.recipes and not watched.recipes[0].unrecorded
    assert steps == [[0, 1]] * 4
    assert seen[0][0].tobytes() != seen[-1][0].tobytes()


def test_what_a_preview_raises_ends_the_drawing(stylizer):
    class EnoughError(Exception):
        pass

    def stop(indices, pictures) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        stylizer("a robot", on_preview=stop)


def test_large_latents_are_previewed_small(stylizer):
    pipe = stylizer.pipe
    channels = pipe.vae.config.latent_channels
    small = preview_pictures(pipe, torch.zeros(1, channels, 8, 8))[0]
    large = preview_pictures(pipe, torch.zeros(1, channels, 8 * SIDE // pipe.vae_scale_factor, 4))[0]
    assert max(small.size) == 8 * pipe.vae_scale_factor and max(large.size) <= SIDE


def test_pipelines_still_read_the_signature_of_a_watched_step():
    import inspect

    scheduler = make_scheduler("ddim", tiny_pipeline("sd15").scheduler)
    before = inspect.signature(scheduler.step)
    Watch(scheduler)
    assert inspect.signature(scheduler.step) == before
