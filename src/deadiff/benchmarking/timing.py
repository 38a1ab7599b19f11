"""Fair timings: variants interleaved in rounds, so that a slow minute falls on all of them; medians with their spread."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deadiff.errors import ConfigError

Step = Callable[[], object]
Variant = Callable[[], AbstractContextManager[Step]]  # entering prepares the model and gives the step to time
Tick = Callable[[str], None]  # told the name of what comes next

SHORTEST = 0.25  # s, of one sample: a faster step is called several times
LONG = 2.0  # s; the first call of so long a step needs no repetition: what happens once costs milliseconds
RESAMPLES = 2000  # of the bootstrap


class Sample(NamedTuple):
    """One step, on the average of a sample's calls."""

    seconds: float  # by the wall clock
    cpu_seconds: float  # of this process, all its threads: what other programs take of the machine does not count


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Seconds of one step, or a ratio, over the rounds."""

    median: float
    q1: float  # lower and upper quartile
    q3: float
    least: float
    greatest: float
    samples: list[float]  # in the order of the rounds


@dataclass(frozen=True, kw_only=True)
class Ratio(Summary):
    """a / b of the same round, over the rounds."""

    low: float  # 95 % bootstrap interval of the median; with few rounds it is the range
    high: float


def order(names: Sequence[str], round_number: int) -> list[str]:
    """Who comes first changes, and every second round runs backwards: no variant always follows the same one."""
    shift = round_number // 2 % len(names)
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if round_number % 2 else rotated


def interleave(
    variants: Mapping[str, Variant],
    rounds: int,
    *,
    sync: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    tick: Tick = lambda name: None,
) -> dict[str, list[Sample]]:
    """Name -> one sample a round. Every variant is warmed up first, unless the first one shows that steps are long.

    sync: waits until the device has finished. The swap from one variant to the next is not timed.
    """
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}: expected at least 1")

    def sample(name: str, calls: int) -> Sample:
        tick(name)
        with variants[name]() as step:
            sync()
            start, cpu_start = clock(), cpu_clock()
            for _ in range(calls):
                step()
            sync()
            return Sample((clock() - start) / calls, (cpu_clock() - cpu_start) / calls)

    longest = 0.0
    for name in variants:
        longest = sample(name, 1).seconds
        if longest > LONG:
            break
        longest = sample(name, 2).seconds
    calls = max(1, math.ceil(SHORTEST / max(longest, 1e-6)))

    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in order(list(variants), number):
            samples[name].append(sample(name, calls))
    return samples


def quickest(run: Step, sync: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of run(), the less of two calls; of one where it is long."""
    best = math.inf
    for _ in range(2):
        sync()
        start = clock()
        run()
        sync()
        best = min(best, clock() - start)
        if best > LONG:
            break
    return best


def summarize(samples: Sequence[float]) -> Summary:
    """Seconds, one a round -> median, quartiles, range."""
    return Summary(**_spread(samples))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Both of the same rounds -> the median of the rounds' ratios with its bootstrap interval."""
    if len(numerator) != len(denominator) or not numerator:
        raise ConfigError(f"{len(numerator)} and {len(denominator)} timings cannot be paired: expected one of each a round")
    ratios = np.array(numerator) / np.array(denominator)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return Ratio(**_spread(ratios.tolist()), low=float(low), high=float(high))


def _spread(samples: Sequence[float]) -> dict:
    if not samples:
        raise ConfigError("no timings to summarize: expected at least one round")
    q1, median, q3 = np.quantile(samples, (0.25, 0.5, 0.75)).tolist()
    assert math.isclose(median, statistics.median(samples))
    return {"median": median, "q1": q1, "q3": q3, "least": min(samples), "greatest": max(samples), "samples": list(samples)}
