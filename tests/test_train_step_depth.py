"""Deriving takes as long for each layer of a deep network as of a shallow one, and memory is reused as closely."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_cases import MODELS, Attention, Structured, data, mlp
from torch import Tensor, nn
from torch.nn import Module

from torch_manualbp import TrainStep
from torch_manualbp.derive import assembled as assembled_module
from torch_manualbp.derive.plan import plan


def stack(layers: int) -> Module:
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(8, 8), nn.Tanh())])


class Reshaping(Module):
    """Blocks of copies, views and parts, which a program does without where it can."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            u, v = layer(x).reshape(-1, 2, 4).transpose(1, 2).flatten(1).chunk(2, 1)
            x = x + torch.cat([u * v, v.clone()], 1)[:, :8]
        return x


def derive(model: Module, optimizer: Callable[..., Any]) -> None:
    step = TrainStep(model, nn.MSELoss(), optimizer(model.parameters(), lr=0.1))
    step.derive(torch.zeros(4, 8), torch.zeros(4, 8))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("make", [stack, Reshaping])
def test_calls_of_python_a_layer(make: Callable[[int], Module], optimizer: Callable[..., Any]) -> None:
    derive(make(4), optimizer)

    def calls(layers: int) -> int:
        model = make(layers)
        with cProfile.Profile() as profile:
            derive(model, optimizer)
        return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]

    shallow, deep = calls(8), calls(32)
    assert deep / 32 < 1.1 * shallow / 8, (shallow, deep)


@pytest.mark.slow
def test_time_a_layer() -> None:
    derive(stack(10), torch.optim.SGD)
    seconds = {}
    for layers in (250, 1000):
        model = stack(layers)
        start = time.process_time()
        derive(model, torch.optim.SGD)
        seconds[layers] = time.process_time() - start
    assert seconds[1000] / 1000 < 1.35 * seconds[250] / 250, seconds


class Attentions(Module):
    """Self-attentions with their residuals."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (t.view(2, 2, 2, 4).transpose(1, 2) for t in qkv(x.view(2, 2, 8)).split(8, -1))
            a = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
            x = x + out(a.transpose(1, 2).reshape(4, 8))
        return x


@pytest.mark.slow
def test_planning_takes_as_many_calls_of_python_for_each_call_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def planning(program: Any, *args: Any, **kwargs: Any) -> Any:
        count = len(program.calls)
        with cProfile.Profile() as profile:
            planned = plan(program, *args, **kwargs)
        found.append(pstats.Stats(profile).total_calls / count)  # type: ignore[attr-defined]
        return planned

    monkeypatch.setattr(assembled_module, "plan", planning)
    for layers in (2, 6, 24):
        model = Attentions(layers)
        TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters()), check=False).derive(
            torch.zeros(4, 8), torch.zeros(4, 8), program=True
        )
    _, shallow, deep = found  # the first asks torch which functions take an out=
    assert deep < 1.1 * shallow


PLANNED = {"mlp": 4121, "Residual": 7649, "Tied": 3713, "Structured": 5309, "Attention": 14489, "InPlace": 2897}
"""Bytes of memory that the program of each model plans, under SGD. A dropout has the booleans that it draws
beside their multiples r."""


@pytest.mark.parametrize("make", [make for make in MODELS if make.__name__ in PLANNED], ids=lambda make: make.__name__)
def test_planned_memory(make: type[Module], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def planning(*args: Any, **kwargs: Any) -> Any:
        planned = plan(*args, **kwargs)
        found.append(sum(value.tensor.numel() * value.tensor.element_size() for value in planned.memory))
        return planned

    monkeypatch.setattr(assembled_module, "plan", planning)
    torch.manual_seed(0)
    model = make().double()
    TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)).derive(*data(0))
    assert found[-1] <= PLANNED[make.__name__]


def test_memory_that_is_free_is_taken_once() -> None:
    """Values that live at the same time never share memory, however many of one shape there are."""
    for make in (mlp, Structured, Attention):
        torch.manual_seed(0)
        model = make().double()
        other = make().double()
        other.load_state_dict(model.state_dict())
        step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), keep_deltas=True)
        lean = TrainStep(other, nn.CrossEntropyLoss(), torch.optim.SGD(other.parameters(), lr=0.1))
        for i in range(3):
            torch.manual_seed(i)
            C = step(*data(i))
            torch.manual_seed(i)
            torch.testing.assert_close(lean(*data(i)), C, rtol=1e-12, atol=1e-13)
