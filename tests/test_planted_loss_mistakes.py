"""The checks of ``contract`` can fail on losses: each mistake planted here in a correct loss is caught."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import contract
import pytest
import torch
from contract import Case
from torch import Tensor

from torch_manualbp.rules import (
    AbsoluteError,
    BinaryCrossEntropyWithLogits,
    Difference,
    HingeEmbedding,
    Huber,
    KullbackLeiblerDivergence,
    NegativeLogLikelihood,
    PoissonNegativeLogLikelihood,
    Rule,
    SmoothAbsoluteError,
)
from torch_manualbp.rules.loss.binary import binary_cross_entropy_with_logits_derivative
from torch_manualbp.rules.loss.classification import divergence_derivative, divergence_target_derivative
from torch_manualbp.rules.loss.regression import huber_derivative, poisson_derivative, poisson_target_derivative

Check = Callable[[Case], None]

output_alone_needed = functools.partial(contract.keeps_no_more_than_torch, needed=(0,))
second_derivatives = functools.partial(contract.second_derivatives_equal_twins, upstream_needs_gradient=True)


class MeanForgotten(SmoothAbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ctx.reduction = "sum"
        return SmoothAbsoluteError.backward(ctx, g)


class MeanOfRows(KullbackLeiblerDivergence):
    """ "mean" that divides by the rows, as "batchmean" does."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ctx.reduction = "batchmean"
        return KullbackLeiblerDivergence.backward(ctx, g)


class TargetWithTheSignOfTheOutput(Difference):
    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        ds, *_ = Difference.backward(ctx, dr)
        return ds, ds, None


class BroadcastTargetNotSummed(Difference):
    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        return dr, -dr, None


class ClampForgotten(Huber):
    partials = (lambda s, y, threshold: s - y, lambda s, y, threshold: y - s)


class ClampedOnOneSide(Huber):
    partials = (
        lambda s, y, threshold: (s - y).clamp(max=threshold),
        lambda s, y, threshold: -(s - y).clamp(max=threshold),
    )


class DetachedOutput(Huber):
    """The first derivative is right; the second is missing."""

    partials = (
        lambda s, y, threshold: huber_derivative(s.detach(), y.detach(), threshold),
        lambda s, y, threshold: huber_derivative(y.detach(), s.detach(), threshold),
    )


class SignOfZeroIsOne(AbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (r,) = ctx.saved_tensors
        return torch.where(r >= 0, g, -g), None


class PositiveWeightIgnored(BinaryCrossEntropyWithLogits):
    partials = (
        lambda s, y, w, p: binary_cross_entropy_with_logits_derivative(s, y, w),
        BinaryCrossEntropyWithLogits.partials[1],
        None,
        None,
    )
    reads = BinaryCrossEntropyWithLogits.reads


class HingeKeepsItsInputs(HingeEmbedding):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        HingeEmbedding.setup_context(ctx, inputs, output)
        ctx.save_for_backward(torch.stack([inputs[0], inputs[1]]))


class NeitherSignTakenForOne(HingeEmbedding):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (m,) = ctx.saved_tensors
        return torch.where(m == 0, 1, m) * g / m.numel(), None, None, None


class IgnoredSamplesCounted(NegativeLogLikelihood):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        y, _ = ctx.saved_tensors
        return NegativeLogLikelihood.backward(ctx, g * (y != ctx.ignore_index).sum() / y.numel())


class ClassWeightForgotten(NegativeLogLikelihood):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, _, ignore_index, reduction = inputs
        NegativeLogLikelihood.setup_context(ctx, (s, y, None, ignore_index, reduction), output)


class StirlingForgotten(PoissonNegativeLogLikelihood):
    partials = (
        lambda s, y, log_input, full, epsilon: poisson_derivative(s, y, log_input, epsilon),
        lambda s, y, log_input, full, epsilon: poisson_target_derivative(s, y, log_input, False, epsilon),
    )


class OneForgotten(KullbackLeiblerDivergence):
    """The derivative of y log y without that of log y."""

    partials = (
        lambda s, y, log_target: divergence_derivative(y, log_target),
        lambda s, y, log_target: divergence_target_derivative(s, y, log_target) - (y.exp() if log_target else 1),
    )


class KeepsTheOutputForNothing(KullbackLeiblerDivergence):
    partials = KullbackLeiblerDivergence.partials  # and reads nothing of which partial needs what

    @staticmethod
    def reads(log_target: bool) -> tuple[tuple[int, ...], ...]:
        return (0, 1), (0, 1)


MISTAKES: list[tuple[type[Rule], str, list[Check]]] = [
    (MeanForgotten, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (MeanOfRows, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (TargetWithTheSignOfTheOutput, "matrix", [contract.equals_twin, contract.passes_gradcheck]),
    (BroadcastTargetNotSummed, "broadcast", [contract.raw_backward_is_well_formed]),
    (ClampForgotten, "none", [contract.equals_twin, contract.passes_gradcheck]),
    (ClampedOnOneSide, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (DetachedOutput, "sum", [second_derivatives, contract.passes_gradgradcheck]),
    (PositiveWeightIgnored, "positive weighted", [contract.equals_twin, contract.forward_mode_equals_reverse_mode]),
    (HingeKeepsItsInputs, "mean", [output_alone_needed]),
    (NeitherSignTakenForOne, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (IgnoredSamplesCounted, "mean", [contract.equals_twin]),
    (ClassWeightForgotten, "sum, weighted", [contract.equals_twin, contract.passes_gradcheck]),
    (StirlingForgotten, "full", [contract.equals_twin, contract.passes_gradcheck]),
    (OneForgotten, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (OneForgotten, "sum, log target", [contract.equals_twin]),
    (KeepsTheOutputForNothing, "sum", [output_alone_needed]),
]


def name_of(value: Any) -> str:
    check = getattr(value, "func", value)
    return str(getattr(check, "__name__", value))


@pytest.mark.parametrize(
    ("rule", "sample", "check"), [(r, s, check) for r, s, checks in MISTAKES for check in checks], ids=name_of
)
def test_caught(rule: type[Rule], sample: str, check: Check) -> None:
    correct = contract.case(rule.__mro__[1], sample)
    check(correct)  # the check passes the rule without the mistake
    with pytest.raises((AssertionError, RuntimeError)):
        check(correct.with_rule(rule))


def test_the_kink_of_the_absolute_error_is_caught_by_special_values() -> None:
    r, upstream = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)
    (right,) = torch.autograd.grad(AbsoluteError.apply(r, "none"), r, upstream)
    (wrong,) = torch.autograd.grad(SignOfZeroIsOne.apply(r, "none"), r, upstream)
    assert torch.equal(right, torch.zeros_like(r))
    with pytest.raises(AssertionError):
        contract.assert_same(wrong, right, "gradient")
