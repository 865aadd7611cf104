"""Mistakes planted in the rules of what stands between the layers."""

from __future__ import annotations

from typing import Any

import torch
from planted import Mistake
from torch import Tensor

from torch_manualbp.rules import (
    Add,
    Cat,
    Divide,
    Dropout,
    Expand,
    Index,
    MatMul,
    Mean,
    Multiply,
    Permute,
    Slice,
    Split,
    Unbind,
)


class BroadcastNotSummed(Add):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return dz, dz * ctx.alpha, None


class ScaleForgotten(Add):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ctx.alpha = 1
        return Add.backward(ctx, dz)


class ConjugateForgotten(Multiply):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz * y, dz * x


class KeepsWhatNobodyNeeds(Multiply):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, Any], output: Tensor) -> None:
        Multiply.setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs)


class TangentOfOneFactor(Multiply):
    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        return Multiply.jvp(ctx, dx, None if dx is not None else dy)


class SignOfTheDivisor(Divide):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dx, dy = Divide.backward(ctx, dz)
        return dx, None if dy is None else -dy


class RoundedAtEveryStep(Divide):
    """Right, and in low precision a few ulp off."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz / y, -dz * x / y / y


class TransposeForAdjoint(MatMul):
    """yᵀ and xᵀ where complex numbers need yᴴ and xᴴ."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz @ y.mT, x.mT @ dz


class FirstOfTheBatch(MatMul):
    """The gradient of the one matrix from one of its products."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dx, _ = MatMul.backward(ctx, dz)
        x, _ = ctx.saved_tensors
        return dx, x[0].mT @ dz[0]


class OneCopyOfAll(Expand):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da[0, :, :1], None


class PermutedAgain(Permute):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.permute(ctx.dims), None


class SplitOneTooFar(Cat):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return Cat.backward(ctx, da.roll(-1, ctx.dim))


class JoinedInAnotherOrder(Split):
    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None, None]:
        return Split.backward(ctx, *reversed(da))


class LastPartForgotten(Unbind):
    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None]:
        return Unbind.backward(ctx, *da[:-1], torch.zeros_like(da[-1]))


class ReturnsAView(Slice):
    """Which may not be changed in place."""

    @staticmethod
    def forward(z: Tensor, index: tuple[Any, ...]) -> Tensor:
        return z[index]


class LastWins(Index):
    """An entry that is read twice has both gradients."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        dz = da.new_zeros(ctx.shape)
        return torch.ops.aten.index_put(dz, list(ctx.saved_tensors), da), None


class SumForMean(Mean):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        dz, *_ = Mean.backward(ctx, da)
        return dz * dz.numel() / da.numel(), None, None


class MeanOfEverything(Mean):
    """Divides by the number of all entries, and not of those of one mean."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        dz, *_ = Mean.backward(ctx, da)
        return dz / da.numel(), None, None


class MaskNotScaled(Dropout):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (r,) = ctx.saved_tensors
        return da * r.sign(), None


MISTAKES: list[Mistake] = [
    (BroadcastNotSummed, "scaled, broadcast", ["raw backward"]),
    (ScaleForgotten, "scaled, broadcast", ["first derivatives", "gradcheck", "forward mode"]),
    (ConjugateForgotten, "matrix", ["complex numbers"]),
    (KeepsWhatNobodyNeeds, "matrix", ["bytes kept"]),
    (TangentOfOneFactor, "broadcast", ["forward mode", "Jacobians"]),
    (SignOfTheDivisor, "matrix", ["first derivatives", "gradcheck"]),
    (RoundedAtEveryStep, "matrix", ["one rounding, bfloat16", "one rounding, float16"]),
    (TransposeForAdjoint, "matrices", ["complex numbers"]),
    (FirstOfTheBatch, "batch by one matrix", ["first derivatives", "gradcheck"]),
    (OneCopyOfAll, "column", ["first derivatives", "gradcheck"]),
    (PermutedAgain, "cube", ["raw backward"]),
    (SplitOneTooFar, "features", ["first derivatives", "gradcheck"]),
    (JoinedInAnotherOrder, "batches", ["first derivatives", "gradcheck"]),
    (LastPartForgotten, "columns", ["first derivatives", "Jacobians"]),
    (ReturnsAView, "some features", ["changes in place"]),
    (LastWins, "rows", ["first derivatives", "gradcheck"]),
    (SumForMean, "two dimensions", ["first derivatives", "gradcheck"]),
    (MeanOfEverything, "kept dimension", ["first derivatives", "gradcheck"]),
    (MaskNotScaled, "matrix", ["first derivatives", "second derivatives"]),
]
