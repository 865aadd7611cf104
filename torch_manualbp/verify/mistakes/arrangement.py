"""Mistakes planted in the rules of entries in another order or put elsewhere, and of contractions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules import (
    Assign,
    DiagEmbed,
    DiagonalEntries,
    Einsum,
    Flip,
    Gather,
    IndexPut,
    Roll,
    Scatter,
    ScatterAdd,
    Tril,
    Triu,
)
from torch_manualbp.verify.mistakes.mistake import breaks

WRONG = "first derivatives", "gradcheck"


@breaks("cube", *WRONG)
class NotFlippedBack(Flip):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.clone(), None


@breaks("cube", *WRONG)
class RolledOn(Roll):
    """In the same direction once more."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return da.roll(ctx.shifts, ctx.dims), None, None


@breaks("batch", *WRONG)
class MainDiagonal(Tril):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.tril(), None


@breaks("square", *WRONG)
class LowerForUpper(Triu):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.tril(ctx.k), None


@breaks("square", *WRONG)
class SpreadOverRows(DiagonalEntries):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        return da.unsqueeze(-1).expand(ctx.shape), None, None, None


@breaks("vector", *WRONG)
class SumOfRows(DiagEmbed):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        return da.sum(-1), None, None, None


@breaks("rows", *WRONG)
class LastOneWins(Gather):
    """An entry that is read twice has both gradients."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return da.new_zeros(ctx.shape).scatter(ctx.dim, index, da), None, None


@breaks("matrix", *WRONG)
class WrittenOverEntriesLearn(Scatter):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        *_, dy = Scatter.backward(ctx, da)
        return da, None, None, dy


@breaks("matrix", *WRONG)
class SumsToo(ScatterAdd):
    """The gradient of the sum that an entry is part of, as often as there are terms."""

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (index,) = ctx.saved_tensors
        counts = torch.zeros_like(da).scatter_add(ctx.dim, index, torch.ones_like(index, dtype=da.dtype))
        return da, None, None, (da * counts).gather(ctx.dim, index)


@breaks("rows", *WRONG)
class PutAsIfAdded(IndexPut):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        ctx.accumulate = True
        return IndexPut.backward(ctx, da)


@breaks("some features", *WRONG)
class AssignedEntriesLearn(Assign):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        _, dy, _ = Assign.backward(ctx, da)
        return da, dy, None


@breaks("entries", *WRONG)
class FactorsNotTransposed(Einsum):
    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        return None, None, None, (dz * x.mT).mT, (dz.mT * y.mT).mT
