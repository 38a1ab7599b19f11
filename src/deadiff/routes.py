"""Which cross-attention layer listens to which role (paper section 3.2: style enters the fine layers, content the coarse ones).

A route table maps a layer's path to a role. The path is that of the attention block (`down_blocks.0.attentions.0`) where the
block holds one transformer block, as in Stable Diffusion 1.x, and `...attentions.0.transformer_blocks.3` where it holds several,
as in SDXL. Tables are keyed by path, never by position: `unet.attn_processors` lists the middle block last, execution does not.
"""

from collections.abc import Mapping
from enum import StrEnum

from diffusers.models.attention_processor import Attention
from torch import nn

from deadiff.errors import ConfigError


class Role(StrEnum):
    """What a reference picture is asked for."""

    STYLE = "style"
    CONTENT = "content"


BOTH = "both"  # a layer that reads the tokens of both roles: the ablation without disentangling


def _paths(*blocks: tuple[str, int, int]) -> list[str]:
    """(block, attentions, transformer blocks in each) -> the paths of its cross-attention layers, in execution order."""
    paths = []
    for block, attentions, depth in blocks:
        for i in range(attentions):
            attention = f"{block}.attentions.{i}"
            paths += [attention] if depth == 1 else [f"{attention}.transformer_blocks.{j}" for j in range(depth)]
    return paths


def _route(paths: list[str], content: tuple[str, ...]) -> dict[str, Role]:
    """Paths under one of the `content` prefixes listen to content, all others to style."""
    return {p: Role.CONTENT if f"{p}.".startswith(tuple(f"{c}." for c in content)) else Role.STYLE for p in paths}


# The released model: 16 layers in execution order, counted from 0; content enters 4 to 8.
_SD15 = _paths(
    ("down_blocks.0", 2, 1),
    ("down_blocks.1", 2, 1),
    ("down_blocks.2", 2, 1),
    ("mid_block", 1, 1),
    ("up_blocks.1", 3, 1),
    ("up_blocks.2", 3, 1),
    ("up_blocks.3", 3, 1),
)
# The embedded model: the same sixteen, but every one of its three levels has cross-attention.
_ICONS = _paths(
    ("down_blocks.0", 2, 1),
    ("down_blocks.1", 2, 1),
    ("down_blocks.2", 2, 1),
    ("mid_block", 1, 1),
    ("up_blocks.0", 3, 1),
    ("up_blocks.1", 3, 1),
    ("up_blocks.2", 3, 1),
)
# SDXL: 70 layers, attention at two resolutions only. DEADiff's coarse set is the lowest resolution with attention, on the way
# down, in the middle and on the way up: here down_blocks.2, mid_block, up_blocks.0. Of up_blocks.0, InstantStyle (arXiv
# 2404.02733) finds that attentions.1 carries style (and that down_blocks.2.attentions.1 carries layout), and DEADiff's own table
# gives the last attention before the upsampler to style: so attentions.0 alone is content there. Reasoned, not trained: no
# DEADiff weights exist for SDXL.
_SDXL = _paths(
    ("down_blocks.1", 2, 2),
    ("down_blocks.2", 2, 10),
    ("mid_block", 1, 10),
    ("up_blocks.0", 3, 10),
    ("up_blocks.1", 3, 2),
)

ROUTES: dict[str, dict[str, Role]] = {
    "sd15": _route(_SD15, ("down_blocks.2", "mid_block", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")),
    "icons": _route(_ICONS, ("down_blocks.2", "mid_block", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")),
    "sdxl": _route(_SDXL, ("down_blocks.2", "mid_block", "up_blocks.0.attentions.0")),
}


def _between(paths: list[str], first: int, last: int) -> dict[str, str]:
    """Content enters the layers `first` to `last`, counted in execution order from 0 as the paper counts them."""
    return {p: (Role.CONTENT if first <= i <= last else Role.STYLE).value for i, p in enumerate(paths)}


# The embedded model's layers routed otherwise: rivals and ablations (recipes/rivals), never defaults.
ABLATIONS: dict[str, dict[str, str]] = {
    "icons-both": dict.fromkeys(_ICONS, BOTH),  # no disentangling: every layer reads both roles
    "icons-style": dict.fromkeys(_ICONS, Role.STYLE.value),  # coarse set empty; IP-Adapter's and BLIP-Diffusion's way
    "icons-content": dict.fromkeys(_ICONS, Role.CONTENT.value),  # coarse set of all layers: nobody reads style
    "icons-content-0-3": _between(_ICONS, 0, 3),
    "icons-content-9-15": _between(_ICONS, 9, 15),
}


def resolve_routes(routes: str | Mapping[str, str]) -> dict[str, str]:
    """A table's name or a table of one's own (path -> "style" | "content" | "both") -> a checked table. Raises ConfigError."""
    if isinstance(routes, str):
        if routes in ABLATIONS:
            return dict(ABLATIONS[routes])
        if routes not in ROUTES:
            known = ", ".join([*ROUTES, *ABLATIONS])
            raise ConfigError(f"no route table is called {routes!r}: expected {known}, or a table of path -> role")
        return {path: role.value for path, role in ROUTES[routes].items()}
    allowed = [*(role.value for role in Role), BOTH]
    for path, role in routes.items():
        if role not in allowed:
            raise ConfigError(f"route {path!r} has role {str(role)!r}: expected one of {', '.join(allowed)}")
    if not routes:
        raise ConfigError("the route table is empty: expected every cross-attention layer of the U-Net as path -> role")
    return {path: str(role) for path, role in routes.items()}


def cross_attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """Route path -> cross-attention module, for every text cross-attention of a diffusers U-Net or ControlNet."""
    attentions = {name: m for name, m in unet.named_modules() if isinstance(m, Attention) and name.endswith(".attn2")}
    found = {name: m for name, m in attentions.items() if m.is_cross_attention}
    depth: dict[str, int] = {}  # attention block -> transformer blocks in it
    for name in found:
        block = name.rpartition(".transformer_blocks.")[0]
        depth[block] = depth.get(block, 0) + 1
    layers = {}
    for name, module in found.items():
        block, _, _ = name.rpartition(".transformer_blocks.")
        layers[block if depth[block] == 1 else name.removesuffix(".attn2")] = module
    return layers


def match_routes(unet: nn.Module, routes: Mapping[str, str]) -> dict[str, Attention]:
    """The U-Net's layers in the table's order. Raises ConfigError unless every layer is routed exactly once."""
    layers = cross_attention_layers(unet)
    unrouted, unknown = sorted(layers.keys() - routes.keys()), sorted(routes.keys() - layers.keys())
    if unrouted or unknown:
        raise ConfigError(
            f"the route table does not fit this U-Net: {len(unrouted)} of its {len(layers)} cross-attention layers have no role"
            f" {unrouted[:2]}, {len(unknown)} routed paths do not exist in it {unknown[:2]}: was it made for another base model?"
        )
    return {path: layers[path] for path in routes}
