"""Borders put around the last dimensions of a tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule

__all__ = ["Pad"]


class Pad(Rule):
    """A border of one number.

    ::

        a(x + p) = z(x),  and the number elsewhere
        ⇒
        ∂C/∂z(x) = ∂C/∂a(x + p)

    ``pads`` has, from the last dimension on, how much p comes in front and how much behind; where that is negative so
    much is cut off. Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
        return F.pad(z, pads, "constant", value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], float], output: Tensor) -> None:
        _, ctx.pads, _ = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return F.pad(da, [-p for p in ctx.pads]), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return F.pad(dz, ctx.pads)
