"""Mistakes in the losses: signs and factors, what the mean divides by, the options that a forward has and a backward
forgets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import (
    AbsoluteError,
    BinaryCrossEntropyWithLogits,
    CrossEntropy,
    Difference,
    GaussianNegativeLogLikelihood,
    HingeEmbedding,
    Huber,
    KullbackLeiblerDivergence,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNegativeLogLikelihood,
    SmoothAbsoluteError,
)
from torch_manualbp.rules.loss.binary import binary_cross_entropy_with_logits_derivative
from torch_manualbp.rules.loss.classification import divergence_derivative, divergence_target_derivative
from torch_manualbp.rules.loss.regression import (
    gaussian_variance_derivative,
    poisson_derivative,
    poisson_target_derivative,
)
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import breaks, pair, planted


def _classes(*options: Any) -> Any:
    def inputs(make: Make) -> tuple[Any, ...]:
        return make(6, 4), torch.tensor([0, 3, 1, 3, 2, 1]), *options

    return inputs


def _ignored(make: Make) -> tuple[Any, ...]:
    return make(6, 4), torch.tensor([0, 3, -100, 3, 2, -100]), None, -100, "mean", 0.0


def _weighted(make: Make) -> tuple[Any, ...]:
    return make(6, 4), torch.tensor([0, 3, 1, 3, 2, 1]), make.positive(4), -100, "mean"


def _huber(make: Make) -> tuple[Any, ...]:
    return 2 * make(5, 4), make(5, 4), 0.7, "mean"


def _divergence(log_target: bool, reduction: str) -> Any:
    def inputs(make: Make) -> tuple[Any, ...]:
        s, y = make(5, 4).log_softmax(1), make.probabilities(5, 4, dim=1)
        return s, y.log() if log_target else y, log_target, reduction

    return inputs


def _with_positive_weight(make: Make) -> tuple[Any, ...]:
    return make(5, 4), make.positive(5, 4) - 0.5, None, 3 * make.positive(4), "mean"


class WrittenSquaredError(Function):
    """C = mean (s − y)², with the 2, the mean and the upstream gradient that each are easily forgotten."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(s, y)
        return (s - y).square().mean()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        s, y = ctx.saved_tensors
        ds = (2 * widened(s - y) * widened(g) / s.numel()).to(s.dtype)
        return ds, -ds


@planted("squared error, factor", "factor", "s − y without the 2", pair)
class WithoutThe2(WrittenSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        s, y = ctx.saved_tensors
        ds = (s - y) * g / s.numel()
        return ds, -ds


@planted("squared error, mean", "missing mean", "the gradient of the sum", pair)
class WithoutTheMean(WrittenSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        s, y = ctx.saved_tensors
        ds = 2 * (s - y) * g
        return ds, -ds


@planted("squared error, mean over the batch", "batch size", "divided by the samples in place of the entries", pair)
class MeanOverTheBatchAlone(WrittenSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        s, y = ctx.saved_tensors
        ds = 2 * (s - y) * g / s.shape[0]
        return ds, -ds


@planted("squared error, sign of the target", "sign", "∂C/∂y = ∂C/∂s", pair)
class TargetWithTheSameSign(WrittenSquaredError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        ds, _ = WrittenSquaredError.backward(ctx, g)
        return ds, ds


@planted("squared error, upstream", "upstream", "the upstream gradient is taken for 1", pair)
class UpstreamTakenForOne(WrittenSquaredError):
    """A loss is where backward starts, until somebody weights it or scales it."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return WrittenSquaredError.backward(ctx, torch.ones_like(g))


@planted("cross-entropy, mean of ignored", "wrong count", "the mean counts samples of ignore_index", _ignored)
@breaks("mean, ε=0.0", "first derivatives")
class MeanOfIgnored(CrossEntropy):
    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        _, y, _ = ctx.saved_tensors
        scale = (y != ctx.ignore_index).sum() / y.numel()
        return CrossEntropy.backward(ctx, None if g is None else g * scale, dkept)


@planted("cross-entropy, ignored pull", "wrong count", "samples of ignore_index have a gradient", _ignored)
class IgnoredSamplesPull(CrossEntropy):
    """A sample that is ignored is pushed away from class 0."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        kept, y, _ = ctx.saved_tensors
        ds, *rest = CrossEntropy.backward(ctx, g, dkept)
        if ds is None or g is None:
            return ds, *rest
        ignored = (y == ctx.ignore_index).unsqueeze(1)
        return torch.where(ignored, kept.softmax(1) * g / y.numel(), ds), *rest  # of s as of log p


@planted(
    "cross-entropy, weights",
    "wrong count",
    "the weighted mean divides by n in place of Σ w_y",
    lambda make: (*_weighted(make), 0.0),
    constants={2},
)
class WeightsWithoutTheirSum(CrossEntropy):
    """The weighted mean divides by the number of samples, and not by Σ w_y."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        _, y, w = ctx.saved_tensors
        return CrossEntropy.backward(ctx, None if g is None else g * w[y].sum() / y.numel(), dkept)


@planted(
    "cross-entropy, smoothing by K − 1",
    "wrong count",
    "label smoothing of ε / (K − 1) in place of ε / K",
    _classes(None, -100, "mean", 0.1),
)
class SmoothingOverTheOthers(CrossEntropy):
    """ε / (K − 1) for ε / K."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        CrossEntropy.setup_context(ctx, inputs, output)
        k = inputs[0].shape[1]
        ctx.epsilon = ctx.epsilon * k / (k - 1)


@planted("cross-entropy, smoothing", "option ignored", "the gradient of hard labels", _classes(None, -100, "mean", 0.1))
class SmoothingForgotten(CrossEntropy):
    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dkept: Tensor | None = None) -> Any:
        ctx.epsilon = 0.0
        return CrossEntropy.backward(ctx, g, dkept)


@planted("NLL, class weights", "option ignored", "the gradient of equal weights", _weighted, constants={2})
@breaks("sum, weighted", "first derivatives", "gradcheck")
class ClassWeightForgotten(NegativeLogLikelihood):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        y, _ = ctx.saved_tensors
        ds = g.new_zeros(ctx.shape).scatter(1, y.unsqueeze(1), (-g / y.numel()).expand(y.shape).unsqueeze(1))
        return ds, None, None, None, None


@planted("Huber, Δ forgotten", "option ignored", "the gradient of the square", _huber)
@breaks("none", "first derivatives", "gradcheck")
class DeltaForgotten(Huber):
    partials = (lambda s, y, threshold: s - y, lambda s, y, threshold: y - s)


@planted("Huber, Δ = 1", "option ignored", "clamped at ±1 in place of ±Δ", _huber)
class DeltaOfOne(Huber):
    partials = (
        lambda s, y, threshold: (s - y).clamp(-1, 1),
        lambda s, y, threshold: (y - s).clamp(-1, 1),
    )


@planted("KL, log_target", "option ignored", "−y in place of −exp(y)", _divergence(True, "sum"))
class LogTargetForgotten(KullbackLeiblerDivergence):
    """−y for −exp(y)."""

    partials = (
        lambda s, y, log_target: divergence_derivative(y, False),
        KullbackLeiblerDivergence.partials[1],
    )


@planted(
    "KL, batchmean", "batch size", "divided by the entries in place of the samples", _divergence(False, "batchmean")
)
@breaks("batchmean", "first derivatives", "gradcheck")
class BatchmeanTakenForMean(KullbackLeiblerDivergence):
    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> Any:
        ctx.reduction = "mean"
        return KullbackLeiblerDivergence.backward(ctx, *upstreams)


@planted("BCE, pos_weight", "option ignored", "the gradient of equal weights", _with_positive_weight, constants={2, 3})
@breaks("positive weighted", "first derivatives", "Hessians")
class PositiveWeightForgotten(BinaryCrossEntropyWithLogits):
    partials = (
        lambda s, y, w, p: binary_cross_entropy_with_logits_derivative(s, y, w),
        BinaryCrossEntropyWithLogits.partials[1],
        None,
        None,
    )


@planted(
    "BCE, pos_weight on both",
    "option ignored",
    "pos_weight multiplies the negative class too",
    _with_positive_weight,
    constants={2, 3},
)
class PositiveWeightOnBothClasses(BinaryCrossEntropyWithLogits):
    partials = (
        lambda s, y, w, p: binary_cross_entropy_with_logits_derivative(s, y) * p,
        BinaryCrossEntropyWithLogits.partials[1],
        None,
        None,
    )


@planted(
    "Poisson, rate",
    "wrong variable",
    "s − y in place of exp(s) − y",
    lambda make: (make(5, 4), make.positive(5, 4), True, False, 1e-8, "mean"),
)
class RateNotExponentiated(PoissonNegativeLogLikelihood):
    """s − y for exp(s) − y."""

    partials = (
        lambda s, y, log_input, full, epsilon: s - y,
        PoissonNegativeLogLikelihood.partials[1],
    )


@planted(
    "Gaussian, variance",
    "wrong variable",
    "∂C/∂σ in place of ∂C/∂σ²",
    lambda make: (make(5, 4), 2 * make.positive(5, 4), False, "mean"),
)
class VarianceOfTheDeviation(GaussianNegativeLogLikelihood):
    """∂C/∂σ for ∂C/∂σ², of which the former is 2σ times the latter."""

    partials = (
        GaussianNegativeLogLikelihood.partials[0],
        lambda r, v, full: gaussian_variance_derivative(r, v) * 2 * v.sqrt(),
    )


@planted(
    "squared error, one entry", "tiny error", "one of 20 entries is off by 1e-3", lambda make: (*pair(make), "mean")
)
class OneOfSquaredErrors(MeanSquaredError):
    """The right gradient and, of the last entry, an upstream gradient too much."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ds, dy, none = MeanSquaredError.backward(ctx, g)
        if ds is not None:
            ds = ds + 1e-3 * g * (torch.arange(ds.numel(), device=ds.device).reshape(ds.shape) == ds.numel() - 1)
        return ds, dy, none


@breaks("mean", "first derivatives", "gradcheck")
class MeanForgotten(SmoothAbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        ctx.reduction = "sum"
        return SmoothAbsoluteError.backward(ctx, g)


@breaks("matrix", "first derivatives", "gradcheck")
class TargetWithTheSignOfTheOutput(Difference):
    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        ds, *_ = Difference.backward(ctx, dr)
        return ds, ds, None


@breaks("broadcast", "raw backward")
class BroadcastTargetNotSummed(Difference):
    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> Any:
        return dr, -dr, None


@breaks("mean", "first derivatives", "gradcheck")
class ClampedOnOneSide(Huber):
    partials = (
        lambda s, y, threshold: (s - y).clamp(max=threshold),
        lambda s, y, threshold: -(s - y).clamp(max=threshold),
    )


@breaks("none", "special values, float64", "special values, bfloat16")
class SignOfZeroIsOne(AbsoluteError):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (r,) = ctx.saved_tensors
        return torch.where(r >= 0, g, -g), None


@breaks("mean", "bytes kept")
class HingeKeepsItsInputs(HingeEmbedding):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        HingeEmbedding.setup_context(ctx, inputs, output)
        ctx.save_for_backward(torch.stack([inputs[0], inputs[1]]))


@breaks("mean", "first derivatives", "gradcheck")
class NeitherSignTakenForOne(HingeEmbedding):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (m,) = ctx.saved_tensors
        return torch.where(m == 0, 1, m) * g / m.numel(), None, None, None


@breaks("mean", "first derivatives")
class IgnoredSamplesCounted(NegativeLogLikelihood):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        y, _ = ctx.saved_tensors
        return NegativeLogLikelihood.backward(ctx, g * (y != ctx.ignore_index).sum() / y.numel())


@breaks("full", "first derivatives", "gradcheck")
class StirlingForgotten(PoissonNegativeLogLikelihood):
    partials = (
        lambda s, y, log_input, full, epsilon: poisson_derivative(s, y, log_input, epsilon),
        lambda s, y, log_input, full, epsilon: poisson_target_derivative(s, y, log_input, False, epsilon),
    )


@breaks("mean", "first derivatives", "gradcheck")
@breaks("sum, log target", "first derivatives")
class OneForgotten(KullbackLeiblerDivergence):
    """The derivative of y log y without that of log y."""

    partials = (
        lambda s, y, log_target: divergence_derivative(y, log_target),
        lambda s, y, log_target: divergence_target_derivative(s, y, log_target) - (y.exp() if log_target else 1),
    )


@breaks("sum", "bytes kept")
class KeepsTheOutputForNothing(KullbackLeiblerDivergence):
    partials = KullbackLeiblerDivergence.partials  # and reads nothing of which partial needs what

    @staticmethod
    def reads(log_target: bool) -> tuple[tuple[int, ...], ...]:
        return (0, 1), (0, 1)
