"""Choices between entries: by a mask, by bounds, by which is larger."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.elementwise import Elementwise
from torch_manualbp.rules.entrywise.two import OfTwo, Operand
from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["Abs", "Clamp", "MaskedFill", "Maximum", "Minimum", "Where"]


class Abs(Elementwise):
    """The absolute value.

    ::

        a = |z|
        ⇒
        f'(z) = sign z

    Of complex numbers z / |z| takes the place of the sign, and 0 that of 0 / 0; the tangent of a is then the real part
    of conj(f') ∂z. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.abs(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.sgn(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return da * torch.sgn(z)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return (dz * torch.sgn(z).conj()).real.clone() if z.is_complex() else dz * torch.sgn(z)


class Where(Rule):
    """One of two entries, by a mask.

    ::

        z = x where c,  y elsewhere
        ⇒
        ∂C/∂x = ∂C/∂z where c,  0 elsewhere
        ∂C/∂y = 0 where c,  ∂C/∂z elsewhere

    Shapes: c, x and y broadcast against each other; the gradients sum over what they were broadcast to. Kept: c.
    """

    jacobian = Diagonal((1, 2), slope="")

    @staticmethod
    def forward(c: Tensor, x: Operand, y: Operand) -> Tensor:
        return torch.where(c, x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Operand, Operand], output: Tensor) -> None:
        c, *operands = inputs
        ctx.about = tuple([(t.shape, t.dtype) if isinstance(t, Tensor) else None for t in operands])
        ctx.output = output.shape, output.dtype
        ctx.save_for_backward(c)
        ctx.save_for_forward(c)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (c,) = ctx.saved_tensors
        _, needs_dx, needs_dy = ctx.needs_input_grad
        dx = _summed(torch.where(c, dz, 0), *ctx.about[0]) if needs_dx else None
        dy = _summed(torch.where(c, 0, dz), *ctx.about[1]) if needs_dy else None
        return None, dx, dy

    @staticmethod
    def jvp(ctx: Any, _: None, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        (c,) = ctx.saved_tensors
        shape, dtype = ctx.output
        dz = torch.where(c, 0 if dx is None else dx, 0 if dy is None else dy)
        return dz.expand(shape).to(dtype, copy=True)


class MaskedFill(Rule):
    """The entries that a mask leaves, and one number in place of the others.

    ::

        a = v where m,  z elsewhere
        ⇒
        ∂C/∂z = 0 where m,  ∂C/∂a elsewhere
        ∂C/∂v = Σ ∂C/∂a where m

    Shapes: z and m broadcast against each other, v is a number or a tensor without dimensions. Kept: m.
    """

    jacobian = Diagonal(slope="")

    @staticmethod
    def forward(z: Tensor, m: Tensor, v: Operand) -> Tensor:
        return torch.masked_fill(z, m, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Operand], output: Tensor) -> None:
        z, m, v = inputs
        ctx.about = z.shape, z.dtype
        ctx.dtype = v.dtype if isinstance(v, Tensor) else None
        ctx.shape = output.shape
        ctx.save_for_backward(m)
        ctx.save_for_forward(m)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (m,) = ctx.saved_tensors
        needs_dz, _, needs_dv = ctx.needs_input_grad
        dz = _summed(torch.where(m, 0, da), *ctx.about) if needs_dz else None
        dv = _summed(torch.where(m, da, 0), torch.Size(), ctx.dtype) if needs_dv else None
        return dz, None, dv

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, _: None, dv: Tensor | None) -> Tensor:
        (m,) = ctx.saved_tensors
        da = torch.where(m, 0 if dv is None else dv, 0 if dz is None else dz)
        return da.expand(ctx.shape).to(ctx.about[1], copy=True)


class Clamp(Rule):
    """The entries that lie between two bounds, and the bounds in place of the others.

    ::

        a = min(max(z, l), h)
        ⇒
        ∂C/∂z = ∂C/∂a where l ≤ z ≤ h,  0 elsewhere
        ∂C/∂l = ∂C/∂a where z < l < h,  0 elsewhere
        ∂C/∂h = ∂C/∂a where z > h or l > h,  0 elsewhere

    Either bound is a number, a tensor or None. Shapes: z, l and h broadcast against each other; the gradients sum over
    what they were broadcast to. Kept: z and the bounds.
    """

    jacobian = Diagonal((0, 1, 2), slope="")

    @staticmethod
    def forward(z: Tensor, low: Any, high: Any) -> Tensor:
        return torch.clamp(z, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Operand | None, Operand | None], output: Tensor) -> None:
        ctx.numbers = tuple([None if isinstance(t, Tensor) else t for t in inputs])
        ctx.about = tuple([(t.shape, t.dtype) if isinstance(t, Tensor) else None for t in inputs])
        ctx.output = output.shape, output.dtype
        tensors = [t if isinstance(t, Tensor) else None for t in inputs]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        bounded, about = _bounded(ctx), zip(_MASKS, ctx.needs_input_grad, ctx.about, strict=True)
        return tuple([_summed(torch.where(goes(*bounded), da, 0), *of) if needs else None for goes, needs, of in about])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        bounded = _bounded(ctx)
        parts = [torch.where(goes(*bounded), d, 0) for goes, d in zip(_MASKS, tangents, strict=True) if d is not None]
        shape, dtype = ctx.output
        return sum(parts[1:], parts[0]).expand(shape).to(dtype, copy=True)


class Maximum(OfTwo):
    """The larger of two entries.

    ::

        z = max(x, y)
        ⇒
        ∂C/∂x = ∂C/∂z where x > y,  half of it where x = y,  0 where x < y
        ∂C/∂y = ∂C/∂z where x < y,  half of it where x = y,  0 where x > y

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    jacobian = Diagonal((0, 1), slope="")

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.maximum(x, y)

    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x < y, 0, torch.where(x == y, dz / 2, dz))

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x > y, 0, torch.where(x == y, dz / 2, dz))


class Minimum(OfTwo):
    """The smaller of two entries.

    ::

        z = min(x, y)
        ⇒
        ∂C/∂x = ∂C/∂z where x < y,  half of it where x = y,  0 where x > y
        ∂C/∂y = ∂C/∂z where x > y,  half of it where x = y,  0 where x < y

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: x and y.
    """

    jacobian = Diagonal((0, 1), slope="")

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        return torch.minimum(x, y)

    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x > y, 0, torch.where(x == y, dz / 2, dz))

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x < y, 0, torch.where(x == y, dz / 2, dz))


def _summed(product: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of an operand of this shape and dtype, from that of what it was broadcast to."""
    return in_dtype(dtype, product if product.shape == shape else widened(product).sum_to_size(shape))


def _bounded(ctx: Any) -> list[Any]:
    kept = zip(ctx.saved_tensors, ctx.numbers, strict=True)
    return [number if t is None else t for t, number in kept]


def _goes_to_z(z: Tensor, low: Any, high: Any) -> Tensor:
    if low is None or high is None:
        return z <= high if low is None else z >= low
    return (z >= low) & (z <= high)


def _goes_to_low(z: Tensor, low: Any, high: Any) -> Tensor:
    return z < low if high is None else (z < low) & (low < high)


def _goes_to_high(z: Tensor, low: Any, high: Any) -> Tensor:
    return z > high if low is None else (z > high) | (low > high)


_MASKS = _goes_to_z, _goes_to_low, _goes_to_high
