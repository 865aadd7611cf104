"""The panel of whole models: rows, ratios and bounds of ``torch-manualbp bench step --panel models``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._tables import as_markdown, print_table, write
from torch_manualbp._text import near
from torch_manualbp._torch import reset_compiler
from torch_manualbp.bench import memory
from torch_manualbp.bench.command import surroundings
from torch_manualbp.bench.memory import Peak
from torch_manualbp.bench.model_cases import BATCHES, MODEL_VARIANTS, MODELS, ModelCase, starts
from torch_manualbp.bench.timing import compare
from torch_manualbp.bench.variants import Running, stopwatch

__all__ = ["ModelRow", "measure", "run"]

APART = 0.02
"""How far from stock's the change of the weights may be after the first steps, relative to its length."""

STOCK, OURS, PRODUCTS = ("eager", "compile"), ("derived", "fused"), ("products", "products-best")
PROGRAM = [sys.executable, "-m", "torch_manualbp.bench.model_step"]
"""What the process runs that measures memory."""


@dataclass
class ModelRow:
    """What was measured of a model."""

    name: str
    about: str
    times: dict[str, float] = field(default_factory=dict)
    """Milliseconds of a step, by variant."""

    first: dict[str, float] = field(default_factory=dict)
    """Seconds from the call of a variant that was not there before to its first update."""

    ratios: dict[str, float] = field(default_factory=dict)
    """Medians of the rounds' ratios: of ours by the faster of stock's, by NumPy's, by the products of either kind."""

    memory: dict[str, Peak] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    @property
    def ours(self) -> str | None:
        """The faster of the derived steps."""
        return min((v for v in OURS if v in self.times), key=lambda v: self.times[v], default=None)


def measure(case: ModelCase, variants: Sequence[str], rounds: int, in_cpu_time: bool = False) -> ModelRow:
    """Time these variants. One that fails, or that moves the weights otherwise than the first, gets no time."""
    row = ModelRow(case.name, case.about)
    running: dict[str, Running] = {}
    change: Tensor | None = None
    for variant in starts(case, variants):
        try:
            if variant == "compile":
                reset_compiler()
            running[variant], row.first[variant], its_change = _started(case, variant, change)
        except Exception as error:  # whatever a compiler may raise
            row.failures[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        change = its_change if change is None else change
    if not running:
        return row
    clock = thread_time if in_cpu_time else perf_counter
    comparison = compare({v: stopwatch(started, clock) for v, started in running.items()}, rounds, at_most=rounds)
    row.times = {v: comparison.seconds(v) * 1e3 for v in running}
    row.rounds = comparison.rounds
    fastest = min((v for v in STOCK if v in row.times), key=lambda v: row.times[v], default=None)
    for other, way in (("stock", fastest), *((v, v) for v in ("numpy", *PRODUCTS) if v in row.times)):
        if row.ours is not None and way is not None:
            row.ratios[f"ours / {other}"] = comparison.ratio(row.ours, way)
    if fastest is not None and "products" in row.times:
        row.ratios["stock / products"] = comparison.ratio(fastest, "products")
    return row


def _started(case: ModelCase, variant: str, expected: Tensor | None) -> tuple[Running, float, Tensor | None]:
    """The variant after it has taken each batch once, how long the first took, and by how much the weights changed.

    Raises:
        RuntimeError: the change is not the expected one.
    """
    running = MODEL_VARIANTS[variant][1](case)
    before = _flat(running.parameters)
    start = perf_counter()
    running.step()
    first = perf_counter() - start
    for _ in range(BATCHES - 1):
        running.step()
    if variant in PRODUCTS:
        return running, first, expected
    change = _flat(running.parameters) - before
    apart = 0.0 if expected is None else ((change - expected).norm() / expected.norm()).item()
    if not apart <= APART:
        raise RuntimeError(f"its weights move otherwise: {apart:.0%} of the change apart after {BATCHES} steps")
    return running, first, change


def _flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def run(options: argparse.Namespace) -> int:
    """Run the panel and print it. Returns 1 if a variant failed; a bound that was missed is a finding."""
    cases = [case for case in MODELS if options.network is None or case.name in options.network]
    known = [case.name for case in MODELS]
    for name in options.network or ():
        if name not in known:
            alike = ", ".join(near(name, known) or known)
            print(
                f"torch-manualbp bench step: argument --network: no model {name!r}; near it: {alike}", file=sys.stderr
            )
            return 2
    asked = options.variants or [v for v in MODEL_VARIANTS if v != "compile"]
    variants = [v for v in MODEL_VARIANTS if v in asked]
    rows: list[ModelRow] = []
    try:
        for i, case in enumerate(cases, 1):
            rows.append(measure(case, variants, options.rounds, options.cpu_time))
            if options.memory == "all":
                _add_memory(rows[-1], case, variants)
            ratios = ", ".join(f"{key} {ratio:.2f}" for key, ratio in rows[-1].ratios.items())
            print(f"[{i}/{len(cases)}] {case}: {ratios or 'no ratio'}", file=sys.stderr, flush=True)
            for variant, why in rows[-1].failures.items():
                print(f"    {MODEL_VARIANTS[variant][0]}: {why}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if rows:  # what was measured is worth its minutes
            _report(rows, options)
        raise
    _report(rows, options)
    return int(any(row.failures for row in rows))


def _add_memory(row: ModelRow, case: ModelCase, variants: Sequence[str]) -> None:
    for variant in (v for v in starts(case, variants) if v not in (*row.failures, *PRODUCTS, "numpy")):
        with contextlib.suppress(RuntimeError):  # what it says stands in the table as a gap
            row.memory[variant] = memory.in_a_process([*PROGRAM, case.name, variant], torch.get_num_threads())


def _over(peak: Peak, case: ModelCase) -> int:
    """Bytes over the parameters, their gradients and the optimizer's state."""
    return peak.later - peak.parameters * (2 if case.momentum else 3)


def figures(row: ModelRow) -> list[tuple[str, float, float]]:
    """What the row is held against: the ratio, its value, the largest that is good."""
    case = next(case for case in MODELS if case.name == row.name)
    keys = [(f"ours / {by}", bound) for _, by, bound in case.bounds]
    found = [(key, row.ratios[key], bound) for key, bound in keys if key in row.ratios]
    if case.memory is not None and {"eager", "derived"} <= set(row.memory):
        share = _over(row.memory["derived"], case) / _over(row.memory["eager"], case)
        found.append(("memory over parameters, gradients, state: derived / stock", share, case.memory))
    return found


def _report(rows: Sequence[ModelRow], options: argparse.Namespace) -> None:
    about = surroundings()
    title = (
        f"A training step of whole models: torch {about['torch']}, {about['processor']}, {about['threads']} threads, "
        f"our large products {about['products']}, {'processor' if options.cpu_time else 'wall'} time"
    )
    variants = [v for v in MODEL_VARIANTS if any(v in row.times for row in rows)]
    keys = list(dict.fromkeys(key for row in rows for key in row.ratios))
    columns = ["model", *(f"{MODEL_VARIANTS[v][0]} ms" for v in variants), *keys]
    columns += [f"first {MODEL_VARIANTS[v][0]} s" for v in (*STOCK, *OURS) if v in variants]
    cells = []
    for row in rows:
        cells.append([row.name, *(_digits(row.times.get(v)) for v in variants)])
        cells[-1] += [f"{row.ratios[key]:.2f}" if key in row.ratios else "–" for key in keys]
        cells[-1] += [f"{row.first[v]:.2f}" if v in row.first else "–" for v in (*STOCK, *OURS) if v in variants]
    against = (
        ["model", "figure", "value", "bound", ""],
        [
            [row.name, key, f"{value:.2f}", f"≤ {bound:.2f}", "met" if value <= bound else "missed"]
            for row in rows
            for key, value, bound in figures(row)
        ],
    )
    tables: list[tuple[str, Any, Any]] = [(title, columns, cells), ("Figures", *against)]
    if any(row.memory for row in rows):
        measured = [v for v in MODEL_VARIANTS if any(v in row.memory for row in rows)]
        of_memory = [
            [row.name, f"{next(iter(row.memory.values())).parameters / 1e6:.1f}"]
            + [f"{row.memory[v].later / 1e6:.1f}" if v in row.memory else "–" for v in measured]
            for row in rows
            if row.memory
        ]
        names = [f"{MODEL_VARIANTS[v][0]} MB" for v in measured]
        tables.append(("Peak memory over the parameters", ["model", "parameters MB", *names], of_memory))
    for heading, *table in tables:
        print_table(heading, *table)
    if options.json:
        write(options.json, {**about, "rounds": options.rounds, "rows": [asdict(row) for row in rows]})
    if options.markdown:
        legend = "\n".join(f"- {row.name}: {row.about}" for row in rows)
        parts = [part for heading, *table in tables for part in (f"{heading}:\n", as_markdown(*table))]
        write(options.markdown, "\n".join([*parts, legend, ""]))


def _digits(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _main(name: str, variant: str, threads: str, products: str) -> None:
    memory.prepare(threads, products)
    case = next(case for case in MODELS if case.name == name)
    memory.say(lambda: MODEL_VARIANTS[variant][1](case), is_compiled=variant == "compile")


if __name__ == "__main__":
    _main(*sys.argv[1:])
