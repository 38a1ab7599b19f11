"""A Stable Diffusion pipeline and an adapter with random weights, a few thousand parameters each: every mechanism, no download.

`icons` has the embedded model's layout (three levels with cross-attention, wide latents, PatchAutoencoder), `sd15` the
released model's (four levels, 4-channel latents).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from deadiff.adapter import DEADiffAdapter
from deadiff.autoencoder import PatchAutoencoder
from deadiff.clip_bpe import tokenizer_from_merges
from deadiff.config import AdapterConfig
from deadiff.defaults import Defaults
from deadiff.extractor import Preprocess

WIDTH = 32  # of text and image tokens
TEXT_LENGTH = {"icons": 32, "sd15": 77}
SIDE = {"icons": 128, "sd15": 64}  # pixels of a drawn picture
_ATTENTION = {
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "sample_size": 8,
}


def tiny_unet(layout: str, in_channels: int | None = None) -> UNet2DConditionModel:
    if layout == "icons":
        return UNet2DConditionModel(
            in_channels=6,
            out_channels=6,
            block_out_channels=(16, 16, 16),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            **_ATTENTION,
        ).eval()
    return UNet2DConditionModel(
        in_channels=in_channels or 4,
        out_channels=4,
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        **_ATTENTION,
    ).eval()


def tiny_pipeline(layout: str = "icons", seed: int = 0) -> StableDiffusionPipeline:
    """All modules of a Stable Diffusion pipeline, random, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet(layout)
        if layout == "icons":
            vae = PatchAutoencoder(block_out_channels=(3, 12, 8, 8, 8), latent_channels=6, norm_num_groups=4)
        else:
            blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
            vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=64, **blocks)
        tokenizer = tokenizer_from_merges(["r o", "b o", "ro bo", "robo t</w>"], TEXT_LENGTH[layout])
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH[layout],
            eos_token_id=len(tokenizer) - 1,
        )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        return StableDiffusionPipeline(
            vae=vae.eval(),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def tiny_adapter(unet: UNet2DConditionModel, layout: str = "icons", seed: int = 1) -> DEADiffAdapter:
    """A random adapter whose references visibly change the pictures."""
    eye = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=3, **eye))
    config = AdapterConfig(
        base=layout,
        routes=layout,
        token_dim=WIDTH,
        text_length=TEXT_LENGTH[layout],
        qformer={
            "vocab_size": 8,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        projection_dim=64,
        instructions={"style": [0, 1, 2], "content": [0, 3, 2]},
        preprocess=Preprocess(size=28),
        provenance={"model": "random weights for tests", "licence": "Apache-2.0", "terms": "none"},
    )
    adapter = DEADiffAdapter.from_base(unet, vision, config, seed=seed).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in adapter.image_kv.parameters():
            parameter.normal_(std=0.5)
        for parameter in adapter.extractors.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return adapter


def tiny_controlnet(unet: UNet2DConditionModel, layout: str = "icons", seed: int = 2) -> ControlNetModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8,) * (5 if layout == "icons" else 4)
        ).eval()
        for name, parameter in controlnet.named_parameters():  # some of them start at zero
            if name.startswith("controlnet_") and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    return controlnet


def tiny_model_folder(folder: Path, layout: str = "icons") -> Path:
    """A model folder as `deadiff.load` takes it: pipeline, deadiff/ with adapter and defaults."""
    pipe = tiny_pipeline(layout)
    pipe.save_pretrained(folder)
    tiny_adapter(pipe.unet, layout).save_pretrained(folder / "deadiff")
    Defaults(num_inference_steps=3, guidance_scale=4.0, batch_size=4).write(folder / "deadiff")
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A little drawing, a different one for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(x) for x in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(0, size[0])), int(rng.integers(0, size[1]))
        draw.ellipse((x - 9, y - 6, x + 9, y + 6), fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)
