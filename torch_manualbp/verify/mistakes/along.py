"""Mistakes in what works along a dimension, or broadcasts: softmax, norms, sums and their Jacobians that are not
diagonal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import LogSoftmax, Multiply, Softmax, Softmin
from torch_manualbp.rules.rule import widened
from torch_manualbp.verify.mistakes.mistake import planted


def _square(make: Make) -> tuple[Any, ...]:
    return make(4, 4), -1


def _rows(make: Make) -> tuple[Any, ...]:
    return (make(4, 5),)


def _large(make: Make) -> tuple[Any, ...]:
    return (100 + make(4, 5),)


def _row_scale(make: Make) -> tuple[Any, ...]:
    return make(4, 4), make(4)


def _broadcast(make: Make) -> tuple[Any, ...]:
    return make(5, 4), make(4)


@planted("softmax, diagonal", "missing term", "the diagonal of the Jacobian alone", _square)
class SoftmaxDiagonal(Softmax):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return da * a * (1 - a), None


@planted("softmax, over samples", "missing sum", "Σ a ∂C/∂a runs over the samples", _square)
class SoftmaxOverSamples(Softmax):
    """The sum over the samples of a square has the shape that broadcasts too."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return a * (da - (a * da).sum(0)), None


@planted("softmin, sign", "sign", "the softmax's gradient", _square)
class SoftminPositive(Softmin):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        return -Softmin.backward(ctx, da)[0], None


@planted("log-softmax, probability", "wrong variable", "log p in place of p", _square)
class LogProbabilityForProbability(LogSoftmax):
    """a for exp(a)."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Any:
        (a,) = ctx.saved_tensors
        return da - a * da.sum(ctx.dim, keepdim=True), None


class LogSumExp(Function):
    """C_i = m + log Σ_k exp(z_ik − m), which for every shift m is the same; m = max z keeps it finite."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.logsumexp(z, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (widened(g).unsqueeze(-1) * widened(z).softmax(-1)).to(z.dtype)


@planted(
    "log-sum-exp, without shift", "precision", "exp(z) / Σ exp(z), which is ∞ / ∞ in float32 from z = 89 on", _large
)
class WithoutShift(LogSumExp):
    """exp(z) / Σ exp(z): ∞ / ∞ from z = 89 on in float32, and not before 710 in float64."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        exp = widened(z).exp()
        return (widened(g).unsqueeze(-1) * exp / exp.sum(-1, keepdim=True)).to(z.dtype)


@planted("log-sum-exp, shift", "missing term", "the shift's own derivative is half counted", _rows)
class ShiftDifferentiated(LogSumExp):
    """The shift is m = max z, and no constant: its 1 is counted, and the −1 of every exponent is not."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        largest = (z == z.amax(-1, keepdim=True)).to(z.dtype)
        return LogSumExp.backward(ctx, g) + g.unsqueeze(-1) * largest


class LayerNorm(Function):
    """a = (z − μ) / √(v + ε), μ and v of each row ⇒ δ = (∂C/∂a − mean(∂C/∂a) − a mean(a ∂C/∂a)) / √(v + ε)."""

    epsilon = 1e-5

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        d = widened(z) - widened(z).mean(-1, keepdim=True)
        return (d / (d.square().mean(-1, keepdim=True) + LayerNorm.epsilon).sqrt()).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def parts(ctx: Any, da: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∂C/∂a, a, and √(v + ε), in widened precision."""
        (z,) = ctx.saved_tensors
        d = widened(z) - widened(z).mean(-1, keepdim=True)
        deviation = (d.square().mean(-1, keepdim=True) + LayerNorm.epsilon).sqrt()
        return widened(da), d / deviation, deviation

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        g, a, deviation = LayerNorm.parts(ctx, da)
        return ((g - g.mean(-1, keepdim=True) - a * (a * g).mean(-1, keepdim=True)) / deviation).to(da.dtype)


@planted("layer norm, statistics", "missing term", "mean and variance are taken for constants", _rows)
class StatisticsTakenForConstants(LayerNorm):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        g, _, deviation = LayerNorm.parts(ctx, da)
        return (g / deviation).to(da.dtype)


@planted("layer norm, mean", "missing term", "the mean is taken for a constant", _rows)
class MeanTakenForConstant(LayerNorm):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        g, a, deviation = LayerNorm.parts(ctx, da)
        return ((g - a * (a * g).mean(-1, keepdim=True)) / deviation).to(da.dtype)


@planted("layer norm, ε", "tiny error", "√v in place of √(v + ε)", _rows)
class EpsilonForgotten(LayerNorm):
    """√v for √(v + ε): of a row of variance 1 a difference of 5e-6."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        d = widened(z) - widened(z).mean(-1, keepdim=True)
        deviation = d.square().mean(-1, keepdim=True).sqrt()
        g, a = widened(da), d / deviation
        return ((g - g.mean(-1, keepdim=True) - a * (a * g).mean(-1, keepdim=True)) / deviation).to(da.dtype)


class RowScale(Function):
    """a_ij = w_i z_ij: one factor for each row."""

    @staticmethod
    def forward(z: Tensor, w: Tensor) -> Tensor:
        return z * w.unsqueeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        return da * w.unsqueeze(-1), (widened(da) * widened(z)).sum(-1).to(w.dtype)


@planted(
    "row scale, wrong dimension",
    "missing sum",
    "∂C/∂w sums over the rows, of which there are as many as columns",
    _row_scale,
)
class RowScaleSummedOverRows(RowScale):
    """The sum over the rows of a square has as many numbers."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        return da * w.unsqueeze(-1), (da * z).sum(0)


@planted("row scale, broadcast", "transpose", "w scales the columns of ∂C/∂a in place of the rows", _row_scale)
class RowScaleOnColumns(RowScale):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        return da * w, (da * z).sum(-1)


@planted("product, operand not reduced", "missing sum", "the gradient of a broadcast factor is not summed", _broadcast)
class FactorNotReduced(Multiply):
    """The gradient of what was broadcast has the shape of the product."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return None if y is None else dz * y, None if x is None else dz * x


@planted("product, operand averaged", "batch size", "the gradient of a broadcast factor is a mean", _broadcast)
class FactorAveraged(Multiply):
    """The mean over the samples for the sum."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        dx, dy = Multiply.backward(ctx, dz)
        return dx, None if dy is None else dy / dz.shape[0]


class Moments(Function):
    """Mean and variance, as one operation with two outputs."""

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        mean = z.mean()
        return mean, (z - mean).square().mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvariance: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        wide, n = widened(z), z.numel()
        return ((widened(dmean) + 2 * widened(dvariance) * (wide - wide.mean())) / n).to(z.dtype)


@planted("moments, second output", "upstream", "the upstream gradient of the second output is ignored", _rows)
class SecondOutputForgotten(Moments):
    @staticmethod
    def backward(ctx: Any, dmean: Tensor, dvariance: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (dmean / z.numel()).expand(z.shape)


@planted("moments, unused output", "upstream", "an upstream gradient that is None is taken for a tensor", _rows)
class NothingForAnUnusedOutput(Moments):
    """Once zeros are not made for it, the gradient of an output that nobody used is None."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
        Moments.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)
