"""The losses of a class y that the scores s should tell."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.nn import functional as F

from torch_manualbp.rules.activation.softmax import probabilities as exp_of_log_softmax
from torch_manualbp.rules.evaluate import is_written_down, keeps_arguments, records_nothing
from torch_manualbp.rules.loss.reduction import PointwiseLoss, reduced, reduced_in_blocks, with_copies
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, widened

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


class CrossEntropy(RuleWithByproducts):
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
    Kept: log p, y, w; of float16 and bfloat16, where log p has lost the digits of p, a copy of s in its place. As in
    torch, w takes no gradient; forward mode holds it constant.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Any:
        if epsilon > 1 or (is_written_down() and (epsilon > 0 or not s.numel())):
            return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)
        log_p = torch.log_softmax(s, _class_dim(s))
        C = F.nll_loss(log_p, y, w, ignore_index=ignore_index, reduction=reduction)
        if epsilon > 0:
            C = (1 - epsilon) * C + _mean_over_classes(log_p, y, w, ignore_index, reduction).mul_(epsilon)
        return C if keeps_arguments(s, y) else (C, _kept(s, log_p))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        s, y, w, ctx.ignore_index, ctx.reduction, epsilon = inputs
        ctx.epsilon = epsilon if epsilon > 0 else 0.0  # as torch, which takes what is below for 0
        kept = output[1] if isinstance(output, tuple) else s
        ctx.keeps_log_p, ctx.dtype = kept is not s and not _is_low(s), s.dtype
        ctx.save_for_backward(kept, y, w)
        ctx.save_for_forward(kept, y, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, dkept: Tensor | None = None
    ) -> tuple[Tensor | None, None, None, None, None, None]:
        kept, y, w = ctx.saved_tensors
        p = _probabilities(kept, ctx.keeps_log_p)
        by_kept = None if dkept is None else _gradient_by_kept(dkept, p, ctx.keeps_log_p)
        if g is None:
            return by_kept, None, None, None, None, None
        counted, y = _counted(y, ctx.ignore_index)
        g = widened(g)
        if w is None and is_written_down():
            g = counted * (g / counted.sum().clamp_(min=1) if ctx.reduction == "mean" else g)  # of choices by mask
        else:
            if ctx.reduction == "mean":
                g = g / _weight_of_samples(counted, y, w)
            g = torch.where(counted, g, 0)
        ds = cross_entropy_gradient(p, y, g, w, ctx.epsilon, counted).to(ctx.dtype)
        return ds if by_kept is None else ds + by_kept, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        kept, y, w = ctx.saved_tensors
        p = _probabilities(kept, ctx.keeps_log_p)
        counted, y = _counted(y, ctx.ignore_index)
        gradient = cross_entropy_gradient(p.clone(), y, counted.to(p.dtype), w, ctx.epsilon, counted)
        dC = torch.linalg.vecdot(gradient, widened(ds), dim=_class_dim(ds))
        if ctx.reduction != "none":
            dC = dC.sum()
        dC = dC / _weight_of_samples(counted, y, w) if ctx.reduction == "mean" else dC
        return dC.to(ctx.dtype), _tangent_of_kept(ds, p, ctx.keeps_log_p)


def _mean_over_classes(log_p: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """C of the uniform distribution over the classes, which label smoothing mixes in."""
    k = _class_dim(log_p)
    C = -(log_p if w is None else log_p * w.reshape(_class_shape(log_p))).sum(k) / max(log_p.shape[k], 1)
    counted, y = _counted(y, ignore_index)
    C = torch.where(counted, C, 0)
    if reduction == "mean":
        return C.sum() / _weight_of_samples(counted, y, w).to(C.dtype)
    return C.sum() if reduction == "sum" else C


def _kept(s: Tensor, log_p: Tensor) -> Tensor:
    """What the gradients make p of: log p, or in low precision a copy of s.

    Neither is an argument, which torch allows to change before backward.
    """
    return s.clone() if _is_low(s) else log_p


def _probabilities(kept: Tensor, is_log_p: bool) -> Tensor:
    """p, which is fresh."""
    k = _class_dim(kept)
    if is_log_p:
        return exp_of_log_softmax(kept, k)
    if is_written_down() and kept.numel() < 1 << 16:  # with the log p of the forward; of many its exp takes longer
        return torch.log_softmax(widened(kept), k).exp()
    return torch.softmax(widened(kept), k)


def _gradient_by_kept(dkept: Tensor, p: Tensor, is_log_p: bool) -> Tensor:
    """∂C/∂s from ∂C/∂(log p) = d, d − p Σ_k d_k; or from that by a copy of s."""
    return dkept - p * dkept.sum(_class_dim(p), keepdim=True) if is_log_p else dkept


def _tangent_of_kept(ds: Tensor, p: Tensor, is_log_p: bool) -> Tensor:
    """The tangent of log p = s − log Σ exp s, ds − Σ_k p_k ds_k; or of a copy of s."""
    return ds - (p * ds).sum(_class_dim(p), keepdim=True) if is_log_p else ds.clone()


def _is_low(t: Tensor) -> bool:
    return t.dtype in (torch.float16, torch.bfloat16)


def cross_entropy_gradient(
    p: Tensor,
    y: Tensor,
    g: Tensor,
    w: Tensor | None = None,
    epsilon: float = 0.0,
    counted: Tensor | None = None,
) -> Tensor:
    """∂C/∂s_k = (p_k Σ_j q_j − q_k) g: (samples, K, *), for a y in 0 … K−1 and a g of each sample, (samples, *).

    Where ``counted`` is False, g is 0 and the weight of y, which may be infinite, has no part. It may be written over
    p, which nobody else may hold.
    """
    k = _class_dim(p)
    if p.shape[k] == 0:  # where every sample is ignored
        return torch.zeros_like(p)
    w_y = None if w is None else _weight_of(y, w, counted).unsqueeze(k)
    y, g = y.unsqueeze(k), g.unsqueeze(k)
    q: Tensor | None = None  # times g, of the classes that are not y
    sum_q = q_y = g if w_y is None else g * w_y
    if epsilon != 0:
        smooth = epsilon / p.shape[k] * g
        q = _weighted(smooth, w, p)
        sum_q = (1 - epsilon) * q_y + smooth * (p.shape[k] if w is None else widened(w).sum())
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
        return (ds.scatter_add if is_mapped else ds.scatter_add_)(k, y, -q_y.to(ds.dtype))
    return (ds.scatter if is_mapped else ds.scatter_)(k, y, (p_y * sum_q - q_y).to(ds.dtype))


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


class KullbackLeiblerDivergence(PointwiseLoss, RuleWithByproducts):
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
    Kept: y, and s where ∂C/∂y is needed; with ``log_target`` copies of them, where torch has exp(y) and y − s.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Any:
        divergence = functools.partial(_divergence, log_target=log_target)
        C = reduced_in_blocks(divergence, s, y, reduction="sum" if reduction == "batchmean" else reduction)
        if reduction == "batchmean" and s.dim():
            C = C / s.shape[0]
        rule = KullbackLeiblerDivergence
        return with_copies(C, (s, y), rule.reads(log_target), rule.copied(log_target))

    partials = (
        lambda s, y, log_target: divergence_derivative(y, log_target),
        lambda s, y, log_target: divergence_target_derivative(s, y, log_target),
    )

    @staticmethod
    def reads(log_target: bool) -> tuple[tuple[int, ...], ...]:
        return ((1,), (0, 1))

    @staticmethod
    def copied(log_target: bool) -> tuple[int, ...]:
        return (0, 1) if log_target else ()


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


class CrossEntropyProbabilities(RuleWithByproducts):
    """The cross-entropy of scores s over K classes with a probability y_k for each class.

    With w, ε and p as for class indices::

        q_k = w_k ((1 − ε) y_k + ε / K)
        C_i = −Σ_k q_k log p_k             C = Σ C_i / n,  n = the number of samples
        ⇒
        ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n
        ∂C/∂y_k = −(1 − ε) w_k log p_k g / n
        ∂C/∂w_k = −Σ_samples ((1 − ε) y_k + ε / K) log p_k g / n

    Shapes: s and y (K), or (samples, K, *). ``"sum"`` and ``"none"`` have n = 1. Kept: log p, and of w and the smoothed
    y what the needed gradients use; of float16 and bfloat16 copies of s and y in their place.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Any:
        k, epsilon = _class_dim(s), max(epsilon, 0.0)
        fits = y.is_floating_point() and s.is_floating_point() and (w is None or w.shape == s.shape[k : k + 1])
        fits &= ignore_index < 0 and epsilon <= 1 and reduction in ("none", "sum", "mean")
        if keeps_arguments(s, y) or not (fits and s.numel()):  # torch says what does not fit
            return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)
        log_p = torch.log_softmax(s, k)
        smoothed = y * (1 - epsilon) + epsilon / s.shape[k] if epsilon else y
        C = log_p * smoothed if w is None else log_p * smoothed * w.reshape(_class_shape(s))
        C = -C.sum(k) if reduction == "none" else -C.sum()
        if reduction == "mean":
            C = C / _number_of_samples(s)
        kept = _kept(s, log_p)
        return (C, kept, _kept(y, smoothed)) if epsilon else (C, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        s, y, w, _, ctx.reduction, epsilon = inputs
        ctx.epsilon = epsilon if epsilon > 0 else 0.0
        ctx.dtypes = s.dtype, y.dtype, s.dtype if w is None else w.dtype
        byproducts = output[1:] if isinstance(output, tuple) else ()
        ctx.byproducts = len(byproducts)
        ctx.keeps_log_p = bool(byproducts) and not _is_low(s)
        ctx.keeps_smoothed = len(byproducts) == 2 and not _is_low(y)
        kept_s = byproducts[0] if byproducts else s
        kept_y = byproducts[1] if len(byproducts) == 2 else y
        needs_ds, needs_dy, needs_dw, *_ = ctx.needs_input_grad
        ctx.save_for_backward(kept_s, kept_y if needs_ds or needs_dw else None, w if needs_ds or needs_dy else None)
        ctx.save_for_forward(kept_s, kept_y, w)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, ds_kept: Tensor | None = None, dy_kept: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        s, y, w = ctx.saved_tensors
        s_dtype, y_dtype, w_dtype = ctx.dtypes
        k = _class_dim(s)
        needs_ds, needs_dy, needs_dw, *_ = ctx.needs_input_grad
        ds = dy = dw = None
        if needs_ds:
            p = _probabilities(s, ctx.keeps_log_p)
        if needs_ds and ds_kept is not None:
            ds = _gradient_by_kept(ds_kept, p, ctx.keeps_log_p)
        if needs_dy and dy_kept is not None:
            dy = dy_kept * (1 - ctx.epsilon) if ctx.keeps_smoothed else dy_kept
        if g is None:
            return ds, dy, None, None, None, None
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / _number_of_samples(s)
        elif ctx.reduction == "none":
            g = g.unsqueeze(k)
        if needs_ds:
            q = _weighted(y if ctx.keeps_smoothed else _smoothed(y, ctx.epsilon, s), w, s)
            sum_q_g = q.sum(k, keepdim=True) * g
            if p.dtype == q.dtype == g.dtype and records_nothing(p, q, g):
                by_loss = p.mul_(sum_q_g).addcmul_(q, g, value=-1).to(s_dtype)
            else:
                by_loss = (p * sum_q_g - q * g).to(s_dtype)
            ds = by_loss if ds is None else ds + by_loss
        if needs_dy or needs_dw:
            log_p = s if ctx.keeps_log_p else torch.log_softmax(widened(s), k)
        if needs_dy:
            by_loss = (_weighted(log_p, w, s) * (g * -(1 - ctx.epsilon))).to(y_dtype)
            dy = by_loss if dy is None else dy + by_loss
        if needs_dw:
            dw = -(y if ctx.keeps_smoothed else _smoothed(y, ctx.epsilon, s)) * log_p * g
            dw = dw.sum_to_size(_class_shape(s)).reshape(s.shape[k]).to(w_dtype)
        return ds, dy, dw, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, dw: Tensor | None, *_: None) -> Any:
        s, y, w = ctx.saved_tensors
        k = _class_dim(s)
        log_p = s if ctx.keeps_log_p else torch.log_softmax(widened(s), k)
        p = log_p.exp()
        smoothed = y if ctx.keeps_smoothed else _smoothed(y, ctx.epsilon, s)
        q = _weighted(smoothed, w, s)
        dC = torch.zeros_like(log_p)
        if ds is not None:
            dC = dC + (p * q.sum(k, keepdim=True) - q) * ds
        if dy is not None:
            dC = dC - _weighted(log_p, w, s) * (1 - ctx.epsilon) * dy
        if dw is not None:
            dC = dC - _weighted(smoothed, dw, s) * log_p
        dC = dC.sum(k) if ctx.reduction == "none" else dC.sum()
        if ctx.reduction == "mean":
            dC = dC / _number_of_samples(s)
        dC = dC.to(torch.result_type(s, y))
        by_s = torch.zeros_like(s) if ds is None else _tangent_of_kept(ds, p, ctx.keeps_log_p)
        by_y = torch.zeros_like(y) if dy is None else dy * (1 - ctx.epsilon if ctx.keeps_smoothed else 1)
        return (dC, by_s, by_y)[: 1 + ctx.byproducts] if ctx.byproducts else dC


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
