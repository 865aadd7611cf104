"""The largest and the smallest number along dimensions, and their smooth form, log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, widened
from torch_manualbp.rules.structure.reduction import spread

__all__ = ["Amax", "Amin", "LogSumExp"]

Dims = tuple[int, ...] | None
"""Dimensions, or None for all."""


class _OverDimensions(Rule):
    """Keeps z and a, and over which dimensions it goes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Dims, bool], output: Tensor) -> None:
        z, ctx.dims, ctx.keepdim = inputs
        ctx.save_for_backward(z, output)
        ctx.save_for_forward(z, output)


class Amax(_OverDimensions):
    """The largest number along dimensions.

    ::

        a = max_i z_i
        ⇒
        ∂C/∂z_i = ∂C/∂a / n where z_i = a,  0 elsewhere,  n = the number of z_i = a

    Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, dims: Dims, keepdim: bool) -> Tensor:
        return torch.amax(z, _all(z, dims), keepdim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return _shares(ctx, da), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return _mean_of_equals(ctx, dz)


class Amin(_OverDimensions):
    """The smallest number along dimensions.

    ::

        a = min_i z_i
        ⇒
        ∂C/∂z_i = ∂C/∂a / n where z_i = a,  0 elsewhere,  n = the number of z_i = a

    Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, dims: Dims, keepdim: bool) -> Tensor:
        return torch.amin(z, _all(z, dims), keepdim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return _shares(ctx, da), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return _mean_of_equals(ctx, dz)


class LogSumExp(_OverDimensions):
    """The logarithm of the sum of the exponentials along dimensions.

    ::

        a = log Σ_i exp(z_i)
        ⇒
        ∂C/∂z_i = exp(z_i − a) ∂C/∂a

    Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: z and a.
    """

    @staticmethod
    def forward(z: Tensor, dims: Dims, keepdim: bool) -> Tensor:
        return torch.logsumexp(z, _all(z, dims), keepdim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        p = _probabilities(ctx)
        p = p.conj() if p.is_complex() else p
        return (p * spread(widened(da), p.shape, ctx.dims)).to(da.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return (_probabilities(ctx) * widened(dz)).sum(ctx.dims, ctx.keepdim).to(dz.dtype)


def _all(z: Tensor, dims: Dims) -> tuple[int, ...]:
    return tuple(range(z.dim())) if dims is None else dims


def _equals(ctx: Any) -> tuple[Tensor, Tensor]:
    """Where z is a, and how many of one a there are, in the shape of a with all dimensions."""
    z, a = ctx.saved_tensors
    equal = z == spread(a, z.shape, ctx.dims)
    return equal, equal.sum(_all(z, ctx.dims), keepdim=True)


def _shares(ctx: Any, da: Tensor) -> Tensor:
    equal, n = _equals(ctx)
    return equal * spread(da, equal.shape, ctx.dims) / n


def _mean_of_equals(ctx: Any, dz: Tensor) -> Tensor:
    equal, n = _equals(ctx)
    return (equal * dz / n).sum(_all(dz, ctx.dims), ctx.keepdim)


def _probabilities(ctx: Any) -> Tensor:
    """exp(z_i − a)."""
    z, a = ctx.saved_tensors
    return torch.exp(widened(z) - spread(widened(a), z.shape, ctx.dims))
