"""The losses of a choice between two: y is 0 or 1, or the probability of 1, or −1 or 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.elementwise import logistic
from torch_manualbp.rules.loss.entrywise import EntrywiseLoss
from torch_manualbp.rules.loss.reduction import reduced, share_of_each
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = [
    "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits",
    "HingeEmbedding",
    "SoftMargin",
    "binary_cross_entropy_derivative",
    "binary_cross_entropy_target_derivative",
    "binary_cross_entropy_with_logits_derivative",
    "binary_cross_entropy_with_logits_target_derivative",
    "hinge_embedding_gradient",
    "hinge_embedding_slope",
    "logistic",
    "soft_margin_derivative",
]


SMALLEST_DIVISOR = 9.999999960041972e-13
"""10⁻¹² as a float32, which is what torch's is in every dtype."""


class BinaryCrossEntropy(EntrywiseLoss):
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
    @formula(by="sums")
    def forward(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
        return F.binary_cross_entropy(s, y, w, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, w: Tensor | None, reduction: str) -> Tensor:
        # ATen's second derivative adds 1e-12 to s and to 1 − s.
        C = (y - 1) * torch.log1p(-s).clamp(min=-100) - y * s.log().clamp(min=-100)
        return reduced(C if w is None else C * w, reduction)

    partials = (
        lambda s, y, w: binary_cross_entropy_derivative(s, y, w),
        lambda s, y, w: binary_cross_entropy_target_derivative(s, w),
        None,
    )

    @staticmethod
    def reads() -> tuple[tuple[int, ...], ...]:
        return ((0, 1, 2), (0, 2), ())


def binary_cross_entropy_derivative(s: Tensor, y: Tensor, w: Tensor | None = None) -> Tensor:
    """∂C_i/∂s_i = w (s − y) / (s (1 − s)), with a divisor of at least 10⁻¹²."""
    ds = (s - y) / (s * (1 - s)).clamp(min=SMALLEST_DIVISOR)
    return ds if w is None else ds * w


def binary_cross_entropy_target_derivative(s: Tensor, w: Tensor | None = None) -> Tensor:
    """∂C_i/∂y_i = w (log(1 − s) − log s), which is 2 artanh(1 − 2s) where the digits of the logarithms cancel."""
    x = 1 - 2 * s
    dy = torch.where(x.abs() <= 0.5, 2 * x.clamp(-0.5, 0.5).atanh(), torch.log1p(-s) - s.log())
    return dy if w is None else dy * w


class BinaryCrossEntropyWithLogits(EntrywiseLoss):
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
    @formula(by="sums")
    def forward(s: Tensor, y: Tensor, w: Tensor | None, p: Tensor | None, reduction: str) -> Tensor:
        return F.binary_cross_entropy_with_logits(s, y, w, pos_weight=p, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, w: Tensor | None, p: Tensor | None, reduction: str) -> Tensor:
        # with forward mode over forward mode, which ATen's function lacks
        C = (1 - y) * s + (1 if p is None else (p - 1) * y + 1) * F.softplus(-s, threshold=40)
        return reduced(C if w is None else C * w, reduction)

    partials = (
        lambda s, y, w, p: binary_cross_entropy_with_logits_derivative(s, y, w, p),
        lambda s, y, w, p: binary_cross_entropy_with_logits_target_derivative(s, w, p),
        None,
        None,
    )

    @staticmethod
    def reads() -> tuple[tuple[int, ...], ...]:
        return ((0, 1, 2, 3), (0, 2, 3), (), ())


def binary_cross_entropy_with_logits_derivative(
    s: Tensor, y: Tensor, w: Tensor | None = None, p: Tensor | None = None
) -> Tensor:
    """∂C_i/∂s_i = w ((p y + 1 − y) σ(s) − p y)."""
    if p is None:
        ds = s.sigmoid() - y
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


class SoftMargin(EntrywiseLoss):
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
    @formula(by="sums")
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.soft_margin_loss(s, y, reduction=reduction)

    @staticmethod
    def composite(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        # with forward mode over forward mode, which ATen's function lacks
        return reduced((s * -y).exp().log1p(), reduction)

    partials = (lambda s, y: soft_margin_derivative(s, y), None)


def soft_margin_derivative(s: Tensor, y: Tensor) -> Tensor:
    """∂C_i/∂s_i = −y σ(−y s)."""
    return -y * logistic(-y * s)


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
    @formula(by="sums")
    def forward(s: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
        return F.hinge_embedding_loss(s, y, margin, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, str], output: Tensor) -> None:
        s, y, margin, ctx.reduction = inputs
        ctx.shape, ctx.dtype, ctx.output_dtype = s.shape, s.dtype, output.dtype
        # m is piecewise constant, so that nothing is lost when a second derivative does not see s behind it.
        m = hinge_embedding_slope(s.detach(), y, margin)
        ctx.save_for_backward(m)
        ctx.save_for_forward(m)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (m,) = ctx.saved_tensors
        ds = hinge_embedding_gradient(m, share_of_each(widened(g), ctx.reduction, m.numel()), ctx.dtype)
        return ds.sum_to_size(ctx.shape), None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        (m,) = ctx.saved_tensors
        dC = m * widened(ds)
        dC = dC if ctx.reduction == "none" else dC.sum()
        return share_of_each(dC, ctx.reduction, m.numel()).to(ctx.output_dtype)


@formula(by="entries")
def hinge_embedding_slope(s: Tensor, y: Tensor, margin: float = 1.0) -> Tensor:
    """m = [y ≠ −1] − [y ≠ 1] [s ≤ margin], in bytes."""
    return (y != -1).to(torch.int8) - ((y != 1) & (s <= margin)).to(torch.int8)


@formula(by="entries")
def hinge_embedding_gradient(m: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """∂C/∂s_i = m_i g, of this dtype, with one g for all or one for each entry."""
    return (m * g).to(dtype)
