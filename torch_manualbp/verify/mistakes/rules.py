"""Mistakes planted in the linear rules, the activations and two losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import CrossEntropy, Linear, MeanSquaredError, ReLU, Sigmoid, Tanh
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("matrix", "raw backward")
class BiasNotSummed(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, _ = Linear.backward(ctx, delta)
        return da, dW, delta


@breaks("matrix", "raw backward")
class WeightTransposed(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, db = Linear.backward(ctx, delta)
        return da, None if dW is None else dW.t(), db


@breaks("square", "first derivatives", "gradcheck")
class SquareWeightTransposed(Linear):
    """The transpose of a square weight has the right shape."""

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, W = ctx.saved_tensors
        return delta @ W.t(), delta.t() @ a, delta.sum(0)


@breaks("matrix", "raw backward")
class AnswersForFrozen(Linear):
    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        da, dW, db = Linear.backward(ctx, delta)
        return torch.zeros(5, 4, dtype=delta.dtype) if da is None else da, dW, db


@breaks("matrix", "bytes kept")
class KeepsWhatFrozenLayersDoNotNeed(Linear):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Linear.setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs[:2])


@breaks("matrix", "tangents", "forward mode")
class NoTangentWithoutAGradient(Sigmoid):
    """Takes an input that requires no gradient for one that has no tangent."""

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        return Sigmoid.with_jvp.jvp(ctx, dz) * float(ctx.needs_input_grad[0])


@breaks("matrix", "Hessian-vector products")
class TangentDetached(Sigmoid):
    """The tangent is right; its own derivative lacks the term of f''."""

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return Sigmoid.delta(dz, a.detach())


@breaks("mean, ε=0.0", "Hessian-vector products")
class TangentOfTheByproductForgotten(CrossEntropy):
    """The tangent of C is right; those of the gradients, which are made of log p, are not."""

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *rest: Any) -> Any:
        dC, dkept = CrossEntropy.with_jvp.jvp(ctx, ds, *rest)
        return dC, torch.zeros_like(dkept)


@breaks("four dimensions", "one rounding, bfloat16")
class RoundedAtEveryStep(Sigmoid):
    """Right, and in bfloat16 a few ulp off."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * ((1 - a) * a)


@breaks("four dimensions", "one rounding, float16")
class SquareRounded(Tanh):
    """Right, and in float16 without the digits that 1 − a² cancels."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - a * a)


@breaks("matrix", "accuracy, float32")
class SquaredInLowPrecision(Tanh):
    """a² with 8 bits."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return da * (1 - (a * a).bfloat16().to(a.dtype))


@breaks("matrix", "changes in place", "saved-tensor hooks")
class KeptOnTheContext(Tanh):
    """What is kept there escapes checkpointing, saved-tensor hooks and the version check."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.kept = inputs[0]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        a = torch.tanh(ctx.kept)
        return da * (1 - a * a)


@breaks("matrix", "special values, float32", "special values, float16")
class KinkOnTheOtherSide(ReLU):
    """``>=`` for ``>``."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return torch.where(a >= 0, da, 0)


@breaks("matrix", "vmap", "torch.compile")
class BranchesOnNumbers(Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return Tanh.backward(ctx, da) if da.sum() != 0 else da


@breaks("mean", "first derivatives", "gradcheck")
class DropsTheMean(MeanSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ctx.reduction = "sum"
        return MeanSquaredError.backward(ctx, g)


@breaks("mean", "first derivatives")
class GivesTheTargetTheSameSign(MeanSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ds, _, _ = MeanSquaredError.backward(ctx, g)
        return ds, ds, None


@breaks("mean, ε=0.2", "first derivatives")
class SmoothingOffByK(CrossEntropy):
    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        ctx.epsilon = ctx.epsilon * 3 / 4
        return CrossEntropy.backward(ctx, g, dkept)
