"""Sums and means over dimensions."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from torch_manualbp.rules.rule import Rule

__all__ = ["Mean", "Sum", "spread", "summed"]


class _OverDimensions(Rule):
    """Keeps the shape of z, and over which dimensions it goes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...] | None, bool], output: Tensor) -> None:
        z, ctx.dims, ctx.keepdim = inputs
        ctx.shape = z.shape


class Sum(_OverDimensions):
    """The sum over some dimensions, or over all.

    ::

        a = Σ_i z_i
        ⇒
        ∂C/∂z_i = ∂C/∂a

    Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dims: tuple[int, ...] | None, keepdim: bool) -> Tensor:
        return z.sum(dims, keepdim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return spread(da, ctx.shape, ctx.dims), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return dz.sum(ctx.dims, ctx.keepdim)


class Mean(_OverDimensions):
    """The mean over some dimensions, or over all.

    ::

        a = Σ_i z_i / n,  n = the number of entries of a sum
        ⇒
        ∂C/∂z_i = ∂C/∂a / n

    Shapes: a is z without the dimensions, or with ``keepdim`` of size 1 there. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dims: tuple[int, ...] | None, keepdim: bool) -> Tensor:
        return z.mean(dims, keepdim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        # Of nothing da itself, so that no derivative is the empty sum's 0 times 1 / 0.
        n = math.prod([n for n, summed in zip(ctx.shape, summed(ctx.shape, ctx.dims), strict=True) if summed])
        return spread(da / max(n, 1), ctx.shape, ctx.dims), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return dz.mean(ctx.dims, ctx.keepdim)


def summed(shape: tuple[int, ...], dims: tuple[int, ...] | None) -> list[bool]:
    """Whether each dimension is summed over. For a number, dimensions 0 and −1 are it."""
    if dims is None:
        return [True] * len(shape)
    positions = [d % max(len(shape), 1) for d in dims]
    return [d in positions for d in range(len(shape))]


def spread(da: Tensor, shape: tuple[int, ...], dims: tuple[int, ...] | None) -> Tensor:
    """da in every entry that was summed over."""
    kept = [1 if summed else n for n, summed in zip(shape, summed(shape, dims), strict=True)]
    return da.reshape(kept).expand(shape)
