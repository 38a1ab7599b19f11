"""The judges' networks: small residual networks (He et al. 2015), the style judge's pooled at every depth.

B pictures, S side of a picture in pixels, C channels, D width of an embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadiff.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of one judge."""

    size: int  # side of the pictures that it reads, in pixels
    widths: tuple[int, ...]  # channels of the stem and of each stage; a stage halves the side
    depths: tuple[int, ...]  # blocks of each stage
    embedding: int = 0  # width of the style embedding

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) + 1:
            raise ConfigError(
                f"{len(self.widths)} widths for {len(self.depths)} stages: expected one for the stem and one a stage"
            )
        if self.size % 2 ** len(self.widths):
            raise ConfigError(f"size = {self.size} pixels cannot be halved {len(self.widths)} times: expected a multiple")


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, bias=False) if inner != outer else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        short = self.shortcut(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)
        return F.relu(short + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Trunk(nn.Module):
    """Pictures in [-1, 1] (B, 3, S, S) -> the feature maps of all stages, the finest first."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        stem, *widths = config.widths
        self.stem = nn.Conv2d(12, stem, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        stages, inner = [], stem
        for outer, depth in zip(widths, config.depths, strict=True):
            stages.append(nn.Sequential(*(Block(inner if i == 0 else outer, outer, 2 if i == 0 else 1) for i in range(depth))))
            inner = outer
        self.stages = nn.ModuleList(stages)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = F.pixel_unshuffle(pixels, 2).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.stem(x)))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SubjectNet(nn.Module):
    """What is drawn: (B, 3, S, S) -> logits (B, subjects)."""

    def __init__(self, config: NetworkConfig, subjects: int) -> None:
        super().__init__()
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.widths[-1], subjects)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels)[-1].mean((2, 3)))


class StyleNet(nn.Module):
    """How it is drawn: (B, 3, S, S) -> unit vectors (B, D). Means and deviations of all maps: texture has no place."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config)
        pooled = 2 * sum(config.widths[1:])
        self.norm = nn.BatchNorm1d(pooled)
        self.embed = nn.Linear(pooled, config.embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.trunk(pixels)
        means = [x.float().mean((2, 3)) for x in maps]
        spreads = [(x.float().var((2, 3), correction=0) + 1e-5).sqrt() for x in maps]
        pooled = torch.cat([*means, *spreads], 1).to(maps[-1].dtype)
        return F.normalize(self.embed(self.norm(pooled)).float(), dim=-1)


def prepare(pictures: Tensor, size: int) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, 3, size, size) in [-1, 1], averaged over areas where the picture is larger."""
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[2:] == (size, size):
        return x
    h, w = x.shape[2:]
    if h == w and h % size == 0:
        return F.avg_pool2d(x, h // size)
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
