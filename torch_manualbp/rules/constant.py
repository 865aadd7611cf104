"""The product with a constant, which the rules that draw random numbers are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule

__all__ = ["TimesConstant"]


class TimesConstant(Rule):
    """a = r ⊙ z  ⇒  ∂C/∂z = r ⊙ ∂C/∂a, for an r of which nothing is learnt. Kept: r."""

    jacobian = Diagonal(slope="r")

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
