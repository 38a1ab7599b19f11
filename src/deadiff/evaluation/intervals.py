"""Bootstrap intervals for scores of pictures that share references and prompts.

Two pictures of one reference are not two independent observations, nor are two of one prompt. Resampling whole references and
whole prompts keeps the dependence: the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1(2)). With one clustering
it is the ordinary cluster bootstrap, with none the ordinary bootstrap.

N scores, R resamples.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deadiff.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 4_000_000  # numbers held at once

Clusters = Sequence[Sequence[Hashable]]  # one sequence of N names a clustering, such as (references, prompts)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its percentile interval."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL
    count: int = 0  # scores behind it

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float]:
        return {"estimate": self.estimate, "low": self.low, "high": self.high, "level": self.level, "count": self.count}


def mean(
    values: Sequence[float] | np.ndarray,
    *clusters: Sequence[Hashable],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of N scores. `mean(scores, references, prompts)` resamples both; hits and misses as 1 and 0 give a share.

    Raises DataError for no scores, scores that are not finite, or clusters of another length.
    """
    scores = _scores(values)
    return statistic(lambda weights: weights @ scores / weights.sum(1), len(scores), clusters, level, resamples, seed)


def difference(
    values: Sequence[float] | np.ndarray,
    others: Sequence[float] | np.ndarray,
    *clusters: Sequence[Hashable],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """mean(values) - mean(others), paired: score i of both comes from the same reference, prompt and seed."""
    first, second = _paired(values, others)
    return mean(first - second, *clusters, level=level, resamples=resamples, seed=seed)


def ratio(
    values: Sequence[float] | np.ndarray,
    others: Sequence[float] | np.ndarray,
    *clusters: Sequence[Hashable],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """mean(values) / mean(others), paired, such as prompt fidelity with a reference over that of the plain base.

    Raises DataError where the mean of `others` is not above 0; a resample in which it is not counts as infinite.
    """
    first, second = _paired(values, others)
    if second.mean() <= 0:
        raise DataError(
            f"a ratio to a mean of {second.mean():.3g} says nothing: expected a mean above 0; report the difference instead"
        )

    def of(weights: np.ndarray) -> np.ndarray:
        below = weights @ second
        return np.divide(weights @ first, below, out=np.full(len(weights), np.inf), where=below > 0)

    return statistic(of, len(first), clusters, level, resamples, seed)


def statistic(
    of: Callable[[np.ndarray], np.ndarray],
    count: int,
    clusters: Clusters = (),
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile interval of any statistic of weighted scores: `of` maps weights (R, count) to values (R,).

    All weights 1 give the estimate. A weight says how often that score was drawn.
    """
    if count < 1:
        raise DataError("there are no scores: an interval needs at least one")
    if not 0 < level < 1:
        raise DataError(f"level = {level} is no share: expected one between 0 and 1, such as 0.95")
    estimate = float(of(np.ones((1, count)))[0])
    drawn = np.concatenate([of(weights) for weights in resampled_weights(count, clusters, resamples, seed)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(estimate=estimate, low=float(low), high=float(high), level=level, count=count)


def resampled_weights(count: int, clusters: Clusters = (), resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Weights (r, count) of `resamples` resamples in all, a chunk at a time.

    Each clustering draws as many of its clusters as it has, with replacement; a score's weight is the product of how often its
    clusters were drawn. Resamples that draw no score at all (they exist where the design is sparse) are drawn again.
    """
    indices = [_index(names, count) for names in clusters] or [np.arange(count)]
    rng = np.random.default_rng(seed)
    left, step = resamples, max(1, CHUNK // count)
    while left:
        weights = np.ones((min(left, step), count))
        for index in indices:
            sizes = int(index.max()) + 1
            weights *= rng.multinomial(sizes, np.full(sizes, 1 / sizes), size=len(weights))[:, index]
        weights = weights[weights.sum(1) > 0]
        left -= len(weights)
        yield weights


def _index(names: Sequence[Hashable], count: int) -> np.ndarray:
    """Names -> numbers from 0, in order of appearance."""
    if len(names) != count:
        raise DataError(f"{len(names)} cluster names for {count} scores: expected one name a score")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


def _scores(values: Sequence[float] | np.ndarray) -> np.ndarray:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise DataError(f"scores have shape {scores.shape}: expected a list of at least one number")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite: leave those pictures out")
    return scores


def _paired(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _scores(values), _scores(others)
    if len(first) != len(second):
        raise DataError(f"{len(first)} scores against {len(second)}: expected pairs of the same reference, prompt and seed")
    return first, second
