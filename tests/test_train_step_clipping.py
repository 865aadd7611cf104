"""Clipping inside of the program: the numbers of ``clip_grad_norm_`` and ``clip_grad_value_`` ahead of the update."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from step_cases import MODELS, data, mlp, stock_of
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep, nn

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
CLIPS: tuple[dict[str, Any], ...] = (
    {"clip_norm": 0.05},
    {"clip_norm": 1e6},
    {"clip_value": 0.003},
    {"clip_norm": 0.05, "clip_value": 0.003},
    {"keep_grad_norm": True},
)
OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"accumulate": 3},
    {"skip_nonfinite": True},
    {"keep_output": True, "keep_deltas": True, "keep_layers": True},
    {"skip_nonfinite": True, "accumulate": 2},
)


class Stock:
    """The same by autograd and torch's functions."""

    def __init__(self, model: Module, make: Make) -> None:
        self.model = stock_of(model)
        self.optimizer = make([p for p in self.model.parameters() if p.requires_grad])
        self.norm: Tensor | None = None

    def __call__(self, batches: list[tuple[Tensor, Tensor]], clips: dict[str, Any]) -> None:
        """One update by the mean over these batches."""
        self.optimizer.zero_grad()
        torch.manual_seed(0)
        for x, y in batches:
            (torch.nn.functional.cross_entropy(self.model(x), y) / len(batches)).backward()
        parameters = list(self.model.parameters())
        self.norm = torch.nn.utils.clip_grad_norm_(parameters, clips.get("clip_norm", float("inf")))
        if "clip_value" in clips:
            torch.nn.utils.clip_grad_value_(parameters, clips["clip_value"])
        self.optimizer.step()


def check(model: Module, make: Make, clips: dict[str, Any], others: dict[str, Any], steps: int = 6) -> TrainStep:
    """A derived and a stock training of a model end alike."""
    model = model.double()
    stock = Stock(model, make)
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, **clips, **others)
    n = others.get("accumulate", 1)
    for i in range(steps):
        batches = [data(i * n + j) for j in range(n)]
        torch.manual_seed(0)
        for x, y in batches:
            step(x, y)
        stock(batches, clips)
        if "clip_norm" in clips or "keep_grad_norm" in clips:
            torch.testing.assert_close(step.grad_norm, stock.norm, rtol=1e-12, atol=0)
        else:
            assert step.grad_norm is None
    for (name, p), q in zip(model.named_parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=name)
    return step


@pytest.mark.parametrize(
    ("name", "clips", "others"),
    one_of_each(
        itertools.product(OPTIMIZERS, CLIPS, OTHERS), lambda name, clips, others: [name, str(clips), str(others)]
    ),
    ids=str,
)
def test_each_optimizer_trains_as_stock(name: str, clips: dict[str, Any], others: dict[str, Any]) -> None:
    step = check(mlp(), OPTIMIZERS[name], clips, others)
    assert step.folds == (name != "RMSprop" and "accumulate" not in others)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["Nesterov", "RMSprop"])
def test_each_model_trains_as_stock(make: Callable[[], Module], name: str) -> None:
    check(make(), OPTIMIZERS[name], {"clip_norm": 0.05, "clip_value": 0.003}, {"keep_deltas": True})


class Aliased(torch.nn.Module):
    """Gradients that are one tensor, or the δ of a module, or the loss's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (torch.nn.Parameter(torch.randn(5, 6) * 0.1) for _ in range(2))
        self.shift = torch.nn.Parameter(torch.zeros(()))
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tanh(x[:5, :6] + self.first + self.second) + self.shift
        return out


@pytest.mark.parametrize("name", ["SGD", "AdamW fused", "RMSprop"])
def test_gradients_that_share_memory_are_clipped_once(name: str) -> None:
    model = Aliased().double()
    stock = copy.deepcopy(model)
    optimizer, theirs = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](stock.parameters())
    step = TrainStep(model, nn.MSELoss(), optimizer, clip_norm=0.01, keep_deltas=True)
    for i in range(4):
        x, y = torch.randn(6, 7, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
        theirs.zero_grad()
        output = stock(x)
        output.retain_grad()
        torch.nn.functional.mse_loss(output, y).backward()
        torch.nn.utils.clip_grad_norm_(stock.parameters(), 0.01)
        theirs.step()
        step(x, y)
        torch.testing.assert_close(step.deltas["tanh"], output.grad, rtol=1e-12, atol=1e-14, msg=f"δ of step {i}")
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_another_bound_is_no_other_program() -> None:
    model = mlp().double()
    stock = Stock(model, OPTIMIZERS["SGD"])
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), clip_norm=0.1)
    for i, bound in enumerate((0.1, 0.01, 3, float("inf"))):
        step.clip_norm = bound
        step(*data(i))
        stock([data(i)], {"clip_norm": bound})
    assert len(step._programs) == 1
    for p, q in zip(model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    step.clip_norm = None
    step(*data(9))
    assert step.grad_norm is None
    assert len(step._programs) == 2


@pytest.mark.parametrize("name", ["SGD", "AdamW fused", "RMSprop"])
def test_the_norm_of_a_step_is_a_tensor_of_its_own(name: str) -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS[name](model.parameters()), clip_norm=0.1)
    norms = []
    for i in range(3):
        step(*data(i))
        assert step.grad_norm is not None
        norms.append((step.grad_norm, step.grad_norm.item()))
    assert [norm.item() for norm, _ in norms] == [number for _, number in norms]
    assert len({number for _, number in norms}) == 3


def test_backward_and_update_apart_clip_what_is_in_grad() -> None:
    model = mlp().double()
    stock = Stock(model, OPTIMIZERS["AdamW fused"])
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["AdamW fused"](model.parameters()), clip_norm=0.01)
    for i in range(3):
        step.optimizer.zero_grad()
        step.backward(*data(i), share=0.5)
        step.backward(*data(i + 10), share=0.5)
        assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) > 0.011
        step.update()
        stock([data(i), data(i + 10)], {"clip_norm": 0.01})
        torch.testing.assert_close(step.grad_norm, stock.norm, rtol=1e-12, atol=0)
    for p, q in zip(model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_step_that_is_skipped_keeps_the_norm_of_the_last_update() -> None:
    model = mlp().double()
    step = TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), clip_norm=0.1, skip_nonfinite=True
    )
    step(*data(0))
    norm, before = step.grad_norm, copy.deepcopy(model.state_dict())
    x, y = data(1)
    step(x * float("nan"), y)
    assert step.skipped == 1
    assert step.grad_norm is norm
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


@pytest.mark.parametrize("program", [False, True])
def test_a_saved_step_takes_the_bounds(tmp_path: Path, program: bool) -> None:
    model = mlp().double()
    stock = Stock(model, OPTIMIZERS["SGD"])
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    clips = {"clip_norm": 0.05, "clip_value": 0.003}
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), **clips)  # type: ignore[arg-type]
    step.derive(*data(0))
    step.save(tmp_path / "step.py", program=program)
    namespace: dict[str, Any] = {}
    exec((tmp_path / "step.py").read_text(), namespace)
    run = namespace["build"](parameters, {})
    for i in range(4):
        _, norm = run(*data(i), 0.1, 0.05, 0.003)
        stock([data(i)], clips)
        torch.testing.assert_close(norm, stock.norm, rtol=1e-12, atol=0)
    for (name, p), q in zip(parameters.items(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13, msg=name)


def test_the_source_says_how_gradients_are_clipped() -> None:
    model = mlp().double()
    step = TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), clip_norm=0.05, clip_value=0.003
    )
    step.derive(*data(0))
    assert "---- clipping ---" in step.source
    assert "clip = torch.clamp(clip_norm / (grad_norm + 1e-06), max=1)" in step.source
    assert "addmm_" not in step.program
    unclipped = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()))
    unclipped.derive(*data(0))
    assert "addmm_" in unclipped.program


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_compiled_whole_it_clips_as_stock(name: str) -> None:
    check(mlp(), OPTIMIZERS[name], {"clip_norm": 0.05, "clip_value": 0.003}, {"compile": True})
