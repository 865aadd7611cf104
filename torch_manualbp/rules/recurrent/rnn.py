"""The recurrent layer of Elman."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from torch_manualbp.rules.recurrent.times import Sizes, before, final, in_order, resized
from torch_manualbp.rules.rule import RuleWithByproducts, in_dtype, widened

__all__ = ["RNN", "RNNReLU"]


class RNN(RuleWithByproducts):
    """A recurrent layer, in one direction of time.

    ::

        h_t = tanh(W x_t + U h_t−1 + b)
        ⇒
        δ_t = (that from above + δ_t+1 U) ⊙ (1 − h_t²)
        ∂C/∂x_t = δ_t W
        ∂C/∂W = Σ_t δ_tᵀ x_t
        ∂C/∂U = Σ_t δ_tᵀ h_t−1
        ∂C/∂b = Σ_t δ_t

    Shapes: x (rows, in), h₀ (samples, hidden), W (hidden, in), U (hidden, hidden), b (hidden), with rows as
    :mod:`~torch_manualbp.rules.recurrent.times` has them. Returned are h (rows, hidden), and the last of each sample.
    Kept: of x, h₀, W and U what the needed gradients use, and a copy of h, which is a byproduct.
    """

    outputs = 2

    @staticmethod
    def forward(
        x: Tensor, h0: Tensor, W: Tensor, U: Tensor, b: Tensor | None, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, ...]:
        return _forward(torch.tanh, x, h0, W, U, b, sizes, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h0, W, U, _, ctx.sizes, ctx.reverse = inputs
        h = output[2]
        needs_dx, needs_dh0, needs_dW, needs_dU, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs_dW else None,
            h0 if needs_dU else None,
            W if needs_dx else None,
            U if needs_dh0 or len(ctx.sizes) > 1 else None,
            h,
        )
        ctx.save_for_forward(x, h0, W, U, h)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, dh: Tensor | None, dh_n: Tensor | None = None, dh_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        return _backward(ctx, lambda h: (1 - h) * (1 + h), dh, dh_n, dh_kept)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        return _jvp(ctx, lambda h: (1 - h) * (1 + h), *tangents)


class RNNReLU(RNN):
    """A recurrent layer of rectified units, in one direction of time.

    ::

        h_t = max(W x_t + U h_t−1 + b, 0)
        ⇒
        δ_t = that from above + δ_t+1 U  where h_t > 0,  else 0
        ∂C/∂x_t = δ_t W
        ∂C/∂W = Σ_t δ_tᵀ x_t
        ∂C/∂U = Σ_t δ_tᵀ h_t−1
        ∂C/∂b = Σ_t δ_t

    Shapes and what is kept are those of :class:`RNN`.
    """

    @staticmethod
    def forward(
        x: Tensor, h0: Tensor, W: Tensor, U: Tensor, b: Tensor | None, sizes: Sizes, reverse: bool
    ) -> tuple[Tensor, ...]:
        return _forward(torch.relu, x, h0, W, U, b, sizes, reverse)

    @staticmethod
    def backward(
        ctx: Any, dh: Tensor | None, dh_n: Tensor | None = None, dh_kept: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        return _backward(ctx, lambda h: ~(h <= 0), dh, dh_n, dh_kept)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        return _jvp(ctx, lambda h: ~(h <= 0), *tangents)


def _forward(
    f: Any, x: Tensor, h0: Tensor, W: Tensor, U: Tensor, b: Tensor | None, sizes: Sizes, reverse: bool
) -> tuple[Tensor, ...]:
    dtype = x.dtype
    x, h0, W, U = map(widened, (x, h0, W, U))
    z = F.linear(x, W, None if b is None else widened(b)).split(sizes)
    h, hs = h0, [h0] * len(sizes)
    for t in in_order(sizes, reverse):
        h = resized(h, sizes[t], h0)
        h = hs[t] = f(torch.addmm(z[t], h, U.t()))
    return tuple([made.to(dtype) for made in (torch.cat(hs), final(hs, sizes, reverse), torch.cat(hs))])


def _backward(
    ctx: Any,
    slope: Callable[[Tensor], Tensor],
    dh: Tensor | None,
    dh_n: Tensor | None,
    dh_kept: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """With the derivative of the activation by what it returned, as numbers or as the places where it is 1."""
    *_, kept_h = saved = ctx.saved_tensors
    x, h0, W, U, h = map(_wide, saved)
    sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_h.dtype
    needs_dx, needs_dh0, needs_dW, needs_dU, needs_db, _, _ = ctx.needs_input_grad
    U_conj = None if U is None else U.conj()
    dh = dh_kept if dh is None else dh if dh_kept is None else dh + dh_kept
    of_time, above = slope(h.conj()).split(sizes), None if dh is None else _wide(dh).split(sizes)
    dh_t = dh_n = h.new_zeros(sizes[0], h.shape[1]) if dh_n is None else _wide(dh_n)
    deltas, dh_before = [dh_t] * len(sizes), [dh_t] * len(sizes)
    for t in in_order(sizes, not reverse):
        dh_t = resized(dh_t, sizes[t], dh_n)
        dh_t = dh_t if above is None else dh_t + above[t]
        deltas[t] = times_slope(dh_t, of_time[t])
        if U_conj is not None:
            dh_t = dh_before[t] = deltas[t] @ U_conj
    delta = torch.cat(deltas)
    gradients = (
        linear_input_gradient(delta, W) if needs_dx else None,
        final(dh_before, sizes, not reverse) if needs_dh0 else None,
        linear_weight_gradient(delta, x) if needs_dW else None,
        linear_weight_gradient(delta, before(h0, h, sizes, reverse)) if needs_dU else None,
        linear_bias_gradient(delta) if needs_db else None,
    )
    return *[None if g is None else in_dtype(dtype, g) for g in gradients], None, None


def _jvp(
    ctx: Any,
    slope: Callable[[Tensor], Tensor],
    dx: Tensor | None,
    dh0: Tensor | None,
    dW: Tensor | None,
    dU: Tensor | None,
    db: Tensor | None,
    *_: None,
) -> tuple[Tensor, ...]:
    *_, kept_h = saved = ctx.saved_tensors
    x, h0, W, U, h = map(_wide, saved)
    sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_h.dtype
    dz = torch.zeros_like(h)
    if dx is not None:
        dz = dz + F.linear(_wide(dx), W)
    if dW is not None:
        dz = dz + F.linear(x, _wide(dW))
    if dU is not None:
        dz = dz + F.linear(before(h0, h, sizes, reverse), _wide(dU))
    if db is not None:
        dz = dz + _wide(db)
    of_time, above = slope(h).split(sizes), dz.split(sizes)
    dh_t = dh0 = torch.zeros_like(h0) if dh0 is None else _wide(dh0)
    dhs = [dh_t] * len(sizes)
    for t in in_order(sizes, reverse):
        dh_t = resized(dh_t, sizes[t], dh0)
        dh_t = dhs[t] = times_slope(above[t] + F.linear(dh_t, U), of_time[t])
    return tuple([made.to(dtype) for made in (torch.cat(dhs), final(dhs, sizes, reverse), torch.cat(dhs))])


def times_slope(d: Tensor, slope: Tensor) -> Tensor:
    return torch.where(slope, d, 0) if slope.dtype == torch.bool else d * slope


def _wide(t: Tensor | None) -> Any:
    return None if t is None else widened(t)
