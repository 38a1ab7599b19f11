"""The U-Net that is shown its sketch: what lies where on the canvas, and that it is saved and read as what it is."""

from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from deadiff.canvas import CanvasUNet, load_unet
from deadiff.sketch import patches_of
from small_models import noise

TEXT, GRID, CHANNELS, WIDTH = 20, 4, 4, 40  # of the tokens 4 are the sketch, of 2x2 latents in 4 channels
SIZES = {
    "sample_size": 4, "in_channels": CHANNELS, "out_channels": CHANNELS, "block_out_channels": (16, 16), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH, "attention_head_dim": 2, "norm_num_groups": 8,
}  # fmt: skip


@pytest.fixture
def unet() -> CanvasUNet:
    torch.manual_seed(0)
    return CanvasUNet(text_length=TEXT, **SIZES).eval()


def test_the_sketch_is_laid_out_where_its_patches_belong(unet: CanvasUNet) -> None:
    latents, tokens = noise(2, CHANNELS, 4, 4), noise(2, TEXT, WIDTH, seed=1)
    tokens[:, -GRID:, : CHANNELS * 4] = patches_of(latents)
    assert torch.equal(unet.canvas(tokens), latents)


def test_a_content_reference_is_added_and_a_style_reference_is_not(unet: CanvasUNet) -> None:
    text, content = noise(2, TEXT, WIDTH), noise(2, CHANNELS, 4, 4, seed=1)
    said = torch.zeros(2, GRID, WIDTH)
    said[:, :, : CHANNELS * 4] = patches_of(content)
    style, nothing = noise(2, GRID, WIDTH, seed=2), torch.zeros(2, GRID, WIDTH)
    assert torch.equal(unet.canvas(torch.cat([text, style, nothing], 1)), unet.canvas(text))
    assert torch.equal(unet.canvas(torch.cat([text, style, said], 1)), unet.canvas(text) + content)
    assert torch.equal(unet.canvas(torch.cat([text, text], 1)), unet.canvas(text))  # a prompt of two chunks has no reference


def test_every_place_of_the_canvas_moves_the_drawing_there(unet: CanvasUNet) -> None:
    noisy, tokens = noise(1, CHANNELS, 4, 4), noise(1, TEXT, WIDTH, seed=1)
    moved = tokens.clone()
    moved[:, -1, : CHANNELS * 4] += 1  # the last patch
    with torch.no_grad():
        first = unet.conv_in(torch.cat([noisy, unet.canvas(moved)], 1)) - unet.conv_in(torch.cat([noisy, unet.canvas(tokens)], 1))
        assert (first[..., 2:, 2:].abs().amax(1) > 0).all() and not first[..., :1, :].any()
        larger = unet(noise(1, CHANNELS, 8, 8), 500, tokens).sample  # of another size than its own
    assert larger.shape == (1, CHANNELS, 8, 8) and larger.isfinite().all()


def test_it_is_read_again_as_what_it_was_saved_as(unet: CanvasUNet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unet.save_pretrained(tmp_path / "canvas")
    plain = UNet2DConditionModel(**SIZES)
    plain.save_pretrained(tmp_path / "plain")
    again = load_unet(tmp_path / "canvas")
    assert type(again) is CanvasUNet and type(load_unet(tmp_path / "plain")) is UNet2DConditionModel
    assert "not expected" not in caplog.text
    noisy, tokens = noise(1, CHANNELS, 4, 4), noise(1, TEXT, WIDTH, seed=1)
    with torch.no_grad():
        assert torch.equal(again(noisy, 500, tokens).sample, unet(noisy, 500, tokens).sample)
