"""The losses of a number y that the output s should be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.loss.entrywise import EntrywiseLoss
from torch_manualbp.rules.loss.reduction import reduced, share_of_each
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, formula, in_dtype, widened

__all__ = [
    "AbsoluteError",
    "GaussianNegativeLogLikelihood",
    "Huber",
    "MeanSquaredError",
    "PoissonNegativeLogLikelihood",
    "SmoothAbsoluteError",
    "absolute_error_gradient",
    "gaussian_error_derivative",
    "gaussian_variance_derivative",
    "huber_derivative",
    "poisson_derivative",
    "poisson_target_derivative",
    "smooth_absolute_error_derivative",
    "squared_error_gradient",
]


class MeanSquaredError(EntrywiseLoss):
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
        return F.mse_loss(s, y, reduction=reduction)

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
    @formula(by="sums")
    def forward(r: Tensor, reduction: str) -> Tensor:
        return reduced(r.abs(), reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        r, ctx.reduction = inputs
        ctx.save_for_backward(r)
        ctx.save_for_forward(r)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (r,) = ctx.saved_tensors
        return absolute_error_gradient(r, share_of_each(widened(g), ctx.reduction, r.numel())), None

    @staticmethod
    def jvp(ctx: Any, dr: Tensor, _: None) -> Tensor:
        (r,) = ctx.saved_tensors
        dC = (r.sgn().conj() * dr).real if r.is_complex() else r.sgn() * dr
        return share_of_each(dC if ctx.reduction == "none" else dC.sum(), ctx.reduction, r.numel())


@formula(by="entries")
def absolute_error_gradient(r: Tensor, g: Tensor) -> Tensor:
    """∂C/∂r_i = sign(r_i) g, with one g for all or one for each entry."""
    return in_dtype(r.dtype, widened(r).sgn() * g)


class SmoothAbsoluteError(EntrywiseLoss):
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

    compiles_composite = True  # whose kernel for C then has the derivative, too, which it would make apart

    @staticmethod
    def forward(s: Tensor, y: Tensor, beta: float, reduction: str) -> Tensor:
        return F.smooth_l1_loss(s, y, beta=beta, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, beta: float, reduction: str) -> Tensor:
        if not 0 < beta < 1e4:
            return F.smooth_l1_loss(s, y, beta=beta, reduction=reduction)
        slope = smooth_absolute_error_derivative(s, y, beta)
        return reduced(slope * ((s - y) - beta / 2 * slope), reduction)

    partials = (
        lambda s, y, beta: smooth_absolute_error_derivative(s, y, beta),
        lambda s, y, beta: smooth_absolute_error_derivative(y, s, beta),
    )


def smooth_absolute_error_derivative(s: Tensor, y: Tensor, beta: float = 1.0) -> Tensor:
    """∂C_i/∂s_i = clamp((s − y) / β, −1, 1)."""
    r = s - y if beta == 1 else (s - y) / beta
    return r.clamp(-1, 1)


class Huber(EntrywiseLoss):
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

    compiles_composite = True  # as the smooth absolute error

    @staticmethod
    def forward(s: Tensor, y: Tensor, threshold: float, reduction: str) -> Tensor:
        return F.huber_loss(s, y, delta=threshold, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, threshold: float, reduction: str) -> Tensor:
        if threshold <= 0:
            return F.huber_loss(s, y, delta=threshold, reduction=reduction)  # says what is wrong
        slope = huber_derivative(s, y, threshold)  # with forward mode over forward mode, which ATen's function lacks
        return reduced(slope * ((s - y) - slope / 2), reduction)

    partials = (
        lambda s, y, threshold: huber_derivative(s, y, threshold),
        lambda s, y, threshold: huber_derivative(y, s, threshold),
    )


def huber_derivative(s: Tensor, y: Tensor, threshold: float = 1.0) -> Tensor:
    """∂C_i/∂s_i = clamp(s − y, −Δ, Δ)."""
    return (s - y).clamp(-threshold, threshold)


class GaussianNegativeLogLikelihood(EntrywiseLoss):
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
    @formula(by="sums")
    def forward(r: Tensor, v: Tensor, full: bool, reduction: str) -> Tensor:
        dtype = torch.promote_types(r.dtype, v.dtype)
        r, v = widened(r), widened(v)
        C = 0.5 * (v.log() + r.square() / v)
        if full:
            C = C + 0.5 * math.log(2 * math.pi)
        return reduced(C, reduction).to(dtype)

    partials = (
        lambda r, v, full: gaussian_error_derivative(r, v),
        lambda r, v, full: gaussian_variance_derivative(r, v),
    )


def gaussian_error_derivative(r: Tensor, v: Tensor) -> Tensor:
    """∂C_i/∂r_i = r / v."""
    return r / v


def gaussian_variance_derivative(r: Tensor, v: Tensor) -> Tensor:
    """∂C_i/∂v_i = (v − r²) / 2v², which rounds once before its digits cancel."""
    return (v - r.square()) / v * 0.5 / v


class PoissonNegativeLogLikelihood(EntrywiseLoss, RuleWithByproducts):
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
    @formula(by="sums")
    def alone(s: Tensor, y: Tensor, log_input: bool, full: bool, epsilon: float, reduction: str) -> Tensor:
        return F.poisson_nll_loss(s, y, log_input, full, eps=epsilon, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, log_input: bool, full: bool, epsilon: float, reduction: str) -> Tensor:
        C = F.poisson_nll_loss(s, y, log_input, False, eps=epsilon, reduction="none")
        if full:  # ATen adds Stirling's formula in place, which a tangent of zeros (forward over forward) refuses
            large = torch.where(y > 1, y, 1)
            stirling = torch.where(y > 1, large * large.log() - large + 0.5 * (2 * math.pi * large).log(), 0)
            C = C + stirling
        return reduced(C, reduction)

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
    return s.exp() - y


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
