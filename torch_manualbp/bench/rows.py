"""What is measured of a training step, what the rows come to together, and how it is shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch_manualbp.bench.command import microseconds
from torch_manualbp.bench.memory import Peak
from torch_manualbp.bench.networks import OPTIMIZERS
from torch_manualbp.bench.variants import VARIANTS

__all__ = [
    "OURS",
    "STOCK",
    "Finding",
    "Row",
    "findings",
    "product_bound",
    "table",
    "table_of_findings",
    "table_of_memory",
]

STOCK, OURS = ("eager", "compile"), ("derived", "derived-compile")

LEAST = {"eager": 1.05, "compile": 1.0}
"""How many times as long as ours a stock variant takes at least in each row, in float32 under SGD."""

MEAN = {"eager / ours": 1.8, "fastest / ours": 1.6}
"""The same in the geometric mean."""

ADAMW = (1.3, 1.0)
"""Under AdamW against eager, in the geometric mean and at least."""

MEMORY = 0.25
"""The share of eager's peak over the parameters, at most."""

DERIVING = 50.0
"""Milliseconds, at most."""

CHECKING = 2.5
"""How many times as long a first step takes at most that is held against autograd."""


@dataclass(frozen=True)
class Row:
    """What was measured of a case. ``ours`` is the faster of the derived variants, ``fastest`` of the stock ones."""

    network: str
    batch: int
    activation: str
    optimizer: str
    precision: str
    times: dict[str, float] = field(default_factory=dict)
    """Microseconds of a step, by variant."""

    ours: str | None = None
    fastest: str | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    """The medians over the rounds of ``eager / ours``, ``fastest / ours`` and ours by the products, of either kind."""

    errors: dict[str, float] = field(default_factory=dict)
    """The standard errors of the ratios."""

    losses: dict[str, float] = field(default_factory=dict)
    """After the last step."""

    deriving: float | None = None
    """Milliseconds that it takes to derive a program, not compiled, and to hold it against autograd."""

    unchecked: float | None = None
    """Milliseconds without the comparison."""

    memory: dict[str, Peak] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a variant has no figure."""

    rounds: int = 0

    def __str__(self) -> str:
        return f"{self.network}:{self.batch} {self.activation} {self.optimizer} {self.precision}"


@dataclass(frozen=True)
class Finding:
    """A figure of the whole panel next to what it should be."""

    about: str
    value: float
    rows: int
    at: str = ""
    """The row that it is of, if it is of one."""

    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound is met, if there is one."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


def product_bound(network: str, activation: str, optimizer: str, precision: str) -> float | None:
    """How many times as long as the matrix products alone ours takes at most."""
    if (network, optimizer, precision) != ("1024-4096-1024:512", "sgd", "float32"):
        return None
    return 1.03 if activation == "ReLU" else 1.10


def findings(rows: Sequence[Row]) -> list[Finding]:
    """All that these rows have figures for."""
    found: list[Finding] = []
    for precision in dict.fromkeys(row.precision for row in rows):
        of_precision = [row for row in rows if row.precision == precision]
        for optimizers in (("sgd",), ("momentum",), ("sgd", "momentum"), ("adamw",)):
            chosen = [row for row in of_precision if row.optimizer in optimizers]
            if {row.optimizer for row in chosen} == set(optimizers):
                found += _ratios(chosen, f"{precision} {' + '.join(optimizers)}")
    for row in rows:
        bound = product_bound(f"{row.network}:{row.batch}", row.activation, row.optimizer, row.precision)
        if bound is not None and "ours / products" in row.ratios:
            found.append(Finding("ours / products", row.ratios["ours / products"], 1, str(row), at_most=bound))
    shares = {
        str(row): row.memory["derived"].later / row.memory["eager"].later
        for row in rows
        if {"derived", "eager"} <= set(row.memory) and (row.optimizer, row.precision) == ("sgd", "float32")
    }
    if shares:
        at = max(shares, key=lambda at: shares[at])
        found.append(
            Finding("peak memory over the parameters, derived / eager", shares[at], len(shares), at, at_most=MEMORY)
        )
    times = {str(row): row.deriving for row in rows if row.network == "784-256-128-10" and row.deriving is not None}
    if times:
        at = max(times, key=lambda at: times[at])
        found.append(Finding("deriving a program", times[at], len(times), at, at_most=DERIVING, unit=" ms"))
    firsts = {}
    for row in rows:
        if row.deriving is not None and row.unchecked is not None and "derived" in row.times:
            step = row.times["derived"] / 1e3
            firsts[str(row)] = (row.deriving + step) / (row.unchecked + step)
    if firsts:
        at = max(firsts, key=lambda at: firsts[at])
        about = "a first step, held against autograd / not"
        found.append(Finding(about, firsts[at], len(firsts), at, at_most=CHECKING))
    return found


def _ratios(rows: Sequence[Row], about: str) -> list[Finding]:
    """The geometric mean and the least of how many times as long as ours stock takes."""
    found = []
    is_bound, is_adamw = rows[0].precision == "float32", rows[0].optimizer == "adamw"
    for key, stock in (("eager / ours", "eager"), ("fastest / ours", "compile")):
        ratios = {str(row): row.ratios[key] for row in rows if key in row.ratios}
        if not ratios:
            continue
        if not is_bound or (is_adamw and stock != "eager"):
            mean, least = None, None
        else:
            mean, least = ADAMW if is_adamw else (MEAN[key], LEAST[stock])
        at = min(ratios, key=lambda at: ratios[at])
        value = statistics.geometric_mean(ratios.values())
        found.append(Finding(f"{key}, {about}, geometric mean", value, len(ratios), at_least=mean))
        found.append(Finding(f"{key}, {about}, least", ratios[at], len(ratios), at, at_least=least))
    return found


def table(rows: Sequence[Row], mark: str = "") -> tuple[list[str], list[list[str]]]:
    """A line for each row: the times, ours between ``mark``s, and the ratios."""
    variants = [variant for variant in VARIANTS if any(variant in row.times for row in rows)]
    keys = {
        "eager / ours": "stock / ours",
        "fastest / ours": "fastest stock / ours",
        "ours / products": "ours / products",
        "ours / by oneDNN": "ours / products by oneDNN",
    }
    of_several = len({row.precision for row in rows}) > 1
    columns = ["network", "batch", "activation", "optimizer", *(["precision"] if of_several else [])]
    columns += [f"{VARIANTS[variant][0]} µs" for variant in variants] + list(keys.values())
    cells = []
    for row in rows:
        cells.append([row.network, str(row.batch), row.activation, OPTIMIZERS[row.optimizer][0]])
        cells[-1] += [row.precision] if of_several else []
        for variant in variants:
            time = microseconds(row.times[variant]) if variant in row.times else "–"
            cells[-1].append(f"{mark}{time}{mark}" if variant == row.ours else time)
        cells[-1] += [f"{row.ratios[key]:.2f}" if key in row.ratios else "–" for key in keys]
    return columns, cells


def table_of_findings(found: Sequence[Finding]) -> tuple[list[str], list[list[str]]]:
    """The figures of the panel and their bounds."""
    cells = []
    for f in found:
        bound = "" if f.met is None else f"≥ {f.at_least:.2f}" if f.at_least is not None else f"≤ {f.at_most:.2f}"
        met = {None: "", True: "met", False: "missed"}[f.met]
        cells.append([f.about, f"{f.value:.2f}{f.unit}", bound, met, str(f.rows), f.at])
    return ["figure", "value", "bound", "", "rows", "at"], cells


def table_of_memory(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Megabytes over the parameters at the later steps, and at the first in brackets."""
    rows = [row for row in rows if row.memory]
    variants = [variant for variant in VARIANTS if any(variant in row.memory for row in rows)]
    columns = ["row", "parameters MB", *(f"{VARIANTS[variant][0]} MB" for variant in variants)]
    cells = []
    for row in rows:
        cells.append([str(row), f"{next(iter(row.memory.values())).parameters / 1e6:.1f}"])
        for variant in variants:
            peak = row.memory.get(variant)
            cells[-1].append("–" if peak is None else f"{peak.later / 1e6:.1f} ({peak.first / 1e6:.1f})")
    return columns, cells
