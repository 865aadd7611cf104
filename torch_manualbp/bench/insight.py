"""Time what the statistics of a run cost: training steps with RunStatistics at every tenth step, and with it idle, next
to the same steps without it; interleaved in one process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch

from torch_manualbp import TrainStep, nn
from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import require_tables
from torch_manualbp.bench.command import add_files, add_rounds, publish
from torch_manualbp.bench.timing import Question, Stopwatch, compare
from torch_manualbp.insight import RunStatistics

__all__ = ["add_arguments", "main"]

EVERY = 10
BOUND = 1.05
"""Times the steps without, at the width that it holds for."""

WIDTH = 1024
SIZES = ((256, 64), (1024, 64), (1024, 256), (1024, 512), (2048, 256))
"""Widths, and samples in a batch."""

ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU}
ENGINES = ("autograd", "derived")


@dataclass(frozen=True)
class Row:
    """Of each engine the median seconds of a step, the ratios to it of steps with statistics at every tenth and with
    idle ones, and ``of_autograd``: 1 and the seconds that every tenth adds, by those of autograd's step."""

    width: int
    batch: int
    activation: str
    engine: str
    step: float
    every_tenth: float
    idle: float
    of_autograd: float
    bound: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_rounds(parser, 15)
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Time and print; a bound that was missed is a finding."""
    require_tables()
    rows = []
    cases = [(width, batch, activation) for width, batch in SIZES for activation in ACTIVATIONS]
    with Counted(cases, "bench insight") as todo:
        for case in todo:
            for row in _rows(*case, options.rounds):
                rows.append(row)
                todo.say(*_cells(row))
    publish(options, "Statistics of a run", COLUMNS, list(map(_cells, rows)), rows)
    return INTERRUPTED if todo.interrupted else 0


def _rows(width: int, batch: int, activation: str, rounds: int) -> Iterator[Row]:
    every = {"": None, ", every tenth": EVERY, ", idle": sys.maxsize}
    ways = {
        engine + what: _training(width, batch, activation, engine, n) for engine in ENGINES for what, n in every.items()
    }
    bound = BOUND if width == WIDTH else None
    found = compare(ways, rounds, [Question(f"{engine}, every tenth", engine, bound) for engine in ENGINES])
    for engine in ENGINES:
        ratio, idle = (found.ratio(f"{engine}, {what}", engine) for what in ("every tenth", "idle"))
        added = (ratio - 1) * found.seconds(engine) / found.seconds("autograd")
        yield Row(width, batch, activation, engine, found.seconds(engine) / EVERY, ratio, idle, 1 + added, bound)


def _training(width: int, batch: int, activation: str, engine: str, every: int | None) -> Stopwatch:
    """Ten steps of a network of three layers."""
    torch.manual_seed(0)
    f = ACTIVATIONS[activation]
    model = nn.Sequential(nn.Linear(width, width), f(), nn.Linear(width, width), f(), nn.Linear(width, width))
    # At a rate that keeps the gradients what they are at first: once they vanish, the processor slows down instead.
    loss, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)
    x, y = torch.randn(batch, width), torch.randn(batch, width)
    derived = TrainStep(model, loss, optimizer) if engine == "derived" else None
    statistics = None if every is None else RunStatistics(model, every)

    def step() -> None:
        if derived is not None:
            derived(x, y)
        else:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    def measured_step() -> None:
        assert statistics is not None
        with statistics.step(derived):
            step()

    run: Callable[[], None] = step if statistics is None else measured_step

    def stopwatch(times: int) -> tuple[float]:
        start = perf_counter()
        for _ in range(EVERY * times):
            run()
        return (perf_counter() - start,)

    return stopwatch


COLUMNS = ["width", "batch", "activation", "engine", "step ms", "every tenth", "bound", "", "of autograd's", "idle"]


def _cells(row: Row) -> list[str]:
    met = "" if row.bound is None else "met" if row.every_tenth <= row.bound else "missed"
    bound = "" if row.bound is None else f"≤ {row.bound:.2f}"
    figures = [f"{row.step * 1e3:.2f}", f"{row.every_tenth:.3f}", bound, met, f"{row.of_autograd:.3f}"]
    return [str(row.width), str(row.batch), row.activation, row.engine, *figures, f"{row.idle:.3f}"]
