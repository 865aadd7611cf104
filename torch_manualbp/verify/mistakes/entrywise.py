"""Mistakes planted in the rules of functions of each entry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import (
    Abs,
    Clamp,
    Exp,
    Exp2,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    MaskedFill,
    Maximum,
    Minimum,
    Power,
    PowerOf,
    Reciprocal,
    Rsqrt,
    Sqrt,
    Where,
)
from torch_manualbp.verify.mistakes.mistake import breaks

WRONG = "first derivatives", "gradcheck"


@breaks("matrix", *WRONG)
class ExponentialOfTheOutput(Exp):
    """exp(a) for a."""

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return torch.exp(a)


@breaks("matrix", *WRONG)
class Base2ForgottenByTheDerivative(Exp2):
    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a


@breaks("matrix", *WRONG)
class OneForgotten(Expm1):
    """f' = a, as of the exponential."""

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a


@breaks("matrix", "NaN", "infinities")
class LogarithmClamped(Log):
    """As people write it against division by 0: what is no number goes by unseen."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.nan_to_num(1 / z.clamp(min=1e-8))


@breaks("matrix", *WRONG)
class NaturalForBase2(Log2):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / z


@breaks("matrix", *WRONG)
class FactorForDivisor(Log10):
    """log 10 / z."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 2.302585092994046 / z


@breaks("matrix", *WRONG)
class LogarithmWithoutOne(Log1p):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / z


@breaks("cube", *WRONG)
class ExponentNotLowered(Power):
    """p z^p."""

    @staticmethod
    def derivative(z: Tensor, p: float) -> Tensor:
        return p * torch.pow(z, p)


@breaks("matrix", *WRONG)
class ExponentTakenForConstant(PowerOf):
    """The slope by the exponent is that by the base."""

    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return y * torch.pow(x, y - 1)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return y * torch.pow(x, y - 1)


@breaks("matrix", *WRONG)
class HalfForgotten(Sqrt):
    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return 1 / a


@breaks("matrix", *WRONG)
class SquareForCube(Rsqrt):
    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a * a * -0.5


@breaks("matrix", *WRONG)
class SignOfTheReciprocal(Reciprocal):
    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a * a


@breaks("matrix", *WRONG)
class SignForgotten(Abs):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da


@breaks("matrix", *WRONG)
class BranchesSwapped(Where):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        _, dx, dy = Where.backward(ctx, dz)
        return None, dy, dx


@breaks("matrix", *WRONG)
class FilledEntriesLearn(MaskedFill):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        return da, None, None


@breaks("by tensors", *WRONG)
class BoundsSwapped(Clamp):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        dz, dl, dh = Clamp.backward(ctx, da)
        assert dl is not None
        assert dh is not None
        return dz, dh.mean().expand_as(dl), dl.mean().expand_as(dh)


@breaks("ties", "first derivatives")
class FirstOfATieTakesAll(Maximum):
    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x < y, 0, dz)

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(x >= y, 0, dz)


@breaks("matrix", *WRONG)
class LargerForSmaller(Minimum):
    @staticmethod
    def to_x(dz: Tensor, x: Any, y: Any) -> Tensor:
        return Maximum.to_x(dz, x, y)

    @staticmethod
    def to_y(dz: Tensor, x: Any, y: Any) -> Tensor:
        return Maximum.to_y(dz, x, y)
