"""How several ways to do one thing are timed on a machine that does other things too.

All run in one process, round by round and in rotating order, and what is reported is the median of the rounds' ratios:
a burst of other work falls on all, and a slow minute on whole rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

__all__ = ["Comparison", "Question", "Stopwatch", "compare", "median_error"]

SAMPLE = 1e-3
"""Seconds that a sample lasts at least: below, it is the clock and the scheduler that one measures."""

Stopwatch = Callable[[int], tuple[float, ...]]
"""Does its thing so many times; returns the seconds that each of its parts took in all."""


@dataclass(frozen=True)
class Question:
    """What a comparison is to tell for certain: the ratio of two ways, and on which side of its bound it is."""

    way: str
    by: str
    bound: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Some ways to do one thing in some parts: the seconds that each part took of each way, round by round. Part −1 is
    the last."""

    samples: Sequence[Mapping[str, tuple[float, ...]]]

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len(self.samples)

    def seconds(self, way: str, part: int = -1) -> float:
        """The median of the rounds."""
        return statistics.median(sample[way][part] for sample in self.samples)

    def ratio(self, way: str, by: str, part: int = -1) -> float:
        """The median over the rounds of one way's time by another's."""
        return statistics.median(self._ratios(way, by, part))

    def error(self, way: str, by: str, part: int = -1) -> float:
        """The standard error of that ratio."""
        return median_error(self._ratios(way, by, part))

    def is_uncertain(self, question: Question) -> bool:
        """Whether the ratio is closer than two standard errors to its bound, or uncertain by more than 2 %."""
        ratio, error = self.ratio(question.way, question.by), self.error(question.way, question.by)
        return error > 0.02 * ratio or (question.bound is not None and abs(ratio - question.bound) < 2 * error)

    def _ratios(self, way: str, by: str, part: int) -> list[float]:
        return [sample[way][part] / sample[by][part] for sample in self.samples]


def compare(
    ways: Mapping[str, Stopwatch], rounds: int, questions: Sequence[Question] = (), at_most: int | None = None
) -> Comparison:
    """Time all for so many rounds, and up to ``at_most`` (by default four times as many) where a question is open."""
    at_most = 4 * rounds if at_most is None else at_most
    repeats = _repeats(ways.values())
    names = list(ways)
    samples: list[dict[str, tuple[float, ...]]] = []
    comparison = Comparison(samples)
    while len(samples) < rounds or (len(samples) < at_most and any(map(comparison.is_uncertain, questions))):
        first = len(samples) % len(names)
        sample = {}
        for name in names[first:] + names[:first]:
            sample[name] = tuple(seconds / repeats for seconds in ways[name](repeats))
        samples.append(sample)
    return comparison


def median_error(values: Sequence[float]) -> float:
    """The standard error of the median, by the spread of the middle half, which outliers leave alone."""
    if len(values) < 2:
        return float("inf")
    quarter, _, three_quarters = statistics.quantiles(values, n=4, method="inclusive")
    return 1.2533 * (three_quarters - quarter) / 1.349 / len(values) ** 0.5


def _repeats(stopwatches: Collection[Stopwatch]) -> int:
    """Warm up; then how often each is done in a sample."""
    for stopwatch in stopwatches:
        stopwatch(2)
    fastest = float("inf")
    for stopwatch in stopwatches:
        start = perf_counter()
        stopwatch(3)
        fastest = min(fastest, (perf_counter() - start) / 3)
    return min(max(round(SAMPLE / fastest), 1), 1000)
