"""Mistakes planted in the linear rules, the activations and two losses."""

from __future__ import annotations

from typing import Any

import torch
from planted import Mistake
from torch import Tensor

from torch_manualbp.rules import CrossEntropy, Linear, MeanSquaredError, ReLU, Sigmoid, Tanh


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


class NoTangentWithoutAGradient(Sigmoid):
    """Takes an input that requires no gradient for one that has no tangent."""

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        return Sigmoid.with_jvp.jvp(ctx, dz) * float(ctx.needs_input_grad[0])


class TangentDetached(Sigmoid):
    """The tangent is right; its own derivative lacks the term of f''."""

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return Sigmoid.delta(dz, a.detach())


class TangentOfTheByproductForgotten(CrossEntropy):
    """The tangent of C is right; those of the gradients, which are made of log p, are not."""

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *rest: Any) -> Any:
        dC, dkept = CrossEntropy.with_jvp.jvp(ctx, ds, *rest)
        return dC, torch.zeros_like(dkept)


class RoundedAtEveryStep(Sigmoid):
    """Right, and in bfloat16 a few ulp off."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * ((1 - a) * a)


class SquareRounded(Tanh):
    """Right, and in float16 without the digits that 1 − a² cancels."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - a * a)


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
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        assert g is not None
        _, y, _ = ctx.saved_tensors
        counted = (y != ctx.ignore_index).sum()
        return CrossEntropy.backward(ctx, g * counted / y.numel(), dkept)


class SmoothingOffByK(CrossEntropy):
    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        ctx.epsilon = ctx.epsilon * 3 / 4
        return CrossEntropy.backward(ctx, g, dkept)


MISTAKES: list[Mistake] = [
    (BiasNotSummed, "matrix", ["raw backward"]),
    (WeightTransposed, "matrix", ["raw backward"]),
    (SquareWeightTransposed, "square", ["first derivatives", "gradcheck"]),
    (AnswersForFrozen, "matrix", ["raw backward"]),
    (KeepsWhatFrozenLayersDoNotNeed, "matrix", ["bytes kept"]),
    (FactorMissing, "matrix", ["first derivatives", "gradcheck", "forward mode", "Jacobians"]),
    (OffByOneInTenThousand, "matrix", ["first derivatives", "forward mode", "Jacobians"]),
    (Detached, "matrix", ["second derivatives", "second derivatives, constant upstream", "gradgradcheck"]),
    (TangentOfAnotherFunction, "matrix", ["forward mode", "Jacobians", "Hessians", "gradcheck"]),
    (NoTangentWithoutAGradient, "matrix", ["tangents", "forward mode"]),
    (TangentDetached, "matrix", ["Hessian-vector products"]),
    (TangentOfTheByproductForgotten, "mean, ε=0.0", ["Hessian-vector products"]),
    (RoundedAtEveryStep, "four dimensions", ["one rounding, bfloat16"]),
    (SquareRounded, "four dimensions", ["one rounding, float16"]),
    (SquaredInLowPrecision, "matrix", ["accuracy, float32"]),
    (KeptOnTheContext, "matrix", ["changes in place", "saved-tensor hooks"]),
    (KinkOnTheOtherSide, "matrix", ["special values, float32", "special values, float16"]),
    (ProductForChoice, "matrix", ["special values, float32", "special values, bfloat16"]),
    (ViewsTheUpstream, "matrix", ["strided upstream"]),
    (BranchesOnNumbers, "matrix", ["vmap", "torch.compile"]),
    (DropsTheMean, "mean", ["first derivatives", "gradcheck"]),
    (GivesTheTargetTheSameSign, "mean", ["first derivatives"]),
    (IgnoredCount, "mean, ε=0.0", ["first derivatives"]),
    (SmoothingOffByK, "mean, ε=0.2", ["first derivatives"]),
]
