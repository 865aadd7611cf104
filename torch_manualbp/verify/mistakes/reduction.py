"""Mistakes planted in the rules of reductions and running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import Amax, Amin, Cumprod, Cumsum, LogCumsumExp, LogSumExp, Norm, Prod, Std, Var
from torch_manualbp.verify.mistakes.mistake import breaks

WRONG = "first derivatives", "gradcheck"


@breaks("ties", "first derivatives")
class EachOfATieTakesAll(Amax):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        z, a = ctx.saved_tensors
        return (z == a.unsqueeze(1)) * da.unsqueeze(1), None, None


@breaks("two dimensions", *WRONG)
class LargestForSmallest(Amin):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        z, _ = ctx.saved_tensors
        largest = z == z.amax(ctx.dims, keepdim=True)
        return largest * da.reshape(1, 3, 1), None, None


@breaks("kept dimension", *WRONG)
class NotNormalized(LogSumExp):
    """exp(z) for exp(z − a)."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        z, _ = ctx.saved_tensors
        return torch.exp(z) * da, None, None


@breaks("kept dimension", *WRONG)
class CorrectionForgotten(Var):
    """n for n − c."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.correction = 0
        return Var.backward(ctx, da)


@breaks("all", *WRONG)
class VarianceForDeviation(Std):
    """The root's own derivative is left out."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        _, a = ctx.saved_tensors
        return Std.backward(ctx, da * a)


@breaks("of order 3", *WRONG)
class EuclideanForAnyOrder(Norm):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.p = 2
        return Norm.backward(ctx, da)


@breaks("zeros", *WRONG)
class DividesByZero(Prod):
    """a / z, and 0 where z is 0."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        a = z.prod(ctx.dim, keepdim=True)
        return da.unsqueeze(ctx.dim) * torch.where(z == 0, 0, a / z), None, None


@breaks("zeros", *WRONG)
class DividesByZeros(Cumprod):
    """Σ a ∂C/∂a / z, and 0 where z is 0."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        z, a = ctx.saved_tensors
        sums = (da * a).flip(ctx.dim).cumsum(ctx.dim).flip(ctx.dim)
        return torch.where(z == 0, 0, sums / z), None


@breaks("rows", *WRONG)
class NotReversed(Cumsum):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.cumsum(ctx.dim), None


@breaks("rows", *WRONG)
class EachByItself(LogCumsumExp):
    """Without what comes behind."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        z, a = ctx.saved_tensors
        return torch.exp(z - a) * da, None
