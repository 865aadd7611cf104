"""Vectors of length 1, the angle of two vectors, and the distances of many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.loss.embedding import norm_gradient, vector_norm_gradient
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["CosineSimilarity", "Normalize", "PairwiseDistances"]


class Normalize(Rule):
    """Each vector divided by its length.

    ::

        D = ‖z‖_p,  m = max(D, ε)
        a = z / m
        ⇒
        ∂C/∂D = −Σ_k z_k ∂C/∂a_k / m²      where D ≥ ε, else 0
        ∂C/∂z = ∂C/∂a / m + ∂C/∂D ∂D/∂z,  ∂D/∂z_k = sgn(z_k) |z_k|^(p−1) / D^(p−1)

    Shapes: z and a any, the vectors along some dimensions, one D each. For complex numbers z is conjugated in ∂C/∂D,
    which is real. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, p: float, dims: tuple[int, ...], eps: float) -> Tensor:
        wide = widened(z)
        return (wide / _length(wide, p, dims).clamp_min(eps)).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, ctx.p, ctx.dims, ctx.eps = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        (z,) = ctx.saved_tensors
        dtype, da, z = z.dtype, widened(da), widened(z)
        D = _length(z, ctx.p, ctx.dims)
        m = D.clamp_min(ctx.eps)
        dD = torch.where(D.ge(ctx.eps), -_dot(z, da, ctx.dims) / m / m, 0)
        return (da / m + norm_gradient(z, D, ctx.p, dD, ctx.dims)).to(dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (z,) = ctx.saved_tensors
        dtype, dz, z = dz.dtype, widened(dz), widened(z)
        D = _length(z, ctx.p, ctx.dims)
        m = D.clamp_min(ctx.eps)
        unit = norm_gradient(z, D, ctx.p, torch.ones_like(D), ctx.dims)
        dm = torch.where(D.ge(ctx.eps), _dot(unit, dz, ctx.dims), 0)
        return (dz / m - z * (dm / m / m)).to(dtype)


def _length(z: Tensor, p: float, dims: tuple[int, ...]) -> Tensor:
    """‖z‖_p, with size 1 in place of the dimensions."""
    return torch.norm(z, p, dims, keepdim=True)


def _dot(u: Tensor, v: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The real part of Σ_k ū_k v_k."""
    product = (u.conj() * v if u.is_complex() else u * v).sum(dims, keepdim=True)
    return product.real if product.is_complex() else product


class CosineSimilarity(Rule):
    """The cosine of the angle between two vectors.

    ::

        m = max(‖u‖, ε),  n = max(‖v‖, ε)
        c = u·v / (m n)
        ⇒
        ∂C/∂u = ∂C/∂c (v / (m n) − c u / m² [‖u‖ ≥ ε])
        ∂C/∂v = ∂C/∂c (u / (m n) − c v / n² [‖v‖ ≥ ε])

    Shapes: u and v broadcast against each other, the vectors along one dimension, counted from the last, which c is
    without. Of vectors shorter than ε this is the derivative of c, where torch's has the second term, too. Kept: u, v.
    """

    @staticmethod
    def forward(u: Tensor, v: Tensor, dim: int, eps: float) -> Tensor:
        dtype = torch.promote_types(u.dtype, v.dtype)
        m, n = _lengths(widened(u), widened(v), dim, eps)
        return ((widened(u) / m) * (widened(v) / n)).sum(dim).to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        u, v, ctx.dim, ctx.eps = inputs
        ctx.save_for_backward(u, v)
        ctx.save_for_forward(u, v)

    @staticmethod
    def backward(ctx: Any, dc: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        u, v = ctx.saved_tensors
        needs_du, needs_dv, _, _ = ctx.needs_input_grad
        g, wide_u, wide_v = widened(dc).unsqueeze(ctx.dim), widened(u), widened(v)
        c, m, n = _cosine(wide_u, wide_v, ctx.dim, ctx.eps)
        du = dv = None
        if needs_du:
            du = in_dtype(u.dtype, _by_one(g, c, wide_u, m, wide_v, n, ctx.eps).sum_to_size(u.shape))
        if needs_dv:
            dv = in_dtype(v.dtype, _by_one(g, c, wide_v, n, wide_u, m, ctx.eps).sum_to_size(v.shape))
        return du, dv, None, None

    @staticmethod
    def jvp(ctx: Any, du: Tensor | None, dv: Tensor | None, *_: None) -> Tensor:
        u, v = ctx.saved_tensors
        dtype, u, v = torch.promote_types(u.dtype, v.dtype), widened(u), widened(v)
        c, m, n = _cosine(u, v, ctx.dim, ctx.eps)
        dc = torch.zeros_like(c)
        one = torch.ones_like(c)
        if du is not None:
            dc = dc + (_by_one(one, c, u, m, v, n, ctx.eps) * du).sum(ctx.dim, keepdim=True)
        if dv is not None:
            dc = dc + (_by_one(one, c, v, n, u, m, ctx.eps) * dv).sum(ctx.dim, keepdim=True)
        return dc.squeeze(ctx.dim).to(dtype)


def _cosine(u: Tensor, v: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """c, m and n, with size 1 in place of the dimension."""
    m, n = _lengths(u, v, dim, eps)
    return ((u / m) * (v / n)).sum(dim, keepdim=True), m, n


def _lengths(u: Tensor, v: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """m and n. A tensor that has not as many dimensions is one number a vector."""
    m, n = (torch.linalg.vector_norm(t, dim=dim, keepdim=True).clamp_min(eps) for t in torch.broadcast_tensors(u, v))
    return m, n


def _by_one(g: Tensor, c: Tensor, u: Tensor, m: Tensor, v: Tensor, n: Tensor, eps: float) -> Tensor:
    """∂C/∂u = g (v / (m n) − c u / m² [‖u‖ ≥ ε])."""
    return g * (v / n - torch.where(m.gt(eps), c * u / m, 0)) / m


class PairwiseDistances(Rule):
    """The distance of each row to each that follows it.

    ::

        D_ij = ‖z_i − z_j‖_p,  i < j
        ⇒
        h_ij = ∂C/∂D_ij sgn(z_i − z_j) |z_i − z_j|^(p−1) / D_ij^(p−1)
        ∂C/∂z_i = Σ_{j > i} h_ij − Σ_{j < i} h_ji

    Shapes: z (rows, n), D (rows (rows − 1) / 2). Equal rows have a gradient of 0. Kept: z, D.
    """

    @staticmethod
    def forward(z: Tensor, p: float) -> Tensor:
        if not z.shape[0]:  # of which ATen's own gradient, where autograd differentiates forward, ends the process
            return z.sum(-1)
        return torch.pdist(z.contiguous(), p)

    @staticmethod
    def composite(z: Tensor, p: float) -> Tensor:
        return torch.norm(_differences(z), p, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, ctx.p = inputs
        ctx.save_for_backward(z, output)
        ctx.save_for_forward(z, output)

    @staticmethod
    def backward(ctx: Any, dD: Tensor) -> tuple[Tensor, None]:
        z, D = ctx.saved_tensors
        h = vector_norm_gradient(_differences(widened(z)), widened(D), ctx.p, widened(dD))
        i, j = _pairs(z)
        dz = torch.zeros_like(widened(z)).index_add(0, i, h).index_add(0, j, -h)
        return dz.to(z.dtype), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        z, D = ctx.saved_tensors
        unit = vector_norm_gradient(_differences(widened(z)), widened(D), ctx.p, torch.ones_like(widened(D)))
        return (unit * _differences(widened(dz))).sum(-1).to(D.dtype)


def _pairs(z: Tensor) -> tuple[Tensor, Tensor]:
    """i and j of all pairs i < j of rows, in torch's order."""
    i, j = torch.triu_indices(z.shape[0], z.shape[0], 1, device=z.device).unbind(0)
    return i, j


def _differences(z: Tensor) -> Tensor:
    """z_i − z_j of all pairs."""
    i, j = _pairs(z)
    return z.index_select(0, i) - z.index_select(0, j)
