"""Mistakes in the slopes of activations: a term, a factor or a side of a kink that a derivation loses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules import (
    CELU,
    SELU,
    GELUTanh,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    LogSigmoid,
    Mish,
    RReLU,
    Softshrink,
    Softsign,
    Threshold,
)
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("other options", "first derivatives", "gradcheck")
class AlphaOfELU(CELU):
    """exp(z) for exp(z / α)."""

    @staticmethod
    def derivative(z: Tensor, alpha: float) -> Tensor:
        return torch.where(z <= 0, torch.exp(z.clamp(max=0)), 1)


@breaks("matrix", "first derivatives", "gradcheck")
class ExactForTheApproximation(GELUTanh):
    """The derivative of Φ(z) z, of which the forward is an approximation."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.erf(z * 0.5**0.5) / 2 + 0.5 + z * torch.exp(-z * z / 2) * (2 * torch.pi) ** -0.5


@breaks("matrix", "first derivatives", "gradcheck")
class LeftSideCutOff(Hardshrink):
    """z ≤ λ for |z| ≤ λ."""

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return torch.where(z <= lambd, 0, da)


@breaks("matrix", "first derivatives", "gradcheck")
class SlopeOfOne(Hardsigmoid):
    """The sixth is forgotten."""

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return torch.where((z > -3) & (z < 3), da, 0)


@breaks("matrix", "first derivatives", "gradcheck")
class GateHeldConstant(Hardswish):
    """h(z) without z h'(z)."""

    @staticmethod
    def delta(da: Tensor, z: Tensor) -> Tensor:
        return da * F.relu6(z + 3) / 6


@breaks("matrix", "first derivatives", "gradcheck")
class SigmoidOfZ(LogSigmoid):
    """σ(z) for σ(−z)."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.sigmoid(z)


@breaks("matrix", "first derivatives", "gradcheck")
class TanhDerivedAsSigmoid(Mish):
    """w (1 − w) for 1 − w²."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        w = torch.tanh(F.softplus(z))
        return w + z * torch.sigmoid(z) * w * (1 - w)


@breaks("matrix", "first derivatives")
class SlopeDividedOut(RReLU):
    """∂C/∂a / r for r ∂C/∂a."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (r,) = ctx.saved_tensors
        return da / r, None


@breaks("matrix", "first derivatives", "gradcheck")
class ScaleOfOneSideAlone(SELU):
    """λ where z > 0, and no λ where it is not."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return torch.where(z <= 0, alpha * torch.exp(z.clamp(max=0)), scale)


@breaks("matrix", "first derivatives", "gradcheck")
class PassesEverywhere(Softshrink):
    """1 within ±λ, too."""

    @staticmethod
    def delta(da: Tensor, z: Tensor, lambd: float) -> Tensor:
        return torch.where(z == lambd, 0, da)


@breaks("matrix", "first derivatives", "gradcheck")
class NotSquared(Softsign):
    """1 / (1 + |z|) for its square."""

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return 1 / (1 + z.abs())


@breaks("matrix", "first derivatives")
class ValueForTheThreshold(Threshold):
    """Compares with the value that stands below."""

    @staticmethod
    def delta(da: Tensor, z: Tensor, threshold: float, value: float) -> Tensor:
        return torch.where(z <= value, 0, da)
