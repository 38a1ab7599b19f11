"""What a released checkpoint turns into, decided from keys and shapes: models of the right sizes, and the source of each weight.

Sizes are read off the shapes, so a reduced checkpoint goes the same way as the published one.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from deadiff.adapter import DEADiffAdapter
from deadiff.checkpoint import DOCS
from deadiff.config import AdapterConfig
from deadiff.errors import CheckpointError, ConfigError
from deadiff.extractor import Preprocess
from deadiff.official_keys import Place, place

PARTS = ("unet", "vae", "text_encoder", "deadiff")
PROVENANCE = {  # whose weights and which terms; stored in the adapter's config.json, shown by `deadiff inspect`
    "model": "DEADiff v1 (Qi et al., CVPR 2024, arXiv 2403.06951), github.com/bytedance/DEADiff, hub qth/DEADiff",
    "licence": "weights: CreativeML OpenRAIL-M, with use restrictions; released code: Apache-2.0",
    "terms": "the authors ask for research use only",
    "base": "Stable Diffusion v1.5 (CreativeML OpenRAIL-M), inside the checkpoint; its safety checker is not",
    "vision": "OpenAI CLIP ViT-L/14 (MIT), frozen",
}


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Numbers of attention heads: the only sizes that no shape tells. Defaults are the published model's."""

    unet: int = 8
    text: int = 12
    vision: int = 16
    qformer: int = 12


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a checkpoint turns into, before a number is read: models without weights, and the source of each of their weights."""

    models: dict[str, nn.Module]  # part -> model on the meta device
    sources: dict[str, dict[str, tuple[str, Place]]]  # part -> its key -> (official key, place), in the model's order
    ignored: dict[str, str]  # official key -> reason

    def shapes(self, part: str) -> dict[str, torch.Size]:
        """The model's own keys and shapes."""
        return {key: tensor.shape for key, tensor in self.models[part].state_dict().items()}

    def tensors(self, part: str, read: Callable[[str], Tensor]) -> Iterator[Tensor]:
        """The part's weights in the order of shapes(), one at a time: fused q, k, v taken apart, 1x1 convolutions as matrices."""
        read = lru_cache(maxsize=2)(read)  # the weight and bias that q, k and v share, one block at a time
        for key, shape in self.shapes(part).items():
            official, target = self.sources[part][key]
            tensor = read(official)
            yield (tensor if target.third is None else tensor.chunk(3)[target.third]).reshape(shape)


def make_plan(
    shapes: Mapping[str, tuple[int, ...]], heads: Heads | None = None, two_eyes: bool = False, source: str = "?"
) -> Plan:
    """Official keys and shapes -> a plan. Raises CheckpointError for an unknown, missing or misshapen key.

    two_eyes: the checkpoint's two vision towers differ, keep both; otherwise the content reader's is dropped as a copy.
    """
    # input blocks: conv_in, then two ResBlocks and a downsampling per level, none on the last
    input_blocks = _layers(shapes, r"model\.diffusion_model\.input_blocks\.(\d+)\.")
    levels, vae_levels = -(-input_blocks // 3), _layers(shapes, r"first_stage_model\.encoder\.down\.(\d+)\.")
    for part, count in (("model.diffusion_model", levels), ("first_stage_model", vae_levels)):
        if count == 0:
            raise CheckpointError(f"'{source}' holds no {part}.* weights: expected the published DEADiff checkpoint, {DOCS}")
    ignored: dict[str, str] = {}
    found: dict[str, dict[str, tuple[str, Place]]] = {part: {} for part in PARTS}
    unknown: list[str] = []
    for key in shapes:
        places = place(key, levels, vae_levels)
        if places is None:
            unknown.append(key)
        elif isinstance(places, str):
            ignored[key] = places
        elif not two_eyes and places[0].key.startswith("content_vision."):
            ignored[key] = "second copy of the frozen vision tower, equal to the first: held once"
        else:
            for target in places:
                found[target.part][target.key.removeprefix("text_model.")] = (key, target)
    if unknown:
        raise CheckpointError(f"{len(unknown)} keys of '{source}' are unknown, first {unknown[0]}: expected DEADiff v1's, {DOCS}")

    attn2 = 2 * sum(key.endswith("attn2.to_k.weight") for key in found["unet"])
    image_kv = sum(key.startswith("image_kv.") for key in found["deadiff"])
    if image_kv < attn2:
        raise CheckpointError(
            f"{attn2 - image_kv} of {attn2} image key/value weights are missing in '{source}': is this plain SD 1.5? "
            f"Expected a DEADiff checkpoint, {DOCS}"
        )
    try:
        sizes = {part: {key: _shape(shapes[k], p) for key, (k, p) in keys.items()} for part, keys in found.items()}
        models = _build(sizes, heads or Heads(), two_eyes)
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]} is missing in '{source}': is the checkpoint complete? {DOCS}") from error
    except (ConfigError, ValueError, ZeroDivisionError, StrictDataclassError) as error:
        raise CheckpointError(f"the sizes of '{source}' make no DEADiff model: {error}") from error
    for part, model in models.items():
        _compare(part, {k: v.shape for k, v in model.state_dict().items()}, found[part], shapes, source)
    return Plan(models=models, sources=found, ignored=ignored)


def _shape(shape: tuple[int, ...], target: Place) -> tuple[int, ...]:
    return tuple(shape) if target.third is None else (shape[0] // 3, *shape[1:])


def _compare(part: str, expected: dict[str, torch.Size], found: dict[str, Any], shapes: Mapping[str, Any], source: str) -> None:
    """The model's keys and the checkpoint's must be the same, and of the same shapes."""
    if missing := [key for key in expected if key not in found]:
        count = f"{len(missing)} of {len(expected)}"
        raise CheckpointError(
            f"{count} weights of the {part} are missing in '{source}', first {missing[0]}: is it complete? {DOCS}"
        )
    if unknown := [found[key][0] for key in found if key not in expected]:
        raise CheckpointError(f"{len(unknown)} keys of '{source}' have no place in the {part}, first {unknown[0]}, {DOCS}")
    for key, shape in expected.items():
        official, target = found[key]
        got = _shape(shapes[official], target)
        as_matrix = got[:2] if got[2:] == (1, 1) and len(shape) == 2 else got
        if as_matrix != tuple(shape):
            raise CheckpointError(f"{official} in '{source}' has shape {got}: expected {tuple(shape)}, {DOCS}")


def _build(sizes: dict[str, dict[str, tuple[int, ...]]], heads: Heads, two_eyes: bool) -> dict[str, nn.Module]:
    """Part -> model of the sizes that the shapes tell, without memory for weights."""
    with torch.device("meta"):
        unet = _unet(sizes["unet"], heads.unet)
        text = _text(sizes["text_encoder"], heads.text)
        length, layers = text.config.max_position_embeddings, sizes["deadiff"]
        width = unet.config.cross_attention_dim  # pyright: ignore[reportAttributeAccessIssue]
        adapter = DEADiffAdapter(_adapter_config(layers, heads, width, length, two_eyes))
        return {"unet": unet, "vae": _vae(sizes["vae"]), "text_encoder": text, "deadiff": adapter}


def _layers(sizes: Mapping[str, Any], pattern: str) -> int:
    """1 + the highest number that the pattern finds."""
    return 1 + max((int(match[1]) for key in sizes if (match := re.match(pattern, key))), default=-1)


def _unet(sizes: dict[str, tuple[int, ...]], heads: int) -> UNet2DConditionModel:
    levels = range(_layers(sizes, r"down_blocks\.(\d+)\."))
    attention = [any(key.startswith(f"down_blocks.{i}.attentions.") for key in sizes) for i in levels]
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=sizes["conv_in.weight"][1],
        out_channels=sizes["conv_out.weight"][0],
        block_out_channels=tuple(sizes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels),
        layers_per_block=_layers(sizes, r"down_blocks\.0\.resnets\.(\d+)\."),
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        cross_attention_dim=sizes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        attention_head_dim=heads,  # diffusers calls the number of heads so in SD 1.x configs
    )


def _vae(sizes: dict[str, tuple[int, ...]]) -> AutoencoderKL:
    levels = range(_layers(sizes, r"encoder\.down_blocks\.(\d+)\."))
    return AutoencoderKL(
        in_channels=sizes["encoder.conv_in.weight"][1],
        out_channels=sizes["decoder.conv_out.weight"][0],
        latent_channels=sizes["post_quant_conv.weight"][0],
        # pyright takes diffusers' (64,) defaults for the type
        block_out_channels=tuple(sizes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels),  # pyright: ignore
        layers_per_block=_layers(sizes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        down_block_types=("DownEncoderBlock2D",) * len(levels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(levels),  # pyright: ignore[reportArgumentType]
        sample_size=512,
        scaling_factor=0.18215,
    )


def _text(sizes: dict[str, tuple[int, ...]], heads: int) -> CLIPTextModel:
    vocabulary, hidden = sizes["embeddings.token_embedding.weight"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=sizes["encoder.layers.0.mlp.fc1.weight"][0],
            num_hidden_layers=_layers(sizes, r"encoder\.layers\.(\d+)\."),
            num_attention_heads=heads,
            max_position_embeddings=sizes["embeddings.position_embedding.weight"][0],
            projection_dim=hidden,
        )
    )


def _adapter_config(
    sizes: dict[str, tuple[int, ...]], heads: Heads, token_dim: int, text_length: int, two_eyes: bool
) -> AdapterConfig:
    patch = sizes["vision.embeddings.patch_embedding.weight"][-1]
    image_size = patch * math.isqrt(sizes["vision.embeddings.position_embedding.weight"][0] - 1)
    qformer = {
        k.removeprefix("extractors.style.qformer."): v for k, v in sizes.items() if k.startswith("extractors.style.qformer.")
    }
    _, num_tokens, hidden = sizes["extractors.style.query_tokens"]
    config = AdapterConfig(
        base="sd15",
        routes="sd15",
        num_tokens=num_tokens,
        token_dim=token_dim,
        text_length=text_length,
        vision={
            "hidden_size": sizes["vision.embeddings.class_embedding"][0],
            "intermediate_size": sizes["vision.encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": _layers(sizes, r"vision\.encoder\.layers\.(\d+)\."),
            "num_attention_heads": heads.vision,
            "image_size": image_size,
            "patch_size": patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        two_eyes=two_eyes,
        qformer={
            "vocab_size": qformer["embeddings.word_embeddings.weight"][0],
            "max_position_embeddings": qformer["embeddings.position_embeddings.weight"][0],
            "hidden_size": hidden,
            "intermediate_size": qformer["encoder.layer.0.intermediate_query.dense.weight"][0],
            "num_hidden_layers": _layers(qformer, r"encoder\.layer\.(\d+)\."),
            "num_attention_heads": heads.qformer,
        },
        projection_dim=sizes["extractors.style.projection.dense1.weight"][0],
        preprocess=Preprocess(size=image_size),
        provenance=dict(PROVENANCE),
    )
    image_kv = {path: sizes[f"image_kv.{path.replace('.', '_')}.to_k.weight"][0] for path in config.route_table}
    return AdapterConfig.from_dict({**config.to_dict(), "image_kv": image_kv})
