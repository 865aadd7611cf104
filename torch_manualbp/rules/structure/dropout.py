"""Entries left out at random."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_manualbp.rules.rule import Rule

__all__ = ["Dropout"]


class Dropout(Rule):
    """The layer that lets each entry pass with probability 1 − p, and so much larger that the mean stays.

    ::

        a = r ⊙ z,  r = 1 / (1 − p) with probability 1 − p, else 0
        ⇒
        ∂C/∂z = r ⊙ ∂C/∂a

    r is drawn by the caller, and a constant. Shapes: z and r alike. Kept: r.
    """

    @staticmethod
    def forward(z: Tensor, r: Tensor) -> Tensor:
        return z * r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        _, r = inputs
        ctx.save_for_backward(r)
        ctx.save_for_forward(r)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (r,) = ctx.saved_tensors
        return da * r, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (r,) = ctx.saved_tensors
        return dz * r
