"""Scaled gradients: the numbers of ``torch.amp.GradScaler`` with autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_cases import data, mlp, stock_of
from torch.amp import GradScaler

from torch_manualbp import TrainStep, nn

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"clip_norm": 0.05},
    {"accumulate": 2, "clip_norm": 0.05, "clip_value": 0.01},
)


def scaler_of(**options: Any) -> GradScaler:
    """One whose scale grows every third update."""
    return GradScaler("cpu", init_scale=1024.0, growth_interval=3, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("apart", [False, True], ids=["called", "backward and update"])
def test_a_scaled_training_is_as_stocks(name: str, options: dict[str, Any], apart: bool) -> None:
    model = mlp(nn.Tanh).double()
    stock, scaler, theirs = stock_of(model), scaler_of(), scaler_of()
    optimizer, other = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](stock.parameters())
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, scaler=scaler, **options)
    n = options.get("accumulate", 1)
    for i in range(8):
        other.zero_grad()
        if apart:
            optimizer.zero_grad()
        for j in range(n):
            x, y = data(n * i + j)
            if i == 5 and j == n - 1:
                x[0, 0] = float("inf")  # tanh is 1 there, and ∂C/∂W is 0 · ∞
            C = torch.nn.functional.cross_entropy(stock(x), y)
            theirs.scale(C / n).backward()
            ours = step.backward(x, y, share=1 / n) if apart else step(x, y)
            torch.testing.assert_close(ours, C.detach(), rtol=1e-12, atol=0)
        if apart:
            for p, q in zip(model.parameters(), stock.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-9, equal_nan=True)
            step.update()
        theirs.unscale_(other)
        if "clip_norm" in options:
            norm = torch.nn.utils.clip_grad_norm_(stock.parameters(), options["clip_norm"])
            torch.testing.assert_close(step.grad_norm, norm, rtol=1e-12, atol=0, equal_nan=True)
        if "clip_value" in options:
            torch.nn.utils.clip_grad_value_(stock.parameters(), options["clip_value"])
        theirs.step(other)
        theirs.update()
        assert scaler.get_scale() == theirs.get_scale()
    assert scaler.get_scale() == 1024.0  # doubled after three, halved at the sixth
    for (key, p), q in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=key)
    assert len(step._programs) <= 2


def test_a_scaler_that_is_off_scales_nothing() -> None:
    model = mlp().double()
    step = TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), scaler=GradScaler("cpu", enabled=False)
    )
    step(*data(0))
    assert step.folds


def test_evaluation_has_the_loss_itself() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), scaler=scaler_of())
    step(*data(0))
    x, y = data(1)
    expected = torch.nn.functional.cross_entropy(model(x), y).detach()
    torch.testing.assert_close(step.evaluate(x, y), expected, rtol=1e-12, atol=0)
    assert "on ScaledLoss up to the gradients" in step.derive(x, y)


def test_small_gradients_in_float16_survive() -> None:
    """Of δ that is too small for float16 nothing is left without a scale."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(4, 8), torch.randn(4, 2)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((output.float() - target) * 1e-9).sum()

    norms = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**16)):
        step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0), scaler=scaler, keep_grad_norm=True)
        with torch.autocast("cpu", torch.float16):
            step(x, y)
        assert step.grad_norm is not None
        norms.append(step.grad_norm.item())
    assert norms[0] == 0
    model.zero_grad()
    loss(model(x), y).backward()
    wanted = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    assert norms[1] == pytest.approx(wanted, rel=0.01)


def test_what_is_no_scaler_is_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"scaler is 1024.0: it takes a torch.amp.GradScaler, or None"):
        TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), scaler=1024.0)  # type: ignore[arg-type]
