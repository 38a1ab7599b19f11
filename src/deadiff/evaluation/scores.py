"""Pictures -> scores. A scorer sees each picture once and gives a number for each (picture, reference, prompt).

The icons world is measured by its own judges; the columns say what each number means, which way is better and what chance gives.
N shots, M different pictures among them, S side in pixels, D width of a style feature, K subjects named in the evaluation,
L layers of C channels whose textures are compared.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from deadiff.errors import DataError
from deadiff.evaluation.metrics import gram_gap, gram_matrix
from deadiff.evaluation.reference_set import StyleReference

BATCH = 256  # pictures read at once


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score, for tables and verdicts."""

    name: str
    title: str
    better: str  # "higher" | "lower"
    explains: str  # one line: what the number is


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture and what it was asked to be."""

    picture: Path
    reference: StyleReference
    reference_picture: Path
    prompt: str
    subject: str = ""  # the prompt's, a hexcode; "" where unknown


class Scorer(Protocol):
    """Scores shots. `name` tells one set of judges from another; `columns` name the scores, style and text first."""

    name: str
    columns: tuple[Column, ...]

    def score(self, shots: Sequence[Shot], progress: Callable[[int, int], None] | None = None) -> dict[str, np.ndarray]:
        """column -> (N,), NaN where a score does not apply."""
        ...


class SubjectAndStyle(Protocol):
    """What the icons scorer asks of its judges (deadiff.evaluation.judges.Judges)."""

    @property
    def subjects(self) -> Sequence[str]: ...
    @property
    def styles(self) -> Sequence[str]: ...
    def subject(self, pictures: np.ndarray) -> np.ndarray: ...
    def style(self, pictures: np.ndarray) -> np.ndarray: ...
    def style_features(self, pictures: np.ndarray) -> np.ndarray: ...


ICONS_COLUMNS = (
    Column(
        name="style",
        title="SS: style like the reference's",
        better="higher",
        explains="cosine of the style judge's features of picture and reference; it knows unseen styles too",
    ),
    Column(
        name="text",
        title="TA: the prompt's subject",
        better="higher",
        explains="the subject judge's probability of the prompt's subject, among the subjects that prompts and references name",
    ),
    Column(
        name="leak",
        title="leak: the reference's subject",
        better="lower",
        explains="the same probability for the reference's subject, which no prompt asks for",
    ),
    Column(
        name="leak_wins",
        title="leak wins",
        better="lower",
        explains="share of pictures that look more like the reference's subject than like the prompt's",
    ),
    Column(
        name="style_hit",
        title="style named",
        better="higher",
        explains="share of pictures whose style the judge calls by the reference's own name, among all styles it knows",
    ),
    Column(
        name="text_hit",
        title="subject named",
        better="higher",
        explains="share of pictures whose subject the judge calls by the prompt's name, among all subjects it knows",
    ),
)

GRAM = Column(
    name="gram",
    title="Gram distance to the reference",
    better="lower",
    explains="difference of textures in the eyes of a network of photographs, which has seen none of our pictures; 0: the same",
)


class Textures(Protocol):
    """What the Gram distance asks of its network (deadiff.evaluation.encoders.MobileNetEncoder)."""

    @property
    def name(self) -> str: ...
    def maps(self, pictures: np.ndarray) -> list[np.ndarray]: ...


class IconsScorer:
    """The icons world's judges as a scorer. Raises DataError where a prompt's subject is none the judges know."""

    def __init__(
        self, judges: SubjectAndStyle, named: Sequence[str], name: str = "icons judges", textures: Textures | None = None
    ) -> None:
        """named: the subjects (hexcodes) of all prompts and references; text and leak are probabilities among these.

        textures: adds the Gram distance.
        """
        self.judges, self.textures = judges, textures
        self.columns = (*ICONS_COLUMNS, GRAM) if textures else ICONS_COLUMNS
        known = {subject: i for i, subject in enumerate(judges.subjects)}
        if unknown := sorted({subject for subject in named if subject and subject not in known}):
            raise DataError(f"the judges know no subject {unknown[0]!r}: expected hexcodes of their {len(known)} subjects")
        self.named = sorted({subject for subject in named if subject})
        if not self.named:
            raise DataError("no prompt names a subject that judges could look for: give [prompts] as text = hexcode")
        self.numbers = np.array([known[subject] for subject in self.named])  # (K,)
        self.styles = {style: i for i, style in enumerate(judges.styles)}
        self.name = f"{name} {hashlib.sha256('|'.join(self.named).encode()).hexdigest()[:8]}"
        if textures:
            self.name += f" and {textures.name}"

    def score(self, shots: Sequence[Shot], progress: Callable[[int, int], None] | None = None) -> dict[str, np.ndarray]:
        paths = list(dict.fromkeys([*(shot.picture for shot in shots), *(shot.reference_picture for shot in shots)]))
        place = {path: i for i, path in enumerate(paths)}
        seen = [self._see(part) for part in _parts(paths, BATCH, progress)]
        features, chances, styles, tops, *grams = (np.concatenate(column) for column in zip(*seen, strict=True))
        column = {subject: i for i, subject in enumerate(self.named)}

        def chance(i: int, subject: str) -> float:
            return float(chances[i, column[subject]]) if subject in column else np.nan

        rows: dict[str, list[float]] = {c.name: [] for c in self.columns}
        for shot in shots:
            i, reference = place[shot.picture], place[shot.reference_picture]
            asked, leaked = chance(i, shot.subject), chance(i, shot.reference.subject)
            known_style, known_subject = shot.reference.style in self.styles, shot.subject in column
            rows["style"].append(float(features[i] @ features[reference]))
            rows["text"].append(asked)
            rows["leak"].append(leaked)
            rows["leak_wins"].append(np.nan if np.isnan(asked + leaked) else float(leaked > asked))
            rows["style_hit"].append(float(styles[i] == self.styles[shot.reference.style]) if known_style else np.nan)
            rows["text_hit"].append(float(tops[i] == self.numbers[column[shot.subject]]) if known_subject else np.nan)
        if self.textures:
            own = [place[shot.picture] for shot in shots]
            shown = [place[shot.reference_picture] for shot in shots]
            rows["gram"] = list(gram_gap([g[own] for g in grams], [g[shown] for g in grams]))
        return {name: np.array(values, np.float64) for name, values in rows.items()}

    def _see(self, paths: Sequence[Path]) -> tuple[np.ndarray, ...]:
        """Style features (M, D), chances of the named subjects (M, K), numbers of style and subject (M,), L Grams (M, C, C)."""
        pictures = read_pictures(paths)
        features = self.judges.style_features(pictures)
        subjects = self.judges.subject(pictures)
        among = subjects[:, self.numbers]
        among = among / np.maximum(among.sum(1, keepdims=True), 1e-30)
        grams = [gram_matrix(x).astype(np.float32) for x in self.textures.maps(pictures)] if self.textures else []
        return features, among, self.judges.style(pictures).argmax(1), subjects.argmax(1), *grams


def digest_of(folder: Path) -> str:
    """Eight hexadecimal digits of the judges' files: scores of other weights are never mixed with theirs."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def read_pictures(paths: Sequence[Path], side: int | None = None) -> np.ndarray:
    """(N, S, S, 3) uint8 RGB; S is the first picture's width unless given, others are resized to it."""
    found = []
    for path in paths:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        side = side or picture.width
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        found.append(np.asarray(picture))
    return np.stack(found)


def _parts(items: Sequence[Any], size: int, progress: Callable[[int, int], None] | None) -> Any:
    for start in range(0, len(items), size):
        yield items[start : start + size]
        if progress is not None:
            progress(min(start + size, len(items)), len(items))
