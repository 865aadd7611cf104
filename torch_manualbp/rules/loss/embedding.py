"""The losses of vectors that should be near each other or far apart, and the distance that they are made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.loss.reduction import reduced, share_of_each
from torch_manualbp.rules.rule import Rule, widened

__all__ = ["CosineEmbedding", "TripletMargin", "VectorNorm", "norm_gradient", "vector_norm_gradient"]


class VectorNorm(Rule):
    """The length of a vector, which makes the distance of two from their :class:`Difference` d.

    ::

        D = ‖d‖_p = (Σ_k |d_k|^p)^(1/p)
        ⇒
        ∂C/∂d_k = sgn(d_k) |d_k|^(p−1) / D^(p−1) ∂C/∂D

    which for p = 2 is d / D, for p = 1 sgn(d), and for p = ∞ sgn(d_k) / m where |d_k| = D, m entries of the vector, and
    0 elsewhere. For p = 0, the number of entries that are not 0, it is 0.

    At d = 0 the gradient is 0, as in torch. Shapes: d (*, n), D (*). Complex numbers have D real. Kept: d, D.
    """

    @staticmethod
    def forward(d: Tensor, p: float) -> Tensor:
        return torch.norm(d, p, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        d, ctx.p = inputs
        ctx.save_for_backward(d, output)
        ctx.save_for_forward(d, output)

    @staticmethod
    def backward(ctx: Any, dD: Tensor) -> tuple[Tensor, None]:
        d, D = ctx.saved_tensors
        return vector_norm_gradient(widened(d), widened(D), ctx.p, widened(dD)).to(d.dtype), None

    @staticmethod
    def jvp(ctx: Any, dd: Tensor, _: None) -> Tensor:
        d, D = ctx.saved_tensors
        unit = vector_norm_gradient(widened(d), widened(D), ctx.p, torch.ones_like(widened(D)))
        dD = (unit.conj() * dd).sum(-1)
        return (dD.real if dD.is_complex() else dD).to(D.dtype)


def vector_norm_gradient(d: Tensor, D: Tensor, p: float, g: Tensor) -> Tensor:
    """∂C/∂d = sgn(d) |d|^(p−1) (g / D^(p−1)): (*, n), for D and g of (*).

    The quotient comes first, since it is small. Its D = 0 is made ∞, so that it and its derivatives are 0 there.
    """
    return norm_gradient(d, D.unsqueeze(-1), p, g.unsqueeze(-1), (-1,))


def norm_gradient(d: Tensor, D: Tensor, p: float, g: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The same of norms over other dimensions, which D and g have with size 1."""
    if p == 0:
        return torch.zeros_like(d) * g
    if p == 1:
        return d.sgn() * g
    if p == 2:
        return d * (g / D.masked_fill(D == 0, math.inf))
    if math.isinf(p):
        largest = (d.abs() == D) | (d.isnan() & D.isnan())
        return d.sgn() * largest * (g / largest.sum(dims, keepdim=True))
    if p < 1:
        return d.sgn() * d.abs().pow(p - 1).masked_fill(d == 0, 0) * (g * D.pow(1 - p))
    g = g / D.masked_fill(D == 0, math.inf).pow(p - 1)
    return d.sgn() * d.abs().pow(p - 1) * g if p < 2 else d * d.abs().pow(p - 2) * g


class CosineEmbedding(Rule):
    """The angle between two vectors u and v that belong together, y = 1, or do not, y = −1.

    With the cosine c, and ε = 1e-12 against division by 0::

        c = u·v / √(U V)                   U = u·u + ε,  V = v·v + ε
        C_i = 1 − c                        where y = 1
              max(0, c − margin)           where y = −1
        C = Σ C_i / n,                     n = the number of pairs
        ⇒
        γ = ∂C/∂c = −g / n                 where y = 1
                    [c ≥ margin] g / n     where y = −1
        ∂C/∂u = γ (v / √(U V) − c u / U)
        ∂C/∂v = γ (u / √(U V) − c v / V)

    For any other y, C_i is 0. At the kink c = margin the gradient passes, as in torch.
    Shapes: u and v (D) with y (), or (samples, D) with y (samples). ``"sum"`` and ``"none"`` have n = 1.
    Kept: u, v, and which sort of pair it is, a byte each. As in torch, y takes no gradient.
    """

    @staticmethod
    def forward(u: Tensor, v: Tensor, y: Tensor, margin: float, reduction: str) -> Tensor:
        return F.cosine_embedding_loss(u, v, y, margin, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, v, y, ctx.margin, ctx.reduction = inputs
        side = (y == 1).to(torch.int8) - (y == -1).to(torch.int8)
        ctx.save_for_backward(u, v, side)
        ctx.save_for_forward(u, v, side)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        u, v, y = ctx.saved_tensors
        needs_du, needs_dv, *_ = ctx.needs_input_grad
        u_dtype, v_dtype = u.dtype, v.dtype
        u, v = widened(u), widened(v)
        c, root, U, V = _cosine(u, v)
        slope = _slope_of_cosine(c, y, ctx.margin)
        gamma = torch.where(slope == 0, 0, slope * share_of_each(widened(g), ctx.reduction, slope.numel()))
        towards, along = gamma / root, gamma * c
        du = dv = None
        if needs_du:
            du = _combination(v, towards, u, along / U).to(u_dtype)
        if needs_dv:
            dv = _combination(u, towards, v, along / V).to(v_dtype)
        return du, dv, None, None, None

    @staticmethod
    def jvp(ctx: Any, du: Tensor | None, dv: Tensor | None, *_: None) -> Tensor:
        u, v, y = ctx.saved_tensors
        dtype = torch.promote_types(u.dtype, v.dtype)
        u, v = widened(u), widened(v)
        c, root, U, V = _cosine(u, v)
        dc = torch.zeros_like(c)
        if du is not None:
            dc = dc + (v * du).sum(-1) / root - c * (u * du).sum(-1) / U
        if dv is not None:
            dc = dc + (u * dv).sum(-1) / root - c * (v * dv).sum(-1) / V
        return reduced(_slope_of_cosine(c, y, ctx.margin) * dc, ctx.reduction).to(dtype)


def _cosine(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c, √(U V), U and V. A norm reads its vector and writes nothing: a sixth of the time of ``(u * u).sum(-1)``."""
    U = torch.linalg.vector_norm(u, dim=-1).square() + 1e-12
    V = torch.linalg.vector_norm(v, dim=-1).square() + 1e-12
    root = (U * V).sqrt()
    return (u * v).sum(-1) / root, root, U, V


def _slope_of_cosine(c: Tensor, y: Tensor, margin: float) -> Tensor:
    """∂C_i/∂c."""
    return (c >= margin).to(c.dtype) * (y == -1) - (y == 1).to(c.dtype)


def _combination(v: Tensor, a: Tensor, u: Tensor, b: Tensor) -> Tensor:
    """v a − u b, with one a and b for each vector, in the shape of u: summed over what u is expanded along."""
    a, b = a.unsqueeze(-1), b.unsqueeze(-1)
    if u.shape[-1] == v.shape[-1]:
        return torch.addcmul(v * a, u, b, value=-1).sum_to_size(u.shape)
    return torch.broadcast_tensors(v * a, u)[0].sum_to_size(u.shape) - (u * b).sum_to_size(
        u.shape
    )  # U is of u as it is, not expanded to v


class TripletMargin(Rule):
    """The hinge of the distances of an anchor to a positive, which should be near, and to a negative.

    With D⁺ and D⁻ the distances of the anchor to the positive and to the negative, and with ``swap`` Dˢ that of the
    positive to the negative::

        r = margin + D⁺ − min(D⁻, Dˢ)
        C_i = max(0, r)                    C = Σ C_i / n,  n = the number of triplets
        ⇒
        h = [r ≥ 0] g / n
        ∂C/∂D⁺ = h
        ∂C/∂D⁻ = −h where D⁻ < Dˢ,  ∂C/∂Dˢ = −h where Dˢ < D⁻,  each −h / 2 where they are equal

    At the kink r = 0 the gradient passes, as in torch. Without ``swap`` Dˢ is None, and the minimum D⁻.
    Shapes: the distances broadcast against each other. ``"sum"`` and ``"none"`` have n = 1.
    Kept: where r ≥ 0, D⁻ = Dˢ, D⁻ > Dˢ and Dˢ > D⁻, a byte each.
    """

    @staticmethod
    def forward(D_pos: Tensor, D_neg: Tensor, D_swap: Tensor | None, margin: float, reduction: str) -> Tensor:
        return reduced(_triplet_rest(D_pos, D_neg, D_swap, margin).clamp_min(0), reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        D_pos, D_neg, D_swap, margin, ctx.reduction = inputs
        ctx.shapes = D_pos.shape, D_neg.shape, None if D_swap is None else D_swap.shape
        ctx.dtypes = D_pos.dtype, D_neg.dtype, None if D_swap is None else D_swap.dtype
        ctx.output_dtype = output.dtype
        passes = _triplet_rest(D_pos, D_neg, D_swap, margin) >= 0
        order = (None, None, None) if D_swap is None else (D_neg == D_swap, D_neg > D_swap, D_swap > D_neg)
        ctx.save_for_backward(passes, *order)
        ctx.save_for_forward(passes, *order)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        passes, are_equal, neg_is_larger, swap_is_larger = ctx.saved_tensors
        h = torch.where(passes, share_of_each(widened(g), ctx.reduction, passes.numel()), 0)
        needs_dpos, needs_dneg, needs_dswap, *_ = ctx.needs_input_grad
        dpos = h.sum_to_size(ctx.shapes[0]).to(ctx.dtypes[0]) if needs_dpos else None
        dneg = dswap = None
        if needs_dneg:
            dneg = _share_of_minimum(-h, are_equal, neg_is_larger).sum_to_size(ctx.shapes[1]).to(ctx.dtypes[1])
        if needs_dswap:
            dswap = _share_of_minimum(-h, are_equal, swap_is_larger).sum_to_size(ctx.shapes[2]).to(ctx.dtypes[2])
        return dpos, dneg, dswap, None, None

    @staticmethod
    def jvp(ctx: Any, dpos: Tensor | None, dneg: Tensor | None, dswap: Tensor | None, *_: None) -> Tensor:
        passes, are_equal, neg_is_larger, swap_is_larger = ctx.saved_tensors
        dr: Any = 0 if dpos is None else dpos
        if dneg is not None:
            dr = dr - _share_of_minimum(dneg, are_equal, neg_is_larger)
        if dswap is not None:
            dr = dr - _share_of_minimum(dswap, are_equal, swap_is_larger)
        return reduced(torch.where(passes, dr, 0), ctx.reduction).to(ctx.output_dtype)


def _triplet_rest(D_pos: Tensor, D_neg: Tensor, D_swap: Tensor | None, margin: float) -> Tensor:
    """r, in torch's order and dtype, so that the kink lies where torch has it."""
    return margin + D_pos - (D_neg if D_swap is None else torch.minimum(D_neg, D_swap))


def _share_of_minimum(h: Tensor, are_equal: Tensor | None, is_larger: Tensor | None) -> Tensor:
    """What of h the minimum hands to one of two: all where it is the smaller, half where the two are equal."""
    if are_equal is None or is_larger is None:
        return h
    return torch.where(are_equal, h / 2, h).masked_fill(is_larger, 0)
