"""The largest entry of each window, and entries put back where such were."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp._torch import unsafe_view
from torch_manualbp.rules.layout import is_channels_last, laid_out
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["AdaptiveMaxPool", "FractionalMaxPool", "MaxPool", "MaxUnpool", "entries_at", "own", "put_at"]

Sizes = tuple[int, ...]

POOLS: Sequence[Callable[..., Any]] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
UNPOOLS: Sequence[Callable[..., Tensor]] = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
ADAPTIVE: Sequence[Callable[..., Any]] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
FRACTIONAL: Sequence[Callable[..., Any]] = (F.fractional_max_pool2d, F.fractional_max_pool3d)


class _Largest(Rule):
    """Keeps where in z the largest entries are."""

    outputs: ClassVar[int] = 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z, *options = inputs
        _, i = output
        ctx.size, ctx.others, ctx.channels_last = z.shape[-len(options[0]) :], len(options), is_channels_last(z)
        ctx.mark_non_differentiable(i)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(i)
        ctx.save_for_forward(i)

    @staticmethod
    def backward(ctx: Any, da: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        (i,) = ctx.saved_tensors
        dz = None if da is None else laid_out(put_at(da, i, ctx.size), ctx.channels_last)
        return dz, *[None] * ctx.others

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> tuple[Tensor, None]:
        (i,) = ctx.saved_tensors
        return entries_at(dz, i, ctx.size), None


class MaxPool(_Largest):
    """The largest entry of each window.

    ::

        a(x) = max_u z(s x + d u − p) = z(i(x))
        ⇒
        ∂C/∂z(y) = Σ_{x: i(x) = y} ∂C/∂a(x)

    x and y are places, u one in the window, s the stride, d the dilation, p the padding, of entries that are −∞. i(x)
    is a flat index into the places of a sample and channel; with ``narrow`` of an integer that is no wider than these
    need. Shapes: z (N, n, *), or without N for one sample, a and i alike, with one for each window. Kept: i.
    """

    @staticmethod
    def forward(
        z: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool, narrow: bool
    ) -> tuple[Tensor, Tensor]:
        a, i = POOLS[len(window) - 1](z, window, stride, padding, dilation, ceil_mode, True)
        return own(a, len(window)), _narrowed(i, z, len(window)) if narrow else own(i, len(window))


class AdaptiveMaxPool(_Largest):
    """The largest entry of each of so many windows, that cover the input evenly.

    ::

        a(x) = max z(y) = z(i(x)),  ⌊x n / m⌋ ≤ y < ⌈(x + 1) n / m⌉
        ⇒
        ∂C/∂z(y) = Σ_{x: i(x) = y} ∂C/∂a(x)

    n is the size of the input, m of the output, along each dimension; x, y and i as in :class:`MaxPool`. Shapes: z (N,
    n, *), or without N for one sample, a and i alike, with m for each n. Kept: i.
    """

    @staticmethod
    def forward(z: Tensor, size: Sizes, narrow: bool) -> tuple[Tensor, Tensor]:
        a, i = ADAPTIVE[len(size) - 1](z, size, True)
        return own(a, len(size)), _narrowed(i, z, len(size)) if narrow else own(i, len(size))


class FractionalMaxPool(_Largest):
    """The largest entry of each of so many windows, whose distances are drawn.

    ::

        a(x) = max_u z(⌊(x + r) α⌋ − ⌊r α⌋ + u) = z(i(x)),  α = (n − k) / (m − 1)
        ⇒
        ∂C/∂z(y) = Σ_{x: i(x) = y} ∂C/∂a(x)

    n is the size of the input, m of the output, k of the window, along each dimension, and the last window is at n − k;
    u is a place in the window, r between 0 and 1; x, y and i as in :class:`MaxPool`. Shapes: z (N, n, *), or without N
    for one sample, r (N, n, dimensions), a and i like z, with m for each n. Kept: i.
    """

    @staticmethod
    def forward(z: Tensor, window: Sizes, size: Sizes, narrow: bool, r: Tensor) -> tuple[Tensor, Tensor]:
        a, i = FRACTIONAL[len(window) - 2](z, window, size, None, True, r)
        return a, _narrowed(i, z, len(window)) if narrow else i


class MaxUnpool(Rule):
    """Entries put back where the largest were, among zeros.

    ::

        a(i(x)) = z(x),  and 0 elsewhere
        ⇒
        ∂C/∂z(x) = ∂C/∂a(i(x))

    i as in :class:`MaxPool`, of which no two are alike. Window, stride and padding, or ``size``, say how large a is.
    Shapes: z and i (N, n, *), or without N for one sample. Kept: i.
    """

    @staticmethod
    def forward(z: Tensor, i: Tensor, window: Sizes, stride: Sizes, padding: Sizes, size: Sizes | None) -> Tensor:
        a = UNPOOLS[len(window) - 1](z, i, window, stride, padding, size)
        return own(a, len(window))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, i, *ctx.options = inputs
        ctx.size = output.shape[-len(ctx.options[0]) :]
        ctx.save_for_backward(i)
        ctx.save_for_forward(i)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (i,) = ctx.saved_tensors
        return entries_at(da, i, ctx.size), None, *[None for _ in ctx.options]

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (i,) = ctx.saved_tensors
        return put_at(dz, i, ctx.size)


@formula(by="whole")
def put_at(da: Tensor, i: Tensor, size: Sizes) -> Tensor:
    """∂C/∂z: of each sample and channel the sum of the ∂C/∂a(x) with i(x) = y, for each place y of this size."""
    at = da.dim() - len(size)
    rows, wide = da.shape[:at], widened(da)
    dz = wide.new_zeros((*rows, math.prod(size)))
    count = math.prod(da.shape[at:])
    dz = dz.scatter_add(-1, i.reshape(*rows, count).long(), wide.reshape(*rows, count))
    return dz.to(da.dtype).reshape(*rows, *size)


def entries_at(z: Tensor, i: Tensor, size: Sizes) -> Tensor:
    """z(i(x)): of each sample and channel, with places of this size."""
    at = z.dim() - len(size)
    rows, count = z.shape[:at], math.prod(i.shape[at:])
    found = z.reshape(*rows, math.prod(size)).gather(-1, i.reshape(*rows, count).long())
    return found.reshape(i.shape)


def _narrowed(i: Tensor, z: Tensor, dimensions: int) -> Tensor:
    """The flat indices of so many places in 2 or 4 bytes in place of ATen's 8."""
    places = math.prod(z.shape[-dimensions:])
    return i.to(torch.int16 if places < 1 << 15 else torch.int32 if places < 1 << 31 else torch.int64, copy=True)


def own(t: Tensor, dimensions: int) -> Tensor:
    """No view, as ATen returns of sequences: what a Function returns as a view may not be changed in place."""
    return unsafe_view(t, t.shape) if dimensions == 1 else t
