"""The losses of a number y that the output s should be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["MeanSquaredError", "squared_error_gradient"]


class MeanSquaredError(Rule):
    """The squared error.

    ::

        C_i = (s_i − y_i)²                 C = Σ C_i / n,  n = the number of entries
        ⇒
        ∂C/∂s_i = 2 (s_i − y_i) g / n
        ∂C/∂y_i = −∂C/∂s_i

    Shapes: s and y broadcast against each other. ``"sum"`` and ``"none"`` have n = 1. Kept: s, y.
    """

    @staticmethod
    def forward(s: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(s, y, reduction=reduction)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        s, y, ctx.reduction = inputs
        ctx.save_for_backward(s, y)
        ctx.save_for_forward(s, y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        s, y = ctx.saved_tensors
        needs_ds, needs_dy, _ = ctx.needs_input_grad
        n = _number_of_entries(s, y) if ctx.reduction == "mean" else 1
        g = widened(g) / n
        ds = dy = None
        if needs_ds:
            ds = squared_error_gradient(*_in_one_dtype(s, y), g).sum_to_size(s.shape).to(s.dtype)
        if needs_dy:
            dy = squared_error_gradient(*_in_one_dtype(y, s), g).sum_to_size(y.shape).to(y.dtype)
        return ds, dy, None

    @staticmethod
    def jvp(ctx: Any, ds: Tensor | None, dy: Tensor | None, _: None) -> Tensor:
        s, y = ctx.saved_tensors
        n = _number_of_entries(s, y) if ctx.reduction == "mean" else 1
        dr = (0 if ds is None else ds) - (0 if dy is None else dy)
        dC = squared_error_gradient(*_in_one_dtype(s, y), dr)
        return (dC if ctx.reduction == "none" else dC.sum() / n).to(torch.promote_types(s.dtype, y.dtype))


def squared_error_gradient(s: Tensor, y: Tensor, g: Tensor | float = 1) -> Tensor:
    """∂C/∂s = 2 (s − y) g, with one g for all or one for each entry."""
    return (s - y) * (2 * g)


def _number_of_entries(s: Tensor, y: Tensor) -> int:
    """n, and 1 where there are none, so that no derivative is the empty sum's 0 times 1 / 0."""
    shape = s.shape if s.shape == y.shape else torch.broadcast_shapes(s.shape, y.shape)
    return max(math.prod(shape), 1)


def _in_one_dtype(s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As the forward does, also for a target of bools, which have no minus."""
    dtype = torch.promote_types(s.dtype, y.dtype)
    return widened(s.to(dtype)), widened(y.to(dtype))
