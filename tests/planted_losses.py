"""Mistakes planted in the losses of single entries and of classes."""

from __future__ import annotations

from typing import Any

import torch
from planted import Mistake
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
    SmoothAbsoluteError,
)
from torch_manualbp.rules.loss.binary import binary_cross_entropy_with_logits_derivative
from torch_manualbp.rules.loss.classification import divergence_derivative, divergence_target_derivative
from torch_manualbp.rules.loss.regression import huber_derivative, poisson_derivative, poisson_target_derivative


class MeanForgotten(SmoothAbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ctx.reduction = "sum"
        return SmoothAbsoluteError.backward(ctx, g)


class MeanOfRows(KullbackLeiblerDivergence):
    """ "mean" that divides by the rows, as "batchmean" does."""

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> Any:
        ctx.reduction = "batchmean"
        return KullbackLeiblerDivergence.backward(ctx, *upstreams)


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


MISTAKES: list[Mistake] = [
    (MeanForgotten, "mean", ["first derivatives", "gradcheck"]),
    (MeanOfRows, "mean", ["first derivatives", "gradcheck"]),
    (TargetWithTheSignOfTheOutput, "matrix", ["first derivatives", "gradcheck"]),
    (BroadcastTargetNotSummed, "broadcast", ["raw backward"]),
    (ClampForgotten, "none", ["first derivatives", "gradcheck"]),
    (ClampedOnOneSide, "mean", ["first derivatives", "gradcheck"]),
    (DetachedOutput, "sum", ["second derivatives", "gradgradcheck"]),
    (PositiveWeightIgnored, "positive weighted", ["first derivatives", "Hessians"]),
    (HingeKeepsItsInputs, "mean", ["bytes kept"]),
    (NeitherSignTakenForOne, "mean", ["first derivatives", "gradcheck"]),
    (IgnoredSamplesCounted, "mean", ["first derivatives"]),
    (ClassWeightForgotten, "sum, weighted", ["first derivatives", "gradcheck"]),
    (StirlingForgotten, "full", ["first derivatives", "gradcheck"]),
    (OneForgotten, "mean", ["first derivatives", "gradcheck"]),
    (OneForgotten, "sum, log target", ["first derivatives"]),
    (SignOfZeroIsOne, "none", ["special values, float64", "special values, bfloat16"]),
    (KeepsTheOutputForNothing, "sum", ["bytes kept"]),
]
