"""CTCLoss behind a log_softmax is torch's, of any lengths; so is the step derived of a model with it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn import functional as F

from torch_manualbp import TrainStep, functional


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Scores, labels, lengths of both, and the blank; of no time, and without labels, among them."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    times, samples, classes, most = (int(integer(*of)) for of in ((1, 8), (1, 3), (2, 4), (0, 4)))
    blank = int(integer(0, classes - 1))
    labels = torch.tensor([k for k in range(classes) if k != blank])[integer(0, classes - 2, samples, most)]
    s = torch.randn(times, samples, classes, dtype=torch.double, generator=generator)
    return s, labels, integer(0, times, samples), integer(0, most, samples), blank


def gradient(loss: Any, s: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    leaf = s.clone().requires_grad_()
    C = loss(leaf.log_softmax(2), *args)
    return C.detach(), torch.autograd.grad(C.sum(), leaf)[0]


@pytest.mark.parametrize("seed", range(20))
def test_any_lengths(seed: int) -> None:
    s, y, T, S, blank = drawn(seed)
    for reduction in ("mean", "sum", "none"):
        torchs = gradient(F.ctc_loss, s, y, T, S, blank, reduction, True)
        mine = gradient(functional.ctc_loss, s, y, T, S, blank, reduction, True)
        for ours, theirs in zip(mine, torchs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        p = s.log_softmax(2)
        infinite = [loss(p, y, T, S, blank, reduction) for loss in (functional.ctc_loss, F.ctc_loss)]
        torch.testing.assert_close(*infinite, rtol=1e-10, atol=1e-12)
    joined = torch.cat([row[:n] for row, n in zip(y, S, strict=True)])
    lengths: Any = T.tolist(), S.tolist()
    losses: tuple[Any, ...] = functional.ctc_loss, F.ctc_loss
    for loss in losses:
        torch.testing.assert_close(loss(p, joined, *lengths, blank, "none"), infinite[0], rtol=1e-10, atol=1e-12)
    one = [loss(p[:, 0], y[0, : S[0]], T[0], S[0], blank, "none") for loss in (functional.ctc_loss, F.ctc_loss)]
    torch.testing.assert_close(*one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "args",
    [
        (torch.ones(2, 1), (5,), (1,)),
        (torch.ones(2, 1).long(), (5, 5), (1, 2)),
        (torch.ones(2, 1).long(), (9, 5), (1, 1)),
        (torch.ones(2, 1).long(), (5, 5), (1, 1), 7),
        (torch.ones(3).long(), (5, 5), (1, 1)),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(args: tuple[Any, ...]) -> None:
    said = []
    for loss in (functional.ctc_loss, F.ctc_loss):
        with pytest.raises((RuntimeError, ValueError)) as raised:
            loss(torch.randn(5, 2, 3).log_softmax(2), *args)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("target", [torch.tensor([[1, 2], [3, 3], [4, 4]]), torch.tensor([1, 2, 3, 3, 4])])
def test_a_derived_step_is_torchs(target: Tensor) -> None:
    class Net(torch_nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = torch_nn.GRU(3, 4), torch_nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.head(self.recurrent(x)[0]), -1)

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return F.ctc_loss(s, y, (6, 5, 6), (2, 2, 1))  # type: ignore[arg-type] # torch's stub asks for tensors

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(6, 3, 3, dtype=torch.double)
    twin = copy.deepcopy(model)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        cost = step(x, target)
        optimizer.zero_grad()
        right = loss(twin(x), target)
        right.backward()
        optimizer.step()
        torch.testing.assert_close(cost.detach(), right.detach(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
