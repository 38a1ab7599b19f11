"""Bradley-Terry strengths of methods from pairwise votes, with bootstrap intervals.

The model: P(i is preferred to j) = w_i / (w_i + w_j). A tie counts as half a vote for each side. The maximum of the likelihood is
found by Hunter's MM iteration (Annals of Statistics 32, 2004, eq. 3): w_i <- W_i / sum_j n_ij / (w_i + w_j).

K methods, N votes, R resamples.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from deadiff.errors import DataError
from deadiff.evaluation.intervals import LEVEL, RESAMPLES, Interval, resampled_weights

PRIOR = 0.5  # virtual votes for and against an average opponent: keeps a method that always wins finite
TOLERANCE, MOST_ITERATIONS = 1e-9, 20_000


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One answer: how much of the vote goes to `first` (1, 0, or 0.5 for a tie), and whose it is about what."""

    first: str
    second: str
    share: float
    voter: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise DataError(f"a vote compares {self.first!r} with itself: expected two methods")
        if not 0 <= self.share <= 1:
            raise DataError(f"a vote gives {self.share!r} to its first picture: expected 0, 0.5 or 1")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method's place: log strength (mean 0 over the methods) and its chance against an average one of the others."""

    method: str
    strength: Interval
    preferred: Interval
    votes: int


def fit(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """wins (..., K, K), [i, j] = votes for i against j -> log strengths (..., K) of mean 0.

    Raises DataError where no finite answer exists: without a prior, a method that only wins or only loses has none.
    """
    wins = np.asarray(wins, np.float64)
    met = wins + np.swapaxes(wins, -1, -2)  # n_ij
    won = wins.sum(-1) + prior
    if (won <= 0).any() or (met.sum(-1) - wins.sum(-1) + prior <= 0).any():
        raise DataError("a method has won or lost every vote: a Bradley-Terry strength needs both, or a prior above 0")
    w = np.ones(wins.shape[:-1])
    for _ in range(MOST_ITERATIONS):
        against = (met / (w[..., :, None] + w[..., None, :])).sum(-1) + 2 * prior / (w + 1)  # the virtual opponent has w = 1
        new = won / against
        moved = np.abs(np.log(new / w)).max()
        w = new
        if moved < TOLERANCE:
            break
    logs = np.log(w)
    return logs - logs.mean(-1, keepdims=True)


def preferred(logs: np.ndarray) -> np.ndarray:
    """(..., K) log strengths -> (..., K) mean probability of being preferred to one of the others."""
    count = logs.shape[-1]
    chance = 1 / (1 + np.exp(logs[..., None, :] - logs[..., :, None]))  # [i, j] = P(i over j)
    return (chance.sum(-1) - 0.5) / (count - 1)


def standings(
    votes: Sequence[Vote], *, prior: float = PRIOR, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> list[Standing]:
    """The methods from the most to the least preferred. Intervals resample voters and references, since votes of one
    voter, and votes about one reference, are not independent. Raises DataError for no votes."""
    if not votes:
        raise DataError("there are no votes: expected at least one answered question")
    methods = sorted({m for vote in votes for m in (vote.first, vote.second)})
    number = {name: i for i, name in enumerate(methods)}
    count = len(methods)
    design = np.zeros((len(votes), count * count))  # a vote's contribution to `wins`
    for row, vote in enumerate(votes):
        i, j = number[vote.first], number[vote.second]
        design[row, i * count + j] = vote.share
        design[row, j * count + i] = 1 - vote.share

    def strengths(weights: np.ndarray) -> np.ndarray:
        return fit((weights @ design).reshape(-1, count, count), prior)

    columns = [[vote.voter for vote in votes], [vote.reference for vote in votes]]
    clusters: list[Sequence[Hashable]] = [names for names in columns if len(set(names)) > 1]
    best = strengths(np.ones((1, len(votes))))
    drawn = np.concatenate([strengths(w) for w in resampled_weights(len(votes), clusters, resamples, seed)])

    def interval(estimate: np.ndarray, sample: np.ndarray) -> Interval:
        low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
        return Interval(estimate=float(estimate), low=float(low), high=float(high), level=level, count=len(votes))

    found = [
        Standing(
            method=name,
            strength=interval(best[0, i], drawn[:, i]),
            preferred=interval(preferred(best)[0, i], preferred(drawn)[:, i]),
            votes=sum(name in (vote.first, vote.second) for vote in votes),
        )
        for i, name in enumerate(methods)
    ]
    return sorted(found, key=lambda s: -s.strength.estimate)
