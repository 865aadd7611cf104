"""How two ways to do one thing are timed on a machine that does other things too.

Both run in one process, round by round and in alternating order, and what is reported is the median of the rounds'
ratios: a burst of other work falls on both, and a slow minute on whole rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

__all__ = ["Comparison", "Stopwatch", "compare", "median_error"]

SAMPLE = 1e-3
"""Seconds that a sample lasts at least: below, it is the clock and the scheduler that one measures."""

Stopwatch = Callable[[int], tuple[float, ...]]
"""Does its thing so many times; returns the seconds that each of its parts took in all."""


@dataclass(frozen=True)
class Comparison:
    """Two ways to do one thing in some parts: the medians of the seconds of each, and of the rounds' ratios."""

    ours: tuple[float, ...]
    stock: tuple[float, ...]
    ratios: tuple[float, ...]
    error: float
    """The standard error of the last ratio."""
    rounds: int


def compare(ours: Stopwatch, stock: Stopwatch, rounds: int, bound: float | None = None) -> Comparison:
    """Time both for so many rounds, and up to four times as many where the last ratio is too uncertain: closer than
    two standard errors to its bound, or uncertain by more than 2 %."""
    repeats = _repeats(ours, stock)
    samples: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    while len(samples) < rounds or (len(samples) < 4 * rounds and _is_uncertain(samples, bound)):
        if len(samples) % 2:
            mine, torchs = ours(repeats), stock(repeats)
        else:
            torchs, mine = stock(repeats), ours(repeats)
        samples.append((mine, torchs))
    medians = [
        tuple(statistics.median(part) / repeats for part in zip(*(s[i] for s in samples), strict=True)) for i in (0, 1)
    ]
    ratios = list(zip(*map(_ratios, samples), strict=True))
    return Comparison(
        ours=medians[0],
        stock=medians[1],
        ratios=tuple(statistics.median(part) for part in ratios),
        error=median_error(ratios[-1]),
        rounds=len(samples),
    )


def median_error(values: Sequence[float]) -> float:
    """The standard error of the median, by the spread of the middle half, which outliers leave alone."""
    if len(values) < 2:
        return float("inf")
    quarter, _, three_quarters = statistics.quantiles(values, n=4, method="inclusive")
    return 1.2533 * (three_quarters - quarter) / 1.349 / len(values) ** 0.5


def _repeats(*stopwatches: Stopwatch) -> int:
    """Warm up; then how often each is done in a sample."""
    for stopwatch in stopwatches:
        stopwatch(2)
    fastest = float("inf")
    for stopwatch in stopwatches:
        start = perf_counter()
        stopwatch(3)
        fastest = min(fastest, (perf_counter() - start) / 3)
    return min(max(round(SAMPLE / fastest), 1), 1000)


def _ratios(sample: tuple[tuple[float, ...], tuple[float, ...]]) -> list[float]:
    return [mine / torchs for mine, torchs in zip(*sample, strict=True)]


def _is_uncertain(samples: Sequence[tuple[tuple[float, ...], tuple[float, ...]]], bound: float | None) -> bool:
    last = [_ratios(sample)[-1] for sample in samples]
    ratio, error = statistics.median(last), median_error(last)
    return error > 0.02 * ratio or (bound is not None and abs(ratio - bound) < 2 * error)
