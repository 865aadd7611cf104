"""The product of matrices, of which both may learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import unsafe_view
from torch_manualbp.rules.rule import Rule, in_dtype, widened

__all__ = ["MatMul", "matmul_left_gradient", "matmul_right_gradient"]


class MatMul(Rule):
    """The product of two matrices, of each pair of a batch of them, or of a matrix and a vector, or of two vectors.

    ::

        z = x y
        ⇒
        ∂C/∂x = ∂C/∂z yᴴ
        ∂C/∂y = xᴴ ∂C/∂z

    Shapes, as in :func:`torch.matmul`: x (*, n, m), y (*, m, p), z (*, n, p), where the * broadcast against each other;
    the gradients sum over what they were broadcast to. An x of shape (m) is one row, a y of shape (m) one column, and z
    has then no dimension for it. ᴴ is the transpose, of complex numbers conjugated. Kept: x where ∂C/∂y is needed, y
    where ∂C/∂x is needed.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        z = torch.matmul(x, y)
        # Of other than matrices z is a view of one, and what a Function returns as a view may not be changed in place.
        return z if x.dim() == y.dim() == 2 else unsafe_view(z, z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, y = inputs
        needs_dx, needs_dy = ctx.needs_input_grad
        ctx.shapes = x.shape, y.shape
        ctx.dtypes = x.dtype, y.dtype
        ctx.save_for_backward(x if needs_dy else None, y if needs_dx else None)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        needs_dx, needs_dy = ctx.needs_input_grad
        x_shape, y_shape = ctx.shapes
        # Under autocast z has another dtype, which torch, too, computes its gradients in.
        x, y = (t if t is None or t.dtype == dz.dtype else t.to(dz.dtype) for t in (x, y))
        if len(y_shape) == 1:
            dz, y = dz.unsqueeze(-1), None if y is None else y.unsqueeze(-1)
        if len(x_shape) == 1:
            dz, x = dz.unsqueeze(-2), None if x is None else x.unsqueeze(-2)
        dx = dy = None
        if needs_dx:
            dx = matmul_left_gradient(dz, y, x_shape if len(x_shape) > 1 else (1, *x_shape))
            dx = in_dtype(ctx.dtypes[0], dx if len(x_shape) > 1 else dx.squeeze(-2))
        if needs_dy:
            dy = matmul_right_gradient(x, dz, y_shape if len(y_shape) > 1 else (*y_shape, 1))
            dy = in_dtype(ctx.dtypes[1], dy if len(y_shape) > 1 else dy.squeeze(-1))
        return dx, dy

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor | None:
        x, y = ctx.saved_tensors
        dz: Tensor | None = None
        if dx is not None:
            dz = torch.matmul(dx, y)
        if dy is not None:
            dz = torch.matmul(x, dy) if dz is None else dz + torch.matmul(x, dy)
        return dz


def matmul_left_gradient(dz: Tensor, y: Tensor, shape: Sequence[int]) -> Tensor:
    """∂C/∂x = ∂C/∂z yᴴ: (*, n, p), (*, m, p) → (*, n, m), summed to ``shape``."""
    if len(shape) == 2 < dz.dim():  # one matrix x for a batch: zᵀ = yᵀ xᵀ has xᵀ on the right
        return matmul_right_gradient(y.mT, dz.mT, (shape[1], shape[0])).mT
    if tuple(shape[:-2]) == tuple(dz.shape[:-2]):
        return torch.matmul(dz, y.mH)
    return torch.matmul(widened(dz), widened(y).mH).sum_to_size(shape).to(y.dtype)


def matmul_right_gradient(x: Tensor, dz: Tensor, shape: Sequence[int]) -> Tensor:
    """∂C/∂y = xᴴ ∂C/∂z: (*, n, m), (*, n, p) → (*, m, p), summed to ``shape``; for one matrix y by the product."""
    if len(shape) == 2 < dz.dim():
        x = x.expand(*dz.shape[:-2], *x.shape[-2:])
        return torch.mm(_rows(x).mH, _rows(dz))
    if tuple(shape[:-2]) == tuple(dz.shape[:-2]):
        return torch.matmul(x.mH, dz)
    return torch.matmul(widened(x).mH, widened(dz)).sum_to_size(shape).to(x.dtype)


def _rows(t: Tensor) -> Tensor:
    """(*, n, m) → (* n, m). The number of rows is written out: ``reshape(-1, m)`` fails for m = 0."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
