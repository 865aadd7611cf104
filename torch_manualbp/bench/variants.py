"""The ways to make a training step that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import Linear

from torch_manualbp import nn
from torch_manualbp.bench.networks import Case
from torch_manualbp.bench.timing import Stopwatch
from torch_manualbp.derive import TrainStep
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["PRODUCTS", "VARIANTS", "Running", "stopwatch"]


@dataclass(frozen=True)
class Running:
    """A variant that is ready to go."""

    step: Callable[[], Tensor]
    """The next step; returns its loss."""

    parameters: list[Tensor]
    """What it trains."""

    data: list[Tensor]
    """What it is trained on."""

    derive: Callable[[bool], object] | None = None
    """Derives its program anew, and holds it against autograd or does not."""


def _stock(case: Case, compile: bool) -> Running:
    model, loss = case.model(torch.nn), case.loss(torch.nn)
    optimizer = case.new_optimizer(model.parameters())
    batches = case.batches()
    turn = cycle(batches)

    def evaluate(x: Tensor, y: Tensor) -> Tensor:
        C: Tensor = loss(model(x), y)
        return C

    forward: Callable[[Tensor, Tensor], Tensor] = torch.compile(evaluate) if compile else evaluate

    def step() -> Tensor:
        x, y = next(turn)
        optimizer.zero_grad()
        with case.autocast():
            C = forward(x, y)
        C.backward()
        optimizer.step()
        return C

    return Running(step, [*model.parameters()], _tensors(batches))


def _derived(case: Case, compile: bool) -> Running:
    model, loss = case.model(nn), case.loss(nn)
    optimizer = case.new_optimizer(model.parameters())
    batches = case.batches()
    turn = cycle(batches)
    train = TrainStep(model, loss, optimizer, compile=compile)

    def step() -> Tensor:
        with case.autocast():
            return train(*next(turn))

    def derive(check: bool) -> object:
        with case.autocast():
            return TrainStep(model, loss, optimizer, check=check).derive(*batches[0], program=True)

    return Running(step, [*model.parameters()], _tensors(batches), derive)


def _products(case: Case, by_onednn: bool) -> Running:
    """The products of a step, without what stands between them: each layer's x Wᵀ, and backward δ W, which the first
    layer does not owe, and δᵀ x; as torch makes them, or by oneDNN."""
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    layers = [module for module in case.model(torch.nn).modules() if isinstance(module, Linear)]
    weights = [layer.weight.detach().to(dtype) for layer in layers]
    batches = [x.to(dtype) for x, _ in case.batches()]
    outputs = [batches[0].new_empty(case.network.batch, W.shape[0]) for W in weights]
    deltas = [torch.empty_like(z) for z in outputs]
    deltas[-1].copy_(torch.randn(deltas[-1].shape, generator=torch.Generator().manual_seed(2)))
    gradients = [torch.empty_like(W) for W in weights]

    def of_batch(x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What is multiplied, and where the product goes."""
        inputs = [x, *outputs[:-1]]
        products = [(a, W.t(), z) for a, W, z in zip(inputs, weights, outputs, strict=True)]
        for i in reversed(range(len(weights))):
            products.append((deltas[i].t(), inputs[i], gradients[i]))
            if i:
                products.append((deltas[i], weights[i], deltas[i - 1]))
        return products

    turn = cycle([of_batch(x) for x in batches])

    def step() -> Tensor:
        for a, b, out in next(turn):
            if by_onednn:
                onednn_linear(a, b.t(), None, "none", [], "")
            else:
                torch.mm(a, b, out=out)
        return outputs[-1]

    return Running(step, weights, batches)


def _tensors(batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [t for batch in batches for t in batch]


VARIANTS: dict[str, tuple[str, Callable[[Case], Running]]] = {
    "eager": ("stock", lambda case: _stock(case, compile=False)),
    "compile": ("stock, compiled", lambda case: _stock(case, compile=True)),
    "derived": ("derived", lambda case: _derived(case, compile=False)),
    "derived-compile": ("derived, compiled", lambda case: _derived(case, compile=True)),
    "products": ("products", lambda case: _products(case, by_onednn=False)),
    "products-onednn": ("products by oneDNN", lambda case: _products(case, by_onednn=True)),
}
"""What they are called in tables, and what starts them on a case."""

PRODUCTS = ("products", "products-onednn")
"""Those that train nothing."""

if onednn_linear is None:
    del VARIANTS["products-onednn"]


def stopwatch(running: Running, clock: Callable[[], float] = perf_counter) -> Stopwatch:
    """Times steps in a row. The one before brings back into the cache what other variants drove out."""

    def run(repeats: int) -> tuple[float, ...]:
        running.step()
        start = clock()
        for _ in range(repeats):
            running.step()
        return (clock() - start,)

    return run
