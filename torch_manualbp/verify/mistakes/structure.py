"""Mistakes planted in the rules of what stands between the layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import (
    Add,
    AlphaDropout,
    Cast,
    Cat,
    Divide,
    Dropout,
    Expand,
    Identity,
    Index,
    MatMul,
    Mean,
    Multiply,
    Negate,
    Permute,
    Reshape,
    Slice,
    Split,
    Stack,
    Sum,
    Transpose,
    Unbind,
)
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("scaled, broadcast", "raw backward")
class BroadcastNotSummed(Add):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return dz, dz * ctx.alpha, None


@breaks("scaled, broadcast", "first derivatives", "gradcheck", "forward mode")
class ScaleForgotten(Add):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        ctx.alpha = 1
        return Add.backward(ctx, dz)


@breaks("matrix", "complex numbers")
class ConjugateForgotten(Multiply):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz * y, dz * x


@breaks("matrix", "bytes kept")
class KeepsWhatNobodyNeeds(Multiply):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, Any], output: Tensor) -> None:
        Multiply.setup_context(ctx, inputs, output)
        ctx.save_for_backward(*inputs)


@breaks("broadcast", "forward mode", "Jacobians")
class TangentOfOneFactor(Multiply):
    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        return Multiply.jvp(ctx, dx, None if dx is not None else dy)


@breaks("matrix", "first derivatives", "gradcheck")
class SignOfTheDivisor(Divide):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dx, dy = Divide.backward(ctx, dz)
        return dx, None if dy is None else -dy


@breaks("matrix", "one rounding, bfloat16", "one rounding, float16")
class RoundedAtEveryStep(Divide):
    """Right, and in low precision a few ulp off."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz / y, -dz * x / y / y


@breaks("matrices", "complex numbers")
class TransposeForAdjoint(MatMul):
    """yᵀ and xᵀ where complex numbers need yᴴ and xᴴ."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        return dz @ y.mT, x.mT @ dz


@breaks("batch by one matrix", "first derivatives", "gradcheck")
class FirstOfTheBatch(MatMul):
    """The gradient of the one matrix from one of its products."""

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor | None]:
        dx, _ = MatMul.backward(ctx, dz)
        x, _ = ctx.saved_tensors
        return dx, x[0].mT @ dz[0]


@breaks("column", "first derivatives", "gradcheck")
class OneCopyOfAll(Expand):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da[0, :, :1], None


@breaks("cube", "raw backward")
class PermutedAgain(Permute):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.permute(ctx.dims), None


@breaks("features", "first derivatives", "gradcheck")
class SplitOneTooFar(Cat):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return Cat.backward(ctx, da.roll(-1, ctx.dim))


@breaks("batches", "first derivatives", "gradcheck")
class JoinedInAnotherOrder(Split):
    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None, None]:
        return Split.backward(ctx, *reversed(da))


@breaks("columns", "first derivatives", "Jacobians")
class LastPartForgotten(Unbind):
    @staticmethod
    def backward(ctx: Any, *da: Tensor) -> tuple[Tensor, None]:
        return Unbind.backward(ctx, *da[:-1], torch.zeros_like(da[-1]))


@breaks("some features", "changes in place")
class ReturnsAView(Slice):
    """Which may not be changed in place."""

    @staticmethod
    def forward(z: Tensor, index: tuple[Any, ...]) -> Tensor:
        return z[index]


@breaks("rows", "first derivatives", "gradcheck")
class LastWins(Index):
    """An entry that is read twice has both gradients."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        dz = da.new_zeros(ctx.shape)
        return torch.ops.aten.index_put(dz, list(ctx.saved_tensors), da), None


@breaks("two dimensions", "first derivatives", "gradcheck")
class SumForMean(Mean):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        dz, *_ = Mean.backward(ctx, da)
        return dz * dz.numel() / da.numel(), None, None


@breaks("kept dimension", "first derivatives", "gradcheck")
class MeanOfEverything(Mean):
    """Divides by the number of all entries, and not of those of one mean."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        dz, *_ = Mean.backward(ctx, da)
        return dz / da.numel(), None, None


@breaks("matrix", "first derivatives", "second derivatives")
class MaskNotScaled(Dropout):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (passes,) = ctx.saved_tensors
        return da * passes, None, None


@breaks("channels", "first derivatives", "second derivatives")
class EveryEntryPasses(AlphaDropout):
    """What is low has a gradient, too."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return da * ctx.s, None, None, None, None


@breaks("matrix", "first derivatives")
class LengthForTheRealPart(Cast):
    """|∂C/∂a|, where a complex gradient's real part is that of a real z."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.abs().to(ctx.dtypes[0]), None


@breaks("matrix", "first derivatives", "gradcheck")
class Reversed(Identity):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return -da


@breaks("matrix", "first derivatives", "gradcheck")
class SignForgotten(Negate):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Tensor:
        return dz


@breaks("flat", "first derivatives", "gradcheck")
class ColumnsFirst(Reshape):
    """Counts the entries along the first dimension first."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        shape = ctx.shapes[0]
        return da.reshape(shape[::-1]).permute(*reversed(range(len(shape)))), None


@breaks("matrices", "first derivatives", "gradcheck")
class LastForTheFirst(Stack):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        return Stack.backward(ctx, da.flip(ctx.dim))


@breaks("all", "first derivatives", "gradcheck")
class DividedAsAMean(Sum):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        dz, *_ = Sum.backward(ctx, da)
        return dz / dz.numel(), None, None


@breaks("cube", "first derivatives", "gradcheck")
class OnlyReshaped(Transpose):
    """Lays the entries into z's shape as they lie in the gradient."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return da.reshape(da.transpose(*ctx.dims).shape), None, None
