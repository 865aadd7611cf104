"""Arithmetic of the corresponding entries of two tensors, which broadcast against each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["Add", "Difference", "Divide", "Multiply", "Negate"]

Operand = Tensor | float
"""A tensor or a number, which takes no gradient."""


class Add(Rule):
    """The sum of two tensors, or of a tensor and a number.

    ::

        z = x + α y
        ⇒
        ∂C/∂x = ∂C/∂z
        ∂C/∂y = α ∂C/∂z

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. For complex
    numbers α is conjugated. Kept: nothing.
    """

    jacobian = Diagonal((0, 1), slope="")

    @staticmethod
    def forward(x: Operand, y: Operand, alpha: float) -> Tensor:
        return torch.add(x, y) if alpha == 1 else torch.add(x, y, alpha=alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Operand, Operand, float], output: Tensor) -> None:
        x, y, ctx.alpha = inputs
        _remember(ctx, x, y, output)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_dx, needs_dy, _ = ctx.needs_input_grad
        dx = _gradient(ctx, 0, dz) if needs_dx else None
        dy = None
        if needs_dy:
            dy = _gradient(ctx, 1, dz if ctx.alpha == 1 else _wide(ctx, 1, dz) * ctx.alpha.conjugate())
        return dx, dy, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        return _tangent(ctx, dx, dy if dy is None or ctx.alpha == 1 else dy * ctx.alpha)


class Difference(Rule):
    """The difference of two tensors, or of a tensor and a number; of an output s and a target y the error r, from which
    the losses start that need s and y for nothing else.

    ::

        r = s − y + ε
        ⇒
        ∂C/∂s = ∂C/∂r
        ∂C/∂y = −∂C/∂r

    As a rule of its own it lets a loss keep r, which is one tensor, and not s and y, which are two.
    Shapes: s and y broadcast against each other; their gradients sum over what they were broadcast to. Kept: nothing.
    """

    jacobian = Diagonal((0, 1), slope="")

    @staticmethod
    def forward(s: Operand, y: Operand, epsilon: float) -> Tensor:
        r = torch.sub(s, y)
        return r if epsilon == 0 else r + epsilon

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Operand, Operand, float], output: Tensor) -> None:
        s, y, _ = inputs
        _remember(ctx, s, y, output)

    @staticmethod
    def backward(ctx: Any, dr: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needs_ds, needs_dy, _ = ctx.needs_input_grad
        ds = _gradient(ctx, 0, dr) if needs_ds else None
        dy = -_gradient(ctx, 1, dr) if needs_dy else None
        return ds, dy, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        return _tangent(ctx, ds, None if dy is None else -dy)


class Multiply(Rule):
    """The product of the entries of two tensors, or of a tensor and a number.

    ::

        z = x ⊙ y
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ y
        ∂C/∂y = ∂C/∂z ⊙ x

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. For complex
    numbers x and y are conjugated. Kept: x where ∂C/∂y is needed, y where ∂C/∂x is needed.
    """

    jacobian = Diagonal((0, 1))

    @staticmethod
    def forward(x: Operand, y: Operand) -> Tensor:
        return torch.mul(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Operand, Operand], output: Tensor) -> None:
        x, y = inputs
        needs_dx, needs_dy = ctx.needs_input_grad
        _remember(ctx, x, y, output)
        _keep(ctx, x, y, keeps_x=needs_dy, keeps_y=needs_dx)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = _kept(ctx)
        needs_dx, needs_dy = ctx.needs_input_grad
        dx = _gradient(ctx, 0, _wide(ctx, 0, dz) * _conjugate(_wide(ctx, 0, y))) if needs_dx else None
        dy = _gradient(ctx, 1, _wide(ctx, 1, dz) * _conjugate(_wide(ctx, 1, x))) if needs_dy else None
        return dx, dy

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        x, y = _kept(ctx)
        return _tangent(ctx, None if dx is None else dx * y, None if dy is None else x * dy)


class Divide(Rule):
    """The quotient of the entries of two tensors, or of a tensor and a number.

    ::

        z = x / y
        ⇒
        ∂C/∂x = ∂C/∂z / y
        ∂C/∂y = −∂C/∂z ⊙ x / y²

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. For complex
    numbers x and y are conjugated. Kept: y, and x where ∂C/∂y is needed.
    """

    jacobian = Diagonal((0, 1))

    @staticmethod
    def forward(x: Operand, y: Operand) -> Tensor:
        return torch.div(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Operand, Operand], output: Tensor) -> None:
        x, y = inputs
        _, needs_dy = ctx.needs_input_grad
        _remember(ctx, x, y, output)
        _keep(ctx, x, y, keeps_x=needs_dy, keeps_y=True)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = _kept(ctx)
        needs_dx, needs_dy = ctx.needs_input_grad
        dx = _gradient(ctx, 0, _wide(ctx, 0, dz) / _conjugate(_wide(ctx, 0, y))) if needs_dx else None
        dy = None
        if needs_dy:  # x / y / y, since y² overflows
            x, y = (widened(t) if isinstance(t, Tensor) else t for t in (x, y))
            dy = _gradient(ctx, 1, -widened(dz) * _conjugate(torch.div(x, y) / y))
        return dx, dy

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        x, y = _kept(ctx)
        return _tangent(ctx, None if dx is None else dx / y, None if dy is None else -dy * (torch.div(x, y) / y))


class Negate(Rule):
    """The negative of each entry.

    ::

        z = −x
        ⇒
        ∂C/∂x = −∂C/∂z

    Shapes: any. Kept: nothing.
    """

    jacobian = Diagonal(slope="")

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.neg(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Tensor:
        return -dz

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return -dx


def _remember(ctx: Any, x: Operand, y: Operand, output: Tensor) -> None:
    """What gradients and tangents must look like."""
    ctx.shapes = tuple([t.shape if isinstance(t, Tensor) else None for t in (x, y)])
    ctx.dtypes = tuple([t.dtype if isinstance(t, Tensor) else None for t in (x, y)])
    ctx.output = output.shape, output.dtype


def _keep(ctx: Any, x: Operand, y: Operand, keeps_x: bool, keeps_y: bool) -> None:
    x_tensor, y_tensor = (t if isinstance(t, Tensor) else None for t in (x, y))
    ctx.numbers = tuple([None if isinstance(t, Tensor) else t for t in (x, y)])
    ctx.save_for_backward(x_tensor if keeps_x else None, y_tensor if keeps_y else None)
    ctx.save_for_forward(x_tensor, y_tensor)


def _kept(ctx: Any) -> list[Any]:
    """x and y, of which one may be a number."""
    return [t if number is None else number for t, number in zip(ctx.saved_tensors, ctx.numbers, strict=True)]


def _wide(ctx: Any, position: int, t: Any) -> Any:
    """A factor of the gradient at this position, widened where products are summed: they are not to be rounded then."""
    return widened(t) if isinstance(t, Tensor) and ctx.shapes[position] != ctx.output[0] else t


def _conjugate(t: Any) -> Any:
    if isinstance(t, Tensor):
        return t.conj() if t.is_complex() else t
    return t.conjugate()


def _gradient(ctx: Any, position: int, product: Tensor) -> Tensor:
    """The gradient of the operand at this position, from that of what it was broadcast to."""
    shape = ctx.shapes[position]
    return in_dtype(ctx.dtypes[position], product if product.shape == shape else product.sum_to_size(shape))


def _tangent(ctx: Any, of_x: Tensor | None, of_y: Tensor | None) -> Tensor:
    """The tangent of the output, from its terms."""
    shape, dtype = ctx.output
    if of_x is None or of_y is None:
        dz = of_x if of_y is None else of_y
        assert dz is not None
    else:
        dz = of_x + of_y
    return dz.expand(shape).to(dtype, copy=True)
