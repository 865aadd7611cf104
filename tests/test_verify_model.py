"""verify_model: every layer on its real inputs and upstream gradient, the loss, and the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp import nn
from torch_manualbp.verify import verify_model

X, Y = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4


class Wrong(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return da * z.cos() * 1.001


class Sine(torch.nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        apply: Any = Wrong.apply
        return apply(z)


class BetweenLayers(torch.nn.Module):
    """Its mistake stands in no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        apply: Any = Wrong.apply
        return self.fc2(apply(self.fc1(x)))


def network(library: Any) -> Any:
    layers = library.Linear(6, 5), library.BatchNorm1d(5), library.GELU(), library.Dropout(0.4), library.Linear(5, 4)
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize("library", [nn, torch.nn], ids=["ours", "torch's"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_right_model_passes(library: Any, dtype: torch.dtype) -> None:
    report = verify_model(network(library).to(dtype), X.to(dtype), Y, library.CrossEntropyLoss())
    assert report.ok, report
    names = {row.name for row in report.rows}
    assert {"0.weight", "0.bias", "1.weight", "2.input[0]", "4.weight", "loss.input[0]"} <= names


def test_a_mistake_is_found_in_the_layer_that_makes_it() -> None:
    model = torch.nn.Sequential(nn.Linear(6, 5), Sine(), nn.Linear(5, 4))
    report = verify_model(model, X, Y, nn.CrossEntropyLoss())
    layers = [row for row in report.failures if not row.check.startswith("whole model")]
    assert {row.name for row in layers} == {"1.input[0]"}
    assert "1.001 times the right one" in layers[0].hint
    whole = [row for row in report.failures if row.check == "whole model: values, float64"]
    assert {row.name for row in whole} == {"0.weight", "0.bias"}


def test_a_mistake_between_layers_is_found_in_the_whole() -> None:
    report = verify_model(BetweenLayers(), X, Y, nn.CrossEntropyLoss())
    assert {row.check for row in report.failures} == {"whole model: values, float64", "whole model: values, float32"}
    assert {row.name for row in report.failures} == {"fc1.weight", "fc1.bias"}


def test_the_upstream_gradient_is_the_real_one() -> None:
    """A mistake that shows of one upstream gradient alone is found where that one comes."""

    class OfNegative(Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z * 1

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            return torch.where(da == 0.125, 2 * da, da)

    class Layer(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            apply: Any = OfNegative.apply
            return apply(z)

    model = torch.nn.Sequential(torch.nn.Linear(6, 4), Layer())
    assert verify_model(model, X, Y, lambda output, _: output.sum(), checks="values, float64").ok
    report = verify_model(model, X, Y, lambda output, _: output.sum() / 8, checks="values, float64")
    assert "1.input[0]" in {row.name for row in report.failures}


def test_nothing_is_changed() -> None:
    model, random = network(nn), torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify_model(model, X, Y, nn.CrossEntropyLoss()).ok
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_layers_and_checks_are_chosen() -> None:
    report = verify_model(network(nn), X, Y, nn.CrossEntropyLoss(), layers=["4"], checks=["linearity"])
    assert {row.name for row in report.rows} == {"4.input[0]", "4.weight", "4.bias"}
    assert {row.check for row in report.rows} == {"linearity"}
    with pytest.raises(ValueError, match="the model has no layer '9'; it has 0, 1, 2, 3, 4"):
        verify_model(network(nn), X, Y, nn.CrossEntropyLoss(), layers=["9"])


def test_frozen_layers_below_are_left_alone() -> None:
    model = network(nn)
    model[0].requires_grad_(False)
    report = verify_model(model, X, Y, nn.CrossEntropyLoss())
    assert report.ok, report
    (row,) = (row for row in report.rows if row.name == "0")
    assert (row.verdict, row.hint) == ("does not apply", "no gradient reaches it")


def test_a_layer_called_twice_is_verified_twice() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).relu())

    report = verify_model(Twice(), X, Y, nn.CrossEntropyLoss())
    assert report.ok, report
    assert {"fc.weight", "fc#2.weight"} <= {row.name for row in report.rows}


def test_layers_that_work_in_place() -> None:
    model = torch.nn.Sequential(nn.Linear(6, 5), torch.nn.ReLU(inplace=True), nn.Linear(5, 4))
    assert verify_model(model, X, Y, nn.CrossEntropyLoss()).ok


def test_a_model_that_learns_nothing_is_bad_input() -> None:
    with pytest.raises(ValueError, match="no tensor that needs a gradient"):
        verify_model(network(nn).requires_grad_(False), X, Y, nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"the forward of .* fails on .*\(20, 6\)"):
        verify_model(network(nn), X, Y[:5], nn.CrossEntropyLoss())


def test_a_budget_is_kept() -> None:
    report = verify_model(network(nn), X, Y, nn.CrossEntropyLoss(), budget_s=0.0)
    assert {row.verdict for row in report.rows} == {"left out"}
