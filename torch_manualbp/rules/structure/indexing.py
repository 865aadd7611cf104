"""Some entries of a tensor: those on a grid, or those that integers name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["Index", "Slice"]


class Slice(Rule):
    """The entries on a grid, which numbers and slices name.

    ::

        a = z[index]
        ⇒
        ∂C/∂z[index] = ∂C/∂a,  and 0 elsewhere

    The index is a tuple of integers, slices, None and ``...``. Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, index: tuple[Any, ...]) -> Tensor:
        return z[index].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[Any, ...]], output: Tensor) -> None:
        z, ctx.index = inputs
        ctx.shape = z.shape

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        dz = da.new_zeros(ctx.shape)
        dz[ctx.index] = da
        return dz, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz[ctx.index].clone()


class Index(Rule):
    """The entries that tensors of integers name, as often as they do.

    ::

        a_s = z_i(s)
        ⇒
        ∂C/∂z_i = Σ_{s: i(s) = i} ∂C/∂a_s

    The arguments after z are one index for each of its first dimensions: a tensor of integers, or None for all of the
    dimension. Shapes: the indices broadcast against each other; a has their shape in place of the dimensions that they
    name, or in front where these are not neighbours. Kept: the indices.
    """

    @staticmethod
    def forward(z: Tensor, *index: Tensor | None) -> Tensor:
        return torch.ops.aten.index(z, list(index))  # z[…] of an index without dimensions is a view

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *index = inputs
        ctx.shape = z.shape
        ctx.save_for_backward(*index)
        ctx.save_for_forward(*index)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        index = ctx.saved_tensors
        dz = widened(da).new_zeros(ctx.shape)
        dz = torch.ops.aten.index_put(dz, list(index), widened(da), True)
        return (dz.to(da.dtype), *[None for _ in index])

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return torch.ops.aten.index(dz, list(ctx.saved_tensors))
