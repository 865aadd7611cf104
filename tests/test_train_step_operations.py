"""Models and losses that call torch's plain operations train as under autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep

Forward = Callable[[Any, Tensor, Tensor], Tensor]


class Calling(Module):
    """A function of its own between two layers."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.scale = torch.nn.Linear(4, 6), torch.nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.last = torch.nn.Linear(6, 3)
        self.between = forward

    def forward(self, x: Tensor) -> Any:
        return self.last(self.between(self, self.first(x), x))


def trains_as_stock(forward: Forward) -> TrainStep:
    torch.manual_seed(0)
    stock = Calling(forward).double()
    model = copy.deepcopy(stock)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (stock, model)]
    step = TrainStep(model, torch.nn.MSELoss(), optimizers[1])
    for _ in range(3):
        x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        value = step(x, y)
        optimizers[0].zero_grad()
        C = torch.nn.functional.mse_loss(stock(x), y)
        C.backward()
        optimizers[0].step()
        torch.testing.assert_close(value, C.detach(), rtol=1e-12, atol=1e-12)
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-11)
    return step


def _root_mean_square(m: Any, h: Tensor, x: Tensor) -> Tensor:
    return m.scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))


def _in_place(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = h * 2
    h.clamp_(max=3)
    h.masked_fill_(x[:, :1] > 0, 2.0)
    return h.exp_()


def _passed_by(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    with torch.no_grad():
        h.mul_(2)
    return h


def _choices(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = torch.where(h > 0, h, 0.1 * h).masked_fill(x[:, :1] > 0, -1.0)
    return torch.maximum(h, m.scale) + torch.minimum(h, h.detach()) + h.clamp(-m.scale, m.scale) + h.abs()


def _powers(m: Any, h: Tensor, x: Tensor) -> Tensor:
    positive = h.exp()
    roots = positive**0.5 + positive.sqrt() + positive.log() + torch.log1p(positive) + positive.reciprocal()
    return roots + 2**h + positive**m.scale + h**3 - h.square() + torch.expm1(h)


FORWARDS: dict[str, Forward] = {
    "root mean square": _root_mean_square,
    "in place": _in_place,
    "in place under no_grad": _passed_by,
    "choices": _choices,
    "powers": _powers,
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_trains_as_stock(forward: Forward) -> None:
    trains_as_stock(forward)
