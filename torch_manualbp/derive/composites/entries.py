"""Functions of the corresponding entries of tensors, made of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.derive.composites.refusal import NoRule

__all__ = ["COMPOSITES"]


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    product = tensor1 * tensor2
    return input + (product if value == 1 else value * product)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    quotient = tensor1 / tensor2
    return input + (quotient if value == 1 else value * quotient)


def _lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    return input + weight * (end - input)


def _clamp_min(input: Tensor, min: Any) -> Tensor:
    return torch.clamp(input, min=min)


def _clamp_max(input: Tensor, max: Any) -> Tensor:
    return torch.clamp(input, max=max)


def _fmax(input: Tensor, other: Tensor) -> Tensor:
    with torch.no_grad():
        is_first = (input >= other) | other.isnan()
    return torch.where(is_first, input, other)


def _fmin(input: Tensor, other: Tensor) -> Tensor:
    with torch.no_grad():
        is_first = (input <= other) | other.isnan()
    return torch.where(is_first, input, other)


def _frac(input: Tensor) -> Tensor:
    with torch.no_grad():
        whole = torch.trunc(input)
    return input - whole


def _nan_to_num(
    input: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    with torch.no_grad():
        is_number, numbers = torch.isfinite(input), torch.nan_to_num(input, nan, posinf, neginf)
    return torch.where(is_number, input, numbers)


def _float_power(input: Any, exponent: Any) -> Tensor:
    wide = torch.complex128 if any(torch.is_tensor(t) and t.is_complex() for t in (input, exponent)) else torch.float64
    base, power = (t.to(wide) if torch.is_tensor(t) else t for t in (input, exponent))
    return torch.pow(base, power)


def _ldexp(input: Tensor, other: Tensor) -> Tensor:
    return input * torch.pow(2.0, other)


def _deg2rad(input: Tensor) -> Tensor:
    return input * (math.pi / 180)


def _rad2deg(input: Tensor) -> Tensor:
    return input * (180 / math.pi)


def _logit(input: Tensor, eps: float | None = None) -> Tensor:
    p = input if eps is None else torch.clamp(input, eps, 1 - eps)
    return torch.log(p / (1 - p))


def _real(input: Tensor) -> Tensor:
    if input.is_complex():
        raise NoRule("what conjugates complex numbers has no rule; keep real and imaginary parts in two tensors")
    return input


COMPOSITES: Mapping[Callable[..., Any], str] = {
    _addcmul: "addcmul",
    _addcdiv: "addcdiv",
    _lerp: "lerp",
    _clamp_min: "clamp_min",
    _clamp_max: "clamp_max",
    _fmax: "fmax",
    _fmin: "fmin",
    _frac: "frac",
    _nan_to_num: "nan_to_num",
    _float_power: "float_power",
    _ldexp: "ldexp",
    _deg2rad: "deg2rad",
    _rad2deg: "rad2deg",
    _logit: "logit",
    _real: "real conj conj_physical resolve_conj resolve_neg",
}
