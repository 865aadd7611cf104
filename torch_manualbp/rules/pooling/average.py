"""The mean of the entries of each window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.convolution import transposed_convolution
from torch_manualbp.rules.layout import is_channels_last, laid_out
from torch_manualbp.rules.pooling.largest import own
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["AdaptiveAvgPool", "AvgPool"]

Sizes = tuple[int, ...]

POOLS: Sequence[Callable[..., Tensor]] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE: Sequence[Callable[..., Tensor]] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


class AvgPool(Rule):
    """The mean of the entries of each window.

    ::

        a(x) = Σ_u z(s x + u − p) / n(x)
        ⇒
        ∂C/∂z(y) = Σ_{x,u: s x + u − p = y} ∂C/∂a(x) / n(x)

    x and y are places, u one in the window, s the stride, p the padding, of zeros. n(x) is the size of the window; of
    what of it lies in z and the padding (``ceil_mode``), or in z alone (``count_padding`` false); or a given divisor.
    ∂C/∂z is the transposed convolution of ∂C/∂a / n with ones. Shapes: z (N, n, *), or without N for one sample, a
    with one entry for each window. Kept: nothing.
    """

    @staticmethod
    def forward(
        z: Tensor,
        window: Sizes,
        stride: Sizes,
        padding: Sizes,
        ceil_mode: bool,
        count_padding: bool,
        divisor: int | None,
    ) -> Tensor:
        more = () if len(window) == 1 else (divisor,)
        a = POOLS[len(window) - 1](z, window, stride, padding, ceil_mode, count_padding, *more)
        return own(a, len(window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.options = inputs
        ctx.size = z.shape[-len(ctx.options[0]) :]

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        window, stride, padding, *counting = ctx.options
        dz = average_gradient(da, ctx.size, window, stride, padding, *counting)
        return dz, *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return AvgPool.forward(dz, *ctx.options)


@formula(by="whole")
def average_gradient(
    da: Tensor,
    size: Sizes,
    window: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_padding: bool,
    divisor: int | None,
) -> Tensor:
    """∂C/∂z, of this size."""
    g = widened(da)
    if divisor is not None:
        g = g / divisor
    elif not ceil_mode and (count_padding or not any(padding)):
        g = g / math.prod(window)
    else:
        for d, (n, k, s, p) in enumerate(zip(size, window, stride, padding, strict=True), start=da.dim() - len(size)):
            begin = torch.arange(da.shape[d], device=da.device) * s - p
            end = (begin + k).clamp(max=n + p)
            if not count_padding:
                begin, end = begin.clamp(min=0), end.clamp(max=n)
            g = g / (end - begin).reshape(-1, *[1] * (da.dim() - d - 1))
    channels = da.shape[da.dim() - len(size) - 1]
    ones = g.new_ones(()).expand(channels, 1, *window)
    return transposed_convolution(g, ones, size, stride, padding, (1,) * len(size), channels).to(da.dtype)


class AdaptiveAvgPool(Rule):
    """The means of so many windows, that cover the input evenly.

    ::

        a(x) = Σ_y z(y) / n(x),  ⌊x n / m⌋ ≤ y < ⌈(x + 1) n / m⌉
        ⇒
        ∂C/∂z(y) = Σ_x ∂C/∂a(x) / n(x)        over the windows that y is in

    n is the size of the input, m of the output, along each dimension, n(x) that of the window. Shapes: z (N, n, *), or
    without N for one sample, a with m for each n. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, size: Sizes) -> Tensor:
        a = ADAPTIVE[len(size) - 1](z, size)
        return own(a, len(size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sizes], output: Tensor) -> None:
        z, size = inputs
        ctx.size, ctx.output_size, ctx.channels_last = z.shape[-len(size) :], size, is_channels_last(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return laid_out(adaptive_average_gradient(da, ctx.size), ctx.channels_last), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return AdaptiveAvgPool.forward(dz, ctx.output_size)


@formula(by="whole")
def adaptive_average_gradient(da: Tensor, size: Sizes) -> Tensor:
    """∂C/∂z, of this size, one dimension after the other."""
    dz = widened(da)
    for d, n in enumerate(size, start=da.dim() - len(size)):
        m = da.shape[d]
        if n % m == 0:  # windows that do not overlap
            dz = (dz / (n // m)).unsqueeze(d + 1).expand(*dz.shape[: d + 1], n // m, *dz.shape[d + 1 :])
            dz = dz.reshape(*dz.shape[:d], n, *dz.shape[d + 2 :])
            continue
        pairs = [
            (x, y, -(-(x + 1) * n // m) - x * n // m) for x in range(m) for y in range(x * n // m, -(-(x + 1) * n // m))
        ]
        of, to, count = (torch.tensor(column, device=da.device) for column in zip(*pairs, strict=True))
        terms = dz.index_select(d, of) / count.reshape(-1, *[1] * (da.dim() - d - 1))
        dz = terms.new_zeros(*dz.shape[:d], n, *dz.shape[d + 1 :]).index_add(d, to, terms)
    return dz.to(da.dtype)
