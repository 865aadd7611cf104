"""Products along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.reduction.running import shifted, suffix_sums
from torch_manualbp.rules.rule import Rule, widened

__all__ = ["Cumprod", "Prod"]


class Prod(Rule):
    """The product of the numbers along a dimension.

    ::

        a = Π_i z_i
        ⇒
        ∂C/∂z_i = ∂C/∂a Π_{j<i} z_j Π_{j>i} z_j

    No z is divided by, so that one of them may be 0. For complex numbers the products are conjugated. Shapes: a is z
    without the dimension, or with ``keepdim`` of size 1 there. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, dim: int, keepdim: bool) -> Tensor:
        return torch.prod(z, dim, keepdim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, bool], output: Tensor) -> None:
        z, ctx.dim, ctx.keepdim = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        g = widened(da if ctx.keepdim or z.dim() == 0 else da.unsqueeze(ctx.dim))
        others = _products_of_others(widened(z), ctx.dim)
        return (g * (others.conj() if z.is_complex() else others)).to(da.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return (_products_of_others(widened(z), ctx.dim) * widened(dz)).sum(ctx.dim, ctx.keepdim).to(dz.dtype)


class Cumprod(Rule):
    """The products of the numbers up to each along a dimension.

    ::

        a_k = Π_{j≤k} z_j
        ⇒
        ∂C/∂z_i = a_(i−1) s_i,  s_i = ∂C/∂a_i + z_(i+1) s_(i+1)

    No z is divided by, so that some of them may be 0. For complex numbers a and z are conjugated. Shapes: a as z. Kept:
    z and a.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.cumprod(z, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        z, ctx.dim = inputs
        ctx.save_for_backward(z, output)
        ctx.save_for_forward(z, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        z, a = (widened(t.conj() if t.is_complex() else t) for t in ctx.saved_tensors)
        if z.dim() == 0:
            return da.clone(), None
        s = suffix_sums(widened(da), shifted(z, -1, ctx.dim, 0), ctx.dim)
        return (shifted(a, 1, ctx.dim, 1) * s).to(da.dtype), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        z, a = (widened(t) for t in ctx.saved_tensors)
        if z.dim() == 0:
            return dz.clone()
        # The tangent of a_k is z_k times that of a_(k−1), plus a_(k−1) times that of z_k.
        terms = (shifted(a, 1, ctx.dim, 1) * widened(dz)).flip(ctx.dim)
        return suffix_sums(terms, z.flip(ctx.dim), ctx.dim).flip(ctx.dim).to(dz.dtype)


def _products_of_others(z: Tensor, dim: int) -> Tensor:
    """Π_{j≠i} z_j."""
    if z.dim() == 0:
        return torch.ones_like(z)
    before = shifted(z, 1, dim, 1).cumprod(dim)
    behind = shifted(z, -1, dim, 1).flip(dim).cumprod(dim).flip(dim)
    return before * behind
