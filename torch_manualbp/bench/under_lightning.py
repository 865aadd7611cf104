"""CPU time of a training step under Lightning's Trainer: a plain LightningModule, one that logs its loss at each step,
and ``ManualBackpropModule(engine="derived")``; AdamW with torch's fused kernel in each."""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from torch_manualbp._progress import INTERRUPTED, Counted
from torch_manualbp._tables import require_tables
from torch_manualbp.bench.command import add_files, add_rounds, count, microseconds, publish
from torch_manualbp.lightning import ManualBackpropModule
from torch_manualbp.lightning.root import pl

__all__ = ["Row", "add_arguments", "main"]

NETWORKS = (((20, 64, 64, 5), 64, 1.4), ((784, 256, 128, 10), 64, 1.25), ((784, 512, 512, 10), 256, 1.1))
"""Sizes, the batch, and how many times the plain module's step is to take the derived one's time."""

WAYS = ("plain", "logs", "derived")
WARM_UP = 50


@dataclass(frozen=True)
class Row:
    """Medians, in seconds of the thread's CPU time a step."""

    network: str
    batch: int
    plain: float
    logs: float
    derived: float
    bound: float

    @property
    def ratio(self) -> float:
        """How many derived steps there are to a plain one."""
        return self.plain / self.derived


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_rounds(parser, 3)
    parser.add_argument("--steps", type=count, default=500, metavar="N", help="steps of a fit (default: 500)")
    parser.add_argument("--network", type=int, choices=range(len(NETWORKS)), help="only this one (default: all)")
    add_files(parser)


def main(options: argparse.Namespace) -> int:
    """Time and print; a bound that was missed is a finding."""
    require_tables()
    torch.set_num_threads(1)
    rows: list[Row] = []
    networks = NETWORKS if options.network is None else [NETWORKS[options.network]]
    with Counted(networks, "bench lightning", lambda network: "-".join(map(str, network[0]))) as todo:
        for sizes, batch, bound in todo:
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _, way in itertools.product(range(options.rounds), WAYS):  # in turns, as the machine's load changes
                times[way].append(_seconds_a_step(way, sizes, batch, options.steps))
            plain, logs, derived = (statistics.median(times[way]) for way in WAYS)
            rows.append(Row("-".join(map(str, sizes)), batch, plain, logs, derived, bound))
            todo.say(*_cells(rows[-1]))
    publish(options, "Steps under Lightning, CPU time in µs", COLUMNS, list(map(_cells, rows)), rows)
    return INTERRUPTED if todo.interrupted else 0


COLUMNS = ["network", "batch", "plain", "logging", "derived", "plain / derived", "bound"]


def _cells(row: Row) -> list[str]:
    times = (microseconds(t * 1e6) for t in (row.plain, row.logs, row.derived))
    return [row.network, str(row.batch), *times, f"{row.ratio:.2f}", f"{row.bound:g}"]


class _Plain(pl.LightningModule):
    def __init__(self, model: torch.nn.Module, logs: bool) -> None:
        super().__init__()
        self.model, self.loss, self.logs = model, torch.nn.CrossEntropyLoss(), logs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.model(batch[0]), batch[1])
        if self.logs:
            self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return _adamw(self.parameters())


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


class _Batches(IterableDataset[Any]):
    """The same few batches, so many times."""

    def __init__(self, batches: list[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(itertools.cycle(self.batches), self.steps)


class _Clock(pl.Callback):
    """The CPU time from the batch after the warm-up to the last."""

    needs_gradients = False

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.times.append(time.thread_time())

    def seconds_a_step(self) -> float:
        return (self.times[-1] - self.times[WARM_UP]) / (len(self.times) - 1 - WARM_UP)


def _seconds_a_step(way: str, sizes: tuple[int, ...], batch: int, steps: int) -> float:
    torch.manual_seed(0)
    batches = [(torch.randn(batch, sizes[0]), torch.randint(sizes[-1], (batch,))) for _ in range(8)]
    layers = [
        layer for n, m in itertools.pairwise(sizes) for layer in (torch.nn.Linear(n, m), torch.nn.ReLU())
    ]  # the last ReLU left out
    model = torch.nn.Sequential(*layers[:-1])
    if way == "derived":
        module: Any = ManualBackpropModule(model, torch.nn.CrossEntropyLoss(), _adamw, engine="derived")
    else:
        module = _Plain(model, way == "logs")
    clock = _Clock()
    shows: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders
        for name in ("pytorch_lightning", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.ERROR)
        trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[clock], **shows)
        trainer.fit(module, DataLoader(_Batches(batches, WARM_UP + 1 + steps), batch_size=None))
    return clock.seconds_a_step()
