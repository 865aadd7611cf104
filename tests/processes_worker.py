"""Run by test_train_step_processes.py as one of several processes: make derived steps together, write down what came.

python processes_worker.py <rank> <processes> <folder for the results>
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from torch_manualbp import TrainStep, nn

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"accumulate": 2}),
    ("AdamW", {"clip_norm": 0.05}),
    ("SGD", {"clip_norm": 0.05, "clip_value": 0.01, "skip_nonfinite": True}),
    ("RMSprop", {"clip_norm": 0.05}),
    ("AdamW", {"skip_nonfinite": True}),
    ("RMSprop", {}),
]


def network() -> torch.nn.Module:
    """A network with running statistics, in float64."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 12), nn.Tanh(), nn.BatchNorm1d(12), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 10)
    return torch.nn.Sequential(*layers).double()


def plain_network() -> torch.nn.Module:
    """One whose loss is a mean over samples that know nothing of each other."""
    torch.manual_seed(0)
    return torch.nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()


def digits(size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Twelve batches of handwritten digits."""
    data = load_digits()
    x, y = torch.from_numpy(data.data / 16), torch.from_numpy(data.target)
    for i in range(12):
        yield x[i * size : (i + 1) * size], y[i * size : (i + 1) * size]


def batch(rank: int, i: int, size: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1000 * rank + i)
    return torch.randn(size, 64, generator=g, dtype=torch.float64), torch.randint(10, (size,), generator=g)


def of_digits(rank: int, processes: int) -> dict[str, Tensor]:
    """The parameters after an epoch, each process with its share of each batch of 64."""
    model = DistributedDataParallel(plain_network())
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()))
    for x, y in digits(64):
        step(x[rank::processes], y[rank::processes])
    return dict(step.model.state_dict())


def beside_stock(rank: int, name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and autograd's numbers after six steps, where the batches of the processes are of unequal sizes."""
    wrapped, stock = DistributedDataParallel(network()), DistributedDataParallel(network())
    step = TrainStep(wrapped, nn.CrossEntropyLoss(), OPTIMIZERS[name](wrapped.parameters()), **options)
    optimizer = OPTIMIZERS[name](stock.parameters())
    accumulate = options.get("accumulate", 1)
    for i in range(6):
        x, y = batch(rank, i, 9 - rank if i > 3 else 9)
        step(x, y)
        if i % accumulate == 0:
            optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(stock(x), y) / accumulate).backward()
        if (i + 1) % accumulate == 0:
            if "clip_norm" in options:
                norm = torch.nn.utils.clip_grad_norm_(stock.parameters(), options["clip_norm"])
                torch.testing.assert_close(step.grad_norm, norm, rtol=1e-12, atol=0)
            if "clip_value" in options:
                torch.nn.utils.clip_grad_value_(stock.parameters(), options["clip_value"])
            optimizer.step()
    return dict(step.model.state_dict()), dict(stock.module.state_dict())


def under_no_sync(rank: int) -> tuple[list[Any], list[Any]]:
    """Gradients after two backward passes of which the first stays in its process."""
    wrapped, stock = DistributedDataParallel(plain_network()), DistributedDataParallel(plain_network())
    step = TrainStep(wrapped, nn.CrossEntropyLoss(), torch.optim.SGD(wrapped.parameters(), lr=0.1))
    for i in range(2):
        x, y = batch(rank, i, 7)
        for ddp, run in ((wrapped, step.backward), (stock, None)):
            with ddp.no_sync() if i == 0 else torch.enable_grad():
                if run is not None:
                    run(x, y)
                else:
                    torch.nn.functional.cross_entropy(ddp(x), y).backward()
    return [p.grad for p in wrapped.parameters()], [p.grad for p in stock.parameters()]


def joined(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each process has a batch more than the one before it."""
    wrapped, stock = DistributedDataParallel(plain_network()), DistributedDataParallel(plain_network())
    step = TrainStep(wrapped, nn.CrossEntropyLoss(), OPTIMIZERS["AdamW"](wrapped.parameters()))
    optimizer = OPTIMIZERS["AdamW"](stock.parameters())
    with step.join():
        for i in range(3 + rank):
            step(*batch(rank, i, 7))
    with stock.join():
        for i in range(3 + rank):
            x, y = batch(rank, i, 7)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(stock(x), y).backward()
            optimizer.step()
    return dict(step.model.state_dict()), dict(stock.module.state_dict())


def saved(rank: int, folder: Path) -> list[list[Tensor]]:
    """Parameters after a step, after one of its program and one of its formulas, with gradients exchanged."""
    found = []
    for kind in ("step", "program", "source"):
        wrapped = DistributedDataParallel(plain_network())
        model, optimizer = wrapped.module, torch.optim.SGD(wrapped.parameters(), lr=0.1)
        step = TrainStep(wrapped, nn.CrossEntropyLoss(), optimizer)
        x, y = batch(rank, 0, 7)
        if kind == "step":
            step(x, y)
        else:
            step.derive(x, y)
            namespace: dict[str, Any] = {}
            step.save(folder / f"{kind}{rank}.py", program=kind == "program")
            exec((folder / f"{kind}{rank}.py").read_text(), namespace)
            namespace["build"](dict(model.named_parameters()), {})(x, y, 0.1)
        found.append([p.detach().clone() for p in model.parameters()])
    return found


class Branching(torch.nn.Module):
    """Its second process leaves a layer out, or reads a number."""

    def __init__(self, leaves_out: bool, reads: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 10)
        self.leaves_out, self.reads = leaves_out, reads

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if not self.leaves_out:
            h = self.b(h)
        if self.reads and h.sum().item() > 0:
            h = h * 2
        out: Tensor = self.c(h)
        return out


def failing(rank: int, case: str) -> tuple[str, bool]:
    """What is raised where the second process is another, and whether the parameters are as they were before it."""
    torch.manual_seed(0)
    is_other = rank == 1
    model = Branching(case == "program" and is_other, case == "reads" and is_other).double()
    wrapped = DistributedDataParallel(model)
    step = TrainStep(wrapped, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), skip_nonfinite=True)
    text, before = "", copy.deepcopy(model.state_dict())
    try:
        for i in range(3):
            x, y = batch(rank, i, 7)
            if i == 2 and is_other:
                if case == "dies":
                    os._exit(0)
                x, y = (x[:0], y[:0]) if case == "empty" else (x * torch.nan if case == "nan" else x, y)
            before = copy.deepcopy(model.state_dict())
            step(x, y)
    except (RuntimeError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
    same = all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    return f"{text}{step.skipped or ''}", same


def main(rank: int, processes: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", f"file://{folder / 'store'}", timedelta(seconds=30), world_size=processes, rank=rank
    )
    found: dict[str, Any] = {"digits": of_digits(rank, processes)}
    found["stock"] = [beside_stock(rank, name, options) for name, options in CASES]
    found["no_sync"], found["joined"] = under_no_sync(rank), joined(rank)
    found["saved"] = saved(rank, folder)
    found |= {case: failing(rank, case) for case in ("empty", "nan", "program", "reads")}
    torch.save(found, folder / f"result{rank}.pt")
    text = failing(rank, "dies")
    torch.save(found | {"dies": text}, folder / f"result{rank}.pt")
    os._exit(0)  # what is left of the group waits for who died


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
