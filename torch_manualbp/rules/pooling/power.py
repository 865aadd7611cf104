"""The p-norm of each window."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from torch_manualbp.rules.pooling.average import AvgPool, average_gradient
from torch_manualbp.rules.rule import Rule, widened

__all__ = ["LPPool"]

Sizes = tuple[int, ...]


class LPPool(Rule):
    """The p-norm of the entries of each window, without absolute values.

    ::

        m(x) = Σ_u z(s x + u)^p / n(x),  a(x) = (n m(x))^(1/p)
        ⇒
        ∂C/∂z(y) = z(y)^(p−1) Σ_{x,u: s x + u = y} ∂C/∂a(x) (n m(x))^(1/p−1) n / n(x)

    x and y are places, u one in the window, s the stride. n is the size of the window, n(x) of what of it lies in z
    (``ceil_mode``). Where m(x) = 0 the gradient is 0. Shapes: z (N, n, *), or without N for one sample, a with one
    entry for each window. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, p: float, window: Sizes, stride: Sizes, ceil_mode: bool) -> Tensor:
        m = mean_of_powers(widened(z), p, window, stride, ceil_mode)
        a = (m * math.prod(window)).pow(1 / p)
        return a.to(z.dtype) if z.is_floating_point() else a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.options = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        p, window, stride, ceil_mode = ctx.options
        dtype, z, da = z.dtype, widened(z), widened(da)
        dm = da * slope(mean_of_powers(z, p, window, stride, ceil_mode), p, math.prod(window))
        dz = average_gradient(dm, z.shape[-len(window) :], window, stride, (0,) * len(window), ceil_mode, True, None)
        return (z.pow(p - 1) * dz).to(dtype), *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (z,) = ctx.saved_tensors
        p, window, stride, ceil_mode = ctx.options
        dtype, z, dz = z.dtype, widened(z), widened(dz)
        s = slope(mean_of_powers(z, p, window, stride, ceil_mode), p, math.prod(window))
        dm = AvgPool.forward(z.pow(p - 1) * dz, window, stride, (0,) * len(window), ceil_mode, True, None)
        return (s * dm).to(dtype)


def mean_of_powers(z: Tensor, p: float, window: Sizes, stride: Sizes, ceil_mode: bool) -> Tensor:
    """m(x) = Σ_u z(s x + u)^p / n(x)."""
    return AvgPool.forward(z.pow(p), window, stride, (0,) * len(window), ceil_mode, True, None)


def slope(m: Tensor, p: float, n: int) -> Tensor:
    """n (n m)^(1/p−1), which is p ∂a/∂m, and 0 where m = 0."""
    return m.sign().abs() * n * (n * m.masked_fill(m == 0, 1)).pow(1 / p - 1)
