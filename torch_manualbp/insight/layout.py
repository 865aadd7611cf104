"""Where the neurons of a small network stand, and the numbers of its lines: for the page and for the picture alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch_manualbp.insight.page.numbers import shown

__all__ = ["Layout", "Place", "layout_of"]

Place = tuple[float, float]
Line = tuple[int, int, int]
"""That of w_jk⁽ᶜ⁾: c, j and k, from 1 and from 0 and 0."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

MOST_IN_COLUMN = 6
"""Neurons of a column that have room for their numbers."""

MOST_LINES = 12
"""Between two columns, if their lines are to have numbers."""

DOWNS, ACROSS = (106, 130, 155), (150, 184, 210, 240, 270, 300)
"""Distances between neurons, and between columns, to be tried until every line has room for its numbers."""

LETTER = 6.8
"""The width of a digit."""

DOWN, LINE = 27, 15
"""The height of the two numbers of a line, and of one number below a neuron."""

RADIUS = 23
"""The radius of neurons that have their numbers below them."""


@dataclass(frozen=True)
class Layout:
    """The places of a drawing, in pixels."""

    width: float
    height: float
    radius: float
    is_roomy: bool
    """Whether neurons have their numbers below them."""

    places: tuple[tuple[Place, ...], ...]
    """The neurons, column by column."""

    cost: Place
    labels: Mapping[Line, Place]
    """The middle of the numbers of a line: no other line, no neuron and no other numbers are there. Where a line
    between two columns has no such place, none of these lines has."""

    def ends(self, c: int, j: int, k: int) -> tuple[Place, Place]:
        """Where the line of w_jk⁽ᶜ⁾ begins and ends, at the edges of its neurons."""
        (x, y), (u, v) = self.places[c - 1][k], self.places[c][j]
        far = math.hypot(u - x, v - y)
        dx, dy = (u - x) / far * self.radius, (v - y) / far * self.radius
        return (x + dx, y + dy), (u - dx, v - dy)

    def as_dict(self) -> dict[str, Any]:
        """As the page's script reads it."""
        return {
            "width": round(self.width, 1),
            "height": round(self.height, 1),
            "radius": round(self.radius, 2),
            "roomy": self.is_roomy,
            "places": [[[round(x, 1), round(y, 1)] for x, y in column] for column in self.places],
            "cost": [round(v, 1) for v in self.cost],
            "labels": {f"{c}-{j}-{k}": [round(x, 1), round(y, 1)] for (c, j, k), (x, y) in self.labels.items()},
        }


def layout_of(network: Mapping[str, Any]) -> Layout:
    """The drawing of what :func:`~torch_manualbp.insight.page.data.network_data` gives."""
    counts = [column["n"] for column in network["columns"]]
    most, gaps = max(counts), len(counts) - 1
    if most > MOST_IN_COLUMN:
        across, down = max(90.0, min(190.0, 740 / (gaps + 1))), max(6.5, min(44.0, 500 / most))
        return _placed(counts, [across] * gaps, down, max(2.6, min(13.0, 190 / most)), is_roomy=False)
    narrow = max(108.0, min(184.0, 552 / gaps))
    widths = _widths_of_labels(network)
    few = {c for c in range(1, gaps + 1) if counts[c - 1] * counts[c] <= MOST_LINES}
    best: tuple[int, Layout] | None = None
    for down in DOWNS:
        found = {c: gap for c in few if (gap := _labelled_gap(network, counts, c, down, widths)) is not None}
        if best is None or len(found) > best[0]:
            layout = _placed(counts, [found.get(c, narrow) for c in range(1, gaps + 1)], down, RADIUS)
            lines = {line: width for line, width in widths.items() if line[0] in found}
            best = len(found), replace(layout, labels=_labels(layout, lines, _boxes_of_neurons(network, layout)))
        if best[0] == len(few):
            break
    assert best is not None  # since there are several distances
    return best[1]


def _labelled_gap(
    network: Mapping[str, Any], counts: Sequence[int], c: int, down: float, widths: Mapping[Line, float]
) -> float | None:
    """The least distance between two columns at which all of their lines have room for numbers."""
    lines = {line: width for line, width in widths.items() if line[0] == c}
    for across in ACROSS:
        layout = _placed(counts, [across] * (len(counts) - 1), down, RADIUS)
        if len(_labels(layout, lines, _boxes_of_neurons(network, layout, (c - 1, c)))) == len(lines):
            return across
    return None


def _placed(counts: Sequence[int], gaps: Sequence[float], down: float, radius: float, is_roomy: bool = True) -> Layout:
    side, top, below, beyond = (48, 34, 14, 125) if is_roomy else (40, 52, 12, 85)
    height = top + max(counts) * down + below
    middle = top + (height - top - (30 if is_roomy else 0)) / 2
    across = [side + sum(gaps[:c]) for c in range(len(counts))]
    columns = zip(across, counts, strict=True)
    places = tuple(tuple((x, middle + (j - (n - 1) / 2) * down) for j in range(n)) for x, n in columns)
    cost = across[-1] + beyond, middle
    return Layout(cost[0] + side + 25, height, radius, is_roomy, places, cost, {})


def _widths_of_labels(network: Mapping[str, Any]) -> dict[Line, float]:
    """By line the width of the longest number that is ever written at it."""
    widths = {}
    for c, column in enumerate(network["columns"][1:], 1):
        matrices = [column[name] for name in ("W", "dW", "Wnext") if column[name]]
        for j in range(column["n"]):
            for k in range(network["columns"][c - 1]["n"]):
                widths[c, j, k] = LETTER * max(len(shown(matrix[j][k], 4)) for matrix in matrices) + 4
    return widths


def _boxes_of_neurons(network: Mapping[str, Any], layout: Layout, columns: Iterable[int] | None = None) -> list[Box]:
    """The neurons with the numbers below them."""
    boxes = []
    for c in range(len(layout.places)) if columns is None else columns:
        column = network["columns"][c]
        rows = [column[name] for name in ("z", "a", "delta") if column.get(name)]
        for j, (x, y) in enumerate(layout.places[c]):
            letters = max(len(shown(row[j], 4)) for matrix in rows for row in matrix) + 2
            half = max(layout.radius, LETTER * letters / 2)
            boxes.append((x - half, y - layout.radius, x + half, y + layout.radius + 5 + len(rows) * LINE))
    return boxes


def _labels(layout: Layout, widths: Mapping[Line, float], neurons: Sequence[Box]) -> dict[Line, Place]:
    """Places along the lines, near their middle, in which nothing else is. The lines with the fewest come first."""
    ends = {line: layout.ends(*line) for line in widths}
    free = {
        line: [at for at in _along(*ends[line]) if not _is_taken(line, _box(at, widths[line]), ends, neurons)]
        for line in widths
    }
    found: dict[Line, Place] = {}
    for line in sorted(widths, key=lambda line: len(free[line])):
        boxes = [_box(at, widths[other]) for other, at in found.items()]
        at = next((at for at in free[line] if not any(_meet(_box(at, widths[line]), box) for box in boxes)), None)
        if at is not None:
            found[line] = at
    return found


def _along(start: Place, end: Place) -> Iterator[Place]:
    """Places on a line, from its middle outwards."""
    for i in range(39):
        t = 0.5 + (i + 1) // 2 * (0.02 if i % 2 else -0.02)
        yield start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])


def _box(at: Place, width: float) -> Box:
    return at[0] - width / 2, at[1] - DOWN / 2, at[0] + width / 2, at[1] + DOWN / 2


def _is_taken(line: Line, box: Box, ends: Mapping[Line, tuple[Place, Place]], neurons: Sequence[Box]) -> bool:
    if any(_meet(box, neuron) for neuron in neurons):
        return True
    return any(other != line and other[0] == line[0] and _cuts(*both, box) for other, both in ends.items())


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _cuts(start: Place, end: Place, box: Box) -> bool:
    """Whether a line goes through a box: what of it is between the box's sides and between its top and bottom."""
    low, high = 0.0, 1.0
    for i in (0, 1):
        by = end[i] - start[i]
        if by == 0:
            if not box[i] < start[i] < box[i + 2]:
                return False
            continue
        enter, leave = sorted(((box[i] - start[i]) / by, (box[i + 2] - start[i]) / by))
        low, high = max(low, enter), min(high, leave)
    return low < high
