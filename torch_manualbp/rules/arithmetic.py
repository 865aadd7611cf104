"""Arithmetic that keeps its digits, and is written over what nobody else holds."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp.rules.evaluate import records_nothing

__all__ = [
    "SIGMOID_IS_POSITIVE",
    "larger",
    "logistic",
    "logistic_and_divisor",
    "quotient",
    "times",
    "times_one_plus",
]

SIGMOID_IS_POSITIVE = 87
"""torch.sigmoid(−t) is no 0 up to here. It is where exp(t) overflows, although σ is a number yet."""


def quotient(fresh: Tensor, d: Tensor) -> Tensor:
    """fresh / d, written over ``fresh``, which nobody else may hold, where that may be."""
    return fresh.div_(d) if records_nothing(fresh, d) else fresh / d


def times(g: Tensor, fresh: Tensor) -> Tensor:
    """g ⊙ fresh, written over ``fresh``, which nobody else may hold, where that may be."""
    if records_nothing(g, fresh) and g.dtype == fresh.dtype and g.shape == fresh.shape:
        return fresh.mul_(g)
    return g * fresh


def times_one_plus(fresh: Tensor, y: Tensor, sign: int = 1) -> Tensor:
    """fresh ⊙ (1 ± y), written over ``fresh``, which nobody else may hold, where that may be.

    As fresh ± fresh ⊙ y, which is one pass, and rounded once by processors that fuse it, so that no digit cancels.
    """
    if records_nothing(fresh, y):
        return fresh.addcmul_(fresh, y, value=sign)
    return torch.addcmul(fresh, fresh, y, value=sign)


def larger(fresh: Tensor, other: Tensor) -> Tensor:
    """max(fresh, other), written over ``fresh``, which nobody else may hold, where that may be."""
    return torch.maximum(fresh, other, out=fresh if records_nothing(fresh, other) else None)


def logistic(t: Tensor) -> Tensor:
    """σ(t) = exp(t) / (1 + exp(t)), where exp(t) is no larger than it need be.

    torch's own is 0 where exp(−t) overflows, of float32 from t = −88.7 down, although the numbers go on to exp(−103).
    """
    if not records_nothing(t):
        return t.sigmoid()
    e = t.clamp(max=40).exp_()
    return e.div_(e + 1)


def logistic_and_divisor(t: Tensor) -> tuple[Tensor, Tensor]:
    """σ(t) and d = 1 + exp(t): 1 − σ(t) = 1 / d, which loses no digits to σ."""
    e = t.clamp(max=80).exp()
    d = e + 1
    return quotient(e, d), d
