"""Variances, standard deviations and norms along dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, widened
from torch_manualbp.rules.structure.reduction import spread, summed

__all__ = ["Norm", "Std", "Var"]

Dims = tuple[int, ...] | None
"""Dimensions, or None for all."""


class Var(Rule):
    """The variance along dimensions.

    ::

        a = Σ_i |z_i − μ|² / (n − c),  μ = Σ_i z_i / n
        ⇒
        ∂C/∂z_i = 2 (z_i − μ) ∂C/∂a / (n − c)

    c is the correction. Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, dims: Dims, correction: float, keepdim: bool) -> Tensor:
        return torch.var(z, dims, correction=correction, keepdim=keepdim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Dims, float, bool], output: Tensor) -> None:
        z, ctx.dims, ctx.correction, ctx.keepdim = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        (z,) = ctx.saved_tensors
        g = spread(widened(da), z.shape, ctx.dims) * (2 * _weight(z, ctx.dims, ctx.correction))
        return (_centered(z, ctx.dims) * g).to(z.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (z,) = ctx.saved_tensors
        products = _real_product(_centered(z, ctx.dims), widened(dz))
        da = products.sum(ctx.dims, ctx.keepdim) * (2 * _weight(z, ctx.dims, ctx.correction))
        return da.to(dz.real.dtype)


class Std(Rule):
    """The standard deviation along dimensions.

    ::

        a = √(Σ_i |z_i − μ|² / (n − c)),  μ = Σ_i z_i / n
        ⇒
        ∂C/∂z_i = (z_i − μ) ∂C/∂a / ((n − c) a),  where a = 0 always 0

    c is the correction. Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, dims: Dims, correction: float, keepdim: bool) -> Tensor:
        return torch.std(z, dims, correction=correction, keepdim=keepdim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Dims, float, bool], output: Tensor) -> None:
        z, ctx.dims, ctx.correction, ctx.keepdim = inputs
        ctx.save_for_backward(z, output)
        ctx.save_for_forward(z, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        z, a = ctx.saved_tensors
        g = torch.where(a == 0, 0, widened(da) / widened(a)) * _weight(z, ctx.dims, ctx.correction)
        return (_centered(z, ctx.dims) * spread(g, z.shape, ctx.dims)).to(z.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        z, a = ctx.saved_tensors
        products = _real_product(_centered(z, ctx.dims), widened(dz)).sum(ctx.dims, ctx.keepdim)
        da = torch.where(a == 0, 0, products / widened(a)) * _weight(z, ctx.dims, ctx.correction)
        return da.to(a.dtype)


class Norm(Rule):
    """The norm of vectors, of any order but 0.

    ::

        a = (Σ_i |z_i|^p)^(1/p),  of order ∞ max |z_i|,  of −∞ min |z_i|
        ⇒
        ∂C/∂z_i = ∂C/∂a sgn(z_i) (|z_i| / a)^(p−1),  where z_i = 0 always 0
                  of order ±∞:  ∂C/∂a sgn(z_i) / n where |z_i| = a,  0 elsewhere,  n = the number of |z_i| = a

    Of complex numbers sgn z = z / |z|. Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there.
    Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, p: float, dims: Dims, keepdim: bool) -> Tensor:
        return torch.linalg.vector_norm(z, p, dims, keepdim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, Dims, bool], output: Tensor) -> None:
        z, ctx.p, ctx.dims, ctx.keepdim = inputs
        ctx.save_for_backward(z, output)
        ctx.save_for_forward(z, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        z, a = ctx.saved_tensors
        slope = norm_slope(widened(z), widened(a), ctx.p, ctx.dims)
        return (slope * spread(widened(da), z.shape, ctx.dims)).to(z.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        z, a = ctx.saved_tensors
        slope = norm_slope(widened(z), widened(a), ctx.p, ctx.dims)
        return _real_product(slope, widened(dz)).sum(ctx.dims, ctx.keepdim).to(a.dtype)


def norm_slope(z: Tensor, a: Tensor, p: float, dims: Dims) -> Tensor:
    """∂a/∂z_i of a norm a."""
    a = spread(a, z.shape, dims)
    if math.isinf(p):
        equal = z.abs() == a
        n = equal.sum([d for d, over in enumerate(summed(z.shape, dims)) if over], keepdim=True)
        return torch.where(equal, torch.sgn(z) / n, 0)
    if p == 1:
        return torch.sgn(z)
    if p == 2:
        return z / torch.where(a == 0, math.inf, a)
    return torch.where(z == 0, 0, torch.sgn(z) * torch.pow(z.abs() / a, p - 1))


def _weight(z: Tensor, dims: Dims, correction: float) -> float:
    """1 / (n − c)."""
    n = math.prod([n for n, over in zip(z.shape, summed(z.shape, dims), strict=True) if over]) - correction
    return 1 / n if n else math.inf


def _centered(z: Tensor, dims: Dims) -> Tensor:
    """z − μ."""
    return widened(z) - widened(z).mean(dims, keepdim=True)


def _real_product(x: Tensor, y: Tensor) -> Tensor:
    """The real part of x̄ y."""
    return (x.conj() * y).real if x.is_complex() else x * y
