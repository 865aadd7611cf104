"""What operations share that act on the corresponding entries of two tensors, which broadcast against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["OfTwo", "Operand"]

Operand = Tensor | float
"""A tensor or a number, which takes no gradient."""


class OfTwo(Rule):
    """An operation z = f(x, y) of each pair of entries.

    ::

        z = f(x, y)
        ⇒
        ∂C/∂x = ∂C/∂z ⊙ ∂f/∂x
        ∂C/∂y = ∂C/∂z ⊙ ∂f/∂y

    It owes ``forward(x, y)``, and

    - ``by_x(x, y)`` and ``by_y(x, y)``: ∂f/∂x and ∂f/∂y in widened precision;
    - or ``to_x(dz, x, y)`` and ``to_y(dz, x, y)``, the whole product, where that is a choice and no product.

    Shapes: x and y broadcast against each other; their gradients sum over what they were broadcast to. For complex
    numbers the factors are conjugated. Kept: x and y.
    """

    jacobian = Diagonal((0, 1))

    by_x: ClassVar[Any]
    by_y: ClassVar[Any]

    @staticmethod
    def forward(x: Any, y: Any) -> Tensor:
        raise NotImplementedError("a rule of two operands must define forward(x, y)")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = vars(cls)
        if "by_x" in own:
            cls.to_x, cls.to_y = _product_with(cls.by_x), _product_with(cls.by_y)  # type: ignore[method-assign]
        if "by_x" in own or "to_x" in own:
            for method in _calculus(cls.to_x, cls.to_y):
                if method.__name__ not in own:
                    setattr(cls, method.__name__, staticmethod(method))
        super().__init_subclass__(**kwargs)

    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        """∂C/∂z ⊙ ∂f/∂x."""
        raise NotImplementedError("a rule of two operands must define by_x(x, y) or to_x(dz, x, y)")

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        """∂C/∂z ⊙ ∂f/∂y."""
        raise NotImplementedError("a rule of two operands must define by_y(x, y) or to_y(dz, x, y)")


def _product_with(factor: Callable[[Any, Any], Tensor]) -> Any:
    def to_operand(dz: Tensor, x: Any, y: Any) -> Tensor:
        """∂C/∂z ⊙ the factor, of complex numbers conjugated."""
        f = factor(x, y)
        return dz * (f.conj() if f.is_complex() else f)

    return staticmethod(to_operand)


def _calculus(to_x: Callable[..., Tensor], to_y: Callable[..., Tensor]) -> tuple[Callable[..., Any], ...]:
    """The methods of an operation with these products. They are closures, since torch.compile cannot trace a Function's
    class methods."""

    def setup_context(ctx: Any, inputs: tuple[Operand, Operand], output: Tensor) -> None:
        tensors = [t if isinstance(t, Tensor) else None for t in inputs]
        ctx.numbers = tuple([None if isinstance(t, Tensor) else t for t in inputs])
        ctx.about = tuple([None if t is None else (t.shape, t.dtype) for t in tensors])
        ctx.output = output.shape, output.dtype
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = operands(ctx)
        needs_dx, needs_dy = ctx.needs_input_grad
        dx = gradient(ctx, 0, to_x(widened(dz), x, y)) if needs_dx else None
        dy = gradient(ctx, 1, to_y(widened(dz), x, y)) if needs_dy else None
        return dx, dy

    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        x, y = operands(ctx)
        of_x = None if dx is None else to_x(widened(dx).conj(), x, y).conj()
        of_y = None if dy is None else to_y(widened(dy).conj(), x, y).conj()
        shape, dtype = ctx.output
        dz = of_y if of_x is None else of_x if of_y is None else of_x + of_y
        assert dz is not None
        return dz.resolve_conj().expand(shape).to(dtype, copy=True)

    return setup_context, backward, jvp


def operands(ctx: Any) -> list[Any]:
    """x and y as tensors, widened; a number has the dtype of the other."""
    kept = ctx.saved_tensors
    some = next(t for t in kept if t is not None)
    numbers = zip(kept, ctx.numbers, strict=True)
    return [widened(some.new_full((), number) if t is None else t) for t, number in numbers]


def gradient(ctx: Any, position: int, product: Tensor) -> Tensor:
    """The gradient of the operand at this position, from that of what it was broadcast to."""
    shape, dtype = ctx.about[position]
    return in_dtype(dtype, product if product.shape == shape else product.sum_to_size(shape))
