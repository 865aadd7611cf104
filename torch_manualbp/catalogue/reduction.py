"""The rules of what makes one number of several, and of running sums, their torch twins and sample inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.reduction import (
    Amax,
    Amin,
    Cumprod,
    Cumsum,
    LogCumsumExp,
    LogSumExp,
    Norm,
    Prod,
    Std,
    Var,
)

__all__ = ["REDUCTIONS"]

DIVIDES = "torch divides by z where no z is 0, and what is no number spreads to all entries; ours multiplies the others"
BY_LOGARITHMS = "torch's tangents are sums of logarithms, and off by 1e-11; ours are right to 1e-15"
DIFFERENCE_OF_INFINITIES = "from an infinite z on ours is NaN, ∞ − ∞, in all of a row, and torch's in the first entry"
BEFORE_AND_BEHIND = "the products before and behind an entry are laid out plainly, whatever the strides of z"
NO_NUMBER = dict.fromkeys(("NaN", "infinities"), DIVIDES)
ONE_SIDED = {"gradgradcheck, ties": "on either side of a tie the derivative is another number"}


def _extreme_samples(make: Make) -> Iterator[Sample]:
    yield Sample("all", (make(5, 4), None, False))
    yield Sample("two dimensions", (make(2, 3, 4), (0, -1), False))
    yield Sample("kept dimension", (make(5, 4), (1,), True))


def _with_ties(make: Make) -> Iterator[Sample]:
    yield from _extreme_samples(make)
    yield Sample("ties", (torch.tensor([[1, 2, 2], [3, 0, 3], [1, 1, 2]]).to(make.device, make.dtype), (1,), False))


def _moment_samples(make: Make) -> Iterator[Sample]:
    yield Sample("all", (make(5, 4), None, 1, False))
    yield Sample("two dimensions", (make(2, 3, 4), (0, -1), 0, False))
    yield Sample("kept dimension", (make(5, 4), (1,), 2, True))


def _norm_samples(make: Make) -> Iterator[Sample]:
    yield Sample("all", (make(5, 4), 2, None, False))
    yield Sample("of order 1", (make(2, 3, 4), 1, (0, -1), False))
    yield Sample("of order 3", (make(5, 4), 3.0, (1,), True))
    yield Sample("of order 1/2", (make(5, 4), 0.5, (0,), False))
    yield Sample("maximum", (make(5, 4), math.inf, (1,), False))
    yield Sample("minimum", (make(5, 4), -math.inf, None, True))
    yield Sample("empty batch", (make(0, 4), 2, (1,), False))


def _product_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(5, 4), -1, False))
    yield Sample("kept dimension", (make(2, 3, 4), 1, True))
    yield Sample("zeros", (make(3, 4) * torch.tensor([1, 0, 1, 1]), 1, False))
    yield Sample("two zeros", (make(3, 4) * torch.tensor([0, 1, 0, 1]), 1, False))


def _running_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(5, 7), -1))
    yield Sample("columns", (make(5, 4), 0))
    yield Sample("empty batch", (make(0, 4), 1))


def _running_product_samples(make: Make) -> Iterator[Sample]:
    yield from _running_samples(make)
    yield Sample("zeros", (make(3, 4) * torch.tensor([1, 0, 1, 0]), 1))


def _var(z: Tensor, dims: Any, correction: float, keepdim: bool) -> Tensor:
    return torch.var(z, dims, correction=correction, keepdim=keepdim)


def _std(z: Tensor, dims: Any, correction: float, keepdim: bool) -> Tensor:
    return torch.std(z, dims, correction=correction, keepdim=keepdim)


def _amax(z: Tensor, dims: Any, keepdim: bool) -> Tensor:
    return torch.amax(z, () if dims is None else dims, keepdim)


def _amin(z: Tensor, dims: Any, keepdim: bool) -> Tensor:
    return torch.amin(z, () if dims is None else dims, keepdim)


def _logsumexp(z: Tensor, dims: Any, keepdim: bool) -> Tensor:
    return torch.logsumexp(z, tuple(range(z.dim())) if dims is None else dims, keepdim)


def _along(input: Tensor, dim: int) -> tuple[Any, ...]:
    return input, dim


REDUCTIONS: tuple[Operation, ...] = (
    Operation(Amax, _amax, _with_ties, exempt=ONE_SIDED),
    Operation(Amin, _amin, _with_ties, exempt=ONE_SIDED),
    Operation(Cumprod, torch.cumprod, _running_product_samples, complex=True, cancels=True, exempt=NO_NUMBER),
    Operation(Cumsum, torch.cumsum, _running_samples, complex=True),
    Operation(
        LogCumsumExp,
        torch.logcumsumexp,
        _running_samples,
        functions="logcumsumexp",
        arguments=_along,
        complex=True,
        cancels=True,
        exempt={
            "infinities": DIFFERENCE_OF_INFINITIES,
            **dict.fromkeys(("Hessians", "tangents"), BY_LOGARITHMS),
        },
    ),
    Operation(LogSumExp, _logsumexp, _extreme_samples),
    Operation(
        Prod,
        torch.prod,
        _product_samples,
        complex=True,
        exempt={**NO_NUMBER, "channels last": BEFORE_AND_BEHIND},
    ),
    Operation(Std, _std, _moment_samples, complex=True),
    Operation(Var, _var, _moment_samples, complex=True),
    Operation(Norm, torch.linalg.vector_norm, _norm_samples, complex=True),
)
