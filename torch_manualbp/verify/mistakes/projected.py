"""Mistakes in linear + cross-entropy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_manualbp.rules import LinearCrossEntropy, LinearCrossEntropyProbabilities
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("mean", "second derivatives", "gradgradcheck")
class LogSumHeldConstant(LinearCrossEntropy):
    """A second derivative sees nothing of the scores behind ℓ."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dlse: Tensor | None = None, *_: Any) -> Any:
        return LinearCrossEntropy.backward(ctx, g, None)


@breaks("mean, weighted, ε=0.2", "first derivatives", "gradcheck")
class TargetOfTheSmoothed(LinearCrossEntropyProbabilities):
    """∂C/∂y of the smoothed target, without 1 − ε."""

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, dlse: Tensor | None = None, *_: Any) -> Any:
        dx, dW, db, dy, *others = LinearCrossEntropyProbabilities.backward(ctx, g, dlse)
        return dx, dW, db, None if dy is None else dy / (1 - ctx.epsilon), *others
