"""Time the verification of gradients: of single layers with every check but compile, and of whole models of three
sizes, next to the training step (forward and backward in float32) that it verifies."""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import nn
from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import require_tables
from torch_manualbp.bench.command import add_files, add_rounds, publish
from torch_manualbp.verify.models import verify_model
from torch_manualbp.verify.report import Report
from torch_manualbp.verify.verifier import verify

__all__ = ["add_arguments", "main"]

LAYER, MODEL = 1.0, 10.0
"""Seconds that a layer, and the largest model, may take."""

LAYERS: dict[str, tuple[Callable[[], Any], Callable[[], tuple[Any, ...]]]] = {
    "Linear(256, 256)": (lambda: nn.Linear(256, 256), lambda: (torch.randn(64, 256),)),
    "GELU": (nn.GELU, lambda: (torch.randn(64, 256),)),
    "ReLU": (nn.ReLU, lambda: (torch.randn(64, 256),)),
    "Softmax": (lambda: nn.Softmax(-1), lambda: (torch.randn(64, 100),)),
    "Bilinear(32, 32, 16)": (lambda: nn.Bilinear(32, 32, 16), lambda: (torch.randn(16, 32), torch.randn(16, 32))),
    "CrossEntropyLoss": (nn.CrossEntropyLoss, lambda: (torch.randn(64, 100), torch.randint(100, (64,)))),
    "torch.nn.LayerNorm(256)": (lambda: torch.nn.LayerNorm(256), lambda: (torch.randn(64, 256),)),
    "torch.nn.Conv2d(8, 8, 3)": (lambda: torch.nn.Conv2d(8, 8, 3), lambda: (torch.randn(4, 8, 16, 16),)),
}
"""What is verified, and on which inputs."""

MODELS = {
    "0.1 million": (128, 256, 256, 10),
    "1 million": (512, 768, 768, 10),
    "10 million": (1024, 2048, 2048, 1792, 10),
}
"""How many parameters, and the widths of the linear layers, with ReLU between them."""

SAMPLES = 64


@dataclass(frozen=True)
class Row:
    """The median seconds of a verification and of a training step, and what the verification says."""

    target: str
    seconds: float
    step: float
    checks: int
    bound: float | None
    verdict: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_rounds(parser, 5)
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Time and print. Returns 1 if what is right is not found so; a bound that was missed is a finding."""
    require_tables()
    rows = []
    cases = [*((_of_layer, name) for name in LAYERS), *((_of_model, name) for name in MODELS)]
    with Counted(cases, "bench verify", lambda case: case[1]) as todo:
        for timed, name in todo:
            rows.append(timed(name, options.rounds))
            todo.say(f"{rows[-1].target}: {rows[-1].seconds:.2f} s, {rows[-1].verdict}")
    columns, cells = _table(rows)
    publish(options, "Verification", columns, cells, rows)
    return INTERRUPTED if todo.interrupted else int(any(row.verdict != "correct" for row in rows))


def _of_layer(name: str, rounds: int) -> Row:
    make, inputs = LAYERS[name]
    torch.manual_seed(0)
    layer, args = make(), inputs()

    def step() -> None:
        leaves = [a.clone().requires_grad_() if a.is_floating_point() else a for a in args]
        layer(*leaves).sum().backward()

    return _row(name, lambda: verify(layer, *args), step, rounds, LAYER)


def _of_model(name: str, rounds: int) -> Row:
    torch.manual_seed(0)
    widths = MODELS[name]
    layers: list[Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model, loss = nn.Sequential(*layers[:-1]), nn.CrossEntropyLoss()
    x, y = torch.randn(SAMPLES, widths[0]), torch.randint(widths[-1], (SAMPLES,))

    def step() -> None:
        C: Tensor = loss(model(x), y)
        C.backward()

    bound = MODEL if name == list(MODELS)[-1] else None
    return _row(f"a model of {name} parameters", lambda: verify_model(model, x, y, loss), step, rounds, bound)


def _row(
    name: str, verification: Callable[[], Report], step: Callable[[], None], rounds: int, bound: float | None
) -> Row:
    report = verification()
    step()
    seconds: list[float] = []
    steps: list[float] = []
    for _ in range(rounds):
        for run, times in ((verification, seconds), (step, steps)):
            start = perf_counter()
            run()
            times.append(perf_counter() - start)
    checks = len({row.check for row in report.rows})
    verdict = "correct" if report.ok else "; ".join(str(row) for row in report.worst(3))
    return Row(name, statistics.median(seconds), statistics.median(steps), checks, bound, verdict)


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ["verified", "checks", "seconds", "training steps", "bound", "", "verdict"]
    cells = []
    for row in rows:
        met = "" if row.bound is None else "met" if row.seconds <= row.bound else "missed"
        bound = "" if row.bound is None else f"≤ {row.bound:g} s"
        cells.append([row.target, str(row.checks), f"{row.seconds:.2f}", f"{row.seconds / row.step:,.0f}", bound, met])
        cells[-1].append(row.verdict)
    return columns, cells
