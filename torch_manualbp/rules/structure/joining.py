"""Several tensors joined to one, and one split into several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, in_dtype

__all__ = ["Cat", "Split", "Stack", "Unbind"]


class Cat(Rule):
    """Tensors behind each other along a dimension that they have.

    ::

        a = (x₁, x₂, …)
        ⇒
        (∂C/∂x₁, ∂C/∂x₂, …) = ∂C/∂a, split where they were joined

    Shapes: xᵢ (*, nᵢ, *), a (*, Σ nᵢ, *). Kept: nothing.
    """

    @staticmethod
    def forward(dim: int, *tensors: Tensor) -> Tensor:
        return torch.cat(tensors, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim, *tensors = inputs
        _remember(ctx, tensors, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        _, *needed = ctx.needs_input_grad
        # torch passes over a tensor of shape (0), whatever dimensions the others have.
        is_nothing = [tuple(shape) == (0,) for shape in ctx.shapes]
        sizes = [0 if nothing else shape[ctx.dim] for nothing, shape in zip(is_nothing, ctx.shapes, strict=True)]
        parts = zip(is_nothing, da.split(sizes, ctx.dim), strict=True)
        parts_in_shape = [part.reshape(0) if nothing else part for nothing, part in parts]
        about = zip(needed, ctx.dtypes, parts_in_shape, strict=True)
        return None, *[in_dtype(dtype, part) if needs else None for needs, dtype, part in about]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        return torch.cat(_tangents(ctx, tangents), ctx.dim).to(ctx.dtype)


class Stack(Rule):
    """Tensors behind each other along a new dimension.

    ::

        a_k = x_k
        ⇒
        ∂C/∂x_k = ∂C/∂a_k

    Shapes: x_k (*, *), k = 1, …, n; a (*, n, *). Kept: nothing.
    """

    @staticmethod
    def forward(dim: int, *tensors: Tensor) -> Tensor:
        return torch.stack(tensors, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim, *tensors = inputs
        _remember(ctx, tensors, output)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        _, *needed = ctx.needs_input_grad
        about = zip(needed, ctx.dtypes, da.unbind(ctx.dim), strict=True)
        return None, *[in_dtype(dtype, part) if needs else None for needs, dtype, part in about]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        return torch.stack(_tangents(ctx, tangents), ctx.dim).to(ctx.dtype)


class Split(Rule):
    """A tensor cut along a dimension into parts of given sizes.

    ::

        (a₁, a₂, …) = z
        ⇒
        ∂C/∂z = (∂C/∂a₁, ∂C/∂a₂, …)

    Shapes: z (*, Σ nᵢ, *), aᵢ (*, nᵢ, *) for the sizes nᵢ. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, sizes: tuple[int, ...], dim: int) -> tuple[Tensor, ...]:
        return tuple([part.clone() for part in z.split(sizes, dim)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], int], output: tuple[Tensor, ...]) -> None:
        _, ctx.sizes, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(da, ctx.dim), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> tuple[Tensor, ...]:
        return tuple([part.clone() for part in dz.split(ctx.sizes, ctx.dim)])


class Unbind(Rule):
    """A tensor cut along a dimension, which its parts lack.

    ::

        a_k = z_k
        ⇒
        ∂C/∂z_k = ∂C/∂a_k

    Shapes: z (*, n, *), a_k (*, *), k = 1, …, n. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> tuple[Tensor, ...]:
        return tuple([part.clone() for part in z.unbind(dim)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, ...]) -> None:
        _, ctx.dim = inputs

    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None]:
        return torch.stack(da, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> tuple[Tensor, ...]:
        return tuple([part.clone() for part in dz.unbind(ctx.dim)])


def _remember(ctx: Any, tensors: list[Tensor], output: Tensor) -> None:
    """What gradients and tangents must look like."""
    ctx.shapes = tuple([t.shape for t in tensors])
    ctx.dtypes = tuple([t.dtype for t in tensors])
    ctx.dtype = output.dtype


def _tangents(ctx: Any, tangents: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The tangent of each tensor, or zeros where it has none."""
    some = next(t for t in tangents if t is not None)
    return [some.new_zeros(shape) if t is None else t for t, shape in zip(tangents, ctx.shapes, strict=True)]
