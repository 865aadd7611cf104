"""The cross-entropy of the scores that a linear layer makes, without these scores among what is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.linear import linear_input_gradient
from torch_manualbp.rules.loss.classification import weight_of_samples, weight_of_true_class, with_a_class
from torch_manualbp.rules.rule import RuleWithByproducts, formula, widened

__all__ = [
    "LinearCrossEntropy",
    "LinearCrossEntropyProbabilities",
    "linear_cross_entropy_gradients",
    "linear_cross_entropy_of_samples",
    "losses_of",
    "shares_of_probabilities",
    "shares_of_samples",
]

Needs = tuple[bool, bool, bool]


class LinearCrossEntropy(RuleWithByproducts):
    """The cross-entropy of the scores s = W x + b over K classes with the index y of the true class.

    ::

        ℓ = log Σ_k exp(s_k),  p_k = exp(s_k − ℓ)
        q_k = w_k ((1 − ε) [k = y] + ε / K)
        C_i = Σ_k q_k (ℓ − s_k)            C = Σ C_i / n,  n = Σ w_y
        ⇒
        δ_k = ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n
        ∂C/∂x = Σ_k δ_k W_k
        ∂C/∂W_k = Σ_i δ_k x
        ∂C/∂b_k = Σ_i δ_k

    with class weights w (1 where there are none) and label smoothing ε. A sample with y = ``ignore_index`` has no part
    in any of the sums; its gradient is 0.

    Shapes: x (samples, D), W (K, D), b (K), y and ℓ (samples). ``"sum"`` and ``"none"`` have n = 1. For float16 and
    bfloat16 the scores, C and ℓ are float32. Kept: x, W, b, y, w, ℓ and its last digits, which
    float32 has no room for: the scores are made anew. As in torch, w takes no
    gradient; forward mode holds it constant.
    """

    @staticmethod
    def forward(
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        y: Tensor,
        w: Tensor | None,
        ignore_index: int,
        reduction: str,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        C, lse, rest = linear_cross_entropy_of_samples(W, x, b, y, w, ignore_index, epsilon)
        if reduction != "none":
            C = C.sum()
        if reduction == "mean":
            C = C / weight_of_samples(*with_a_class(y, ignore_index), w).to(C.dtype)
        return C, lse, rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, W, b, y, w, ctx.ignore_index, ctx.reduction, ctx.epsilon = inputs
        ctx.save_for_backward(x, W, b, y, w, *output[1:])
        ctx.save_for_forward(x, W, b, y, w, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dlse: Tensor | None = None, *_: Any) -> tuple[Tensor | None, ...]:
        x, W, b, y, w, lse, rest = ctx.saved_tensors[:7]
        by_p, of_y, of_all, y = _shares(ctx, g, dlse, W, y, w, lse)
        needs = ctx.needs_input_grad[:3]
        dx, dW, db = linear_cross_entropy_gradients(W, x, b, y, w, lse, rest, by_p, of_y, of_all, needs)
        return dx, dW, db, None, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, dx: Tensor | None, dW: Tensor | None, db: Tensor | None, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, W, b, y, w, lse, rest = ctx.saved_tensors
        s, ds = scores(W, x, b), tangent_of_scores(x, W, dx, dW, db)
        n = weight_of_samples(*with_a_class(y, ctx.ignore_index), w) if ctx.reduction == "mean" else 1
        g = torch.ones_like(lse) / n
        by_p, of_y, of_all, y = shares_of_samples(g, None, W, y, w, ctx.ignore_index, ctx.epsilon)
        p = class_probabilities_of(s, lse, rest)
        dC = (_by_scores(p, y, w, by_p, of_y, of_all) * ds).sum(1)
        dC = dC if ctx.reduction == "none" else dC.sum()
        return dC, (p * ds).sum(1), torch.zeros_like(rest)


def _shares(
    ctx: Any, g: Tensor | None, dlse: Tensor | None, W: Tensor, y: Tensor, w: Tensor | None, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What multiplies p, the 1 of the true class, and the weights of all classes in δ; and y with a class for all."""
    if g is None:
        g = torch.zeros_like(lse)
    elif ctx.reduction == "mean":
        g = g / weight_of_samples(*with_a_class(y, ctx.ignore_index), w).to(g.dtype)
    return shares_of_samples(g.expand(lse.shape), dlse, W, y, w, ctx.ignore_index, ctx.epsilon)


def shares_of_samples(
    g: Tensor, dlse: Tensor | None, W: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    counted, y = with_a_class(y, ignore_index)
    g = torch.where(counted, g, 0)
    of_y = g if w is None else g * weight_of_true_class(y, w)
    by_p, of_all = of_y, None
    if epsilon:
        of_all, of_y = g * (epsilon / W.shape[0]), of_y * (1 - epsilon)
        by_p = of_y + of_all * (W.shape[0] if w is None else widened(w).sum())
    return (by_p if dlse is None else by_p + dlse), of_y, of_all, y


class LinearCrossEntropyProbabilities(RuleWithByproducts):
    """The cross-entropy of the scores s = W x + b over K classes with a probability y_k for each class.

    With ℓ, p, w and ε as for class indices::

        q_k = w_k ((1 − ε) y_k + ε / K)
        C_i = Σ_k q_k (ℓ − s_k)            C = Σ C_i / n,  n = the number of samples
        ⇒
        δ_k = ∂C/∂s_k = (p_k Σ_j q_j − q_k) g / n
        ∂C/∂x = Σ_k δ_k W_k
        ∂C/∂W_k = Σ_i δ_k x
        ∂C/∂b_k = Σ_i δ_k
        ∂C/∂y_k = (1 − ε) w_k (ℓ − s_k) g / n
        ∂C/∂w_k = Σ_i ((1 − ε) y_k + ε / K) (ℓ − s_k) g / n

    Shapes: x (samples, D), W (K, D), b (K), y (samples, K), ℓ (samples). ``"sum"`` and ``"none"`` have n = 1. For
    float16 and bfloat16 the scores, C and ℓ are float32. Kept: x, W, b, y, w, ℓ and its last digits.
    """

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, b: Tensor | None, y: Tensor, w: Tensor | None, reduction: str, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if y.shape != (x.shape[0], W.shape[0]):
            raise ValueError(f"y of shape {tuple(y.shape)} has not a probability for each of {x.shape[0]}×{W.shape[0]}")
        C, lse, rest = linear_cross_entropy_of_samples(W, x, b, y, w, -1, epsilon)
        if reduction != "none":
            C = C.sum()
        return C / x.shape[0] if reduction == "mean" else C, lse, rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, W, b, y, w, ctx.reduction, ctx.epsilon = inputs
        ctx.save_for_backward(x, W, b, y, w, *output[1:])
        ctx.save_for_forward(x, W, b, y, w, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dlse: Tensor | None = None, *_: Any) -> tuple[Tensor | None, ...]:
        x, W, b, y, w, lse, rest = ctx.saved_tensors[:7]
        K, epsilon = W.shape[0], ctx.epsilon
        *needs, needs_dy, needs_dw, _, _ = ctx.needs_input_grad
        if g is None:
            g = torch.zeros_like(lse)
        elif ctx.reduction == "mean":
            g = g / x.shape[0]
        g = g.expand(lse.shape)
        by_p, of_y, of_all = shares_of_probabilities(g, dlse, K, y, w, epsilon)
        gradients = linear_cross_entropy_gradients(W, x, b, y, w, lse, rest, by_p, of_y, of_all, tuple(needs))
        dy = dw = None
        if needs_dy or needs_dw:
            by_q = _distance(scores(W, x, b), lse, rest) * g.unsqueeze(1)
            if needs_dy:
                dy = (by_q if w is None else by_q * widened(w)) * (1 - epsilon)
                dy = dy.to(y.dtype)
            if needs_dw and w is not None:
                dw = ((widened(y) * (1 - epsilon) + epsilon / K) * by_q).sum(0).to(w.dtype)
        return *gradients, dy, dw, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        dx: Tensor | None,
        dW: Tensor | None,
        db: Tensor | None,
        dy: Tensor | None,
        dw: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, W, b, y, w, lse, rest = ctx.saved_tensors
        K, epsilon = W.shape[0], ctx.epsilon
        s, ds = scores(W, x, b), tangent_of_scores(x, W, dx, dW, db)
        p, distance = class_probabilities_of(s, lse, rest), _distance(s, lse, rest)
        smoothed = widened(y) * (1 - epsilon) + epsilon / K
        q = smoothed if w is None else smoothed * widened(w)
        dlse = (p * ds).sum(1)
        dC = q.sum(1) * dlse - (q * ds).sum(1)
        if dy is not None:
            dq = widened(dy) * (1 - epsilon)
            dC = dC + ((dq if w is None else dq * widened(w)) * distance).sum(1)
        if dw is not None:
            dC = dC + (smoothed * widened(dw) * distance).sum(1)
        dC = dC if ctx.reduction == "none" else dC.sum()
        return dC / x.shape[0] if ctx.reduction == "mean" else dC, dlse, torch.zeros_like(rest)


def shares_of_probabilities(
    g: Tensor, dlse: Tensor | None, K: int, y: Tensor, w: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What multiplies p, the y of each class, and the weights of all classes in δ."""
    by_p = g * _sum_of_target(y, w, K, epsilon)
    return (by_p if dlse is None else by_p + dlse), g * (1 - epsilon), g * (epsilon / K) if epsilon else None


def _sum_of_target(y: Tensor, w: Tensor | None, K: int, epsilon: float) -> Tensor:
    """Σ_k q_k of each sample."""
    if w is None:
        return widened(y).sum(1) * (1 - epsilon) + epsilon
    return (widened(y) @ widened(w)) * (1 - epsilon) + epsilon / K * widened(w).sum()


def scores(W: Tensor, x: Tensor, b: Tensor | None) -> Tensor:
    """s = W x + b: (K, D), (samples, D), (K) → (samples, K)."""
    return F.linear(widened(x), widened(W), None if b is None else widened(b))


def class_probabilities_of(s: Tensor, lse: Tensor, rest: Tensor) -> Tensor:
    """p = exp(s − ℓ), with what ℓ has lost."""
    return torch.exp(-_distance(s, lse, rest))


def _distance(s: Tensor, lse: Tensor, rest: Tensor) -> Tensor:
    """ℓ − s = −log p."""
    return (lse.unsqueeze(1) - s) + rest.unsqueeze(1)


def tangent_of_scores(x: Tensor, W: Tensor, dx: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor:
    """ds = W dx + dW x + db."""
    x, W = widened(x), widened(W)
    ds = x.new_zeros(x.shape[0], W.shape[0])
    for a, B in ((dx, W), (x, dW)):
        if a is not None and B is not None:
            ds = ds + F.linear(widened(a), widened(B))
    return ds if db is None else ds + widened(db)


@formula(by="whole")
def linear_cross_entropy_of_samples(
    W: Tensor, x: Tensor, b: Tensor | None, y: Tensor, w: Tensor | None, ignore_index: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """C_i, ℓ and what ℓ lost when it was rounded, all (samples), with y an index or a probability of each class."""
    s = scores(W, x, b)
    largest = s.detach().amax(1, keepdim=True)
    log_of_sum = torch.exp(s - largest).sum(1, keepdim=True).log()
    log_p, lse = (s - largest) - log_of_sum, largest + log_of_sum
    rest = ((largest - lse) + log_of_sum).squeeze(1)
    return losses_of(log_p, y, w, ignore_index, epsilon), lse.squeeze(1), rest


def losses_of(log_p: Tensor, y: Tensor, w: Tensor | None, ignore_index: int, epsilon: float) -> Tensor:
    """C_i of log p = log softmax(s)."""
    w = None if w is None else widened(w)
    if y.is_floating_point():
        counted = None
        C = -((widened(y) if w is None else widened(y) * w) * log_p).sum(1)
    else:
        counted = y != ignore_index
        C = F.nll_loss(log_p, y, w, ignore_index=ignore_index, reduction="none")
    if epsilon:
        uniform = -(log_p if w is None else log_p * w).sum(1)
        uniform = uniform if counted is None else torch.where(counted, uniform, 0)
        C = (1 - epsilon) * C + epsilon * (uniform / log_p.shape[1])
    return C


@formula(by="whole")
def linear_cross_entropy_gradients(
    W: Tensor,
    x: Tensor,
    b: Tensor | None,
    y: Tensor,
    w: Tensor | None,
    lse: Tensor,
    rest: Tensor,
    by_p: Tensor,
    of_y: Tensor,
    of_all: Tensor | None,
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """∂C/∂x, ∂C/∂W and ∂C/∂b, those that are needed, of δ_k = p_k ``by_p`` − [k = y] ``of_y`` − w_k ``of_all``, or
    with probabilities p_k ``by_p`` − w_k (y_k ``of_y`` + ``of_all``)."""
    needs_dx, needs_dW, needs_db = needs
    delta = _by_scores(class_probabilities_of(scores(W, x, b), lse, rest), y, w, by_p, of_y, of_all)
    dx = linear_input_gradient(delta, widened(W), x).to(x.dtype) if needs_dx else None
    dW = (delta.t() @ widened(x)).to(W.dtype) if needs_dW else None
    db = delta.sum(0).to(b.dtype) if needs_db and b is not None else None
    return dx, dW, db


def _by_scores(p: Tensor, y: Tensor, w: Tensor | None, by_p: Tensor, of_y: Tensor, of_all: Tensor | None) -> Tensor:
    """δ."""
    delta = p * by_p.unsqueeze(1)
    w = None if w is None else widened(w)
    if not y.is_floating_point():
        delta = delta.scatter_add(1, y.unsqueeze(1), -of_y.unsqueeze(1).to(delta.dtype))
        q = None
    else:
        q = widened(y) * of_y.unsqueeze(1)
    if of_all is not None:
        q = of_all.unsqueeze(1) if q is None else q + of_all.unsqueeze(1)
    if q is None:
        return delta
    return delta - (q if w is None else q * w)
