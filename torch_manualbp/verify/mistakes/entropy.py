"""Mistakes in the cross-entropies of probabilities: a target that a backward takes for another one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_manualbp.rules import BinaryCrossEntropy, CrossEntropyProbabilities
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("mean", "first derivatives", "gradcheck")
class GradientOfTheSum(BinaryCrossEntropy):
    """The mean's without the division."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *of_copies: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.reduction = "sum"
        return BinaryCrossEntropy.backward(ctx, g, *of_copies)


@breaks("none, ε=0.2", "first derivatives", "gradcheck")
class TargetNotSmoothed(CrossEntropyProbabilities):
    """y for (1 − ε) y + ε / K."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *of_kept: Tensor | None) -> Any:
        ctx.epsilon, ctx.keeps_smoothed = 0.0, False
        return CrossEntropyProbabilities.backward(ctx, g, *of_kept)
