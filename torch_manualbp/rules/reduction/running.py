"""Sums of the numbers up to each along a dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["Cumsum", "LogCumsumExp"]


class Cumsum(Rule):
    """The sums of the numbers up to each along a dimension.

    ::

        a_k = Σ_{j≤k} z_j
        ⇒
        ∂C/∂z_i = Σ_{k≥i} ∂C/∂a_k

    Shapes: a as z. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.cumsum(z, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.flip(ctx.dim).cumsum(ctx.dim).flip(ctx.dim) if da.dim() else da.clone(), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.cumsum(ctx.dim)


class LogCumsumExp(Rule):
    """The logarithms of the sums of the exponentials up to each along a dimension.

    ::

        a_k = log Σ_{j≤k} exp(z_j)
        ⇒
        ∂C/∂z_i = exp(z_i − a_i) s_i,  s_i = ∂C/∂a_i + exp(a_i − a_(i+1)) s_(i+1)

    No exponential is above 1, and that of −∞ is 0. Shapes: a as z. Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.logcumsumexp(z, dim)

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
        s = suffix_sums(widened(da), _share(a, shifted(a, -1, ctx.dim, math.inf)), ctx.dim)
        return (_share(z, a) * s).to(da.dtype), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        z, a = (widened(t) for t in ctx.saved_tensors)
        if z.dim() == 0:
            return dz.clone()
        # The tangent of a_k is a mean of those of z_k and a_(k−1), weighted by exp(z_k − a_k) and exp(a_(k−1) − a_k).
        terms = (_share(z, a) * widened(dz)).flip(ctx.dim)
        weights = _share(shifted(a, 1, ctx.dim, -math.inf), a).flip(ctx.dim)
        return suffix_sums(terms, weights, ctx.dim).flip(ctx.dim).to(dz.dtype)


def _share(z: Tensor, a: Tensor) -> Tensor:
    """exp(z − a), and 0 for z = −∞ whatever a is."""
    return torch.where(z.real == -math.inf, 0, torch.exp(z - a))


def suffix_sums(d: Tensor, w: Tensor, dim: int) -> Tensor:
    """s_i = d_i + w_i s_(i+1) along a dimension, with s behind the last 0: by steps that double, log₂ n of them."""
    step, n = 1, d.shape[dim]
    while step < n:
        d = d + w * shifted(d, -step, dim, 0)
        w = w * shifted(w, -step, dim, 0)
        step *= 2
    return d


def shifted(t: Tensor, by: int, dim: int, filler: float) -> Tensor:
    """The numbers so many places further on along a dimension, with a number in the places that this leaves."""
    n = t.shape[dim]
    steps = min(abs(by), n)
    empty = torch.full_like(t.narrow(dim, 0, steps), filler)
    if by > 0:
        return torch.cat((empty, t.narrow(dim, 0, n - steps)), dim)
    return torch.cat((t.narrow(dim, steps, n - steps), empty), dim)
