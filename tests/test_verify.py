"""verify: what it finds, what it says, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

import torch_manualbp
import torch_manualbp.verify
from torch_manualbp import nn, rules
from torch_manualbp.verify import CHECKS, GradientError, verify

Z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Square(Function):
    """a = z², in the ctx style."""

    factor = 2.0

    @classmethod
    def derivative(cls, z: Tensor) -> Tensor:
        return cls.factor * z

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return da * 2 * z


class SlightlyWrong(Square):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Square.backward(ctx, da) * (1 + 1e-4)


class HiddenForward(Square):
    """What autograd does not see in its forward leaves finite differences alone as a reference."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.data * z


class HiddenAndWrong(HiddenForward):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return da * z


square: Any = Square.apply
"""Taken from the class long before anything is verified, as many do."""


def test_an_apply_that_was_taken_before_is_seen_or_said_not_to_be() -> None:
    """Since torch 2.14 the engine is called without a word of Python's; then nothing is verified, and it is said."""
    report = verify(lambda z: square(z).sum(), torch.randn(3, dtype=torch.float64, requires_grad=True))
    assert report.ok or (report.verdict == "not verified" and "Square.apply was taken before" in str(report))
    assert report.ok or torch.__version__ >= "2.14"


TARGETS = [
    pytest.param(Square, id="a Function in the ctx style"),
    pytest.param(rules.Tanh, id="a Function with setup_context"),
    pytest.param(nn.GELU(), id="a module of ours"),
    pytest.param(torch.nn.Linear(4, 3), id="a module of torch's"),
    pytest.param(lambda z: Square.apply(z).sum(), id="a callable"),  # type: ignore[no-untyped-call]
    pytest.param(square, id="a bound apply"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_right_passes(target: Any) -> None:
    report = verify(target, Z)
    assert report.ok, report
    assert {row.check for row in report.rows} == {check.name for check in CHECKS if not check.slow}


def slightly_wrong(z: Tensor) -> Tensor:
    apply: Any = SlightlyWrong.apply
    return apply(z)


@pytest.mark.parametrize("target", [SlightlyWrong, slightly_wrong], ids=["Function", "callable"])
def test_one_in_ten_thousand_is_found(target: Any) -> None:
    report = verify(target, Z)
    assert not report.ok
    (row,) = (r for r in report.rows if r.check == "values, float64")
    assert (row.name, row.verdict, row.shape) == ("input[0]", "fails", (5, 4))
    assert row.error_relative == pytest.approx(1e-4)
    assert row.error_ulps is not None
    assert row.error_ulps > 1e9
    assert "1.0001 times the right one" in row.hint
    with pytest.raises(GradientError, match=r"1\.0001 times"):
        report.raise_for_status()


def test_the_package_is_the_function() -> None:
    package: Any = torch_manualbp.verify
    assert torch_manualbp.verify(Square, Z).ok
    assert package.verify is verify
    assert not torch_manualbp.verify(SlightlyWrong, Z, checks=["values"]).ok


def test_a_forward_that_hides_operations_is_held_against_finite_differences() -> None:
    report = verify(HiddenForward, Z)
    assert report.ok, report
    assert "hides operations from autograd" in report.notes[0]
    assert "hides operations" in str(report)
    assert not verify(HiddenAndWrong, Z).ok


def test_a_reference_takes_the_place_of_the_forward() -> None:
    class Rounded(Function):
        """Straight through, on purpose."""

        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.round()

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            return da

    assert not verify(Rounded, Z, checks="values").ok
    assert verify(Rounded, Z, checks="values", reference=lambda z: z.clone()).ok


def test_parameters_have_the_names_of_the_module() -> None:
    model = torch.nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    report = verify(model, Z, checks="values, float64")
    assert [row.name for row in report.rows] == ["input[0]", "0.weight", "2.weight", "2.bias"]
    chosen = verify(model, Z, checks="values, float64", params=["2.bias"])
    assert [row.name for row in chosen.rows] == ["input[0]", "2.bias"]


def test_a_callable_takes_more_tensors_by_keyword() -> None:
    report = verify(torch.nn.functional.linear, Z, params={"weight": torch.randn(3, 4)}, checks="values, float64")
    assert [row.name for row in report.rows] == ["input[0]", "weight"]


def test_inputs_that_require_a_gradient_are_the_ones_looked_at() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    report = verify(rules.Linear, Z, weight, torch.randn(3), checks="values, float64")
    assert [row.name for row in report.rows] == ["input[1]"]


def test_nothing_is_changed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    z, random = Z.clone(), torch.get_rng_state()
    assert verify(model, z).ok
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(z, Z)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_checks_are_chosen_by_name() -> None:
    report = verify(Square, Z, checks=["values"], leave_out=["values, bfloat16"])
    assert {row.check for row in report.rows} == {"values, float64", "values, float32", "values, float16"}
    with pytest.raises(ValueError, match="no check is named 'valeus': did you mean 'values"):
        verify(Square, Z, checks=["valeus"])


class SparseLookup(Function):
    """Rows of a table, whose gradient is sparse, as ``torch.nn.Embedding(…, sparse=True)`` has it."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table[rows]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], da, ctx.shape), None


def test_a_gradient_may_be_sparse() -> None:
    assert verify(SparseLookup, torch.randn(7, 3), torch.tensor([1, 4, 4, 0])).ok


def test_compile_runs_if_asked_for() -> None:
    assert verify(rules.Tanh, Z, checks="compile").ok


def test_a_check_that_crashes_is_an_error_and_the_others_go_on() -> None:
    class Viewing(Square):
        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            return Square.backward(ctx, da.view(-1).view(da.shape))

    report = verify(Viewing, Z)
    row = report.failures[0]
    assert (row.check, row.verdict) == ("layout", "error")
    assert "RuntimeError: view size is not compatible" in row.hint
    assert report.counts()["ok"] > 10


def test_a_budget_leaves_out_what_it_has_no_time_for() -> None:
    report = verify(Square, Z, budget_s=0.0)
    assert {row.verdict for row in report.rows} == {"left out"}
    assert {row.hint for row in report.rows} == {"the budget of time is spent"}
    assert report.verdict == "not verified"
    assert not report.ok


def test_the_report_in_json_and_as_a_table() -> None:
    report = verify(SlightlyWrong, Z)
    data = json.loads(report.to_json())
    assert data["target"] == "SlightlyWrong"
    assert data["ok"] is False
    assert data["counts"]["fails"] == len([r for r in data["rows"] if r["verdict"] == "fails"])
    assert report.worst(1)[0].verdict == "fails"
    assert "SlightlyWrong: WRONG" in str(report)
    assert "values, float64" in str(report)


def test_additivity_is_looked_at_where_it_is_claimed() -> None:
    assert verify(nn.Linear(4, 3), Z, batch=0, checks="additivity").ok
    assert not verify(torch.nn.BatchNorm1d(4), Z, batch=0, checks="additivity").ok
    (row,) = verify(nn.Linear(4, 3), Z, checks="additivity").rows
    assert row.verdict == "does not apply"


BAD = [
    pytest.param(torch.tanh, [torch.arange(3)], "input[0] is int64", id="integers"),
    pytest.param(lambda: torch.ones(()), [], "no tensor among its inputs", id="no tensor"),
    pytest.param(nn.ReLU(), [torch.arange(3)], "pass an input of a floating-point dtype", id="no parameters"),
    pytest.param(
        rules.Linear, [torch.randn(2, 3), torch.randn(4, 5), None], "(4, 5) float32: RuntimeError", id="shapes"
    ),
    pytest.param(torch.mul, [Z, torch.randn(5, 4, device="meta")], "input[1] is on the meta device", id="meta"),
    pytest.param(lambda z: z > 0, [Z], "returns no tensor of a floating-point dtype", id="no numbers"),
]


@pytest.mark.parametrize(("target", "inputs", "message"), BAD)
def test_bad_input_is_one_line(target: Any, inputs: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        verify(target, *inputs)
    assert message in str(error.value)


def test_a_target_must_be_callable() -> None:
    with pytest.raises(TypeError, match="target is str: it must be a module"):
        verify("tanh", Z)
