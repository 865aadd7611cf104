"""Mistakes planted in the rules of trigonometric, special and two-argument functions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import (
    I0,
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atan2,
    Atanh,
    Cos,
    Cosh,
    Digamma,
    Erf,
    Erfc,
    Erfinv,
    Hypot,
    Lgamma,
    LogAddExp,
    LogAddExp2,
    Sin,
    Sinh,
    Tan,
    XLogY,
)
from torch_manualbp.verify.mistakes.mistake import breaks

WRONG = "first derivatives", "gradcheck"


@breaks("matrix", *WRONG)
class SignOfTheInverseCosine(Acos):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.rsqrt((1 - z) * (1 + z))


@breaks("matrix", *WRONG)
class PlusOneUnderTheRoot(Acosh):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.rsqrt(z * z + 1)


@breaks("matrix", *WRONG)
class CosineForSine(Asin):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.rsqrt((1 - z) * (1 + z))


@breaks("matrix", *WRONG)
class RootForgottenOfTheInverse(Asinh):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z * z)


@breaks("matrix", *WRONG)
class RootOfTheInverse(Atan):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.rsqrt(1 + z * z)


@breaks("matrix", *WRONG)
class TangentForHyperbolic(Atanh):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z * z)


@breaks("matrix", *WRONG)
class SignOfTheCosine(Cos):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.sin(z)


@breaks("matrix", *WRONG)
class CircularForHyperbolic(Cosh):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.sinh(z)


@breaks("matrix", *WRONG)
class SameForDerivative(Digamma):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.digamma(z)


@breaks("matrix", *WRONG)
class FactorOfTheErrorFunction(Erf):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(-z * z)


@breaks("matrix", *WRONG)
class SignOfTheComplement(Erfc):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(-z * z) * (2 / math.sqrt(math.pi))


@breaks("matrix", *WRONG)
class InputForOutput(Erfinv):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.exp(z * z) * (math.sqrt(math.pi) / 2)


@breaks("matrix", *WRONG)
class OrderNotRaised(I0):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.special.i0(z)


@breaks("matrix", *WRONG)
class ValueForDerivative(Lgamma):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.lgamma(z)


@breaks("matrix", *WRONG)
class SignOfTheSine(Sin):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.cos(z)


@breaks("matrix", *WRONG)
class SignOfTheHyperbolicSine(Sinh):
    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return -torch.cosh(z)


@breaks("matrix", *WRONG)
class HyperbolicForTangent(Tan):
    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return 1 - a * a


@breaks("matrix", *WRONG)
class SignOfTheAbscissa(Atan2):
    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return y / (x * x + y * y)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return x / (x * x + y * y)


@breaks("matrix", *WRONG)
class LegsSwapped(Hypot):
    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return y / torch.hypot(x, y)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return x / torch.hypot(x, y)


@breaks("matrix", *WRONG)
class SharesSwapped(LogAddExp):
    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(y - x)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(x - y)


@breaks("matrix", *WRONG)
class NaturalSharesForBase2(LogAddExp2):
    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(x - y)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.sigmoid(y - x)


@breaks("matrix", *WRONG)
class LogarithmTakenForConstant(XLogY):
    @staticmethod
    def by_x(x: Any, y: Any) -> Tensor:
        return torch.log(y)

    @staticmethod
    def by_y(x: Any, y: Any) -> Tensor:
        return torch.zeros_like(x + y)
