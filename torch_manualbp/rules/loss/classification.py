"""The losses of a class y that the scores s should tell."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F

from torch_manualbp.rules.evaluate import is_written_down, records_nothing
from torch_manualbp.rules.loss.reduction import PointwiseLoss, reduced, reduced_in_blocks
from torch_manualbp.rules.rule import Rule, widened

__all__ = [
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "KullbackLeiblerDivergence",
    "NegativeLogLikelihood",
    "cross_entropy_gradient",
    "divergence_derivative",
    "divergence_target_derivative",
    "negative_log_likelihood_gradient",
]


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
        if is_written_down() and epsilon <= 0 and s.numel():  # log p is computed once, for the gradient too
            log_p = torch.log_softmax(s, _class_dim(s))
            return F.nll_loss(log_p, y, w, ignore_index=ignore_index, reduction=reduction)
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
        if w is None and is_written_down():
            g = counted * (g / counted.sum().clamp_(min=1) if ctx.reduction == "mean" else g)  # of choices by mask
        else:
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
    if s.shape[k] == 0:  # where every sample is ignored
        return torch.zeros_like(s)
    w_y = None if w is None else _weight_of(y, w, counted).unsqueeze(k)
    y, g = y.unsqueeze(k), g.unsqueeze(k)
    p = _probabilities(widened(s), k)
    q: Tensor | None = None  # times g, of the classes that are not y
    sum_q = q_y = g if w_y is None else g * w_y
    if epsilon != 0:
        smooth = epsilon / s.shape[k] * g
        q = _weighted(smooth, w, s)
        sum_q = (1 - epsilon) * q_y + smooth * (s.shape[k] if w is None else widened(w).sum())
        q_y = (1 - epsilon) * q_y + (smooth if w_y is None else smooth * w_y)
        p_y = p.gather(k, y)
    if records_nothing(p, sum_q) and p.dtype == sum_q.dtype:  # a pass over fresh memory takes as long as the softmax
        ds = p.mul_(sum_q)
        ds = ds if q is None else ds.sub_(q)
    else:
        ds = p * sum_q if q is None else p * sum_q - q
    # In place, since ds is fresh and what made it did not keep it; but torch 2.6 cannot vmap that.
    is_mapped = torch._C._are_functorch_transforms_active()
    if q is None:
        return (ds.scatter_add if is_mapped else ds.scatter_add_)(k, y, -q_y.to(ds.dtype)).to(s.dtype)
    return (ds.scatter if is_mapped else ds.scatter_)(k, y, (p_y * sum_q - q_y).to(ds.dtype)).to(s.dtype)


def _probabilities(s: Tensor, k: int) -> Tensor:
    """p = softmax(s); where log p is at hand, as the forward of a step that is written down has it, from that."""
    few = is_written_down() and s.numel() < 1 << 16  # of many numbers torch's softmax is faster than its exp
    return torch.log_softmax(s, k).exp() if few else torch.softmax(s, k)


def _counted(y: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which samples count, and y with a class for the others too."""
    counted = y != ignore_index
    if is_written_down() and ignore_index < 0:
        return counted, y.clamp(min=0).long()  # no other negative number is a class
    return counted, torch.where(counted, y, 0).long()


def _all_count(y: Tensor, g: Tensor, ignore_index: int) -> bool:
    """Whether every sample is known to count; nobody knows it who may not look."""
    return records_nothing(y, g) and not is_written_down() and bool((y != ignore_index).all())


def _weight_of(y: Tensor, w: Tensor, counted: Tensor | None = None) -> Tensor:
    """w_y of each sample that counts, else 0. As an index_select, since ``w[y]`` makes torch.compile read a y of ()."""
    w_y = widened(w).index_select(0, y.reshape(y.numel())).reshape(y.shape)
    return w_y if counted is None else torch.where(counted, w_y, 0)


def _weight_of_samples(counted: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """n = Σ w_y over the samples that count."""
    return counted.sum() if w is None else _weight_of(y, w, counted).sum()


class NegativeLogLikelihood(Rule):
    """The negative log-likelihood of the true class y, whose log-probability among K is s_y.

    With class weights w (1 where there are none)::

        C_i = −w_y s_y                     C = Σ C_i / n,  n = Σ w_y
        ⇒
        ∂C/∂s_k = −w_k [k = y] g / n

    A sample with y = ``ignore_index`` has no part in any of the sums; its gradient is 0.

    Shapes: s (K) with y (), or s (samples, K, *) with y (samples, *) of integers. ``"sum"`` and ``"none"`` have n = 1.
    Kept: y, w. As in torch, w takes no gradient; forward mode holds it constant.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
        C = F.nll_loss(s, y, w, ignore_index=ignore_index, reduction=reduction)
        return C.clone() if C.dim() > 3 else C  # a view there, and what a Function returns as one may not be changed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        s, y, w, ctx.ignore_index, ctx.reduction = inputs
        ctx.shape, ctx.dtype = s.shape, s.dtype
        ctx.save_for_backward(y, w)
        ctx.save_for_forward(y, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        y, w = ctx.saved_tensors
        g = widened(g)
        if w is None and g.dim() == 0 and _all_count(y, g, ctx.ignore_index):
            # Then there is one g for all, and no mask to make.
            g = (g / y.numel() if ctx.reduction == "mean" else g).expand(y.shape)
            return negative_log_likelihood_gradient(ctx.shape, y.long(), g).to(ctx.dtype), None, None, None, None
        counted, y = _counted(y, ctx.ignore_index)
        if ctx.reduction == "mean":
            g = g / _weight_of_samples(counted, y, w)
        g = torch.where(counted, g, 0)
        return negative_log_likelihood_gradient(ctx.shape, y, g, w, counted).to(ctx.dtype), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        y, w = ctx.saved_tensors
        counted, y = _counted(y, ctx.ignore_index)
        k = 0 if ds.dim() == 1 else 1
        dC = torch.where(counted, -widened(ds).gather(k, y.unsqueeze(k)).squeeze(k), 0)
        if w is not None:
            dC = dC * _weight_of(y, w, counted)
        if ctx.reduction != "none":
            dC = dC.sum()
        if ctx.reduction == "mean":
            dC = dC / _weight_of_samples(counted, y, w)
        return dC.to(ctx.dtype)


def negative_log_likelihood_gradient(
    shape: torch.Size, y: Tensor, g: Tensor, w: Tensor | None = None, counted: Tensor | None = None
) -> Tensor:
    """∂C/∂s_k = −w_k [k = y] g for an s of ``shape``, a y in 0 … K−1 and a g of each sample, (samples, *).

    Where ``counted`` is False, g is 0 and the weight of y, which may be infinite, has no part.
    """
    k = 0 if len(shape) == 1 else 1
    if shape[k] == 0:  # where every sample is ignored
        return g.new_zeros(shape)
    g_y = g if w is None else g * _weight_of(y, w, counted)
    zeros = g_y.new_zeros(shape)
    # In place, since the zeros are nobody else's; but what is not mapped cannot take what is.
    scatter = zeros.scatter if torch._C._are_functorch_transforms_active() else zeros.scatter_
    return scatter(k, y.unsqueeze(k), -g_y.unsqueeze(k))


class KullbackLeiblerDivergence(PointwiseLoss):
    """The Kullback-Leibler divergence of a distribution with log-probabilities s from one with probabilities y, or,
    with ``log_target``, log-probabilities y.

    ::

        C_i = y_i (log y_i − s_i)                    or exp(y_i) (y_i − s_i)
        C = Σ C_i / n,  n = the number of entries, with "batchmean" the number of rows of s
        ⇒
        ∂C/∂s_i = −y_i g / n                         or −exp(y_i) g / n
        ∂C/∂y_i = (log y_i + 1 − s_i) g / n          or exp(y_i) (y_i − s_i + 1) g / n

    0 log 0 is 0 in C; in ∂C/∂y, which has log y alone, log 0 is −∞, where torch gives NaN.
    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1.
    Kept: y, and s where ∂C/∂y is needed.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
        if reduction == "batchmean":
            C = reduced_in_blocks(functools.partial(_divergence, log_target=log_target), s, y, reduction="sum")
            return C / s.shape[0] if s.dim() else C
        return reduced_in_blocks(functools.partial(_divergence, log_target=log_target), s, y, reduction=reduction)

    partials = (
        lambda s, y, log_target: divergence_derivative(y, log_target),
        lambda s, y, log_target: divergence_target_derivative(s, y, log_target),
    )

    @staticmethod
    def reads(log_target: bool) -> tuple[tuple[int, ...], ...]:
        return ((1,), (0, 1))


def _divergence(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
    if torch._C._are_functorch_transforms_active():  # ATen's function is mapped entry by entry
        return reduced(y.exp() * (y - s) if log_target else torch.xlogy(y, y) - y * s, reduction)
    # torch.kl_div and not F.kl_div, which warns of "mean" at each call
    return torch.kl_div(s, y, _reduction.get_enum(reduction), log_target=log_target)


def divergence_derivative(y: Tensor, log_target: bool = False) -> Tensor:
    """∂C_i/∂s_i = −y, or −exp(y)."""
    return -(y.exp() if log_target else y)


def divergence_target_derivative(s: Tensor, y: Tensor, log_target: bool = False) -> Tensor:
    """∂C_i/∂y_i = log y + 1 − s, or exp(y) (y − s + 1)."""
    if not log_target:
        return y.log() + 1 - s
    p = y.exp()
    return torch.addcmul(p, p, y - s)


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
        ds = dy = dw = None
        if needs_ds:
            q = _weighted(_smoothed(y, ctx.epsilon, s), w, s)
            p, sum_q_g = torch.softmax(widened(s), k), q.sum(k, keepdim=True) * g
            if p.dtype == q.dtype == g.dtype and records_nothing(p, q, g):
                ds = p.mul_(sum_q_g).addcmul_(q, g, value=-1).to(s_dtype)
            else:
                ds = (p * sum_q_g - q * g).to(s_dtype)
        if not needs_dy and not needs_dw:
            return ds, None, None, None, None, None
        log_p = torch.log_softmax(widened(s), k)
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
