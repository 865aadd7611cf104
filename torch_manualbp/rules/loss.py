"""The rules of the losses: s is the network's output, y the target, C the cost.

The loss C_i of each entry or sample is reduced to C: ``"none"`` keeps the C_i, ``"sum"`` adds them, ``"mean"`` divides
the sum by n. The upstream gradient g = ∂(what follows)/∂C is mostly 1; it has the shape of C: () after a reduction, the
shape of the C_i without.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, widened

__all__ = [
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "MeanSquaredError",
    "cross_entropy_gradient",
]


class MeanSquaredError(Rule):
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

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        s, y, ctx.reduction = inputs
        ctx.save_for_backward(s, y)
        ctx.save_for_forward(s, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        s, y = ctx.saved_tensors
        needs_ds, needs_dy, _ = ctx.needs_input_grad
        r = widened(s) - widened(y)
        n = r.numel() if ctx.reduction == "mean" else 1
        dC = r * (widened(g) * 2 / n)
        ds = dC.sum_to_size(s.shape).to(s.dtype) if needs_ds else None
        dy = dC.neg().sum_to_size(y.shape).to(y.dtype) if needs_dy else None
        return ds, dy, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        s, y = ctx.saved_tensors
        r = widened(s) - widened(y)
        n = r.numel() if ctx.reduction == "mean" else 1
        dr = (0 if ds is None else ds) - (0 if dy is None else dy)
        dC = 2 * r * dr
        return (dC if ctx.reduction == "none" else dC.sum() / n).to(torch.result_type(s, y))


class CrossEntropy(Rule):
    """The cross-entropy of scores s over K classes with the index y of the true class.

    With the class weights w (1 where there are none), label smoothing ε and p = softmax(s), the target is a distribution
    q over the classes::

        q_k = w_k ((1 − ε) [k = y] + ε / K)
        C_i = −Σ_k q_k log p_k             C = Σ C_i / n,  n = Σ w_y
        ⇒
        ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n

    which without weights and smoothing is the textbook's p − onehot(y). A sample with y = ``ignore_index`` has no part in
    any of the sums; its gradient is 0.

    Shapes: s (K) with y (), or s (samples, K, *) with y (samples, *) of integers. ``"sum"`` and ``"none"`` have n = 1.
    Kept: s, y, w. As in torch, w takes no gradient.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, ctx.ignore_index, ctx.reduction, ctx.epsilon = inputs
        ctx.save_for_backward(s, y, w)
        ctx.save_for_forward(s, y, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s, y, w = ctx.saved_tensors
        counted = y != ctx.ignore_index
        y = torch.where(counted, y, 0)
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / _weight_of_samples(counted, y, w)
        g = torch.where(counted, g, 0)
        return cross_entropy_gradient(s, y, w, ctx.epsilon, g), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: None) -> Tensor:
        s, y, w = ctx.saved_tensors
        counted = y != ctx.ignore_index
        y = torch.where(counted, y, 0)
        gradient = cross_entropy_gradient(s, y, w, ctx.epsilon, counted.to(ds.dtype))
        dC = torch.linalg.vecdot(gradient, ds, dim=_class_dim(s))
        if ctx.reduction != "none":
            dC = dC.sum()
        return dC / _weight_of_samples(counted, y, w) if ctx.reduction == "mean" else dC


def cross_entropy_gradient(s: Tensor, y: Tensor, w: Tensor | None, epsilon: float, g: Tensor) -> Tensor:
    """∂C/∂s_k = (p_k Σ_j q_j − q_k) g, with one y in 0 … K−1 and one g for each sample: (samples, K, *)."""
    k = _class_dim(s)
    y, g = y.unsqueeze(k), g.unsqueeze(k)
    p = torch.softmax(widened(s), k)
    g_y = g if w is None else g * widened(w)[y]
    if epsilon == 0:
        ds = p * g_y
    else:
        smooth = epsilon / s.shape[k] * g
        g_y = (1 - epsilon) * g_y
        if w is None:
            ds = p * (g_y + smooth * s.shape[k]) - smooth
        else:
            w = widened(w)
            ds = p * (g_y + smooth * w.sum()) - smooth * _along_classes(w, s)
    return ds.scatter_add(k, y, -g_y.to(ds.dtype)).to(s.dtype)


def _weight_of_samples(counted: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """n = Σ w_y over the samples that count."""
    return counted.sum() if w is None else torch.where(counted, widened(w)[y], 0).sum()


class CrossEntropyProbabilities(Rule):
    """The cross-entropy of scores s over K classes with a probability y_k for each class.

    With w, ε and p as for class indices::

        q_k = w_k ((1 − ε) y_k + ε / K)
        C_i = −Σ_k q_k log p_k             C = Σ C_i / n,  n = the number of samples
        ⇒
        ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n
        ∂C/∂y_k = −(1 − ε) w_k log p_k g / n
        ∂C/∂w_k = −Σ_samples ((1 − ε) y_k + ε / K) log p_k g / n

    Shapes: s and y (K), or (samples, K, *). ``"sum"`` and ``"none"`` have n = 1. Kept: s, y, w.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, _, ctx.reduction, ctx.epsilon = inputs
        ctx.save_for_backward(s, y, w)
        ctx.save_for_forward(s, y, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        s, y, w = ctx.saved_tensors
        needs_ds, needs_dy, needs_dw, *_ = ctx.needs_input_grad
        k, epsilon = _class_dim(s), ctx.epsilon
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / _number_of_samples(s)
        elif ctx.reduction == "none":
            g = g.unsqueeze(k)
        log_p = torch.log_softmax(widened(s), k)
        smoothed = (1 - epsilon) * widened(y) + epsilon / s.shape[k]
        q = smoothed if w is None else smoothed * _along_classes(w, s)
        ds = dy = dw = None
        if needs_ds:
            ds = ((log_p.exp() * q.sum(k, keepdim=True) - q) * g).to(s.dtype)
        if needs_dy:
            dy = log_p * (g * -(1 - epsilon))
            dy = (dy if w is None else dy * _along_classes(w, s)).to(y.dtype)
        if needs_dw:
            dw = (-smoothed * log_p * g).sum_to_size(_along_classes(w, s).shape).reshape(w.shape).to(w.dtype)
        return ds, dy, dw, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, dw: Tensor | None, *_: None) -> Tensor:
        s, y, w = ctx.saved_tensors
        k, epsilon = _class_dim(s), ctx.epsilon
        log_p = torch.log_softmax(widened(s), k)
        smoothed = (1 - epsilon) * widened(y) + epsilon / s.shape[k]
        q = smoothed if w is None else smoothed * _along_classes(w, s)
        dC = torch.zeros_like(log_p)
        if ds is not None:
            dC = dC + (log_p.exp() * q.sum(k, keepdim=True) - q) * ds
        if dy is not None:
            dq = (1 - epsilon) * dy
            dC = dC - log_p * (dq if w is None else dq * _along_classes(w, s))
        if dw is not None:
            dC = dC - log_p * smoothed * _along_classes(dw, s)
        dC = dC.sum(k) if ctx.reduction == "none" else dC.sum()
        if ctx.reduction == "mean":
            dC = dC / _number_of_samples(s)
        return dC.to(torch.result_type(s, y))


def _class_dim(s: Tensor) -> int:
    return 0 if s.dim() == 1 else 1


def _along_classes(w: Tensor, s: Tensor) -> Tensor:
    """(K) → (K, 1, …), which broadcasts against s."""
    return widened(w).reshape(-1, *[1] * (s.dim() - 1 - _class_dim(s)))


def _number_of_samples(s: Tensor) -> int:
    return math.prod(size for d, size in enumerate(s.shape) if d != _class_dim(s))
