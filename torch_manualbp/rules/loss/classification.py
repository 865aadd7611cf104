"""The losses of a class y that the scores s should tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import number_of_reduction
from torch_manualbp.rules.activation.softmax import probabilities
from torch_manualbp.rules.loss.entrywise import EntrywiseLoss
from torch_manualbp.rules.loss.reduction import reduced
from torch_manualbp.rules.rule import Rule, RuleWithByproducts, formula, widened

__all__ = [
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "KullbackLeiblerDivergence",
    "NegativeLogLikelihood",
    "class_probabilities",
    "cross_entropy_gradient",
    "cross_entropy_probabilities_gradient",
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
    def forward(
        s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(s, _class_dim(s))
        return _cross_entropy(log_p, s, y, w, ignore_index, reduction, epsilon), _kept(s, log_p)

    @staticmethod
    def alone(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        log_p = torch.log_softmax(s, _class_dim(s))
        return _cross_entropy(log_p, s, y, w, ignore_index, reduction, epsilon)

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
        by_kept = None if dkept is None else _gradient_by_kept(dkept, kept, ctx.keeps_log_p)
        if g is None:
            return by_kept, None, None, None, None, None
        counted, y = with_a_class(y, ctx.ignore_index)
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / weight_of_samples(counted, y, w)
        g = torch.where(counted, g, 0)
        weights = _weights(kept, y, w, counted)
        ds = cross_entropy_gradient(kept, y, g, *weights, ctx.epsilon, ctx.keeps_log_p).to(ctx.dtype)
        return ds if by_kept is None else ds + by_kept, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        kept, y, w = ctx.saved_tensors
        counted, y = with_a_class(y, ctx.ignore_index)
        weights = _weights(kept, y, w, counted)
        ones = counted.to(widened(kept).dtype)
        gradient = cross_entropy_gradient(kept, y, ones, *weights, ctx.epsilon, ctx.keeps_log_p)
        dC = torch.linalg.vecdot(gradient, widened(ds), dim=_class_dim(ds))
        if ctx.reduction != "none":
            dC = dC.sum()
        dC = dC / weight_of_samples(counted, y, w) if ctx.reduction == "mean" else dC
        return dC.to(ctx.dtype), _tangent_of_kept(ds, kept, ctx.keeps_log_p)


def _cross_entropy(
    log_p: Tensor, s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float
) -> Tensor:
    """C of log p = log softmax(s)."""
    if epsilon > 1:
        return F.cross_entropy(s, y, w, label_smoothing=epsilon)  # says what is wrong
    C = F.nll_loss(log_p, y, w, ignore_index=ignore_index, reduction=reduction)
    if epsilon > 0:
        C = (1 - epsilon) * C + epsilon * _mean_over_classes(log_p, y, w, ignore_index, reduction)
    return C


def _mean_over_classes(log_p: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """C of the uniform distribution over the classes, which label smoothing mixes in."""
    k = _class_dim(log_p)
    C = -(log_p if w is None else log_p * w.reshape(_class_shape(log_p))).sum(k) / max(log_p.shape[k], 1)
    counted, y = with_a_class(y, ignore_index)
    C = torch.where(counted, C, 0)
    if reduction == "mean":
        return C.sum() / weight_of_samples(counted, y, w).to(C.dtype)
    return C.sum() if reduction == "sum" else C


def _kept(s: Tensor, log_p: Tensor) -> Tensor:
    """What the gradients make p of: log p, or in low precision a copy of s.

    Neither is an argument, which torch allows to change before backward.
    """
    return s.clone() if _is_low(s) else log_p


@formula(by="whole")
def class_probabilities(kept: Tensor, is_log_p: bool) -> Tensor:
    """p of log p, or of s."""
    k, kept = _class_dim(kept), widened(kept)
    return probabilities(kept, k) if is_log_p else torch.softmax(kept, k)


def _gradient_by_kept(dkept: Tensor, kept: Tensor, is_log_p: bool) -> Tensor:
    """∂C/∂s from ∂C/∂(log p) = d, d − p Σ_k d_k; or from that by a copy of s."""
    return dkept - kept.exp() * dkept.sum(_class_dim(kept), keepdim=True) if is_log_p else dkept


def _tangent_of_kept(ds: Tensor, kept: Tensor, is_log_p: bool) -> Tensor:
    """The tangent of log p = s − log Σ exp s, ds − Σ_k p_k ds_k; or of a copy of s."""
    return ds - (kept.exp() * ds).sum(_class_dim(kept), keepdim=True) if is_log_p else ds.clone()


def _is_low(t: Tensor) -> bool:
    return t.dtype in (torch.float16, torch.bfloat16)


@formula(by="rows")
def cross_entropy_gradient(
    kept: Tensor,
    y: Tensor,
    g: Tensor,
    w_y: Tensor | None = None,
    w: Tensor | None = None,
    epsilon: float = 0.0,
    is_log_p: bool = False,
) -> Tensor:
    """∂C/∂s_k = (p_k Σ_j q_j − q_k) g, (samples, K, *), from s or log p.

    y in 0 … K−1, g and w_y are (samples, *); w, of all classes, is (1, K, 1, …).
    """
    k = _class_dim(kept)
    K, p = kept.shape[k], class_probabilities(kept, is_log_p)
    if K == 0:  # where every sample is ignored
        return p
    y, g = y.unsqueeze(k), g.unsqueeze(k)
    q_y = g if w_y is None else g * w_y.unsqueeze(k)  # that of the true class, times g as all that follow
    if epsilon == 0:
        return (p * q_y).scatter_add(k, y, -q_y.to(p.dtype))
    smooth = epsilon / K * g
    sum_q = (1 - epsilon) * q_y + smooth * (K if w is None else w.sum())
    q_y = (1 - epsilon) * q_y + (smooth if w_y is None else smooth * w_y.unsqueeze(k))
    ds = p * sum_q - (smooth if w is None else smooth * w)
    return ds.scatter(k, y, (p.gather(k, y) * sum_q - q_y).to(ds.dtype))


def _weights(s: Tensor, y: Tensor, w: Tensor | None, counted: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """w_y of each sample that counts, else 0, and the w of all classes, which broadcasts against s."""
    return (None, None) if w is None else (weight_of_true_class(y, w, counted), widened(w).reshape(_class_shape(s)))


def with_a_class(y: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which samples count, and y with a class for the others too."""
    counted = y != ignore_index
    return counted, (y * counted).long()


def weight_of_true_class(y: Tensor, w: Tensor, counted: Tensor | None = None) -> Tensor:
    """w_y of each sample that counts, else 0. As an index_select, since ``w[y]`` makes torch.compile read a y of ()."""
    w_y = widened(w).index_select(0, y.reshape(y.numel())).reshape(y.shape)
    return w_y if counted is None else torch.where(counted, w_y, 0)


def weight_of_samples(counted: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    """n = Σ w_y over the samples that count."""
    return counted.sum() if w is None else weight_of_true_class(y, w, counted).sum()


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
        counted, y = with_a_class(y, ctx.ignore_index)
        g = widened(g)
        if ctx.reduction == "mean":
            g = g / weight_of_samples(counted, y, w)
        h = torch.where(counted, -g, 0)
        h = h if w is None else h * weight_of_true_class(y, w, counted)
        k = 0 if len(ctx.shape) == 1 else 1
        ds = negative_log_likelihood_gradient(h.unsqueeze(k).expand(ctx.shape), y.unsqueeze(k), k)
        return ds.to(ctx.dtype), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor, *_: Any) -> Tensor:
        y, w = ctx.saved_tensors
        counted, y = with_a_class(y, ctx.ignore_index)
        k = 0 if ds.dim() == 1 else 1
        dC = torch.where(counted, -widened(ds).gather(k, y.unsqueeze(k)).squeeze(k), 0)
        if w is not None:
            dC = dC * weight_of_true_class(y, w, counted)
        if ctx.reduction != "none":
            dC = dC.sum()
        if ctx.reduction == "mean":
            dC = dC / weight_of_samples(counted, y, w)
        return dC.to(ctx.dtype)


@formula(by="whole")
def negative_log_likelihood_gradient(h: Tensor, y: Tensor, k: int) -> Tensor:
    """∂C/∂s_k = [k = y] h with h = −w_y g, (samples, K, *) the same for all classes, and y, (samples, 1, *)."""
    zeros = h.new_zeros(h.shape)
    return zeros.scatter(k, y, h.narrow(k, 0, 1)) if h.shape[k] else zeros  # of no class where every sample is ignored


class KullbackLeiblerDivergence(EntrywiseLoss, RuleWithByproducts):
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
    def alone(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
        C = divergence(s, y, log_target, "sum" if reduction == "batchmean" else reduction)
        return C / s.shape[0] if reduction == "batchmean" and s.dim() else C

    @staticmethod
    def composite(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
        C = y.exp() * (y - s) if log_target else torch.xlogy(y, y) - y * s  # ATen's is mapped entry by entry
        if reduction != "batchmean":
            return reduced(C, reduction)
        return C.sum() / s.shape[0] if s.dim() else C.sum()

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


@formula(by="sums")
def divergence(s: Tensor, y: Tensor, log_target: bool, reduction: str) -> Tensor:
    """C of C_i = y (log y − s), or exp(y) (y − s)."""
    # torch.kl_div and not F.kl_div, which warns of "mean" at each call
    return torch.kl_div(s, y, number_of_reduction(reduction), log_target=log_target)


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
        if not fits or s.numel() == 0:  # torch says what does not fit
            return CrossEntropyProbabilities.alone(s, y, w, ignore_index, reduction, epsilon)
        log_p = torch.log_softmax(s, k)
        smoothed = y * (1 - epsilon) + epsilon / s.shape[k] if epsilon else y
        C = log_p * smoothed if w is None else log_p * smoothed * w.reshape(_class_shape(s))
        C = -C.sum(k) if reduction == "none" else -C.sum()
        if reduction == "mean":
            C = C / _number_of_samples(s)
        kept = _kept(s, log_p)
        return (C, kept, _kept(y, smoothed)) if epsilon else (C, kept)

    @staticmethod
    def alone(s: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, reduction: str, epsilon: float) -> Tensor:
        epsilon = max(epsilon, 0.0)
        return F.cross_entropy(s, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=epsilon)

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
        if needs_ds and ds_kept is not None:
            ds = _gradient_by_kept(ds_kept, s, ctx.keeps_log_p)
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
            by_loss = cross_entropy_probabilities_gradient(s, q, g, ctx.keeps_log_p).to(s_dtype)
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
        by_s = torch.zeros_like(s) if ds is None else _tangent_of_kept(ds, s, ctx.keeps_log_p)
        by_y = torch.zeros_like(y) if dy is None else dy * (1 - ctx.epsilon if ctx.keeps_smoothed else 1)
        return (dC, by_s, by_y)[: 1 + ctx.byproducts] if ctx.byproducts else dC


@formula(by="rows")
def cross_entropy_probabilities_gradient(kept: Tensor, q: Tensor, g: Tensor, is_log_p: bool = False) -> Tensor:
    """∂C/∂s_k = (p_k Σ_j q_j − q_k) g, (samples, K, *), from s or log p; g is one for all, or one of each sample,
    (samples, 1, *)."""
    p = class_probabilities(kept, is_log_p)
    return p * (q.sum(_class_dim(kept), keepdim=True) * g) - q * g


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
