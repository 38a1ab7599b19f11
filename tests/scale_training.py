"""Tiny bases, pairs and recipes for the tests of adapter training on real bases."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import small_models as small
import tiny
from deadiff.clip_bpe import tokenizer_from_merges
from deadiff.training.adapter_recipe import AdapterRecipe, parse_recipe
from deadiff.training.bases import Base, BaseChoice
from deadiff.training.objectives import Objective

PICTURES = 6
QFORMER = {"vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_ADAPTER = {"qformer": QFORMER, "projection_dim": 32, "instructions": {"style": [0, 1, 2], "content": [0, 3, 2]}}
LOOP = {
    "steps": 4, "global_batch": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2, "precision": "fp32", "log_steps": 1,
    "gradient_checkpointing": False, "validate_steps": 0, "validation_draws": 1, "trackers": [],
}  # fmt: skip


class FakePairs:
    """Six drawings; which comes when is a function of the draw number."""

    fingerprint = "0" * 64

    def __init__(self, side: int = 64) -> None:
        self.pictures = [np.asarray(tiny.picture(i, (side, side))) for i in range(PICTURES)]
        self.seen = 0  # pictures handed out

    def numbers(self, objective: Objective, draw_number: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rng = np.random.default_rng([draw_number, list(Objective).index(objective)])
        references, targets = rng.integers(PICTURES, size=(2, count))
        return references, references if objective is Objective.RECONSTRUCTION else targets, [f"robot {t}" for t in targets]

    def drawable(self) -> np.ndarray:
        return np.arange(PICTURES)

    def captions(self) -> list[str]:
        return [f"robot {i}" for i in range(PICTURES)]

    def picture(self, number: int) -> np.ndarray:
        self.seen += 1
        return self.pictures[number]

    def sha256(self, number: int) -> str:
        return f"{int(self.pictures[number].astype(int).sum()):064d}"


def recipe(model: Path | str = "", layout: str = "sd15", **loop) -> AdapterRecipe:
    base = {"layout": layout, "model": str(model), "vision": str(model), "resolution": 64}
    if model == "icons":
        base["resolution"] = 128
        return parse_recipe({"loop": {**LOOP, **loop}, "base": base}, "test")
    return parse_recipe({"loop": {**LOOP, **loop}, "base": base, "adapter": SMALL_ADAPTER}, "test")


def sdxl_base() -> Base:
    """SDXL's make: two text encoders side by side, pooled text and sizes beside the timestep, 70 cross-attention layers."""

    def parts():
        tokenizer = tokenizer_from_merges(["r o", "b o"], small.TEXT)
        sizes = {"hidden_size": small.WIDTH // 2, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = {"vocab_size": len(tokenizer), "eos_token_id": len(tokenizer) - 1, "bos_token_id": 0, "pad_token_id": 0}
        text = CLIPTextConfig(**sizes, **ids, max_position_embeddings=small.TEXT, projection_dim=16)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, sample_size=64, **blocks)
        return tokenizer, CLIPTextModel(text), CLIPTextModelWithProjection(text), vae

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, first, second, vae = parts()
    unet = small.unet(
        "sdxl", addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 6 * 8
    )
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipe = SimpleNamespace(
        unet=unet, vae=vae, tokenizer=tokenizer, tokenizer_2=tokenizer, text_encoder=first, text_encoder_2=second,
        scheduler=scheduler, config=SimpleNamespace(force_zeros_for_empty_prompt=True),
    )  # fmt: skip
    return Base(pipe, 64)


def sdxl_recipe(eye: Path, **loop) -> AdapterRecipe:
    base = {"layout": "sdxl", "model": "reduced", "vision": str(eye), "resolution": 64}
    changes = {**SMALL_ADAPTER, "num_tokens": 4, "qformer": {**QFORMER, "hidden_size": 16}}
    return parse_recipe({"loop": {**LOOP, **loop}, "base": base, "adapter": changes}, "test")


def choice(layout: str) -> BaseChoice:
    return BaseChoice(layout=layout, resolution=64)
