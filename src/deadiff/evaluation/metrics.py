"""The metrics of stylised drawing, as pure functions of features: which network makes the features is encoders.py's business.

N pictures (or pairs), M others, P width of a feature, K classes, C channels of a feature map, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deadiff.errors import DataError

Array = np.ndarray


def cosine(first: Array, second: Array) -> Array:
    """<a, b> / (|a| |b|), row by row: (N, P), (N, P) or (1, P) -> (N,). Raises DataError for other shapes or a zero vector."""
    a, b = (np.atleast_2d(np.asarray(x, np.float64)) for x in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(b) not in (1, len(a)):
        raise DataError(f"features have shapes {a.shape} and {b.shape}: expected (N, P) twice, or (1, P) for the second")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not (norms > 0).all() or not np.isfinite(norms).all():
        raise DataError("a feature is zero or not finite: a cosine needs vectors with a direction")
    return (a * b).sum(1) / norms


def text_alignment(pictures: Array, prompts: Array) -> Array:
    """TA of the paper, CLIP-T elsewhere: cos(CLIP image(picture), CLIP text(prompt)). (N, P), (N, P) -> (N,).

    The prompt is what was asked for, without words for the style.
    """
    return cosine(pictures, prompts)


def style_similarity(pictures: Array, style_words: Array) -> Array:
    """SS of the paper: cos(CLIP image(picture), CLIP text(words for the reference's style)). (N, P), (N, P) -> (N,).

    The words come from the reference alone and hold no content: style_words.py.
    """
    return cosine(pictures, style_words)


def picture_similarity(pictures: Array, references: Array) -> Array:
    """cos(f(picture), f(reference)), (N, P), (N, P) -> (N,): CLIP-I with CLIP's image features, CSD with the style head's.

    CLIP-I rises with shared content as with shared style (the reference pasted back has 1): never read it alone.
    """
    return cosine(pictures, references)


def dino_leakage(pictures: Array, references: Array) -> Array:
    """How much more a drawing resembles its own reference than the other ones: (N, P), (N, P) -> (N,).

        L_i = cos(f(x_i), f(r_i)) - mean over j with r_j != r_i of cos(f(x_i), f(r_j))

    f: DINO's class token, which sees shape and subject more than colour. 0 is chance; the reference pasted back has the most.
    Raises DataError where all references are one, as chance is then unknown.
    """
    own = cosine(pictures, references)
    x, r = (_unit(values) for values in (pictures, references))
    number = np.unique(r.round(9), axis=0, return_inverse=True)[1].reshape(-1)  # equal references, equal number
    same = number[:, None] == number[None]
    if same.all(1).any():
        raise DataError("leakage is measured against other references: expected at least two different ones")
    return own - np.where(same, 0, x @ r.T).sum(1) / (~same).sum(1)


# ---- textures ----


def gram_matrix(maps: Array) -> Array:
    """G_ab = sum over places of F_a F_b / (C * places), (N, C, H, W) -> (N, C, C) (after Gatys et al. 2016)."""
    if maps.ndim != 4:
        raise DataError(f"feature maps have shape {maps.shape}: expected (N, C, H, W)")
    flat = np.asarray(maps, np.float64).reshape(*maps.shape[:2], -1)
    return flat @ flat.transpose(0, 2, 1) / (flat.shape[1] * flat.shape[2])


def gram_distance(maps: Sequence[Array], reference_maps: Sequence[Array]) -> Array:
    """mean over L layers of |G_l(x) - G_l(r)|_F / |G_l(r)|_F, L arrays (N, C, H, W) twice -> (N,). 0: the same texture.

    Relative to the reference's own matrix, so that layers of any scale count the same; sides may differ, channels may not.
    """
    return gram_gap([gram_matrix(x) for x in maps], [gram_matrix(r) for r in reference_maps])


def gram_gap(matrices: Sequence[Array], reference_matrices: Sequence[Array]) -> Array:
    """`gram_distance` of Gram matrices already made: L arrays (N, C, C) twice -> (N,)."""
    if len(matrices) != len(reference_matrices) or not matrices:
        raise DataError(
            f"{len(matrices)} layers against {len(reference_matrices)}: expected the same layers of both, at least one"
        )
    total = np.zeros(len(matrices[0]))
    for a, b in zip(matrices, reference_matrices, strict=True):
        total += np.linalg.norm(a - b, axis=(1, 2)) / np.maximum(np.linalg.norm(b, axis=(1, 2)), 1e-12)
    return total / len(matrices)


# ---- sets of pictures ----


def squared_mmd(features: Array, others: Array, degree: int = 3, coefficient: float = 1.0) -> float:
    """The unbiased estimate of MMD^2 under k(x, y) = (<x, y> / P + coefficient)^degree, (N, P), (M, P) -> number.

        sum_{i != j} k(x_i, x_j) / (N (N - 1)) + sum_{i != j} k(y_i, y_j) / (M (M - 1)) - 2 sum_{i, j} k(x_i, y_j) / (N M)

    Unbiased, so it may fall below 0 for equal sets (Binkowski et al. 2018, equation 4).
    """
    x, y = np.asarray(features, np.float64), np.asarray(others, np.float64)
    n, m = len(x), len(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(n, m) < 2:
        raise DataError(f"features have shapes {x.shape} and {y.shape}: expected (N, P) and (M, P), two rows at least")

    def kernel(a: Array, b: Array) -> Array:
        return (a @ b.T / x.shape[1] + coefficient) ** degree

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid(features: Array, others: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel inception distance: mean and deviation of squared_mmd over random subsets. (N, P), (M, P) -> two numbers.

    Subsets are drawn without replacement and are as large as the smaller set allows, `subset_size` at most.
    """
    size = min(subset_size, len(features), len(others))
    rng = np.random.default_rng(seed)
    found = [
        squared_mmd(features[rng.choice(len(features), size, False)], others[rng.choice(len(others), size, False)])
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


# ---- what a judge says ----


class Leakage(NamedTuple):
    """The test with a known answer: is it the prompt's subject or the reference's? (N,) each."""

    prompt: Array  # the judge's first name is the prompt's subject
    reference: Array  # the judge's first name is the reference's subject: it leaked
    preferred: Array  # the reference's subject is likelier than the prompt's, whatever comes first


def leakage(probabilities: Array, prompt: Sequence[int] | Array, reference: Sequence[int] | Array) -> Leakage:
    """Probabilities (N, K) of subjects, the class asked for and the reference's class -> booleans. DataError where equal."""
    p, asked, shown = np.asarray(probabilities), np.asarray(prompt), np.asarray(reference)
    _check_classes(p, asked)
    _check_classes(p, shown)
    if (asked == shown).any():
        raise DataError(f"{int((asked == shown).sum())} prompts ask for their reference's subject: leakage cannot be told there")
    rows, first = np.arange(len(p)), p.argmax(1)
    return Leakage(first == asked, first == shown, p[rows, shown] > p[rows, asked])


def top(probabilities: Array, target: Sequence[int] | Array, k: int = 1) -> Array:
    """Is the right class among the k likeliest? (N, K), (N,) -> booleans (N,). Ties count against it."""
    p, classes = np.asarray(probabilities), np.asarray(target)
    _check_classes(p, classes)
    right = p[np.arange(len(p)), classes][:, None]
    return (p >= right).sum(1) <= k


def calibration_error(probabilities: Array, target: Sequence[int] | Array, bins: int = 15) -> float:
    """ECE: sum over bins of the largest probability, share of the bin * |accuracy - mean probability| (Guo et al. 2017).

    Bins are equal parts of (0, 1]. (N, K), (N,) -> 0 (honest) to 1.
    """
    p, classes = np.asarray(probabilities, np.float64), np.asarray(target)
    _check_classes(p, classes)
    sure, right = p.max(1), p.argmax(1) == classes
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(right[place == b].mean() - sure[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    return float(np.sum(gaps))


def _unit(features: Array) -> Array:
    x = np.asarray(features, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _check_classes(probabilities: Array, classes: Array) -> None:
    if probabilities.ndim != 2 or classes.shape != probabilities.shape[:1] or not len(classes):
        raise DataError(f"probabilities {probabilities.shape} with classes {classes.shape}: expected (N, K) and (N,)")
    if classes.min() < 0 or classes.max() >= probabilities.shape[1]:
        raise DataError(f"a class is outside 0 to {probabilities.shape[1] - 1}")
