"""Gated recurrent units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from torch_manualbp.rules.recurrent.times import Sizes, before, final, in_order, resized
from torch_manualbp.rules.rule import RuleWithByproducts, in_dtype, widened

__all__ = ["GRU"]


class GRU(RuleWithByproducts):
    """A layer of gated recurrent units, in one direction of time.

    ::

        (z_r, z_u, z_n) = W x_t + b
        (y_r, y_u, y_n) = U h_t−1 + β
        r = σ(z_r + y_r),  u = σ(z_u + y_u),  n = tanh(z_n + r ⊙ y_n)
        h_t = (1 − u) ⊙ n + u ⊙ h_t−1
        ⇒
        ∂C/∂h_t = that from above + ∂C/∂h_t+1 ⊙ u_t+1 + ε_t+1 U
        δ_u = ∂C/∂h_t ⊙ (h_t−1 − n) ⊙ u (1 − u)
        δ_n = ∂C/∂h_t ⊙ (1 − u) ⊙ (1 − n²)
        δ_r = δ_n ⊙ y_n ⊙ r (1 − r)
        δ = (δ_r, δ_u, δ_n),  ε = (δ_r, δ_u, δ_n ⊙ r)
        ∂C/∂x_t = δ_t W
        ∂C/∂W = Σ_t δ_tᵀ x_t,  ∂C/∂b = Σ_t δ_t
        ∂C/∂U = Σ_t ε_tᵀ h_t−1,  ∂C/∂β = Σ_t ε_t

    Shapes: x (rows, in), h₀ (samples, hidden), W (3 hidden, in), U (3 hidden, hidden), b and β (3 hidden), with rows as
    :mod:`~torch_manualbp.rules.recurrent.times` has them. Returned are h (rows, hidden), and the last of each sample.
    Kept: of x, W and U what the needed gradients use; h₀, and a copy of h and r, u, n, y_n, which are
    byproducts.
    """

    outputs = 2

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        W: Tensor,
        U: Tensor,
        b: Tensor | None,
        beta: Tensor | None,
        sizes: Sizes,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        dtype, n_out = x.dtype, h0.shape[1]
        x, h0, W, U = map(widened, (x, h0, W, U))
        z = F.linear(x, W, None if b is None else widened(b)).split(sizes)
        beta = None if beta is None else widened(beta)
        h, hs, gates = h0, [h0] * len(sizes), [h0] * len(sizes)
        for t in in_order(sizes, reverse):
            h = resized(h, sizes[t], h0)
            z_ru, z_n = z[t].split((2 * n_out, n_out), 1)
            y_ru, y_n = F.linear(h, U, beta).split((2 * n_out, n_out), 1)
            r_u = torch.sigmoid(z_ru + y_ru)
            r, u = r_u.chunk(2, 1)
            n = torch.tanh(torch.addcmul(z_n, r, y_n))
            h = hs[t] = (h - n) * u + n
            gates[t] = torch.cat([r_u, n, y_n], 1)
        made = torch.cat(hs), final(hs, sizes, reverse), torch.cat(hs), torch.cat(gates)
        return tuple([t.to(dtype) for t in made])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h0, W, U, _, _, ctx.sizes, ctx.reverse = inputs
        h, gates = output[2:]
        needs_dx, needs_dh0, needs_dW, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs_dW else None,
            h0,
            W if needs_dx else None,
            U if needs_dh0 or len(ctx.sizes) > 1 else None,
            h if len(ctx.sizes) > 1 else None,
            gates,
        )
        ctx.save_for_forward(x, h0, W, U, h, gates)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        dh: Tensor | None,
        dh_n: Tensor | None = None,
        dh_kept: Tensor | None = None,
        dgates: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        *_, kept_gates = saved = ctx.saved_tensors
        x, h0, W, U, h, gates = map(_wide, saved)
        sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_gates.dtype
        needs_dx, needs_dh0, needs_dW, needs_dU, needs_db, needs_dbeta, _, _ = ctx.needs_input_grad
        h_before = h0 if h is None else before(h0, h, sizes, reverse)
        through_y, through_n = (t.conj() for t in jacobian_of_time(gates, h_before))
        u = gates.chunk(4, 1)[1].conj().split(sizes)
        of_y, of_n = (None, None) if dgates is None else _by_gates(_wide(dgates), gates)
        U = None if U is None else U.conj()
        dh = dh_kept if dh is None else dh if dh_kept is None else dh + dh_kept
        above_h, above_y = (None if d is None else d.split(sizes) for d in (_wide(dh), of_y))
        of_time = through_y.split(sizes)
        dh_t = dh_n = torch.zeros_like(h0) if dh_n is None else _wide(dh_n)
        epsilons, dhs, dh_before = ([dh_t] * len(sizes) for _ in range(3))
        for t in in_order(sizes, not reverse):
            dh_t = resized(dh_t, sizes[t], dh_n)
            dh_t = dhs[t] = dh_t if above_h is None else dh_t + above_h[t]
            epsilon = torch.cat([dh_t, dh_t, dh_t], 1) * of_time[t]
            epsilon = epsilons[t] = epsilon if above_y is None else epsilon + above_y[t]
            if U is not None:
                dh_t = dh_before[t] = dh_t * u[t] + epsilon @ U
        epsilon, delta_n = torch.cat(epsilons), torch.cat(dhs) * through_n
        delta_n = delta_n if of_n is None else delta_n + of_n
        delta = torch.cat([epsilon[:, : 2 * delta_n.shape[1]], delta_n], 1)
        gradients = (
            linear_input_gradient(delta, W) if needs_dx else None,
            final(dh_before, sizes, not reverse) if needs_dh0 else None,
            linear_weight_gradient(delta, x) if needs_dW else None,
            linear_weight_gradient(epsilon, h_before) if needs_dU else None,
            linear_bias_gradient(delta) if needs_db else None,
            linear_bias_gradient(epsilon) if needs_dbeta else None,
        )
        return *[None if g is None else in_dtype(dtype, g) for g in gradients], None, None

    @staticmethod
    def jvp(
        ctx: Any,
        dx: Tensor | None,
        dh0: Tensor | None,
        dW: Tensor | None,
        dU: Tensor | None,
        db: Tensor | None,
        dbeta: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, ...]:
        *_, kept_gates = saved = ctx.saved_tensors
        x, h0, W, U, h, gates = map(_wide, saved)
        sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_gates.dtype
        h_before = before(h0, h, sizes, reverse)
        dz = dy = gates.new_zeros(len(gates), len(W))
        if dx is not None:
            dz = dz + F.linear(_wide(dx), W)
        if dW is not None:
            dz = dz + F.linear(x, _wide(dW))
        if db is not None:
            dz = dz + _wide(db)
        if dU is not None:
            dy = dy + F.linear(h_before, _wide(dU))
        if dbeta is not None:
            dy = dy + _wide(dbeta)
        dh_t = dh0 = torch.zeros_like(h0) if dh0 is None else _wide(dh0)
        dhs, dgates = [dh_t] * len(sizes), [dh_t] * len(sizes)
        of_time = zip(*(t.split(sizes) for t in (dz, dy, gates, h_before)), strict=True)
        times = list(of_time)
        for t in in_order(sizes, reverse):
            dh_t = resized(dh_t, sizes[t], dh0)
            dz_t, dy_t, gates_t, h_t = times[t]
            (dz_r, dz_u, dz_n), (r, u, n, y_n) = dz_t.chunk(3, 1), gates_t.chunk(4, 1)
            dy_r, dy_u, dy_n = (dy_t + F.linear(dh_t, U)).chunk(3, 1)
            dr, du = (dz_r + dy_r) * r * (1 - r), (dz_u + dy_u) * u * (1 - u)
            dn = (dz_n + r * dy_n + dr * y_n) * (1 - n) * (1 + n)
            dh_t = dhs[t] = (1 - u) * dn + (h_t - n) * du + u * dh_t
            dgates[t] = torch.cat([dr, du, dn, dy_n], 1)
        made = torch.cat(dhs), final(dhs, sizes, reverse), torch.cat(dhs), torch.cat(dgates)
        return tuple([t.to(dtype) for t in made])


def jacobian_of_time(gates: Tensor, h_before: Tensor) -> tuple[Tensor, Tensor]:
    """What one time does: ∂h/∂y_r, ∂h/∂y_u and ∂h/∂y_n side by side, and ∂h/∂z_n, of which the others are made:
    (rows, 4 hidden), (rows, hidden) → (rows, 3 hidden), (rows, hidden)."""
    r, u, n, y_n = gates.chunk(4, 1)
    through_n = (1 - u) * (1 - n) * (1 + n)
    return torch.cat([through_n * y_n * r * (1 - r), (h_before - n) * u * (1 - u), through_n * r], 1), through_n


def _by_gates(dgates: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of ε and of δ_n that come from gradients of the gates."""
    r, u, n, y_n = gates.conj().chunk(4, 1)
    dr, du, dn, dy_n = dgates.chunk(4, 1)
    delta_n = dn * (1 - n) * (1 + n)
    return torch.cat([(dr + delta_n * y_n) * r * (1 - r), du * u * (1 - u), delta_n * r + dy_n], 1), delta_n


def _wide(t: Tensor | None) -> Any:
    return None if t is None else widened(t)
