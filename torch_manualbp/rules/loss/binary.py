"""The losses of a choice between two: y is 0 or 1, or the probability of 1, or −1 or 1."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.arithmetic import logistic
from torch_manualbp.rules.evaluate import records_nothing
from torch_manualbp.rules.loss.reduction import (
    PointwiseLoss,
    fits_blocks,
    in_blocks,
    product_with,
    reduced,
    reduced_in_blocks,
)
from torch_manualbp.rules.rule import Rule, widened

__all__ = [
    "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits",
    "HingeEmbedding",
    "SoftMargin",
    "binary_cross_entropy_derivative",
    "binary_cross_entropy_target_derivative",
    "binary_cross_entropy_with_logits_derivative",
    "binary_cross_entropy_with_logits_target_derivative",
    "hinge_embedding_slope",
    "soft_margin_derivative",
]


SMALLEST_DIVISOR = 9.999999960041972e-13
"""10⁻¹² as a float32, which is what torch's is in every dtype."""


class BinaryCrossEntropy(PointwiseLoss):
    """The cross-entropy of a probability s of class 1, with weights w (1 where there are none).

    ::

        C_i = −w_i (y_i log s_i + (1 − y_i) log(1 − s_i))
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = w_i (s_i − y_i) / (s_i (1 − s_i)) g / n
        ∂C/∂y_i = w_i (log(1 − s_i) − log s_i) g / n

    At s = 0 and s = 1, as in torch, a logarithm of C is at least −100 and the divisor s (1 − s) at least 10⁻¹²; the
    logarithms of ∂C/∂y are those of 0. As in torch, w takes no gradient; forward mode holds it constant.
    Shapes: s and y the same, w broadcasts to them. ``"sum"`` and ``"none"`` have n = 1.
    Kept: s, w, and y where ∂C/∂s is needed.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # ATen's second derivative adds 1e-12 to s and to 1 − s
            C = _logarithms(s, y)
            return reduced(C if w is None else C * w, reduction)
        if s.shape != y.shape:
            return F.binary_cross_entropy(s, y, w, reduction=reduction)  # which names the shapes, of no block
        same = s.dtype == y.dtype == torch.float32
        loss = _in_vectors if same and fits_blocks(s, y, w) else F.binary_cross_entropy
        return reduced_in_blocks(loss, s, y, w, reduction=reduction)

    partials = (
        lambda s, y, w: binary_cross_entropy_derivative(s, y, w),
        lambda s, y, w: binary_cross_entropy_target_derivative(s, w),
        None,
    )

    @staticmethod
    def reads() -> tuple[tuple[int, ...], ...]:
        return ((0, 1, 2), (0, 2), ())


def _in_vectors(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
    """As F.binary_cross_entropy, whose logarithms are taken one by one: 75 ms for 4096 × 1000, against 9 ms."""
    (s_low, s_high), (y_low, y_high) = s.aminmax(), y.aminmax()
    if not (0 <= s_low <= s_high <= 1 and 0 <= y_low <= y_high <= 1) or reduction not in ("none", "sum", "mean"):
        return F.binary_cross_entropy(s, y, w, reduction=reduction)  # says what is wrong
    C = _logarithms(s, y)
    return reduced(C if w is None else C * w, reduction)


def _logarithms(s: Tensor, y: Tensor) -> Tensor:
    """C_i without its weight."""
    return (y - 1) * torch.log1p(-s).clamp(min=-100) - y * s.log().clamp(min=-100)


def binary_cross_entropy_derivative(s: Tensor, y: Tensor, w: Tensor | None = None) -> Tensor:
    """∂C_i/∂s_i = w (s − y) / (s (1 − s)), with a divisor of at least 10⁻¹²."""
    ds, divisor = s - y, 1 - s
    if records_nothing(ds):
        ds = ds.div_(divisor.mul_(s).clamp_(min=SMALLEST_DIVISOR))
    else:
        ds = ds / (divisor * s).clamp(min=SMALLEST_DIVISOR)
    return ds if w is None else ds * w


def binary_cross_entropy_target_derivative(s: Tensor, w: Tensor | None = None) -> Tensor:
    """∂C_i/∂y_i = w (log(1 − s) − log s), which is 2 artanh(1 − 2s) where the digits of the logarithms cancel."""
    x = 1 - 2 * s
    dy = torch.where(x.abs() <= 0.5, 2 * x.clamp(-0.5, 0.5).atanh(), torch.log1p(-s) - s.log())
    return dy if w is None else dy * w


class BinaryCrossEntropyWithLogits(PointwiseLoss):
    """The cross-entropy of a probability σ(s) of class 1, with weights w and weights p of class 1 (1 where there are
    none).

    ::

        C_i = −w_i (p_i y_i log σ(s_i) + (1 − y_i) log σ(−s_i))
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = w_i ((p_i y_i + 1 − y_i) σ(s_i) − p_i y_i) g / n
        ∂C/∂y_i = w_i (log σ(−s_i) − p_i log σ(s_i)) g / n

    which without weights is σ(s) − y and −s. As in torch, w and p take no gradient; forward mode holds them constant.
    Shapes: s and y the same, w and p broadcast against them. ``"sum"`` and ``"none"`` have n = 1.
    Kept: s, w, p, and y where ∂C/∂s is needed.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, p: Tensor | None, reduction: str) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # whose forward mode over forward mode ATen's function lacks
            C = (1 - y) * s + (1 if p is None else (p - 1) * y + 1) * F.softplus(-s, threshold=40)
            return reduced(C if w is None else C * w, reduction)
        if s.shape != y.shape:
            return _with_logits(s, y, w, p, reduction)  # which names the shapes, of no block
        return reduced_in_blocks(_with_logits, s, y, w, p, reduction=reduction)

    partials = (
        lambda s, y, w, p: binary_cross_entropy_with_logits_derivative(s, y, w, p),
        lambda s, y, w, p: binary_cross_entropy_with_logits_target_derivative(s, w, p),
        None,
        None,
    )

    @staticmethod
    def reads() -> tuple[tuple[int, ...], ...]:
        return ((0, 1, 2, 3), (0, 2, 3), (), ())


def _with_logits(s: Tensor, y: Tensor, w: Tensor | None, p: Tensor | None, reduction: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(s, y, w, pos_weight=p, reduction=reduction)


def binary_cross_entropy_with_logits_derivative(
    s: Tensor, y: Tensor, w: Tensor | None = None, p: Tensor | None = None
) -> Tensor:
    """∂C_i/∂s_i = w ((p y + 1 − y) σ(s) − p y)."""
    if p is None:
        ds = s.sigmoid()
        ds = ds.sub_(y) if records_nothing(ds) and y.shape == ds.shape else ds - y
    else:
        py = p * y
        ds = (py + 1 - y) * s.sigmoid() - py
    return ds if w is None else ds * w


def binary_cross_entropy_with_logits_target_derivative(
    s: Tensor, w: Tensor | None = None, p: Tensor | None = None
) -> Tensor:
    """∂C_i/∂y_i = w (log σ(−s) − p log σ(s))."""
    dy = -s if p is None else F.logsigmoid(-s) - p * F.logsigmoid(s)
    return dy if w is None else dy * w


class SoftMargin(PointwiseLoss):
    """The logistic loss of a score s whose sign should be that of y = ±1.

    ::

        C_i = log(1 + exp(−y_i s_i))       C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = −y_i σ(−y_i s_i) g / n

    Where exp(−y s) is infinite C is so too, as in torch; the derivative is its limit −y, where torch gives NaN. As in
    torch, y takes no gradient; forward mode holds it constant.
    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # whose forward mode over forward mode ATen's function lacks
            return reduced((s * -y).exp().log1p(), reduction)
        return reduced_in_blocks(F.soft_margin_loss, s, y, reduction=reduction)

    partials = (lambda s, y: soft_margin_derivative(s, y), None)


def soft_margin_derivative(s: Tensor, y: Tensor) -> Tensor:
    """∂C_i/∂s_i = −y σ(−y s)."""
    minus_y = -y
    ds = logistic(s * minus_y)
    return ds.mul_(minus_y) if records_nothing(ds) else ds * minus_y


class HingeEmbedding(Rule):
    """The distance s of a pair that should be near (y = 1) or at least ``margin`` apart (y = −1).

    ::

        C_i = s_i                          where y_i = 1
              max(0, margin − s_i)         where y_i = −1
              the sum of both              for any other y_i
        C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = m_i g / n,  m_i = [y_i ≠ −1] − [y_i ≠ 1] [s_i ≤ margin]

    At the kink s = margin the derivative is that of margin − s, as in torch. y takes no gradient.
    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: the slopes m, a byte each.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
        if s.shape == y.shape and fits_blocks(s, y):
            C = reduced_in_blocks(functools.partial(_by_products, margin=margin), s, y, reduction=reduction)
            if math.isfinite(C.sum()):
                return C
        return F.hinge_embedding_loss(s, y, margin, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, str], output: Tensor) -> None:
        s, y, margin, ctx.reduction = inputs
        ctx.shape, ctx.dtype, ctx.output_dtype = s.shape, s.dtype, output.dtype
        # m is piecewise constant, so that nothing is lost when a second derivative does not see s behind it.
        m = in_blocks(hinge_embedding_slope, (s.detach(), y), (margin,), torch.int8)
        ctx.save_for_backward(m)
        ctx.save_for_forward(m)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (m,) = ctx.saved_tensors
        if ctx.reduction == "mean":
            g = widened(g) / max(m.numel(), 1)
        ds = product_with(g, lambda m: m.to(g.dtype), [m], (), ctx.dtype)
        return ds.sum_to_size(ctx.shape), None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        (m,) = ctx.saved_tensors
        dC = m * widened(ds)
        if ctx.reduction != "none":
            dC = dC.sum()
        if ctx.reduction == "mean":
            dC = dC / max(m.numel(), 1)
        return dC.to(ctx.output_dtype)


def _by_products(s: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
    """As F.hinge_embedding_loss where s is finite. That chooses by masks, each of which costs the processor a wrong
    guess every other number: 60 ms for 4096 × 1000."""
    near, far = torch.ne(y, -1, out=torch.empty_like(s)), torch.ne(y, 1, out=torch.empty_like(s))
    return reduced(near * s + far * (margin - s).clamp(min=0), reduction)


def hinge_embedding_slope(s: Tensor, y: Tensor, margin: float = 1.0) -> Tensor:
    """m = [y ≠ −1] − [y ≠ 1] [s ≤ margin], in bytes."""
    return (y != -1).to(torch.int8) - ((y != 1) & (s <= margin)).to(torch.int8)
