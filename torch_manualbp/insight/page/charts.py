"""The geometry of the charts: places in per cent, so that a chart is as wide as there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch_manualbp.insight.page.history import CHARTS, SHARES, Chart, Moment, layers_in, title_of
from torch_manualbp.insight.page.numbers import shown

__all__ = ["FLAT", "Scale", "by_layer", "by_step", "sparkline"]

MOST_POINTS = 240
"""Steps of a line; of a longer run every second is left out, or more."""


FLAT = 3
"""Numbers that differ by less than this factor are of one order of magnitude, and their axis begins at 0."""


@dataclass(frozen=True)
class Scale:
    """From a number to a place between 0 and 100, by size or by order of magnitude."""

    low: float
    high: float
    is_logarithmic: bool

    def place(self, value: float | None) -> float | None:
        """None where it has none: what is unknown or not finite, and 0 by order of magnitude."""
        if value is None or not math.isfinite(value) or (self.is_logarithmic and value <= 0):
            return None
        if self.is_logarithmic:
            value = math.log10(value)
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """At most six places with their numbers."""
        if not self.is_logarithmic:
            marks = [self.low + (self.high - self.low) * i / 4 for i in range(5)]
            return [(25.0 * i, shown(mark, 3)) for i, mark in enumerate(marks)]
        every = max(1, math.ceil((self.high - self.low) / 5))
        powers = range(int(self.low), int(self.high) + 1, every)
        return [(100 * (p - self.low) / (self.high - self.low), _power(p)) for p in powers]


def _power(p: int) -> str:
    return shown(10.0**p, 4) if -4 < p < 4 else shown(10.0**p, 1).removeprefix("1·")


def scale_of(values: Iterable[float | None], is_share: bool = False) -> Scale | None:
    """A scale for all of them; None where there is nothing to draw."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return None
    if is_share:
        return Scale(0.0, 1.0, False)
    positive = [v for v in finite if v > 0]
    if not positive or min(finite) < 0:
        return Scale(min(finite), max(finite) if max(finite) > min(finite) else min(finite) + 1, False)
    if max(positive) < FLAT * min(positive):
        return Scale(0.0, _round_above(max(positive)), False)
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return Scale(float(low), float(max(high, low + 1)), True)


def _round_above(value: float) -> float:
    """1, 2, 4, 6 or 8 times a power of ten, at least the value: a fourth of it has few digits."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(n * power for n in (1, 2, 4, 6, 8, 10, 20) if n * power >= value)


def by_layer(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """Each chart that the last step has numbers for: a row for each layer."""
    now = moments[-1]
    return [drawn for chart in CHARTS if (drawn := _dots(chart, now)) is not None]


def _dots(chart: Chart, now: Moment) -> dict[str, Any] | None:
    values = [layer.get(what) for layer in now.layers.values() for what in chart.names]
    scale = scale_of(values, chart.dot in SHARES)
    if scale is None:
        return None

    def place(layer: str, what: str | None) -> float | None:
        return None if what is None else scale.place(now.layers[layer].get(what))

    def band(layer: str) -> list[float | None]:
        """The two ends and the median. A band from 0 begins at the edge."""
        low, median, high = (place(layer, what) for what in chart.band or (None,) * 3)
        begins_at_0 = chart.band is not None and now.layers[layer].get(chart.band[0]) == 0
        return [0.0 if low is None and begins_at_0 else low, median, high]

    rows = [
        {
            "name": name,
            "dot": place(name, chart.dot),
            "band": band(name),
            "second": place(name, chart.second),
            "told": ", ".join(f"{title_of(what)} {shown(layer[what], 4)}" for what in chart.names if what in layer),
        }
        for name, layer in now.layers.items()
    ]
    return {
        "chart": chart,
        "titles": {what: title_of(what) for what in chart.names},
        "rows": rows,
        "ticks": scale.ticks(),
        "height": 20 * len(rows),
        "beyond": math.inf in values,
    }


def by_step(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """How the cost, and what each chart has dots for of every layer, went over the steps."""
    if len(moments) < 2:
        return []
    drawn = [_lines("The cost", "C", moments, [("C", lambda m: m.loss)])]
    drawn.append(_lines("Noise scale of the run", "tr Σ / |G|²", moments, [("noise scale", lambda m: m.noise_scale)]))
    names = layers_in(moments)
    for chart in CHARTS:
        for what in filter(None, (chart.dot, chart.second)):
            title = f"{title_of(what).capitalize()} units" if what in SHARES else chart.title
            series = [(name, _of(name, what)) for name in names]
            drawn.append(_lines(title, title_of(what), moments, series, is_share=what in SHARES))
    return [lines for lines in drawn if lines is not None]


def _of(layer: str, what: str) -> Callable[[Moment], float | None]:
    return lambda moment: moment.layers.get(layer, {}).get(what)


def _lines(
    title: str,
    meaning: str,
    moments: Sequence[Moment],
    series: list[tuple[str, Callable[[Moment], float | None]]],
    is_share: bool = False,
) -> dict[str, Any] | None:
    thinned = _thinned(moments)
    values = [[of(moment) for moment in thinned] for _, of in series]
    scale = scale_of((v for line in values for v in line), is_share)
    if scale is None:
        return None
    first, last = moments[0].step, moments[-1].step
    across = [100 * (moment.step - first) / max(1, last - first) for moment in thinned]
    lines = []
    for i, ((name, _), line) in enumerate(zip(series, values, strict=True)):
        depth = 100 * i / max(1, len(series) - 1)
        lines.append({"name": name, "depth": f"{depth:.0f}%", "runs": _runs(across, [scale.place(v) for v in line])})
    return {
        "title": title,
        "meaning": meaning,
        "lines": lines,
        "ticks": scale.ticks(),
        "steps": [first, last],
        "told": f"{title}, {meaning}, from step {first} to step {last}",
    }


def _thinned(moments: Sequence[Moment]) -> Sequence[Moment]:
    every = math.ceil(len(moments) / MOST_POINTS)
    return moments if every == 1 else [*moments[:-1:every], moments[-1]]


def _runs(across: Sequence[float], places: Sequence[float | None]) -> list[str]:
    """The line in pieces, broken where nothing is known; a number alone is a dot."""
    runs: list[list[str]] = [[]]
    for x, y in zip(across, places, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{x:.5g},{100 - y:.5g}")
    return [" ".join(run if len(run) > 1 else run * 2) for run in runs if run]


def sparkline(values: Sequence[float | None]) -> str:
    """The points of a small line, 64 wide and 16 high; empty where there are fewer than two numbers."""
    every = max(1, math.ceil(len(values) / 64))
    thinned = values if every == 1 else [*values[:-1:every], values[-1]]
    finite = [v for v in thinned if v is not None and math.isfinite(v)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    if low > 0 and high / low > 20:
        scale = Scale(math.log10(low), math.log10(high), True)
    else:
        scale = Scale(low, high, False) if high > low else Scale(low - 1, low + 1, False)
    places = [scale.place(v) for v in thinned]
    return " ".join(
        f"{2 + 60 * i / (len(places) - 1):.1f},{14 - 12 * y / 100:.1f}" for i, y in enumerate(places) if y is not None
    )
