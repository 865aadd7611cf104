"""The losses of a class y that the scores s should tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["CrossEntropy", "CrossEntropyProbabilities", "cross_entropy_gradient"]


class CrossEntropy(Rule):
    """The cross-entropy of scores s over K classes with the index y of the true class.

    With class weights w (1 where there are none), label smoothing ε and p = softmax(s), the target is a distribution q
    over the classes::

        q_k = w_k ((1 − ε) [k = y] + ε / K)
        C_i = −Σ_k q_k log p_k             C = Σ C_i / n,  n = Σ w_y
        ⇒
        ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n

    which without weights and smoothing is the textbook's p − onehot(y). A sample with y = ``ignore_index`` has no part
    in any of the sums; its gradient is 0.

    Shapes: s (K) with y (), or s (samples, K, *) with y (samples, *) of integers. ``"sum"`` and ``"none"`` have n = 1.
    Kept: s, y, w. As in torch, w takes no gradient; forward mode holds it constant.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        if w is not None and epsilon > 0 and reduction == "mean" and torch._C._are_functorch_transforms_active():
            # Here torch selects the samples by mask, which vmap cannot; its sum, divided, can.
            C = F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction="sum", label_smoothing=epsilon)
            return C / _weight_of_samples(*_counted(y, ignore_index), w).to(C.dtype)
        return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, ctx.ignore_index, ctx.reduction, epsilon = inputs
        ctx.epsilon = epsilon if epsilon > 0 else 0.0  # as torch, which takes what is below for 0
        ctx.save_for_backward(s, y, w)
        ctx.save_for_forward(s, y, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        s, y, w = ctx.saved_tensors
        counted, y = _counted(y, ctx.ignore_index)
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / _weight_of_samples(counted, y, w)
        g = torch.where(counted, g, 0)
        return cross_entropy_gradient(s, y, g, w, ctx.epsilon, counted), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        s, y, w = ctx.saved_tensors
        counted, y = _counted(y, ctx.ignore_index)
        gradient = cross_entropy_gradient(s, y, counted.to(ds.dtype), w, ctx.epsilon, counted)
        dC = torch.linalg.vecdot(gradient, ds, dim=_class_dim(s))
        if ctx.reduction != "none":
            dC = dC.sum()
        return dC / _weight_of_samples(counted, y, w) if ctx.reduction == "mean" else dC


def cross_entropy_gradient(
    s: Tensor,
    y: Tensor,
    g: Tensor,
    w: Tensor | None = None,
    epsilon: float = 0.0,
    counted: Tensor | None = None,
) -> Tensor:
    """∂C/∂s_k = (p_k Σ_j q_j − q_k) g: (samples, K, *), for a y in 0 … K−1 and a g of each sample, (samples, *).

    Where ``counted`` is False, g is 0 and the weight of y, which may be infinite, has no part.
    """
    k = _class_dim(s)
    p = torch.softmax(widened(s), k)
    g_y = g if w is None else g * _weight_of(y, w, counted)
    y, g, g_y = y.unsqueeze(k), g.unsqueeze(k), g_y.unsqueeze(k)
    if epsilon == 0:
        ds = p * g_y
    else:
        smooth = epsilon / s.shape[k] * g
        g_y = (1 - epsilon) * g_y
        total = s.shape[k] if w is None else widened(w).sum()
        ds = p * (g_y + smooth * total) - _weighted(smooth, w, s)
    # In place, since ds is fresh and what made it did not keep it; but torch 2.6 cannot vmap that.
    add = ds.scatter_add if torch._C._are_functorch_transforms_active() else ds.scatter_add_
    return add(k, y, -g_y.to(ds.dtype)).to(s.dtype)


def _counted(y: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which samples count, and y with a class for the others too."""
    counted = y != ignore_index
    return counted, torch.where(counted, y, 0).long()


def _weight_of(y: Tensor, w: Tensor, counted: Tensor | None = None) -> Tensor:
    """w_y of each sample that counts, else 0. As an index_select, since ``w[y]`` makes torch.compile read a y of ()."""
    w_y = widened(w).index_select(0, y.reshape(y.numel())).reshape(y.shape)
    return w_y if counted is None else torch.where(counted, w_y, 0)


def _weight_of_samples(counted: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """n = Σ w_y over the samples that count."""
    return counted.sum() if w is None else _weight_of(y, w, counted).sum()


class CrossEntropyProbabilities(Rule):
    """The cross-entropy of scores s over K classes with a probability y_k for each class.

    With w, ε and p as for class indices::

        q_k = w_k ((1 − ε) y_k + ε / K)
        C_i = −Σ_k q_k log p_k             C = Σ C_i / n,  n = the number of samples
        ⇒
        ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n
        ∂C/∂y_k = −(1 − ε) w_k log p_k g / n
        ∂C/∂w_k = −Σ_samples ((1 − ε) y_k + ε / K) log p_k g / n

    Shapes: s and y (K), or (samples, K, *). ``"sum"`` and ``"none"`` have n = 1. Kept: s, and of y and w
    what the needed gradients use.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, _, ctx.reduction, epsilon = inputs
        ctx.epsilon = epsilon if epsilon > 0 else 0.0
        needs_ds, needs_dy, needs_dw, *_ = ctx.needs_input_grad
        ctx.save_for_backward(s, y if needs_ds or needs_dw else None, w if needs_ds or needs_dy else None)
        ctx.save_for_forward(s, y, w)
        ctx.dtypes = s.dtype, y.dtype, s.dtype if w is None else w.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        s, y, w = ctx.saved_tensors
        needs_ds, needs_dy, needs_dw, *_ = ctx.needs_input_grad
        s_dtype, y_dtype, w_dtype = ctx.dtypes
        k = _class_dim(s)
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / _number_of_samples(s)
        elif ctx.reduction == "none":
            g = g.unsqueeze(k)
        log_p = torch.log_softmax(widened(s), k)
        ds = dy = dw = None
        if needs_ds:
            q = _weighted(_smoothed(y, ctx.epsilon, s), w, s)
            ds = ((log_p.exp() * q.sum(k, keepdim=True) - q) * g).to(s_dtype)
        if needs_dy:
            dy = (_weighted(log_p, w, s) * (g * -(1 - ctx.epsilon))).to(y_dtype)
        if needs_dw:
            dw = -_smoothed(y, ctx.epsilon, s) * log_p * g
            dw = dw.sum_to_size(_class_shape(s)).reshape(s.shape[k]).to(w_dtype)
        return ds, dy, dw, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, dw: Tensor | None, *_: None) -> Tensor:
        s, y, w = ctx.saved_tensors
        k = _class_dim(s)
        log_p = torch.log_softmax(widened(s), k)
        smoothed = _smoothed(y, ctx.epsilon, s)
        q = _weighted(smoothed, w, s)
        dC = torch.zeros_like(log_p)
        if ds is not None:
            dC = dC + (log_p.exp() * q.sum(k, keepdim=True) - q) * ds
        if dy is not None:
            dC = dC - _weighted(log_p, w, s) * (1 - ctx.epsilon) * dy
        if dw is not None:
            dC = dC - _weighted(smoothed, dw, s) * log_p
        dC = dC.sum(k) if ctx.reduction == "none" else dC.sum()
        if ctx.reduction == "mean":
            dC = dC / _number_of_samples(s)
        return dC.to(torch.result_type(s, y))


def _smoothed(y: Tensor, epsilon: float, s: Tensor) -> Tensor:
    """(1 − ε) y_k + ε / K."""
    return widened(y) if epsilon == 0 else (1 - epsilon) * widened(y) + epsilon / max(s.shape[_class_dim(s)], 1)


def _weighted(t: Tensor, w: Tensor | None, s: Tensor) -> Tensor:
    """w_k t_k."""
    return t if w is None else t * widened(w).reshape(_class_shape(s))


def _class_dim(s: Tensor) -> int:
    return 0 if s.dim() == 1 else 1


def _class_shape(s: Tensor) -> list[int]:
    """The shape in which a tensor of the K classes broadcasts against s: (1, K, 1, …)."""
    return [size if d == _class_dim(s) else 1 for d, size in enumerate(s.shape)]


def _number_of_samples(s: Tensor) -> int:
    return max(s.numel() // max(s.shape[_class_dim(s)], 1), 1)
