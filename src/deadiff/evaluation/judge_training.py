"""How the judges of the icons world learn to see: from real pictures only, seen through blur, noise, shifts and other colours.

    python -m deadiff.evaluation.judge_training recipes/judges/subject.toml --data data/icons --run runs/judges
    python -m deadiff.evaluation.judge_training recipes/judges/style.toml --data data/icons --run runs/judges
    python -m deadiff.evaluation.judge_training --data data/icons --run runs/judges --pack OUT

The first two go on from their last checkpoint; the last measures both on pictures that neither learned from and writes the folder
that `load_judges` reads. `--baselines` scores trivial answers with the judges of the package. B pictures, S side in pixels.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from deadiff.data.splits import HELD_OUT_SETS, PLAIN, TRAIN, split_of
from deadiff.data.store import decode_png, read_rows, row_features, shards
from deadiff.errors import ConfigError, DataError
from deadiff.evaluation.judges.networks import NetworkConfig, StyleNet, SubjectNet, prepare
from deadiff.toml_tables import build, read_table
from deadiff.training.icon_art import style_name
from deadiff.training.loop import LoopConfig, Task, train
from deadiff.training.samples import choose, rng_of

Row = dict[str, Any]
NORMALISING_BATCHES = 60  # from which the normalisation's means and variances are taken after training


def taught_subject(row: Row) -> bool:
    """Pictures from which the subject judge learns: all renditions of the drawings that `splits` gives to training.

    Held-out renditions of these drawings are among them (it must see through every style); the held-out sets and the drawings of
    unseen combinations, in any rendition, are not.
    """
    return row["set"] not in HELD_OUT_SETS and split_of(row["subject"], row["set"]) == TRAIN


def taught_style(row: Row) -> bool:
    """Pictures from which the style judge learns: the training split alone. Unseen styles are known by their centroids."""
    return row["split"] == TRAIN


def read_pictures(folder: Path, wanted: Callable[[Row], bool], size: int) -> tuple[np.ndarray, list[Row]]:
    """(N, size, size, 3) uint8 pictures of the wanted rows, and their rows without `image`."""
    columns = list(row_features())
    pictures, rows = [], []
    for shard in shards(folder):
        kept = [row for row in read_rows(shard, columns) if wanted(row)]
        if kept:
            decoded = torch.from_numpy(np.stack([decode_png(row.pop("image")["bytes"]) for row in kept]))
            x = decoded if decoded.shape[1] == size else (prepare(decoded, size).permute(0, 2, 3, 1) + 1) * 127.5 + 0.5
            pictures.append(x.to(torch.uint8).numpy())
            rows += kept
    if not rows:
        raise DataError(
            f"'{folder}' holds none of the wanted pictures: build the whole set with `deadiff data icons --out {folder}`"
        )
    return np.concatenate(pictures), rows


class JudgeTask(Task):
    """Draws pictures, plain art and renditions in given shares, and tells the classes of two questions apart."""

    def __init__(self, pictures: np.ndarray, rows: list[Row], seed: int, plain_share: float) -> None:
        self.pictures, self.rows, self.seed, self.plain_share = pictures, rows, seed, plain_share
        plain = np.array([row["rendition"] == PLAIN for row in rows])
        self.plain, self.rendered = np.flatnonzero(plain), np.flatnonzero(~plain)

    def drawn(self, draw: int, count: int) -> tuple[Tensor, np.ndarray]:
        """Augmented pictures (B, 3, S, S) in [-1, 1] and their numbers."""
        rng = rng_of(self.seed, draw, stream=11)
        chosen = choose(rng, count, self.plain, self.rendered, self.plain_share)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.augment(prepare(torch.from_numpy(self.pictures[chosen]), self.pictures.shape[1]), generator), chosen

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x


class SubjectTask(JudgeTask):
    """Cross-entropy over all subjects, with smoothed targets."""

    def __init__(self, config: NetworkConfig, pictures: np.ndarray, rows: list[Row], seed: int, plain_share: float) -> None:
        super().__init__(pictures, rows, seed, plain_share)
        labels = {row["subject"]: row["label"] for row in rows}
        self.names = sorted(labels)
        self.labels = [labels[name] for name in self.names]
        number = {name: i for i, name in enumerate(self.names)}
        self.target = torch.tensor([number[row["subject"]] for row in rows])
        self.modules = {"net": SubjectNet(config, len(self.names))}

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        x = recoloured(moved(x, generator, shift=0.12, zoom=0.25, turn=0.2), generator, 0.4)
        size = x.shape[-1]
        x = holed(blurred(x, generator, 0.35, (5 * size // 16, 7 * size // 16, 5 * size // 8)), generator, 0.2)
        return noisy(x, generator, 0.35, 0.3)

    def batch(self, draw: int, batch_size: int) -> tuple[Tensor, Tensor]:
        x, chosen = self.drawn(draw, batch_size)
        return x, self.target[chosen]

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, target = batch
        net = self.modules["net"]
        logits = net(x.to(next(net.parameters()).dtype)).float()
        loss = F.cross_entropy(logits, target, label_smoothing=0.1)
        return loss, {"accuracy": (logits.detach().argmax(-1) == target).float().mean()}


class StyleHeads(nn.Module):
    """Cosine classifiers of training alone: directions of styles, and of styles in each palette."""

    def __init__(self, width: int, styles: int, palettes: int) -> None:
        super().__init__()
        self.style = nn.Parameter(torch.randn(styles, width))
        self.palette = nn.Parameter(torch.randn(palettes, width))
        self.scale = nn.Parameter(torch.tensor(3.0))  # log

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) unit vectors -> logits (B, styles), (B, palettes)."""
        scale = self.scale.float().exp().clamp(max=40)
        style, palette = (scale * features @ F.normalize(w.float(), dim=-1).T for w in (self.style, self.palette))
        return style, palette


class StyleTask(JudgeTask):
    """Normalised softmax (Wang et al. 2017, NormFace) over styles and over (style, palette): pictures of a style lie together."""

    def __init__(self, config: NetworkConfig, pictures: np.ndarray, rows: list[Row], seed: int, plain_share: float) -> None:
        super().__init__(pictures, rows, seed, plain_share)
        fine = [(style_name(row), row["palette"] if row["rendition"] != PLAIN else "") for row in rows]
        self.names, palettes = sorted({style for style, _ in fine}), sorted(set(fine))
        style_number = {name: i for i, name in enumerate(self.names)}
        palette_number = {name: i for i, name in enumerate(palettes)}
        self.style = torch.tensor([style_number[style] for style, _ in fine])
        self.palette = torch.tensor([palette_number[both] for both in fine])
        self.modules = {"net": StyleNet(config), "heads": StyleHeads(config.embedding, len(self.names), len(palettes))}

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        x = moved(x, generator, shift=0.1, zoom=0.1, turn=0.0)
        size = x.shape[-1]
        return noisy(blurred(x, generator, 0.3, (size // 2, 5 * size // 8, 3 * size // 4)), generator, 0.25, 0.08)

    def batch(self, draw: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        x, chosen = self.drawn(draw, batch_size)
        return x, self.style[chosen], self.palette[chosen]

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, style, palette = batch
        net = self.modules["net"]
        styles, palettes = self.modules["heads"](net(x.to(next(net.parameters()).dtype)))
        loss = F.cross_entropy(styles, style) + 0.5 * F.cross_entropy(palettes, palette)
        return loss, {"accuracy": (styles.detach().argmax(-1) == style).float().mean()}


# ---- what a picture may go through and still be the same: (B, 3, S, S) in [-1, 1] -> the same shape ----


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _some(count: int, share: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < share).nonzero()[:, 0]


def moved(x: Tensor, generator: torch.Generator, *, shift: float, zoom: float, turn: float) -> Tensor:
    """Shift (share of the side), zoom (log), stretch (a third of the zoom) and turn (radians), at random up to these."""
    n = len(x)
    angle = _uniform(n, -turn, turn, generator)
    scale = _uniform(n, -zoom, zoom, generator).exp()
    stretch = _uniform(n, -zoom / 3, zoom / 3, generator).exp()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    dx, dy = _uniform(n, -2 * shift, 2 * shift, generator), _uniform(n, -2 * shift, 2 * shift, generator)
    theta = torch.stack([cos * stretch, -sin, dx, sin, cos / stretch, dy], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def recoloured(x: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Some pictures with their channels mixed, inverted, or mapped onto a range between two random colours."""
    x = x.clone()
    for i in _some(len(x), share, generator).tolist():
        picture = x[i][torch.randperm(3, generator=generator)]
        kind = torch.rand(4, generator=generator)
        if kind[0] < 0.25:
            picture = picture.mean(0, keepdim=True).expand(3, -1, -1)
        if kind[1] < 0.3:
            picture = -picture
        if kind[2] < 0.5:
            low, high = torch.sort(2 * torch.rand(2, 3, generator=generator) - 1, dim=0).values
            picture = low[:, None, None] + (picture + 1) / 2 * (high - low)[:, None, None]
        x[i] = picture
    return x


def blurred(x: Tensor, generator: torch.Generator, share: float, sides: tuple[int, ...]) -> Tensor:
    """Some pictures made small and large again."""
    x, size = x.clone(), list(x.shape[-2:])
    for part, side in zip(_some(len(x), share, generator).chunk(len(sides)), sides, strict=False):
        small = F.interpolate(x[part], (side, side), mode="bilinear", antialias=True, align_corners=False)
        x[part] = F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(-1, 1)
    return x


def holed(x: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Some pictures with a rectangle of one colour over them, up to 45 % of a side."""
    x, side = x.clone(), x.shape[-1]
    for i in _some(len(x), share, generator).tolist():
        h, w, top, left = (torch.rand(4, generator=generator) * torch.tensor([0.35, 0.35, 0.9, 0.9])).tolist()
        rows = slice(int(top * side), int((top + h + 0.1) * side))
        columns = slice(int(left * side), int((left + w + 0.1) * side))
        x[i, :, rows, columns] = (2 * torch.rand(3, generator=generator) - 1)[:, None, None]
    return x


def noisy(x: Tensor, generator: torch.Generator, share: float, most: float) -> Tensor:
    """Some pictures under noise, fine and in cells of an eighth of the side, up to a deviation of `most`."""
    x, part = x.clone(), _some(len(x), share, generator)
    if not len(part):
        return x
    side = x.shape[-1]
    fine = torch.randn(len(part), 3, side, side, generator=generator)
    coarse = torch.randn(len(part), 3, 8, 8, generator=generator)
    cells = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    strength = _uniform(2 * len(part), 0, most, generator).view(2, -1, 1, 1, 1)
    x[part] = (x[part] + strength[0] * fine + strength[1] * cells).clamp(-1, 1)
    return x


# ---- running, finishing ----


def run(
    recipe: Path, data: Path, folder: Path, minutes: float | None = None, report: Callable[[Row], None] | None = None
) -> Path:
    """Train the judge of a recipe to its end, or for `minutes`; RUN/subject or RUN/style keeps its state. Returns that folder."""
    table = read_table(recipe)
    judge, unknown = table.get("judge"), sorted(table.keys() - {"judge", "plain_share", "loop", "model"})
    if judge not in JUDGES or unknown:
        got = f"the unknown key {unknown[0]!r}" if unknown else f"judge = {judge!r}"
        raise ConfigError(f"'{recipe}' has {got}: expected judge = {' or '.join(JUDGES)}, plain_share, [loop], [model]")
    task_kind, wanted = JUDGES[judge]
    loop: LoopConfig = build(LoopConfig, table.get("loop", {}), f"[loop] of '{recipe}'")
    config: NetworkConfig = build(NetworkConfig, table.get("model", {}), f"[model] of '{recipe}'")
    pictures, rows = read_pictures(data, wanted, config.size)
    torch.manual_seed(loop.seed)  # the initial weights: nothing later draws from the global generator
    task = task_kind(config, pictures, rows, loop.seed, float(table.get("plain_share", 0.5)))
    folder = folder / judge
    train(task, loop, folder, minutes, report)
    finish(task, config, folder, loop.batch_size)
    return folder


def finish(task: Any, config: NetworkConfig, folder: Path, batch_size: int) -> None:
    """Give the averaged weights their own normalisation (Wu & Johnson 2021, precise BatchNorm) and write them in fp16."""
    net = task.modules["net"].float().train()
    norms = [layer for layer in net.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
    with torch.no_grad():
        for draw in range(NORMALISING_BATCHES):
            net(task.drawn(10**9 + draw, batch_size)[0])
    net.eval()
    weights = {name: x.half() if x.is_floating_point() else x for name, x in net.state_dict().items()}
    save_file({name: x.contiguous() for name, x in weights.items()}, folder / "weights.safetensors")
    table = {"config": asdict(config), "names": task.names, "labels": getattr(task, "labels", [])}
    (folder / "judge.json").write_text(json.dumps(table))


JUDGES: dict[str, tuple[type, Callable[[Row], bool]]] = {
    "subject": (SubjectTask, taught_subject),
    "style": (StyleTask, taught_style),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the judges of the icons world, or pack trained ones.")
    parser.add_argument("recipe", type=Path, nargs="?", help="recipes/judges/subject.toml or style.toml")
    parser.add_argument("--data", type=Path, default=Path("data/icons"), help="the folder made by `deadiff data icons`")
    parser.add_argument("--run", type=Path, default=Path("runs/judges"), help="the run folder; a killed run goes on from here")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--pack", type=Path, help="instead of training: measure the finished judges and write them here")
    parser.add_argument("--baselines", action="store_true", help="instead of training: score trivial answers with every metric")
    chosen = parser.parse_args(arguments)
    if chosen.pack is not None:
        from deadiff.evaluation.judge_report import pack

        for group, measured in pack(chosen.run, chosen.data, chosen.pack).items():
            _print({group: json.dumps(measured)})
    elif chosen.baselines:
        from deadiff.evaluation.encoders import MobileNetEncoder
        from deadiff.evaluation.judge_report import baselines
        from deadiff.evaluation.judges import load_judges

        for answer, scores in baselines(load_judges(), chosen.data, features=MobileNetEncoder.from_package(128)).items():
            _print({answer: json.dumps(scores)})
    elif chosen.recipe is None:
        parser.error("which recipe? Or --pack OUT for finished judges")
    else:
        run(chosen.recipe, chosen.data, chosen.run, chosen.minutes, _print)


def _print(line: Row) -> None:
    sys.stdout.write("  ".join(f"{name} {value}" for name, value in line.items()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
