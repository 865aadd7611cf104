"""compare_gradients: what agrees, what differs, and what cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp.verify import compare_gradients

INPUTS, TARGET = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4


def network(library: Any, dtype: torch.dtype = torch.float32) -> Any:
    layers = library.Linear(6, 5), library.Tanh(), library.Dropout(0.4), library.Linear(5, 4)
    return library.Sequential(*layers).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ours_agree_with_stock(dtype: torch.dtype) -> None:
    """Dropout included: both draw the same."""
    model = network(nn, dtype)
    comparison = compare_gradients(model, network(torch.nn), INPUTS.to(dtype), TARGET, nn.CrossEntropyLoss())
    assert comparison.ok
    assert [(row.name, row.shape) for row in comparison.rows] == [
        (name, tuple(parameter.shape)) for name, parameter in model.named_parameters()
    ]
    for row in comparison.rows:
        assert row.verdict == "ok"
        assert row.largest > 0
        assert row.tolerance == pytest.approx(32 * torch.finfo(dtype).eps * row.largest)


def test_neither_model_changes() -> None:
    model, reference = network(nn), network(torch.nn)
    model.append(nn.BatchNorm1d(4))
    reference.append(torch.nn.BatchNorm1d(4))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    states = [{name: t.clone() for name, t in m.state_dict().items()} for m in (model, reference)]
    random = torch.get_rng_state()
    assert compare_gradients(model, reference, INPUTS, TARGET, nn.CrossEntropyLoss()).loss > 0
    assert torch.equal(torch.get_rng_state(), random)
    for m, state in zip((model, reference), states, strict=True):
        assert all(torch.equal(t, state[name]) for name, t in m.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(5, 6))
    assert model[3].weight.grad is None
    assert all(p.grad is None for p in reference.parameters())


class ScaledGradient(torch.autograd.Function):
    """Identity, with a gradient that is wrong by a factor."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return input.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return upstream[0] * ctx.factor, None


class WrongBelow(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, input: Tensor) -> Any:
        return ScaledGradient.apply(input, self.factor)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("factor", [1 + 1e-4, -1.0, 0.0, float("nan"), float("inf")])
def test_a_wrong_gradient_differs(factor: float) -> None:
    model, reference = network(nn), network(torch.nn)
    model[1] = torch.nn.Sequential(nn.Tanh(), WrongBelow(factor))
    comparison = compare_gradients(model, reference, INPUTS, TARGET, nn.CrossEntropyLoss())
    assert not comparison.ok
    assert [row.verdict for row in comparison.rows] == ["differs", "differs", "ok", "ok"]
    assert comparison.loss_difference == 0


def test_not_a_number_agrees_with_nothing() -> None:
    bad = INPUTS.clone()
    bad[0, 0] = torch.nan
    comparison = compare_gradients(network(nn), network(nn), bad, TARGET, nn.CrossEntropyLoss())
    assert not comparison.loss_ok
    assert not any(row.ok for row in comparison.rows)


def test_another_loss_differs() -> None:
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    comparison = compare_gradients(network(nn), network(torch.nn), INPUTS, TARGET, nn.CrossEntropyLoss(), smooth)
    assert not comparison.loss_ok
    assert comparison.loss_difference > 0


def test_a_frozen_parameter_has_no_gradient() -> None:
    model = network(nn)
    model[0].weight.requires_grad_(False)
    comparison = compare_gradients(model, network(torch.nn), INPUTS, TARGET, nn.CrossEntropyLoss())
    assert comparison.ok
    assert [row.verdict for row in comparison.rows] == ["no gradient", "ok", "ok", "ok"]


class Detached(torch.nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.detach()


def test_a_gradient_in_one_only_differs() -> None:
    cut = network(nn)
    cut[1] = Detached()
    comparison = compare_gradients(cut, network(torch.nn), INPUTS, TARGET, nn.CrossEntropyLoss())
    assert not comparison.ok
    assert [row.verdict for row in comparison.rows[:2]] == ["no gradient in the model"] * 2
    comparison = compare_gradients(network(nn), cut, INPUTS, TARGET, nn.CrossEntropyLoss())
    assert [row.verdict for row in comparison.rows[:2]] == ["no gradient in the reference"] * 2


def test_other_parameters_cannot_be_compared() -> None:
    longer, wider = network(torch.nn).append(torch.nn.Linear(4, 4)), network(torch.nn)
    wider[0] = torch.nn.Linear(6, 7)
    with pytest.raises(ValueError, match=r"^the model has no parameter '4.weight'"):
        compare_gradients(network(nn), longer, INPUTS, TARGET, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"^the reference has no parameter '4.weight'"):
        compare_gradients(longer, network(nn), INPUTS, TARGET, nn.CrossEntropyLoss())
    with pytest.raises(
        ValueError, match=r"^parameter '0.weight' has shape \(5, 6\) in the model and \(7, 6\) in the ref"
    ):
        compare_gradients(network(nn), wider, INPUTS, TARGET, nn.CrossEntropyLoss())
