"""The nodes: load, encode a reference, mix, apply to ComfyUI's own model and conditioning, stylise."""

from typing import Any

import numpy as np
import torch

import deadiff
from deadiff.adapter import DEADiffAdapter, Tokens
from deadiff.references import Reference
from deadiff.schedulers import MODEL, SCHEDULERS

from .patching import mixed, patch_model, with_tokens, without_image

CATEGORY = "DEADiff"
STRENGTH = {"default": 1.0, "min": 0.0, "max": 5.0, "step": 0.05}


class LoadModel:
    """A whole model, base and adapter: for DEADiff Stylise, and its adapter for the other nodes."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("DEADIFF", "DEADIFF_ADAPTER")
    RETURN_NAMES = ("deadiff", "adapter")
    DESCRIPTION = "icons is embedded; sd15 is fetched from the hub; or a model folder made by deadiff convert."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"model": ("STRING", {"default": "icons"}), "dtype": (["auto", "fp32", "fp16", "bf16"],)}}

    def load(self, model: str, dtype: str) -> tuple[Any, DEADiffAdapter]:
        stylizer = deadiff.load(model.strip(), dtype=None if dtype == "auto" else dtype)
        return stylizer, stylizer.adapter


class LoadAdapter:
    """The adapter alone, for DEADiff Apply: the base model is ComfyUI's."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("DEADIFF_ADAPTER",)
    RETURN_NAMES = ("adapter",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"folder": ("STRING", {"default": "models/sd15"})}}

    def load(self, folder: str) -> tuple[DEADiffAdapter]:
        return (DEADiffAdapter.from_pretrained(folder.strip()),)


class EncodeReference:
    """Pictures -> tokens of a role. Several pictures in the batch are mixed evenly."""

    CATEGORY, FUNCTION = CATEGORY, "encode"
    RETURN_TYPES = ("DEADIFF_TOKENS",)
    RETURN_NAMES = ("tokens",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "adapter": ("DEADIFF_ADAPTER",),
                "image": ("IMAGE",),
                "role": (["style", "content", "style and content"],),
            }
        }

    def encode(self, adapter: DEADiffAdapter, image: torch.Tensor, role: str) -> tuple[Tokens]:
        pictures = [(Reference(picture.cpu().numpy().clip(0, 1)).picture, 1.0) for picture in image]
        given = {name: pictures for name in ("style", "content") if name in role}
        return (adapter.encode(**given),)


class MixReferences:
    """Two sets of tokens -> their weighted mean, role by role; chain nodes for more."""

    CATEGORY, FUNCTION = CATEGORY, "mix"
    RETURN_TYPES = ("DEADIFF_TOKENS",)
    RETURN_NAMES = ("tokens",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "first": ("DEADIFF_TOKENS",),
                "second": ("DEADIFF_TOKENS",),
                "first_weight": ("FLOAT", STRENGTH),
                "second_weight": ("FLOAT", STRENGTH),
            }
        }

    def mix(self, first: Tokens, second: Tokens, first_weight: float, second_weight: float) -> tuple[Tokens]:
        return (mixed([(first, first_weight), (second, second_weight)]),)


class Apply:
    """ComfyUI's own Stable Diffusion 1.x MODEL and CONDITIONINGs -> the same with the reference in them, for any sampler node."""

    CATEGORY, FUNCTION = CATEGORY, "apply"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("model", "positive", "negative")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "adapter": ("DEADIFF_ADAPTER",),
                "tokens": ("DEADIFF_TOKENS",),
                "strength": ("FLOAT", STRENGTH),
                "content_strength": ("FLOAT", STRENGTH),
            }
        }

    def apply(
        self,
        model: Any,
        positive: list[Any],
        negative: list[Any],
        adapter: DEADiffAdapter,
        tokens: Tokens,
        strength: float,
        content_strength: float,
    ) -> tuple[Any, list[Any], list[Any]]:
        live = with_tokens(positive, adapter, tokens, strength, content_strength)
        return patch_model(model, adapter), live, without_image(negative, adapter, tokens)


class Stylise:
    """Prompt and tokens -> pictures, with deadiff's own pipeline: the embedded model and every base that diffusers reads."""

    CATEGORY, FUNCTION = CATEGORY, "stylise"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "deadiff": ("DEADIFF",),
                "prompt": ("STRING", {"multiline": True, "default": "a cat"}),
                "negative": ("STRING", {"multiline": True, "default": ""}),
                "pictures": ("INT", {"default": 1, "min": 1, "max": 64}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}),
                "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: as the model recommends"}),
                "guidance": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "-1: the model's"}),
                "solver": ([MODEL_DEFAULT, MODEL, *SCHEDULERS],),
                "strength": ("FLOAT", STRENGTH),
                "content_strength": ("FLOAT", STRENGTH),
            },
            "optional": {"tokens": ("DEADIFF_TOKENS",)},
        }

    def stylise(
        self,
        deadiff: Any,
        prompt: str,
        negative: str,
        pictures: int,
        seed: int,
        steps: int,
        guidance: float,
        solver: str,
        strength: float,
        content_strength: float,
        tokens: Tokens | None = None,
    ) -> tuple[torch.Tensor]:
        style, content = (None if tokens is None or getattr(tokens, role) is None else tokens for role in ("style", "content"))
        output = deadiff(
            prompt,
            style=style,
            content=content,
            strength=float(strength),
            content_strength=float(content_strength),
            negative_prompt=negative or None,
            num_images=pictures,
            seed=seed,
            num_inference_steps=steps or None,
            guidance_scale=None if guidance < 0 else float(guidance),
            scheduler=None if solver == MODEL_DEFAULT else solver,
            progress=follow(),
        )
        return (
            torch.stack([torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255) for image in output.images]),
        )


MODEL_DEFAULT = "the model's default"


def follow() -> Any:
    """ComfyUI's progress bar, and its Cancel; nothing outside ComfyUI."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return False
    bar = None

    def step(done: int, total: int) -> None:
        nonlocal bar
        throw_exception_if_processing_interrupted()
        bar = bar or ProgressBar(total)
        bar.update_absolute(done, total)

    return step


NODE_CLASS_MAPPINGS = {
    "DEADiffLoad": LoadModel,
    "DEADiffLoadAdapter": LoadAdapter,
    "DEADiffEncodeReference": EncodeReference,
    "DEADiffMixReferences": MixReferences,
    "DEADiffApply": Apply,
    "DEADiffStylise": Stylise,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DEADiffLoad": "DEADiff Load",
    "DEADiffLoadAdapter": "DEADiff Load Adapter",
    "DEADiffEncodeReference": "DEADiff Encode Reference",
    "DEADiffMixReferences": "DEADiff Mix References",
    "DEADiffApply": "DEADiff Apply",
    "DEADiffStylise": "DEADiff Stylise",
}
