"""Entries that integers name along one dimension, and tensors with some of their entries put in, or added to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["Assign", "Gather", "IndexPut", "Scatter", "ScatterAdd"]


class Gather(Rule):
    """The entries that a tensor of integers names along a dimension.

    ::

        a_…s… = z_…i(s)…
        ⇒
        ∂C/∂z_…i… = Σ_{s: i(s) = i} ∂C/∂a_…s…

    Shapes: the index has as many dimensions as z, and a its shape. Kept: the index.
    """

    @staticmethod
    def forward(z: Tensor, dim: int, index: Tensor) -> Tensor:
        return torch.gather(z, dim, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor], output: Tensor) -> None:
        z, ctx.dim, index = inputs
        ctx.shape = z.shape
        ctx.save_for_backward(index)
        ctx.save_for_forward(index)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        dz = widened(da).new_zeros(ctx.shape).scatter_add(ctx.dim, index, widened(da))
        return dz.to(da.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (index,) = ctx.saved_tensors
        return dz.gather(ctx.dim, index)


class Scatter(Rule):
    """A tensor with numbers in the places that integers name along a dimension.

    ::

        a_…i(s)… = y_…s…,  elsewhere z
        ⇒
        ∂C/∂z = 0 in these places,  ∂C/∂a elsewhere
        ∂C/∂y_…s… = ∂C/∂a_…i(s)…

    No place is named twice. Shapes: the index and y of one shape, with as many dimensions as z; or y is a number. Kept:
    the index.
    """

    @staticmethod
    def forward(z: Tensor, dim: int, index: Tensor, y: Any) -> Tensor:
        return torch.scatter(z, dim, index, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor, Any], output: Tensor) -> None:
        z, ctx.dim, index, _ = inputs
        ctx.shapes = z.shape, index.shape
        ctx.save_for_backward(index)
        ctx.save_for_forward(index)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (index,) = ctx.saved_tensors
        needs_dz, _, _, needs_dy = ctx.needs_input_grad
        dz = da.scatter(ctx.dim, index, 0) if needs_dz else None
        return dz, None, None, da.gather(ctx.dim, index) if needs_dy else None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _dim: None, _index: None, dy: Tensor | None) -> Tensor:
        (index,) = ctx.saved_tensors
        some = dy if dz is None else dz
        assert some is not None
        dz = some.new_zeros(ctx.shapes[0]) if dz is None else dz
        return torch.scatter(dz, ctx.dim, index, some.new_zeros(ctx.shapes[1]) if dy is None else dy)


class ScatterAdd(Rule):
    """A tensor with numbers added to the places that integers name along a dimension.

    ::

        a_…i… = z_…i… + Σ_{s: i(s) = i} y_…s…
        ⇒
        ∂C/∂z = ∂C/∂a
        ∂C/∂y_…s… = ∂C/∂a_…i(s)…

    Shapes: the index and y of one shape, with as many dimensions as z. Kept: the index where ∂C/∂y is
    needed.
    """

    @staticmethod
    def forward(z: Tensor, dim: int, index: Tensor, y: Tensor) -> Tensor:
        return torch.scatter_add(z, dim, index, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor, Tensor], output: Tensor) -> None:
        z, ctx.dim, index, _ = inputs
        ctx.shape = z.shape
        ctx.save_for_backward(index if ctx.needs_input_grad[3] else None)
        ctx.save_for_forward(index)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (index,) = ctx.saved_tensors
        needs_dz, _, _, needs_dy = ctx.needs_input_grad
        return da if needs_dz else None, None, None, da.gather(ctx.dim, index) if needs_dy else None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _dim: None, _index: None, dy: Tensor | None) -> Tensor:
        (index,) = ctx.saved_tensors
        if dy is None:
            assert dz is not None
            return dz.clone()
        return torch.scatter_add(dy.new_zeros(ctx.shape) if dz is None else dz, ctx.dim, index, dy)


class IndexPut(Rule):
    """A tensor with numbers put into the entries that tensors of integers name, or added to them.

    ::

        a_i(s) = y_s, elsewhere z                 a_i = z_i + Σ_{s: i(s) = i} y_s
        ⇒
        ∂C/∂z = 0 there, elsewhere ∂C/∂a          ∂C/∂z = ∂C/∂a
        ∂C/∂y_s = ∂C/∂a_i(s)

    The arguments after the first three are one index for each of z's first dimensions: a tensor of integers, or None
    for all of the dimension. Shapes: y broadcasts to those entries, and its gradient sums over what it was broadcast
    to. Kept: the indices.
    """

    @staticmethod
    def forward(z: Tensor, y: Tensor, accumulate: bool, *index: Tensor | None) -> Tensor:
        return torch.ops.aten.index_put(z, list(index), y, accumulate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, y, ctx.accumulate, *index = inputs
        ctx.shapes, ctx.dtype = (z.shape, y.shape), y.dtype
        ctx.save_for_backward(*index)
        ctx.save_for_forward(*index)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        index = list(ctx.saved_tensors)
        needs_dz, needs_dy, *_ = ctx.needs_input_grad
        dz = dy = None
        if needs_dz:
            dz = da if ctx.accumulate else torch.ops.aten.index_put(da, index, da.new_zeros(()))
        if needs_dy:
            dy = _summed(torch.ops.aten.index(da, index), ctx.shapes[1], ctx.dtype)
        return (dz, dy, None, *[None for _ in index])

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dy: Tensor | None, *_: None) -> Tensor:
        some = dy if dz is None else dz
        assert some is not None
        dz = some.new_zeros(ctx.shapes[0]) if dz is None else dz
        dy = some.new_zeros(()) if dy is None else dy
        return torch.ops.aten.index_put(dz, list(ctx.saved_tensors), dy, ctx.accumulate)


class Assign(Rule):
    """A tensor with numbers put into the entries on a grid, which numbers and slices name.

    ::

        a[index] = y,  elsewhere z
        ⇒
        ∂C/∂z[index] = 0,  elsewhere ∂C/∂a
        ∂C/∂y = ∂C/∂a[index]

    The index is a tuple of integers, slices, None and ``...``. Shapes: y broadcasts to z[index], and its gradient sums
    over what it was broadcast to. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, y: Any, index: tuple[Any, ...]) -> Tensor:
        a = z.clone()
        a[index] = y
        return a

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any, tuple[Any, ...]], output: Tensor) -> None:
        z, y, ctx.index = inputs
        ctx.shapes = z.shape, y.shape if isinstance(y, Tensor) else None
        ctx.dtypes = z.dtype, y.dtype if isinstance(y, Tensor) else None

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_dz, needs_dy, _ = ctx.needs_input_grad
        dz = None
        if needs_dz:
            dz = da.clone()
            dz[ctx.index] = 0
        dy = _summed(da[ctx.index], ctx.shapes[1], ctx.dtypes[1]) if needs_dy else None
        return dz, dy, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        kept, put = None, None
        if dz is not None:
            kept = dz.clone()
            kept[ctx.index] = 0
        if dy is not None:
            put = dy.new_zeros(ctx.shapes[0], dtype=ctx.dtypes[0])
            put[ctx.index] = dy
        if kept is None or put is None:
            da = put if kept is None else kept
            assert da is not None
            return da
        return kept + put


def _summed(product: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of what has this shape and dtype, from that of what it was broadcast to."""
    if product.shape == shape:
        return in_dtype(dtype, product)
    # Leading dimensions of size 1, which a broadcast may lack.
    wide = widened(product)
    return in_dtype(dtype, wide.sum_to_size(shape[max(len(shape) - wide.dim(), 0) :]).reshape(shape))
