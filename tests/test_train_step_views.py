"""Steps of models that write in place to what is a view of other tensors, or has views."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep


class Net(Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.own = torch.nn.Linear(4, 4), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.fc(x), x)


def _whole_through_a_view(h: Tensor, x: Tensor) -> Tensor:
    h.view(-1).relu_()
    return h


def _part(h: Tensor, x: Tensor) -> Tensor:
    h[:, :1].zero_()
    return h * 2


def _several(h: Tensor, x: Tensor) -> Tensor:
    turned, row = h.t(), h[0]
    turned[1].mul_(3)
    row.add_(1)
    return h * turned.t()


def _copied(h: Tensor, x: Tensor) -> Tensor:
    first, second = h[:2], h[2:4]
    first.mul_(2)
    second.copy_(first[0])
    return torch.cat([first, second]) * h[:4]


def _seen_before(h: Tensor, x: Tensor) -> Tensor:
    flat = h.reshape(-1)
    h.mul_(2)
    return flat.view_as(h) * h


def _no_view(h: Tensor, x: Tensor) -> Tensor:
    turned = h.t()
    flat = turned.reshape(-1)  # a copy, which stays as it is
    turned.mul_(2)
    return flat.sum() * turned


def _made_of_zeros(h: Tensor, x: Tensor) -> Tensor:
    z = torch.zeros(5, 4, dtype=x.dtype)
    z[1:3] = h[1:3]
    row = z[0]
    row += h[0]
    for i in range(4):
        z[:, i] += h[:, i] * i
    return z * 2


def _augmented(h: Tensor, x: Tensor) -> Tensor:
    h[0] += 1
    h[1:, 2:] *= 2
    h[h > 0] = 0.5
    return h


def _diagonal(h: Tensor, x: Tensor) -> Tensor:
    c = h.T @ h
    on = torch.diagonal(c).add_(-1).pow_(2).sum()
    return on + 0.1 * c.flatten()[:-1].view(3, 5)[:, 1:].flatten().pow_(2).sum()


def _deep(h: Tensor, x: Tensor) -> Tensor:
    z = h.unsqueeze(0).transpose(1, 2)
    z[0, 1] = h[:, 0] * 2
    z[:, 2].fill_(0.5)
    return h.sum() * z


def _detached(h: Tensor, x: Tensor) -> Tensor:
    kept, spread = h.detach(), h.expand(3, 5, 4)
    h.add_(1)
    return h * kept + spread.mean(0)


WRITTEN = (
    *(_whole_through_a_view, _part, _several, _copied, _seen_before, _no_view, _made_of_zeros, _augmented, _diagonal),
    *(_deep, _detached),
)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.pow(2).sum() - target).pow(2) / 99


@pytest.mark.parametrize("forward", WRITTEN, ids=lambda f: f.__name__.strip("_").replace("_", " "))
def test_a_step_that_writes_to_views_is_stocks(forward: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(forward).double()
    twin = copy.deepcopy(net)
    optimizer, theirs = (torch.optim.SGD(m.parameters(), lr=1e-5) for m in (net, twin))
    step = TrainStep(net, loss, optimizer, check=False, keep_output=True)
    for _ in range(2):
        x, y = torch.randn(5, 4, dtype=torch.double), torch.tensor(1.0).double()
        C = step(x, y)
        theirs.zero_grad()
        output = twin(x)
        torch.testing.assert_close(step.output, output.detach(), rtol=1e-10, atol=1e-12)
        expected = loss(output, y)
        expected.backward()
        theirs.step()
        torch.testing.assert_close(C, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-10, atol=1e-12)
    assert step.source


def test_a_loss_that_writes_over_the_output_leaves_it_as_the_model_returned_it() -> None:
    net = Net(lambda h, x: h * 1)
    step = TrainStep(
        net, lambda o, y: o.diagonal().mul_(3).sum() * y, torch.optim.SGD(net.parameters(), lr=0.0), keep_output=True
    )
    x = torch.randn(4, 4)
    step(x, torch.tensor(1.0))
    torch.testing.assert_close(step.output, net(x).detach())
