"""The judges of the icons world: which subject a picture shows, in which style it is drawn. They only measure.

Two small networks of their own, trained on real pictures only (evaluation/judge_training.py, docs/judges.md says how well they
see); neither is the model's eye. N pictures, S side in pixels, D width of a style feature, K styles.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deadiff.errors import CheckpointError, DataError
from deadiff.evaluation.judges.networks import NetworkConfig, StyleNet, SubjectNet, prepare
from deadiff.weights import check_weights

FOLDER = Path(__file__).parent
BATCH = 64  # pictures at once


class Judges:
    """Names subjects and styles of pictures, uint8 (N, S, S, 3) RGB of any size; 128 pixels is what they learned from."""

    def __init__(
        self,
        subject_net: SubjectNet,
        style_net: StyleNet,
        *,
        subjects: Sequence[str],
        labels: Sequence[str],
        styles: Sequence[str],
        centroids: np.ndarray,
        sizes: tuple[int, int],
        temperature: float = 1.0,
        style_scale: float = 16.0,
        accuracy: dict[str, Any] | None = None,
    ) -> None:
        self.subject_net, self.style_net = subject_net.eval(), style_net.eval()
        self.subjects, self.labels, self.styles = list(subjects), list(labels), list(styles)
        self.centroids = centroids  # (K, D) unit vectors, in the order of `styles`
        self.sizes = sizes  # pixels, of subject and style judge
        self.temperature, self.style_scale = temperature, style_scale  # calibrated on real pictures
        self.accuracy = accuracy or {}  # on real pictures, by group: judge_report.measure
        self._subject_number = {name: i for i, name in enumerate(self.subjects)}
        self._style_number = {name: i for i, name in enumerate(self.styles)}

    def subject(self, pictures: np.ndarray) -> np.ndarray:
        """Probabilities (N, subjects), in the order of `subjects` (hexcodes) and `labels`."""
        return self._run(pictures, self.sizes[0], lambda x: (self.subject_net(x) / self.temperature).softmax(-1))

    def style_features(self, pictures: np.ndarray) -> np.ndarray:
        """Unit vectors (N, D): near for pictures of one style, also of styles that the judge never saw."""
        return self._run(pictures, self.sizes[1], self.style_net)

    def style(self, pictures: np.ndarray) -> np.ndarray:
        """Probabilities (N, K) over `styles`: sets by name for plain art, renditions by name. Nearest centroid, softened."""
        return style_probabilities(self.style_features(pictures), self.centroids, self.style_scale)

    def subject_number(self, name: str) -> int:
        """The column of a subject, by hexcode. Raises DataError."""
        return _found(self._subject_number, name, "subject")

    def style_number(self, name: str) -> int:
        """The column of a style, by the name of a set or rendition. Raises DataError."""
        return _found(self._style_number, name, "style")

    @torch.inference_mode()
    def _run(self, pictures: np.ndarray, size: int, see: Callable[[Tensor], Tensor]) -> np.ndarray:
        pictures = np.asarray(pictures)
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or not len(pictures):
            raise DataError(f"pictures are {pictures.dtype} {pictures.shape}: expected uint8 (N, S, S, 3), N at least 1")
        batches = np.array_split(pictures, -(-len(pictures) // BATCH))
        seen = [see(prepare(torch.from_numpy(np.ascontiguousarray(batch)), size)) for batch in batches]
        return torch.cat(seen).numpy()


def style_centroids(features: np.ndarray, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(N, D) features of real pictures and the style of each -> the styles, sorted, and their centroids (K, D), unit length."""
    if len(features) != len(names) or not len(names):
        raise DataError(f"{len(features)} features with {len(names)} style names: expected one name a picture, at least one")
    styles = sorted(set(names))
    number = np.array([styles.index(name) for name in names])
    sums = np.zeros((len(styles), features.shape[1]))
    np.add.at(sums, number, features)
    return styles, (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)


def style_probabilities(features: np.ndarray, centroids: np.ndarray, scale: float) -> np.ndarray:
    """softmax over K of scale * cosine: (N, D), (K, D) -> (N, K)."""
    logits = scale * features @ centroids.T
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def load_judges(folder: Path = FOLDER) -> Judges:
    """The judges inside the package, or of a folder that `save_judges` wrote. Raises CheckpointError."""
    table = read_table(folder)
    subject_config, style_config = network_config(table["subject"]), network_config(table["style"])
    subject_net = SubjectNet(subject_config, len(table["subjects"]))
    style_net = StyleNet(style_config)
    for name, net in {"subject": subject_net, "style": style_net}.items():
        _load(net, folder / f"{name}.safetensors")
    centroids = load_file(folder / "centroids.safetensors")["centroids"].float().numpy()
    return Judges(
        subject_net,
        style_net,
        subjects=table["subjects"],
        labels=table["labels"],
        styles=table["styles"],
        centroids=centroids / np.linalg.norm(centroids, axis=1, keepdims=True),
        sizes=(subject_config.size, style_config.size),
        temperature=table["temperature"],
        style_scale=table["style_scale"],
        accuracy=table["accuracy"],
    )


def read_table(folder: Path) -> dict[str, Any]:
    """judges.json: sizes of the networks, names, calibration, and the measured accuracy."""
    try:
        return json.loads((folder / "judges.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{folder}' holds no judges ({error}): reinstall deadiff or train them, docs/judges.md") from error


def network_config(table: dict[str, Any]) -> NetworkConfig:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    return NetworkConfig(**values)


def _load(net: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing: reinstall deadiff or train the judges, docs/judges.md")
    stored = {name: x.float() if x.is_floating_point() else x for name, x in load_file(path).items()}
    check_weights(net.state_dict(), stored, str(path))
    net.load_state_dict(stored)


def _found(numbers: dict[str, int], name: str, what: str) -> int:
    if name not in numbers:
        raise DataError(f"the judges know no {what} '{name}': expected one of {', '.join(list(numbers)[:5])}, ...")
    return numbers[name]
