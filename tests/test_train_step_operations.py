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


def _products(m: Any, h: Tensor, x: Tensor) -> Tensor:
    W = m.first.weight.T
    sums = (
        torch.addmm(h, x, W, beta=0.5, alpha=2)
        + torch.baddbmm(h[None], x[None], W[None])[0]
        + torch.addmv(h[:, 0], h, h[0]).unsqueeze(1)
    )
    letters = torch.einsum("bi,bj->ij", h, h)[:5] + torch.einsum("...i,ij->...j", h, W.T @ W)
    return sums + letters + torch.outer(h[:, 0], h[0]) + torch.kron(h[:1], h[:, :1]) + torch.einsum("ii", h[:, :5])


def _reductions(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = torch.tanh(h)
    rows = (
        h.max(dim=1, keepdim=True)[0] + h.logsumexp(1, keepdim=True) + h.prod(1, keepdim=True) + h.norm(dim=1)[:, None]
    )
    columns = h.amax(0) + h.var(0) + h.std(0) + torch.linalg.vector_norm(h, 3, dim=0) + h.median(0).values + h.norm()
    running = h.logcumsumexp(0) + h.cumsum(1) + h.cumprod(1) + h.cummax(0)[0]
    return rows + columns + running + h.min() + torch.max(h, h * 2) + h.sort(1).values + h.topk(6, 1)[0]


def _arrangements(m: Any, h: Tensor, x: Tensor) -> Tensor:
    turned = h.flip(0) + h.roll(1, 1) + h.tril() + h.triu(1) + torch.hstack([h[:, :3], h[:, 3:]])
    again = h.repeat(2, 1)[:5] + h.repeat_interleave(2, 0)[:5] + h.tile(2)[:, :6] + torch.broadcast_tensors(h, h[0])[1]
    diagonals = torch.diag_embed(h[0])[:5] + h[:, :5].diagonal().unsqueeze(1)
    return turned + again + diagonals + h.unfold(1, 3, 1)[:, :, 1].sum(1, keepdim=True)


def _put(m: Any, h: Tensor, x: Tensor) -> Tensor:
    index = torch.tensor([[0, 1, 1, 2, 3, 3]])
    picked = h.gather(1, h.argsort(1)) + h.scatter(1, torch.arange(3).expand(5, 3), h[:, 3:])
    added = torch.zeros_like(h).scatter_add(0, index, h[:1].clone()) + h.index_add(0, torch.tensor([1, 1]), h[:2])
    largest = h.scatter_reduce(0, index, h[:1] * 2, "amax") + h.scatter_reduce(0, index, h[:1] * 2, "mean")
    return picked + added + largest + torch.zeros_like(h).index_put((torch.tensor([1]),), h[0])


def _set(m: Any, h: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(5, 6, dtype=h.dtype)
    out[:, ::2] = h[:, ::2]
    out[:, 1] = h[:, 1].exp()
    out[1:3, torch.tensor([3, 5])] = h[1:3, :2]
    out[x[:, 0] > 0] = 2.0
    out[..., 2:4] += h[..., 0:2]
    return out


FORWARDS: dict[str, Forward] = {
    "root mean square": _root_mean_square,
    "in place": _in_place,
    "in place under no_grad": _passed_by,
    "choices": _choices,
    "powers": _powers,
    "products": _products,
    "reductions": _reductions,
    "arrangements": _arrangements,
    "entries put elsewhere": _put,
    "entries set": _set,
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_trains_as_stock(forward: Forward) -> None:
    trains_as_stock(forward)
