"""The same entries in another shape or order. The gradient goes the way back.

Every output is a tensor of its own: what a Function returns as a view may not be changed in place. So each is a view
of torch's, cloned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, in_dtype

__all__ = ["Cast", "Expand", "Permute", "Reshape", "Transpose"]


class Reshape(Rule):
    """The same entries, in the same order, in another shape.

    ::

        a = z with its entries counted off in another shape
        ⇒
        ∂C/∂z = ∂C/∂a in the shape of z

    Shapes: any two of as many entries; one size of the new shape may be −1, which is what remains. Kept: nothing.
    """

    jacobian = Diagonal(slope="")

    @staticmethod
    def forward(z: Tensor, shape: tuple[int, ...]) -> Tensor:
        return z.reshape(shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        z, _ = inputs
        ctx.shapes = z.shape, output.shape

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.reshape(ctx.shapes[0]), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.reshape(ctx.shapes[1]).clone()


class Transpose(Rule):
    """Two dimensions swapped.

    ::

        a_…j…i… = z_…i…j…
        ⇒
        ∂C/∂z_…i…j… = ∂C/∂a_…j…i…

    Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, d0: int, d1: int) -> Tensor:
        return z.transpose(d0, d1).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, *ctx.dims = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return da.transpose(*ctx.dims), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return dz.transpose(*ctx.dims).clone()


class Permute(Rule):
    """The dimensions in another order.

    ::

        dimension k of a is dimension dims[k] of z
        ⇒
        dimension dims[k] of ∂C/∂z is dimension k of ∂C/∂a

    Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dims: tuple[int, ...]) -> Tensor:
        return z.permute(dims).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        _, ctx.dims = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        n = len(ctx.dims)
        back = sorted(range(n), key=lambda k: ctx.dims[k] % n)
        return da.permute(back), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.permute(ctx.dims).clone()


class Expand(Rule):
    """The same entries repeated along dimensions of size 1, and along new ones in front.

    ::

        a = z, broadcast
        ⇒
        ∂C/∂z = Σ ∂C/∂a                    over what z was broadcast to

    Shapes: those that broadcast to the new shape; a size of −1 there stays as it is. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, shape: tuple[int, ...]) -> Tensor:
        return z.expand(shape).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        z, _ = inputs
        ctx.shapes = z.shape, output.shape

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.sum_to_size(ctx.shapes[0]), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.expand(ctx.shapes[1]).clone()


class Cast(Rule):
    """The same entries rounded to another dtype.

    ::

        a = z in another dtype
        ⇒
        ∂C/∂z = ∂C/∂a in the dtype of z    of a complex ∂C/∂a for a real z, the real part

    Shapes: any. Kept: nothing.
    """

    jacobian = Diagonal(slope="")

    @staticmethod
    def forward(z: Tensor, dtype: torch.dtype) -> Tensor:
        return z.to(dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        z, dtype = inputs
        ctx.dtypes = z.dtype, dtype

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return in_dtype(ctx.dtypes[0], da), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.to(ctx.dtypes[1], copy=True)
