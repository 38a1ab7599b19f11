"""Names in the released checkpoint -> names in diffusers, transformers and ours: every key gets a place, a reason or None.

Why our own table and not diffusers' single-file conversion: that one is private, drops what it does not know, and knows neither
the image K/V nor the Q-Formers. Here each key is looked up by itself, so that nothing can be lost in silence.
"""

import re
from typing import NamedTuple

SCHEDULE = "noise schedule: rebuilt from the scheduler's config"
POSITIONS = "the numbers 0, 1, 2, ...: rebuilt"
PRETRAINING = "a head of BLIP-2's pre-training (matching, contrast, captioning): makes no tokens"
EMA = "moving average left over from training: the released app runs the plain weights (use_ema False)"
CACHE = "a cached result, computed again"
TRAINING = "left over from training"
EYE_HEAD = "the vision tower after its penultimate layer: not read"


class Place(NamedTuple):
    """Where a tensor goes. `third` tells which third of a fused q, k, v matrix it is."""

    part: str  # unet | vae | text_encoder | deadiff
    key: str
    third: int | None = None


_RESNET = {  # LDM ResBlock -> diffusers ResnetBlock2D
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RESNET = {"nin_shortcut": "conv_shortcut"}  # norm1, conv1, norm2, conv2 keep their names
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_EYE = {  # OpenAI's ViT -> transformers CLIPVisionModel (its own spelling of pre_layrnorm)
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
}
_EYE_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SCHEDULE_KEYS = re.compile(r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar)")
_BLOCKS_PER_LEVEL = 3  # two ResBlocks and a resampling going down, three ResBlocks going up


def place(key: str, levels: int, vae_levels: int) -> list[Place] | str | None:
    """One official key -> where its weights go, or why they are not needed; None for a key nobody knows.

    levels: resolutions of the U-Net; vae_levels: of the autoencoder (LDM counts its decoder from the wrong end).
    """
    head, _, rest = key.partition(".")
    if _SCHEDULE_KEYS.fullmatch(key):
        return SCHEDULE
    if key == "ctx_embeddings_cache":
        return CACHE
    if head == "model_ema":
        return EMA
    if head in ("optimizer", "optimizer_states", "callbacks", "loss"):
        return TRAINING
    if key.endswith("embeddings.position_ids"):
        return POSITIONS
    if key.startswith("model.diffusion_model."):
        return _unet(key.removeprefix("model.diffusion_model."), levels)
    if head == "first_stage_model":
        return TRAINING if rest.startswith("loss.") else _vae(rest, vae_levels)
    if key.startswith("cond_stage_model.transformer.text_model."):
        return [Place("text_encoder", key.removeprefix("cond_stage_model.transformer."))]
    for role in ("style", "content"):
        if head == f"{role}_blip":
            return _reader(rest, role)
        if head == f"{role}_proj_layer":
            return [Place("deadiff", f"extractors.{role}.projection.{rest.replace('LayerNorm.', 'norm.')}")]
    return None


def _swap(name: str, table: dict[str, str]) -> str:
    """`conv1.weight` with the module's name replaced; names not in the table stay."""
    module, _, parameter = name.rpartition(".")
    return f"{table.get(module, module)}.{parameter}"


def _unet(key: str, levels: int) -> list[Place] | None:
    """U-Net key without its prefix."""
    module, _, parameter = key.rpartition(".")
    if module in _UNET_ENDS:
        return [Place("unet", f"{_UNET_ENDS[module]}.{parameter}")]
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", key):
        if match[1] == "1":
            return _unet_attention("mid_block.attentions.0", match[2])
        return _unet_resnet(f"mid_block.resnets.{int(match[1]) // 2}", match[2])
    if match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", key):
        way, block, slot, inner = match[1], int(match[2]), int(match[3]), match[4]
        level, i = divmod(block - 1 if way == "input" else block, _BLOCKS_PER_LEVEL)
        if not 0 <= level < levels:
            return None
        side = "down_blocks" if way == "input" else "up_blocks"
        if inner.startswith("op.") and way == "input" and i == 2:
            return [Place("unet", f"down_blocks.{level}.downsamplers.0.{inner.replace('op.', 'conv.', 1)}")]
        if inner.startswith("conv.") and way == "output" and i == 2:
            return [Place("unet", f"up_blocks.{level}.upsamplers.0.{inner}")]
        if way == "input" and i == 2:
            return None
        if slot == 0:
            return _unet_resnet(f"{side}.{level}.resnets.{i}", inner)
        if slot == 1:
            return _unet_attention(f"{side}.{level}.attentions.{i}", inner)
    return None


def _unet_resnet(path: str, inner: str) -> list[Place] | None:
    module, _, parameter = inner.rpartition(".")
    return [Place("unet", f"{path}.{_RESNET[module]}.{parameter}")] if module in _RESNET else None


def _unet_attention(path: str, inner: str) -> list[Place] | None:
    """SpatialTransformer: diffusers kept its names; the image K/V are the adapter's."""
    if match := re.fullmatch(r"transformer_blocks\.0\.attn2\.i_(to_[kv])\.weight", inner):
        return [Place("deadiff", f"image_kv.{path.replace('.', '_')}.{match[1]}.weight")]
    return [Place("unet", f"{path}.{inner}")]


def _vae(key: str, levels: int) -> list[Place] | None:
    """Autoencoder key without its prefix."""

    def at(name: str) -> list[Place]:
        return [Place("vae", name)]

    if re.fullmatch(r"(post_)?quant_conv\.\w+|(encoder|decoder)\.conv_(in|out)\.\w+", key):
        return at(key)
    if match := re.fullmatch(r"(encoder|decoder)\.norm_out\.(\w+)", key):
        return at(f"{match[1]}.conv_norm_out.{match[2]}")
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(.+)", key):
        return at(f"{match[1]}.mid_block.resnets.{int(match[2]) - 1}.{_swap(match[3], _VAE_RESNET)}")
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(.+)", key):
        return at(f"{match[1]}.mid_block.attentions.0.{_swap(match[2], _VAE_ATTENTION)}")
    if match := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)", key):
        down, level, inner = match[1] == "encoder.down", int(match[2]), match[3]
        path = f"encoder.down_blocks.{level}" if down else f"decoder.up_blocks.{levels - 1 - level}"
        if block := re.fullmatch(r"block\.(\d+)\.(.+)", inner):
            return at(f"{path}.resnets.{block[1]}.{_swap(block[2], _VAE_RESNET)}")
        if sample := re.fullmatch(r"(down|up)sample\.(conv\.\w+)", inner):
            return at(f"{path}.{sample[1]}samplers.0.{sample[2]}")
    return None


def _reader(key: str, role: str) -> list[Place] | str | None:
    """style_blip / content_blip key without its prefix."""
    if re.match(r"(itm_head|vision_proj|text_proj)\.|temp$|Qformer\.cls\.", key):
        return PRETRAINING
    extractor = f"extractors.{role}"
    if key == "query_tokens" or key.startswith("ln_vision."):
        return [Place("deadiff", f"{extractor}.{key}")]
    if key.startswith("Qformer.bert."):
        name = key.removeprefix("Qformer.bert.")
        name = name.replace("attention.self.", "attention.attention.").replace("embeddings.LayerNorm.", "embeddings.layernorm.")
        return [Place("deadiff", f"{extractor}.qformer.{name}")]
    if key.startswith("visual_encoder."):
        return _eye(key.removeprefix("visual_encoder."), "vision" if role == "style" else "content_vision")
    return None


def _eye(key: str, tower: str) -> list[Place] | str | None:
    """Vision tower key without its prefix."""
    if key in _EYE:
        return [Place("deadiff", f"{tower}.{_EYE[key]}")]
    if key.startswith("ln_post.") or key == "proj":
        return EYE_HEAD
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key):
        path, inner = f"{tower}.encoder.layers.{match[1]}", match[2]
        if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", inner):
            return [Place("deadiff", f"{path}.self_attn.{name}_proj.{fused[1]}", third) for third, name in enumerate("qkv")]
        module, _, parameter = inner.rpartition(".")
        return [Place("deadiff", f"{path}.{_EYE_BLOCK[module]}.{parameter}")] if module in _EYE_BLOCK else None
    return None
