"""Entries left out at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule

__all__ = ["AlphaDropout", "Dropout"]


class LeftOut(Rule):
    """∂C/∂z = r ⊙ ∂C/∂a for r = s where an entry passes, else 0. Which entries pass is drawn by the caller.

    Shapes: z any, passes (booleans) that or of sizes that broadcast to it: whole channels pass or do not where it is
    (samples, channels, 1, …). Kept: passes.
    """

    jacobian = Diagonal(slope="r")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, passes, ctx.s, *ctx.others = inputs
        ctx.save_for_backward(passes)
        ctx.save_for_forward(passes)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (passes,) = ctx.saved_tensors
        return da * multiples(passes, ctx.s, da), None, None, *[None] * len(ctx.others)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (passes,) = ctx.saved_tensors
        return dz * multiples(passes, ctx.s, dz)


class Dropout(LeftOut):
    """The layer that lets each entry pass with probability 1 − p, and so much larger that the mean stays.

    ::

        a = r ⊙ z,  r = s = 1 / (1 − p) with probability 1 − p, else 0
        ⇒
        ∂C/∂z = r ⊙ ∂C/∂a

    Shapes: z any, passes (booleans) that or of sizes that broadcast to it: whole channels pass or do not where it is
    (samples, channels, 1, …). Kept: passes.
    """

    @staticmethod
    def forward(z: Tensor, passes: Tensor, s: float) -> Tensor:
        return z * multiples(passes, s, z)


class AlphaDropout(LeftOut):
    """The dropout that keeps mean and variance of what SELU makes: what does not pass becomes SELU's limit at −∞.

    ::

        a = r ⊙ z + b,  r = s and b = high with probability 1 − p, else r = 0 and b = low
        s = 1 / √((1 + α² p) (1 − p)),  high = α s p,  low = high − α s,  α = 1.758…
        ⇒
        ∂C/∂z = r ⊙ ∂C/∂a

    Shapes and what is kept are those of :class:`Dropout`.
    """

    @staticmethod
    def forward(z: Tensor, passes: Tensor, s: float, low: float, high: float) -> Tensor:
        return z * multiples(passes, s, z) + torch.where(passes, z.new_full((), high), z.new_full((), low))


def multiples(passes: Tensor, s: float, like: Tensor) -> Tensor:
    """r: s where an entry passes, else 0."""
    return passes.to(like.dtype) * s
