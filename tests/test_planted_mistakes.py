"""The checks of ``contract`` can fail: each mistake planted here in a correct rule is caught by the checks it names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import contract
import pytest
import torch
from contract import Case
from torch import Tensor

from torch_manualbp.rules import CrossEntropy, Linear, MeanSquaredError, ReLU, Rule, Sigmoid, Tanh

Check = Callable[[Case], None]

second_derivatives = partial(contract.second_derivatives_equal_twins, upstream_needs_gradient=True)
second_with_constant_upstream = partial(contract.second_derivatives_equal_twins, upstream_needs_gradient=False)
accuracy = partial(contract.is_as_accurate_as_torch, dtype=torch.float32)
rounding = partial(contract.rounds_once, dtype=torch.bfloat16)

input_alone_needed = partial(contract.keeps_no_more_than_torch, needed=(0,))
vmap_over_all = lambda case: contract.vmaps(case, contract.vmap_patterns(case)[0])  # noqa: E731


class BiasNotSummed(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, _ = Linear.backward(ctx, delta)
        return da, dW, delta


class WeightTransposed(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, db = Linear.backward(ctx, delta)
        return da, None if dW is None else dW.t(), db


class SquareWeightTransposed(Linear):
    """The transpose of a square weight has the right shape."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, W = ctx.saved_tensors
        return delta @ W.t(), delta.t() @ a, delta.sum(0)


class AnswersForFrozen(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, db = Linear.backward(ctx, delta)
        return torch.zeros(5, 4, dtype=delta.dtype) if da is None else da, dW, db


class KeepsWhatFrozenLayersDoNotNeed(Linear):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Linear.setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs[:2])


class FactorMissing(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * a


class OffByOneInTenThousand(Sigmoid):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Sigmoid.backward(ctx, da)[0] * 1.0001


class Detached(Sigmoid):
    """The first derivative is right; the second lacks the term of f''."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return Sigmoid.delta(da, a.detach())


class TangentOfAnotherFunction(Sigmoid):
    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return dz * a


class RoundedAtEveryStep(Sigmoid):
    """Right, and in bfloat16 a few ulp off."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * ((1 - a) * a)


class SquaredInLowPrecision(Tanh):
    """a² with 8 bits."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - (a * a).bfloat16().to(a.dtype))


class KeptOnTheContext(Tanh):
    """What is kept there escapes checkpointing, saved-tensor hooks and the version check."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.kept = inputs[0]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        a = torch.tanh(ctx.kept)
        return da * (1 - a * a)


class KinkOnTheOtherSide(ReLU):
    """``>=`` for ``>``."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return torch.where(a >= 0, da, 0)


class ProductForChoice(ReLU):
    """inf · 0 is NaN."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (a > 0)


class ViewsTheUpstream(Tanh):
    """``view`` fails on a gradient with other strides."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da.view(-1).view(da.shape))


class BranchesOnNumbers(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da) if da.sum() != 0 else da


class DropsTheMean(MeanSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ctx.reduction = "sum"
        return MeanSquaredError.backward(ctx, g)


class GivesTheTargetTheSameSign(MeanSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ds, _, _ = MeanSquaredError.backward(ctx, g)
        return ds, ds, None


class IgnoredCount(CrossEntropy):
    """The mean divides by all samples, those of ignore_index included."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        _, y, _ = ctx.saved_tensors
        counted = (y != ctx.ignore_index).sum()
        return CrossEntropy.backward(ctx, g * counted / y.numel())


class SmoothingOffByK(CrossEntropy):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        ctx.epsilon = ctx.epsilon * 3 / 4
        return CrossEntropy.backward(ctx, g)


MISTAKES: list[tuple[type[Rule], str, list[Check]]] = [
    (BiasNotSummed, "matrix", [contract.raw_backward_is_well_formed]),
    (WeightTransposed, "matrix", [contract.raw_backward_is_well_formed]),
    (SquareWeightTransposed, "square", [contract.equals_twin, contract.passes_gradcheck]),
    (AnswersForFrozen, "matrix", [contract.raw_backward_is_well_formed]),
    (KeepsWhatFrozenLayersDoNotNeed, "matrix", [input_alone_needed]),
    (
        FactorMissing,
        "matrix",
        [contract.equals_twin, contract.passes_gradcheck, contract.forward_mode_equals_reverse_mode],
    ),
    (OffByOneInTenThousand, "matrix", [contract.equals_twin, contract.forward_mode_equals_reverse_mode]),
    (Detached, "matrix", [second_derivatives, second_with_constant_upstream, contract.passes_gradgradcheck]),
    (TangentOfAnotherFunction, "matrix", [contract.forward_mode_equals_reverse_mode, contract.passes_gradcheck]),
    (RoundedAtEveryStep, "four dimensions", [rounding]),
    (SquaredInLowPrecision, "matrix", [accuracy]),
    (KeptOnTheContext, "matrix", [contract.notices_changes_in_place]),
    (ViewsTheUpstream, "matrix", [contract.upstream_may_have_any_strides]),
    (BranchesOnNumbers, "matrix", [vmap_over_all, contract.compiles_with_our_backward]),
    (DropsTheMean, "mean", [contract.equals_twin, contract.passes_gradcheck]),
    (GivesTheTargetTheSameSign, "mean", [contract.equals_twin]),
    (IgnoredCount, "mean, ε=0.0", [contract.equals_twin]),
    (SmoothingOffByK, "mean, ε=0.2", [contract.equals_twin]),
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


@pytest.mark.parametrize("rule", [KinkOnTheOtherSide, ProductForChoice], ids=name_of)
def test_caught_by_special_values(rule: type[Rule]) -> None:
    entry = contract.case(rule.__mro__[1], "matrix").entry
    contract.treats_special_values_as_torch(entry, torch.float32)
    with pytest.raises(AssertionError):
        contract.treats_special_values_as_torch(contract.Case(entry, "matrix").with_rule(rule).entry, torch.float32)
