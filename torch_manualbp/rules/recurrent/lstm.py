"""Long short-term memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.linear import linear_bias_gradient, linear_input_gradient, linear_weight_gradient
from torch_manualbp.rules.recurrent.times import Sizes, before, final, in_order, resized
from torch_manualbp.rules.rule import RuleWithByproducts, formula, in_dtype, widened

__all__ = ["LSTM"]


class LSTM(RuleWithByproducts):
    """A layer of long short-term memory, in one direction of time.

    ::

        (z_i, z_f, z_g, z_o) = W x_t + U h_t−1 + b
        i = σ(z_i),  f = σ(z_f),  g = tanh z_g,  o = σ(z_o)
        c_t = f ⊙ c_t−1 + i ⊙ g
        h_t = V (o ⊙ tanh c_t)
        ⇒
        ∂C/∂h_t = that from above + δ_t+1 U
        ∂C/∂c_t = ∂C/∂c_t+1 ⊙ f_t+1 + (∂C/∂h_t V) ⊙ o (1 − tanh² c_t)
        δ_i = ∂C/∂c_t ⊙ g ⊙ i (1 − i)
        δ_f = ∂C/∂c_t ⊙ c_t−1 ⊙ f (1 − f)
        δ_g = ∂C/∂c_t ⊙ i ⊙ (1 − g²)
        δ_o = (∂C/∂h_t V) ⊙ tanh c_t ⊙ o (1 − o)
        ∂C/∂x_t = δ_t W
        ∂C/∂W = Σ_t δ_tᵀ x_t
        ∂C/∂U = Σ_t δ_tᵀ h_t−1
        ∂C/∂b = Σ_t δ_t
        ∂C/∂V = Σ_t (∂C/∂h_t)ᵀ (o ⊙ tanh c_t)

    Without a projection V, h_t = o ⊙ tanh c_t.

    Shapes: x (rows, in), h₀ (samples, out), c₀ (samples, hidden), W (4 hidden, in), U (4 hidden, out), b (4 hidden),
    V (out, hidden), with rows as :mod:`~torch_manualbp.rules.recurrent.times` has them. Returned are h (rows, out), and
    the last h and c of each sample. Kept: of x, h₀, c₀, W, U and V what the needed gradients use; c and the gates
    i, f, g, o, which are byproducts, and of which the h of all times are made once more.
    """

    outputs = 3

    @staticmethod
    def forward(
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        W: Tensor,
        U: Tensor,
        b: Tensor | None,
        V: Tensor | None,
        sizes: Sizes,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        dtype = x.dtype
        x, h0, c0, W, U, b, V = map(_wide, (x, h0, c0, W, U, b, V))
        return tuple([t.to(dtype) for t in states(x, h0, c0, W, U, b, V, sizes, reverse)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h0, c0, W, U, _, V, ctx.sizes, ctx.reverse = inputs
        c, gates = output[3:]
        needs_dx, needs_dh0, _, needs_dW, needs_dU, needs_db, *_ = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs_dW else None,
            h0 if needs_dU else None,
            c0 if needs_dx or needs_dh0 or needs_dW or needs_dU or needs_db else None,  # for the δ_f of its first time
            W if needs_dx else None,
            U if needs_dh0 or len(ctx.sizes) > 1 else None,
            V,
            c,
            gates,
        )
        ctx.save_for_forward(x, h0, c0, W, U, V, c, gates)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        dh: Tensor | None,
        dh_n: Tensor | None = None,
        dc_n: Tensor | None = None,
        dc: Tensor | None = None,
        dgates: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        *_, kept_gates = saved = ctx.saved_tensors
        x, h0, c0, W, U, V, c, gates = map(_wide, saved)
        sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_gates.dtype
        needs_dx, needs_dh0, needs_dc0, needs_dW, needs_dU, needs_db, needs_dV, _, _ = ctx.needs_input_grad
        c0 = torch.zeros_like(c[: sizes[0]]) if c0 is None else c0
        dh, dh_n, dc_n, dc, dgates = map(_wide, (dh, dh_n, dc_n, dc, dgates))
        of_times = deltas(gates, c, h0, c0, U, V, dh, dh_n, dc_n, dc, dgates, sizes, reverse)
        delta, dh0, dc0, h_before, dhs, m = of_times
        gradients = (
            linear_input_gradient(delta, W) if needs_dx else None,
            dh0 if needs_dh0 else None,
            dc0 if needs_dc0 else None,
            linear_weight_gradient(delta, x) if needs_dW else None,
            linear_weight_gradient(delta, h_before) if needs_dU else None,
            linear_bias_gradient(delta) if needs_db else None,
            linear_weight_gradient(dhs, m) if needs_dV else None,
        )
        return *[None if g is None else in_dtype(dtype, g) for g in gradients], None, None

    @staticmethod
    def jvp(
        ctx: Any,
        dx: Tensor | None,
        dh0: Tensor | None,
        dc0: Tensor | None,
        dW: Tensor | None,
        dU: Tensor | None,
        db: Tensor | None,
        dV: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, ...]:
        *_, kept_gates = saved = ctx.saved_tensors
        x, h0, c0, W, U, V, c, gates = map(_wide, saved)
        sizes, reverse, dtype = ctx.sizes, ctx.reverse, kept_gates.dtype
        through_z, through_c, f, m = jacobian_of_time(gates, c, before(c0, c, sizes, reverse))
        dz = torch.zeros_like(gates)
        if dx is not None:
            dz = dz + F.linear(_wide(dx), W)
        if dW is not None:
            dz = dz + F.linear(x, _wide(dW))
        if dU is not None:
            dz = dz + F.linear(_hidden_before(h0, m, V, sizes, reverse), _wide(dU))
        if db is not None:
            dz = dz + _wide(db)
        by_V = None if dV is None else F.linear(m, _wide(dV)).split(sizes)
        above, through_z, through_c, f = (t.split(sizes) for t in (dz, through_z, through_c, f))
        dh_t = dh0 = torch.zeros_like(h0) if dh0 is None else _wide(dh0)
        dc_t = dc0 = torch.zeros_like(c0) if dc0 is None else _wide(dc0)
        dzs, dhs, dcs = ([dh_t] * len(sizes) for _ in range(3))
        for t in in_order(sizes, reverse):
            dh_t, dc_t = resized(dh_t, sizes[t], dh0), resized(dc_t, sizes[t], dc0)
            dzs[t] = above[t] + F.linear(dh_t, U)
            by_i, by_f, by_g, by_o = (dzs[t] * through_z[t]).chunk(4, 1)
            dc_t = dc_t * f[t] + by_i + by_f + by_g
            dh_t = dc_t * through_c[t] + by_o
            if V is not None:
                dh_t = F.linear(dh_t, V)
            if by_V is not None:
                dh_t = dh_t + by_V[t]
            dhs[t], dcs[t] = dh_t, dc_t
        dgates = torch.cat(dzs) * slopes(gates)
        made = torch.cat(dhs), final(dhs, sizes, reverse), final(dcs, sizes, reverse), torch.cat(dcs), dgates
        return tuple([t.to(dtype) for t in made])


@formula(by="whole")
def states(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor | None,
    V: Tensor | None,
    sizes: Sizes,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """h of all times, the last h and c of each sample, c of all times, and the gates."""
    z = F.linear(x, W, b).split(sizes)
    h, c, out = h0, c0, len(U) // 4
    hs, cs, gates = [h] * len(sizes), [c] * len(sizes), [c] * len(sizes)
    for t in in_order(sizes, reverse):
        h, c = resized(h, sizes[t], h0), resized(c, sizes[t], c0)
        z_if, z_g, z_o = torch.addmm(z[t], h, U.t()).split((2 * out, out, out), 1)
        i_f, g, o = torch.sigmoid(z_if), torch.tanh(z_g), torch.sigmoid(z_o)
        i, f = i_f.chunk(2, 1)
        c = f * c + i * g
        h = o * torch.tanh(c)
        if V is not None:
            h = F.linear(h, V)
        hs[t], cs[t], gates[t] = h, c, torch.cat([i_f, g, o], 1)
    return torch.cat(hs), final(hs, sizes, reverse), final(cs, sizes, reverse), torch.cat(cs), torch.cat(gates)


@formula(by="whole")
def deltas(
    gates: Tensor,
    c: Tensor,
    h0: Tensor | None,
    c0: Tensor,
    U: Tensor | None,
    V: Tensor | None,
    dh: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    dgates: Tensor | None,
    sizes: Sizes,
    reverse: bool,
) -> tuple[Any, ...]:
    """δ of all times, ∂C/∂h₀, ∂C/∂c₀, h_t−1 of each time if h₀ is given; with V, ∂C/∂h of all times and m."""
    through_z, through_c, f, m = jacobian_of_time(gates, c, before(c0, c, sizes, reverse))
    of_gates = None if dgates is None else dgates * slopes(gates).conj()
    through_z, through_c, f = (t.conj().split(sizes) for t in (through_z, through_c, f))
    U_conj, V_conj = (None if t is None else t.conj() for t in (U, V))
    zero_h = through_c[0].new_zeros(sizes[0], c.shape[1] if V is None else V.shape[0])
    dh_t = dh_n = zero_h if dh_n is None else dh_n
    dc_t = dc_n = torch.zeros_like(c0) if dc_n is None else dc_n
    above_h, above_c, above_z = (None if d is None else d.split(sizes) for d in (dh, dc, of_gates))
    of_time, dhs, dh_before, dc_before = ([dh_t] * len(sizes) for _ in range(4))
    for t in in_order(sizes, not reverse):
        dh_t, dc_t = resized(dh_t, sizes[t], dh_n), resized(dc_t, sizes[t], dc_n)
        if above_h is not None:
            dh_t = dh_t + above_h[t]
        dm = dh_t if V_conj is None else dh_t @ V_conj
        dc_t = torch.addcmul(dc_t, dm, through_c[t])
        if above_c is not None:
            dc_t = dc_t + above_c[t]
        delta = torch.cat([dc_t, dc_t, dc_t, dm], 1) * through_z[t]
        if above_z is not None:
            delta = delta + above_z[t]
        of_time[t], dhs[t] = delta, dh_t
        if U_conj is not None:
            dh_t = dh_before[t] = delta @ U_conj
        dc_t = dc_before[t] = dc_t * f[t]
    return (
        torch.cat(of_time),
        final(dh_before, sizes, not reverse),
        final(dc_before, sizes, not reverse),
        None if h0 is None else _hidden_before(h0, m, V, sizes, reverse),
        None if V is None else torch.cat(dhs),
        None if V is None else m,
    )


def jacobian_of_time(gates: Tensor, c: Tensor, c_before: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What one time does, for m = o ⊙ tanh c_t: ∂c/∂z_i, ∂c/∂z_f, ∂c/∂z_g and ∂m/∂z_o side by side; ∂m/∂c; f, which is
    ∂c/∂c_t−1; and m: (rows, 4 hidden), (rows, hidden) twice → (rows, 4 hidden), (rows, hidden) thrice."""
    i, f, g, o = gates.chunk(4, 1)
    tanh_c = torch.tanh(c)
    through_z = torch.cat([g, c_before, i, tanh_c], 1) * slopes(gates)
    return through_z, o * (1 - tanh_c) * (1 + tanh_c), f, o * tanh_c


def _hidden_before(h0: Tensor, m: Tensor, V: Tensor | None, sizes: Sizes, reverse: bool) -> Tensor:
    """h_t−1 of each time, of h₀ and m."""
    return before(h0, m if V is None else F.linear(m, V), sizes, reverse)


def slopes(gates: Tensor) -> Tensor:
    """σ' of i, f and o, and tanh' of g."""
    i_f, g, o = gates.split((gates.shape[1] // 2, gates.shape[1] // 4, gates.shape[1] // 4), 1)
    return torch.cat([i_f * (1 - i_f), (1 - g) * (1 + g), o * (1 - o)], 1)


def _wide(t: Tensor | None) -> Any:
    return None if t is None else widened(t)
