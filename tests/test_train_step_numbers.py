"""Steps of models whose course, or whose shapes, depend on numbers: of the batch, of what is learnt, or drawn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from torch_manualbp import TrainStep
from torch_manualbp.derive import NotDerivableError
from torch_manualbp.derive import step as step_module


class Net(Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.drop, self.own = torch.nn.Linear(4, 4), torch.nn.Dropout(0.3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.sum() / 10 - target).square() + output.square().sum() / 99


def _layer_drop(net: Net, x: Tensor) -> Tensor:
    for _ in range(3):
        h = net.drop(net.fc(x))
        x = h if torch.rand([]) < 0.5 else x + h
    return x


def _written(net: Net, x: Tensor) -> Tensor:
    h, is_on = net.fc(x).clone(), x[:, 0] > 0
    h[is_on] = net.fc(x[is_on]) * 2
    return h


def _halved(net: Net, x: Tensor) -> Tensor:
    h, n = net.fc(x), 0
    while h.abs().max() > 0.5 and n < 5:
        h, n = h * 0.5, n + 1
    return h


READ: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a branch": lambda m, x: m.fc(x) if x.sum() > 0 else -m.fc(x).tanh(),
    "a branch on what is learnt": lambda m, x: m.fc(x) if m.fc(x).sum() > 0 else -m.fc(x).tanh(),
    "layers left out by chance": _layer_drop,
    "a loop": _halved,
    "a mask": lambda m, x: m.fc(x)[x[:, 0] > 0],
    "a mask of two dimensions": lambda m, x: m.fc(x)[x > 0],
    "a mask with others": lambda m, x: m.fc(x)[x[:, 0] > 0, 1:],
    "masked_select": lambda m, x: m.fc(x).masked_select(x > 0),
    "a mask that is written to": _written,
    "nonzero": lambda m, x: m.fc(x)[x[:, 0].gt(0).nonzero().squeeze(1)],
    "where": lambda m, x: m.fc(x) * torch.where(x[:, 0] > 0)[0].numel(),
    "a slice": lambda m, x: m.fc(x)[: (x[:, 0] > 0).sum() + 1],
    "item": lambda m, x: m.fc(x) * (x > 0).sum().item(),
    "a whole number as a float": lambda m, x: m.fc(x) * float((x > 0).sum()),
    "lengths": lambda m, x: torch.cat([m.fc(x[:n]) for n in (x > 0).sum(1).tolist()]),
    "arange": lambda m, x: m.fc(x) * torch.arange((x > 0).sum()).sum() / 99,  # type: ignore[call-overload]
    "repeats": lambda m, x: m.fc(x).repeat_interleave((x[:, 0] > 0).long() + 1, 0),
    "one_hot": lambda m, x: m.fc(x).sum() * F.one_hot((x[:, 0] > 0).long()).sum(0),
    "bincount": lambda m, x: m.fc(x).sum() * torch.bincount((x[:, :2] > 0).sum(1)),
    "unique": lambda m, x: m.fc(x).sum() * torch.unique((x > 0).sum(1)).sum(),
}


def stock(net: Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    C = loss(net(x), y)
    C.backward()
    optimizer.step()
    return C


@pytest.mark.parametrize("case", READ)
def test_a_step_reads_numbers_and_is_stocks(case: str) -> None:
    torch.manual_seed(0)
    net = Net(READ[case]).double()
    twin = copy.deepcopy(net)
    optimizer, theirs = (torch.optim.SGD(m.parameters(), lr=0.001, momentum=0.9) for m in (net, twin))
    step, programs, y = TrainStep(net, loss, optimizer), set(), torch.tensor(1.0).double()
    for i in range(6):
        x = torch.randn(3, 4, dtype=torch.double)
        torch.manual_seed(i)
        C, drawn = step(x, y), torch.rand(1)
        programs.add(step.program)
        torch.manual_seed(i)
        torch.testing.assert_close(C, stock(twin, theirs, x, y), rtol=1e-10, atol=1e-12)
        assert torch.equal(drawn, torch.rand(1))
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-10, atol=1e-12)
    assert any("expect(" in text for text in programs)


def test_programs_for_numbers_are_kept() -> None:
    net = Net(READ["a branch"])
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.01))
    for i in range(8):
        step((-1) ** i * torch.ones(3, 4), torch.tensor(1.0))
    assert len(step._programs) == 2
    assert step.evaluate(torch.ones(3, 4), torch.tensor(1.0)) == loss(net(torch.ones(3, 4)), torch.tensor(1.0))


def test_a_saved_step_says_that_it_is_for_other_numbers(tmp_path: Path) -> None:
    net = Net(READ["a branch"])
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.01))
    step(torch.ones(3, 4), torch.tensor(1.0))
    for program in (False, True):
        step.save(tmp_path / "step.py", program=program)
        namespace: dict[str, Any] = {}
        exec((tmp_path / "step.py").read_text(), namespace)
        run = namespace["build"](dict(net.named_parameters()), {})
        before = net.fc.weight.clone()
        with pytest.raises(ValueError, match="this step is for True, and here it is False: derive another"):
            run(-torch.ones(3, 4), torch.tensor(1.0), 0.01)
        assert torch.equal(before, net.fc.weight)


def test_many_programs_for_numbers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "OFTEN", 2)
    net = Net(READ["a whole number as a float"])
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.01))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(4):
            step(torch.arange(-n, 4 - n).float().expand(3, 4), torch.tensor(1.0))
    assert ["2 programs are derived of one step" in str(item.message) for item in caught] == [True]


def test_one_graph_takes_no_other_course() -> None:
    net = Net(READ["a branch"])
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.01), compile=True)
    with pytest.raises(NotDerivableError, match="reads numbers"):
        step(torch.ones(3, 4), torch.tensor(1.0))
