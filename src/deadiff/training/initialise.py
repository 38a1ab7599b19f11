"""How the adapter starts and which of its weights are trained."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deadiff.adapter import DEADiffAdapter
from deadiff.errors import CheckpointError, ConfigError
from deadiff.extractor import RoleExtractor
from deadiff.weights import check_weights, read_weights

# BLIP-Diffusion's Q-Former as diffusers publishes it (Blip2QFormerModel) -> ours. Its vision tower is CLIP's: we have one.
_PREFIXES = {
    "embeddings.LayerNorm.": "qformer.embeddings.layernorm.",
    "embeddings.": "qformer.embeddings.",
    "encoder.": "qformer.encoder.",
    "proj_layer.LayerNorm.": "projection.norm.",
    "proj_layer.": "projection.",
    "visual_encoder.post_layernorm.": "ln_vision.",
    "query_tokens": "query_tokens",
}
_UNREAD = ("visual_encoder.", "embeddings.position_ids")  # after the prefixes above


def blip_diffusion_name(key: str) -> str | None:
    """The name of one of its weights in a RoleExtractor; None for what is not read; "" for an unknown one."""
    for theirs, ours in _PREFIXES.items():
        if key.startswith(theirs) and key != "embeddings.position_ids":
            return ours + key.removeprefix(theirs)
    return None if key.startswith(_UNREAD) else ""


def read_blip_diffusion(path: Path) -> dict[str, Tensor]:
    """The folder of a BLIP-Diffusion pipeline, its qformer/, or the weights file in that -> weights of a RoleExtractor.

    Raises CheckpointError for anything else.
    """
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin")
    files = [path] if path.is_file() else [folder / name for folder in (path / "qformer", path) for name in names]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise CheckpointError(f"no Q-Former in '{path}': expected BLIP-Diffusion's folder qformer/ with {names[0]} or {names[2]}")
    if file.suffix == ".safetensors":
        state: Mapping[str, Tensor] = read_weights(file)
    else:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise CheckpointError(f"'{file}' cannot be read as weights: {' '.join(str(error).split())[:120]}") from error
    renamed = {key: blip_diffusion_name(key) for key in state}
    if unknown := [key for key, name in renamed.items() if name == ""]:
        raise CheckpointError(f"'{file}' holds {unknown[0]}, which no BLIP-Diffusion Q-Former has: is it another model's?")
    return {name: state[key] for key, name in renamed.items() if name}


def start_from_blip_diffusion(adapter: DEADiffAdapter, path: Path) -> None:
    """Both roles start as BLIP-Diffusion's Q-Former with queries, projection and ln_vision (paper, section 4.1).

    Where tokens are wider than the Q-Former (SDXL) the last linear layer keeps its own start. Raises CheckpointError.
    """
    weights = read_blip_diffusion(path)
    for extractor in adapter.extractors.values():
        assert isinstance(extractor, RoleExtractor)
        own = extractor.state_dict()
        expected = {name: tensor for name, tensor in own.items() if not name.startswith("projection.out.")}
        check_weights(expected, weights, str(path))
        extractor.load_state_dict({**own, **weights})


def select_trained(adapter: DEADiffAdapter, train_ln_vision: bool = True, train_image_kv: bool = True) -> dict[str, nn.Parameter]:
    """Let Q-Formers with their queries, projections and, as asked, image K/V and ln_vision learn, and nothing else.

    What no gradient can reach stays as it is: after the Q-Former's last layer nobody reads the word, so the feed-forward of its
    tokens there has no effect. Returns name -> parameter.
    """
    if adapter.config.two_eyes:
        raise ConfigError(
            "this adapter has a vision tower for each role and cannot be trained on: start from one with a single tower"
        )
    adapter.requires_grad_(False)
    for kv in adapter.image_kv.parameters():
        kv.requires_grad_(train_image_kv)
    last = adapter.config.qformer.get("num_hidden_layers", 12) - 1
    for role, extractor in adapter.extractors.items():
        told = bool(adapter.config.instructions[role])
        for name, parameter in extractor.named_parameters():
            parameter.requires_grad_(_reached(name, last, told) and (train_ln_vision or not name.startswith("ln_vision.")))
    return {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}


def _reached(name: str, last: int, told: bool) -> bool:
    """Can a gradient reach this weight of a RoleExtractor with (`told`) or without a word?"""
    if name.startswith(("qformer.embeddings.word_embeddings.", "qformer.embeddings.position_embeddings.")):
        return told
    of_the_word = re.match(r"qformer\.encoder\.layer\.(\d+)\.(intermediate|output)\.", name)
    return of_the_word is None or (told and int(of_the_word[1]) != last)
