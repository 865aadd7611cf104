"""The losses of a number y that the output s should be."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.evaluate import records_nothing
from torch_manualbp.rules.loss.reduction import PointwiseLoss, product_with, reduced, reduced_in_blocks, with_copies
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, widened

__all__ = [
    "AbsoluteError",
    "GaussianNegativeLogLikelihood",
    "Huber",
    "MeanSquaredError",
    "PoissonNegativeLogLikelihood",
    "SmoothAbsoluteError",
    "gaussian_error_derivative",
    "gaussian_variance_derivative",
    "huber_derivative",
    "poisson_derivative",
    "poisson_target_derivative",
    "smooth_absolute_error_derivative",
    "squared_error_gradient",
]


class MeanSquaredError(PointwiseLoss):
    """The squared error.

    ::

        C_i = (s_i − y_i)²                 C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = 2 (s_i − y_i) g / n
        ∂C/∂y_i = −∂C/∂s_i

    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(s, y, reduction=reduction)  # not in blocks, as in SmoothAbsoluteError

    partials = (lambda s, y: s - y, lambda s, y: y - s)
    factor = 2


def squared_error_gradient(s: Tensor, y: Tensor, g: Tensor | float = 1) -> Tensor:
    """∂C/∂s = 2 (s − y) g, with one g for all or one for each entry."""
    return (s - y) * (2 * g)


class AbsoluteError(Rule):
    """The absolute value of the error r = s − y.

    ::

        C_i = |r_i|                        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂r_i = sign(r_i) g / n

    where sign(r) = r / |r| and, at the kink and for NaN, sign(0) = sign(NaN) = 0. For complex numbers C is real.
    Shapes: r any. ``"sum"`` and ``"none"`` have n = 1. Kept: r.
    """

    @staticmethod
    def forward(r: Tensor, reduction: str) -> Tensor:
        return reduced_in_blocks(_absolute, r, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        r, ctx.reduction = inputs
        ctx.save_for_backward(r)
        ctx.save_for_forward(r)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (r,) = ctx.saved_tensors
        if ctx.reduction == "mean":
            g = widened(g) / max(r.numel(), 1)
        return product_with(g, torch.sgn, [r], (), r.dtype), None

    @staticmethod
    def jvp(ctx: Any, dr: Tensor, _: None) -> Tensor:
        (r,) = ctx.saved_tensors
        dC = (r.sgn().conj() * dr).real if r.is_complex() else r.sgn() * dr
        if ctx.reduction == "none":
            return dC
        return dC.sum() / max(r.numel(), 1) if ctx.reduction == "mean" else dC.sum()


def _absolute(r: Tensor, reduction: str) -> Tensor:
    return reduced(r.abs(), reduction)


class SmoothAbsoluteError(PointwiseLoss):
    """The error, squared where it is small and absolute where it is not: Huber's loss divided by β.

    ::

        C_i = (s_i − y_i)² / 2β            where |s_i − y_i| < β
              |s_i − y_i| − β / 2          elsewhere
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = (s_i − y_i) / β, clamped to −1 … 1, times g / n
        ∂C/∂y_i = −∂C/∂s_i

    For β > 0; β = 0 is the absolute error. Where the pieces meet they have one derivative; the second derivative there
    is that of the square.
    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, beta: float, reduction: str) -> Tensor:
        if (
            torch.compiler.is_compiling() and 0 < beta < 1e4
        ):  # whose kernel for C then has the derivative, too, which it would make apart
            slope = smooth_absolute_error_derivative(s, y, beta)
            return reduced(slope * ((s - y) - beta / 2 * slope), reduction)
        # Not in blocks: here ATen makes the C_i alone, of which it takes two thirds of the time that blocks take.
        return F.smooth_l1_loss(s, y, beta=beta, reduction=reduction)

    partials = (
        lambda s, y, beta: smooth_absolute_error_derivative(s, y, beta),
        lambda s, y, beta: smooth_absolute_error_derivative(y, s, beta),
    )


def smooth_absolute_error_derivative(s: Tensor, y: Tensor, beta: float = 1.0) -> Tensor:
    """∂C_i/∂s_i = clamp((s − y) / β, −1, 1)."""
    r = s - y if beta == 1 else (s - y) / beta
    return r.clamp_(-1, 1) if records_nothing(r) else r.clamp(-1, 1)


class Huber(PointwiseLoss):
    """The error, squared where it is small and absolute where it is not.

    ::

        C_i = (s_i − y_i)² / 2             where |s_i − y_i| ≤ Δ
              Δ (|s_i − y_i| − Δ / 2)      elsewhere
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = (s_i − y_i), clamped to −Δ … Δ, times g / n
        ∂C/∂y_i = −∂C/∂s_i

    Δ > 0 is torch's ``delta``. Where the pieces meet they have one derivative; the second derivative there is that of
    the square. Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, threshold: float, reduction: str) -> Tensor:
        # Of functorch's transforms ATen's function lacks forward mode over forward mode; for torch.compile see above.
        if (torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()) and threshold > 0:
            slope = huber_derivative(s, y, threshold)
            return reduced(slope * ((s - y) - slope / 2), reduction)
        return F.huber_loss(s, y, delta=threshold, reduction=reduction)  # not in blocks, as the smooth absolute error

    partials = (
        lambda s, y, threshold: huber_derivative(s, y, threshold),
        lambda s, y, threshold: huber_derivative(y, s, threshold),
    )


def huber_derivative(s: Tensor, y: Tensor, threshold: float = 1.0) -> Tensor:
    """∂C_i/∂s_i = clamp(s − y, −Δ, Δ)."""
    r = s - y
    return r.clamp_(-threshold, threshold) if records_nothing(r) else r.clamp(-threshold, threshold)


class GaussianNegativeLogLikelihood(PointwiseLoss):
    """The negative logarithm of a normal density with variance v, at distance r = s − y from its mean.

    ::

        C_i = (log v_i + r_i² / v_i) / 2   (+ log 2π / 2 if ``full``)
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂r_i = r_i / v_i g / n
        ∂C/∂v_i = (v_i − r_i²) / 2v_i² g / n

    For v > 0: raising a v that is too small is the caller's business. Shapes: r and v broadcast against each other.
    ``"sum"`` and ``"none"`` have n = 1. Kept: r, v.
    """

    @staticmethod
    def forward(r: Tensor, v: Tensor, full: bool, reduction: str) -> Tensor:
        return reduced_in_blocks(functools.partial(_gaussian, full=full), r, v, reduction=reduction)

    partials = (
        lambda r, v, full: gaussian_error_derivative(r, v),
        lambda r, v, full: gaussian_variance_derivative(r, v),
    )


def _gaussian(r: Tensor, v: Tensor, full: bool, reduction: str) -> Tensor:
    dtype = torch.promote_types(r.dtype, v.dtype)
    r, v = widened(r), widened(v)
    C = 0.5 * (v.log() + r.square() / v)
    if full:
        C = C + 0.5 * math.log(2 * math.pi)
    return reduced(C, reduction).to(dtype)


def gaussian_error_derivative(r: Tensor, v: Tensor) -> Tensor:
    """∂C_i/∂r_i = r / v."""
    return r / v


def gaussian_variance_derivative(r: Tensor, v: Tensor) -> Tensor:
    """∂C_i/∂v_i = (v − r²) / 2v², which rounds once before its digits cancel."""
    return (v - r.square()) / v * 0.5 / v


class PoissonNegativeLogLikelihood(PointwiseLoss, RuleWithByproducts):
    """The negative logarithm of a Poisson distribution's probability of the count y, with rate exp(s) or, without
    ``log_input``, s.

    ::

        C_i = exp(s_i) − y_i s_i                     (with log_input)
              s_i − y_i log(s_i + ε)                 (without)
        and if ``full``, Stirling's y_i log y_i − y_i + log(2π y_i) / 2 for log y_i!, where y_i > 1
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = (exp(s_i) − y_i) g / n             or (1 − y_i / (s_i + ε)) g / n
        ∂C/∂y_i = −s_i g / n                         or −log(s_i + ε) g / n
                  and log y_i + 1 / 2y_i more if ``full`` and y_i > 1

    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1.
    Kept: a copy of s, where torch has exp(s) or s + ε, and y where ∂C/∂s is needed or in Stirling's formula. For
    complex numbers the derivatives are conjugated.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, log_input: bool, full: bool, epsilon: float, reduction: str) -> Any:
        if full and torch._C._are_functorch_transforms_active():
            # ATen adds Stirling's formula in place, which a tangent of zeros (forward over forward) refuses.
            large = torch.where(y > 1, y, 1)
            stirling = torch.where(y > 1, large * large.log() - large + 0.5 * (2 * math.pi * large).log(), 0)
            C = F.poisson_nll_loss(s, y, log_input, False, eps=epsilon, reduction="none")
            return reduced(C + stirling, reduction)
        loss = functools.partial(F.poisson_nll_loss, log_input=log_input, full=full, eps=epsilon)
        C = reduced_in_blocks(loss, s, y, reduction=reduction)
        return with_copies(C, (s, y), PoissonNegativeLogLikelihood.reads(log_input, full, epsilon), (0,))

    partials = (
        lambda s, y, log_input, full, epsilon: poisson_derivative(s, y, log_input, epsilon),
        lambda s, y, log_input, full, epsilon: poisson_target_derivative(s, y, log_input, full, epsilon),
    )

    @staticmethod
    def reads(log_input: bool, full: bool, epsilon: float) -> tuple[tuple[int, ...], ...]:
        return ((0, 1), (0, 1) if full else (0,))

    @staticmethod
    def copied(log_input: bool, full: bool, epsilon: float) -> tuple[int, ...]:
        return (0,)


def poisson_derivative(s: Tensor, y: Tensor, log_input: bool = True, epsilon: float = 1e-8) -> Tensor:
    """∂C_i/∂s_i = exp(s) − y, or 1 − y / (s + ε)."""
    if not log_input:
        return 1 - y / (s + epsilon)
    rate = s.exp()
    return rate.sub_(y) if records_nothing(rate) and y.shape == rate.shape else rate - y


def poisson_target_derivative(
    s: Tensor, y: Tensor, log_input: bool = True, full: bool = False, epsilon: float = 1e-8
) -> Tensor:
    """∂C_i/∂y_i = −s, or −log(s + ε), and the derivative of Stirling's formula where that is in C_i."""
    dy = -s if log_input else -(s + epsilon).log()
    if full:
        large = y > 1
        y = torch.where(large, y, 1)  # where y ≤ 1 its logarithm has no part, not even as 0 times infinity
        dy = dy + torch.where(large, y.log() + 0.5 / y, 0)
    return dy
