"""A method's drawings as a set beside the true ones: KID, which no single picture has.

A set is near the truth when its pictures are well drawn, in the right styles and of the right subjects. No picture is compared
with its own reference or true picture: that is what the other scores are for.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from deadiff.evaluation.design import TRUE
from deadiff.evaluation.metrics import kid
from deadiff.evaluation.protocol import Evaluation
from deadiff.evaluation.scores import BATCH, read_pictures

SUBSETS = 50


class Features(Protocol):
    """What KID asks of its network (deadiff.evaluation.encoders.MobileNetEncoder)."""

    @property
    def name(self) -> str: ...
    def pictures(self, pictures: np.ndarray) -> np.ndarray: ...


def kid_to_true(evaluation: Evaluation, encoder: Features) -> dict[str, tuple[float, float]]:
    """Method -> KID and its deviation over SUBSETS halves, on the cells that have a true picture; {} where there are too few."""
    if TRUE not in evaluation.scores:
        return {}
    truth = evaluation.scores[TRUE].chosen(evaluation.main_cells)
    cells = [cell for cell, path in zip(truth.cells, truth.pictures, strict=True) if path]
    if len(cells) < 4:
        return {}
    paths = {method.name: evaluation.scores[method.name].chosen(cells).pictures for method in evaluation.methods}
    unique = sorted({path for of_method in paths.values() for path in of_method})
    place = {path: i for i, path in enumerate(unique)}
    features = np.concatenate(
        [encoder.pictures(_read(evaluation.out, unique[start : start + BATCH])) for start in range(0, len(unique), BATCH)]
    )
    drawn = {name: features[[place[path] for path in of_method]] for name, of_method in paths.items()}
    return {name: kid(of_method, drawn[TRUE], SUBSETS, len(cells) // 2) for name, of_method in drawn.items()}


def _read(out: Path, paths: list[str]) -> np.ndarray:
    return read_pictures([out / path for path in paths])
