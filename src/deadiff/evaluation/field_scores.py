"""The field's own scores for big models: CLIP, CSD, DINO and LAION's aesthetic head, loaded from paths or the hub.

N shots, M different pictures, P width of a feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deadiff.errors import DataError
from deadiff.evaluation.metrics import dino_leakage, picture_similarity, style_similarity, text_alignment
from deadiff.evaluation.scores import Column, Shot
from deadiff.evaluation.style_words import find_style_words

BATCH = 64  # pictures read at once
COLUMNS = {
    "style": (
        "SS: CLIP, words for the style",
        "higher",
        "cosine of CLIP's picture and of words for the reference's style (paper)",
    ),
    "text": ("TA: CLIP, prompt", "higher", "cosine of CLIP's picture and the prompt (paper; CLIP-T elsewhere)"),
    "quality": ("IQ: LAION aesthetic", "higher", "LAION's aesthetic predictor v2, 1 to 10 (paper)"),
    "csd": ("CSD", "higher", "cosine of the style descriptors of picture and reference (Somepalli et al. 2024)"),
    "clip_i": ("CLIP-I", "higher", "cosine of CLIP's pictures: rises with shared content too, never read it alone"),
    "leak": ("DINO leakage", "lower", "how much more the picture resembles its own reference than the others, in DINO's eyes"),
}


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What to look through: CLIP always, the others where given."""

    clip: Any
    csd: Any = None
    dino: Any = None
    aesthetic: Any = None

    @classmethod
    def load(cls, clip: str, csd: Path | None, dino: str | None, aesthetic: Path | None) -> "Encoders":
        """Paths or hub ids. Raises CheckpointError."""
        from deadiff.evaluation.encoders import AestheticHead, ClipEncoder, CsdEncoder, DinoEncoder

        return cls(
            clip=ClipEncoder.from_pretrained(clip),
            csd=CsdEncoder.from_file(csd) if csd else None,
            dino=DinoEncoder.from_pretrained(dino) if dino else None,
            aesthetic=AestheticHead.from_file(aesthetic) if aesthetic else None,
        )


class FieldScorer:
    """SS, TA, CLIP-I, and with the encoders given IQ, CSD and DINO leakage. A Scorer."""

    def __init__(self, encoders: Encoders) -> None:
        self.encoders = encoders
        present = {"quality": encoders.aesthetic, "csd": encoders.csd, "leak": encoders.dino}
        names = [name for name in COLUMNS if name not in present or present[name] is not None]
        self.columns = tuple(
            Column(name=name, title=COLUMNS[name][0], better=COLUMNS[name][1], explains=COLUMNS[name][2]) for name in names
        )
        used = [encoders.clip, *(e for e in (encoders.csd, encoders.dino) if e is not None)]
        self.name = ", ".join(str(encoder.name) for encoder in used) + (", LAION aesthetic v2" if encoders.aesthetic else "")

    def score(self, shots: Sequence[Shot], progress: Callable[[int, int], None] | None = None) -> dict[str, np.ndarray]:
        references = list(dict.fromkeys(shot.reference_picture for shot in shots))
        paths = list(dict.fromkeys([*(shot.picture for shot in shots), *references]))
        place = {path: i for i, path in enumerate(paths)}
        mine = [place[shot.picture] for shot in shots]
        theirs = [place[shot.reference_picture] for shot in shots]
        e = self.encoders
        clip = _features(e.clip, paths, progress)
        prompts = list(dict.fromkeys(shot.prompt for shot in shots))
        said = dict(zip(prompts, e.clip.texts(prompts), strict=True))
        words = self._style_words(shots, {path: clip[place[path]] for path in references})
        found = {
            "style": style_similarity(clip[mine], np.stack([words[shot.reference_picture] for shot in shots])),
            "text": text_alignment(clip[mine], np.stack([said[shot.prompt] for shot in shots])),
            "clip_i": picture_similarity(clip[mine], clip[theirs]),
        }
        if e.aesthetic is not None:
            found["quality"] = e.aesthetic.score(clip)[mine]
        if e.csd is not None:
            csd = _features(e.csd, paths, progress)
            found["csd"] = picture_similarity(csd[mine], csd[theirs])
        if e.dino is not None:
            dino = _features(e.dino, paths, progress)
            found["leak"] = dino_leakage(dino[mine], dino[theirs])
        return {column.name: np.asarray(found[column.name], np.float64) for column in self.columns}

    def _style_words(self, shots: Sequence[Shot], features: dict[Path, np.ndarray]) -> dict[Path, np.ndarray]:
        """CLIP's feature of the words for each reference's style; words for what it shows are left out."""
        labels = {shot.reference_picture: shot.reference.label for shot in shots}
        chains = {path: find_style_words(features[path], self.encoders.clip.texts, [labels[path]]) for path in labels}
        return {path: self.encoders.clip.texts([", ".join(chain)])[0] for path, chain in chains.items()}


def _features(encoder: Any, paths: Sequence[Path], progress: Callable[[int, int], None] | None) -> np.ndarray:
    """(M, P) in the order of the paths."""
    if not paths:
        raise DataError("there are no pictures to score")
    parts = []
    for start in range(0, len(paths), BATCH):
        pictures = []
        for path in paths[start : start + BATCH]:
            with Image.open(path) as file:
                pictures.append(np.asarray(file.convert("RGB")))
        parts.append(encoder.pictures(pictures))
        if progress is not None:
            progress(min(start + BATCH, len(paths)), len(paths))
    return np.concatenate(parts)
