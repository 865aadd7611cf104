"""The rules of functions of each entry that are no activations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.activation import OVERFLOWS
from torch_manualbp.catalogue.operation import Make, Operation, Sample, alone, both
from torch_manualbp.rules.entrywise import (
    I0,
    Abs,
    Acos,
    Acosh,
    Asin,
    Asinh,
    Atan,
    Atan2,
    Atanh,
    Clamp,
    Cos,
    Cosh,
    Digamma,
    Erf,
    Erfc,
    Erfinv,
    Exp,
    Exp2,
    Expm1,
    Hypot,
    Lgamma,
    Log,
    Log1p,
    Log2,
    Log10,
    LogAddExp,
    LogAddExp2,
    MaskedFill,
    Maximum,
    Minimum,
    Power,
    PowerOf,
    Reciprocal,
    Rsqrt,
    Sin,
    Sinh,
    Sqrt,
    Tan,
    Where,
    XLogY,
)

__all__ = ["ENTRYWISE"]

ONE_SIDED = {"gradgradcheck, ties": "on either side of a tie the derivative is another number"}
ROUNDS_BEFORE_THE_PRODUCT = "torch rounds f'(z) to float16, where it overflows or is 0, before it multiplies"
ROUNDED = {"special values, float16": ROUNDS_BEFORE_THE_PRODUCT}
BELOW_1 = {"infinities": "at −∞, where a is NaN, the slope of torch is 0, and ours NaN"}


def _anywhere(make: Make, *shape: int) -> Tensor:
    return make(*shape)


def _positive(make: Make, *shape: int) -> Tensor:
    return make.positive(*shape) if not make.dtype.is_complex else make(*shape)


def _inside(make: Make, *shape: int) -> Tensor:
    """Between −0.8 and 0.8."""
    return 0.8 * torch.tanh(make(*shape))


def _above_1(make: Make, *shape: int) -> Tensor:
    return 1 + _positive(make, *shape)


def _of_entries(numbers: Callable[..., Tensor], *options: Any) -> Callable[[Make], Iterator[Sample]]:
    """Numbers of a domain, in any shape."""

    def samples(make: Make) -> Iterator[Sample]:
        yield Sample("matrix", (numbers(make, 5, 4), *options))
        yield Sample("number", (numbers(make), *options))
        yield Sample("empty batch", (numbers(make, 0, 4), *options))

    return samples


def _power_samples(make: Make) -> Iterator[Sample]:
    yield Sample("square", (make(5, 4), 2))
    yield Sample("cube", (make(5, 4), 3.0))
    yield Sample("root", (_positive(make, 5, 4), 0.5))
    yield Sample("one over", (_positive(make, 2, 3, 2), -1.5))


def _power_of_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (_positive(make, 5, 4), make(5, 4)))
    yield Sample("broadcast", (_positive(make, 5, 1), make(4)))
    yield Sample("of a number", (2.5, make(5, 4)))


def _where_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make.indices(2, 5, 4) > 0, make(5, 4), make(5, 4)))
    yield Sample("broadcast", (make.indices(2, 5, 1) > 0, make(4), make()))
    yield Sample("number", (make.indices(2, 5, 4) > 0, make(5, 4), 0.5))
    yield Sample("number first", (make.indices(2, 4) > 0, -1.0, make(5, 4)))
    yield Sample("empty batch", (make.indices(2, 0, 4) > 0, make(0, 4), make(4)))


def _masked_fill_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.indices(2, 5, 4) > 0, 2.0))
    yield Sample("broadcast", (make(5, 4), make.indices(2, 4) > 0, -2))
    yield Sample("a tensor", (make(5, 1), make.indices(2, 5, 4) > 0, make()))
    yield Sample("empty batch", (make(0, 4), make.indices(2, 4) > 0, 2.0))


def _clamp_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), -0.5, 0.5))
    yield Sample("from below", (make(5, 4), 0.0, None))
    yield Sample("from above", (make(5, 4), None, 0.5))
    yield Sample("by tensors", (2 * make(5, 4), -make.positive(4), make.positive(5, 1)))
    yield Sample("by tensors that cross", (2 * make(5, 4), make(4), make(5, 1)))
    yield Sample("by one tensor", (make(5, 4), None, make(5, 4)))
    yield Sample("empty batch", (make(0, 4), -0.5, 0.5))


def _two_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4)))
    yield Sample("broadcast", (make(5, 1), make(4)))
    yield Sample("ties", (make.indices(3, 5, 4).to(make.dtype), make.indices(3, 4).to(make.dtype)))


def _pair_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4)))
    yield Sample("broadcast", (make(5, 1), make(4)))


def _two_positive_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.positive(5, 4)))
    yield Sample("broadcast", (make(5, 1), make.positive(4)))


def _exponent(input: Any, exponent: Any) -> tuple[Any, ...]:
    return input, exponent


def _chosen(condition: Tensor, input: Any, other: Any) -> tuple[Any, ...]:
    return condition, input, other


def _filled(input: Tensor, mask: Tensor, value: Any) -> tuple[Any, ...]:
    return input, mask, value


def _bounds(input: Tensor, min: Any = None, max: Any = None) -> tuple[Any, ...]:
    return input, min, max


ENTRYWISE: tuple[Operation, ...] = (
    Operation(Abs, torch.abs, _of_entries(_anywhere), functions="abs absolute __abs__", arguments=alone, complex=True),
    Operation(Clamp, torch.clamp, _clamp_samples, functions="clamp clip", arguments=_bounds),
    Operation(Exp, torch.exp, _of_entries(_anywhere), functions="exp", arguments=alone, complex=True),
    Operation(
        Exp2,
        torch.exp2,
        _of_entries(_anywhere),
        functions="exp2",
        arguments=alone,
        complex=True,
        exempt={f"special values, {dtype}": OVERFLOWS for dtype in ("float64", "float32", "float16", "bfloat16")},
    ),
    Operation(Expm1, torch.expm1, _of_entries(_anywhere), functions="expm1", arguments=alone, complex=True),
    Operation(Log, torch.log, _of_entries(_positive), functions="log", arguments=alone, complex=True),
    Operation(Log1p, torch.log1p, _of_entries(_positive), functions="log1p", arguments=alone, complex=True),
    Operation(Log2, torch.log2, _of_entries(_positive), functions="log2", arguments=alone, complex=True),
    Operation(Log10, torch.log10, _of_entries(_positive), functions="log10", arguments=alone, complex=True),
    Operation(
        MaskedFill,
        torch.masked_fill,
        _masked_fill_samples,
        functions="masked_fill",
        arguments=_filled,
        complex=True,
    ),
    Operation(Maximum, torch.maximum, _two_samples, functions="maximum", arguments=both, exempt=ONE_SIDED),
    Operation(Minimum, torch.minimum, _two_samples, functions="minimum", arguments=both, exempt=ONE_SIDED),
    Operation(Power, torch.pow, _power_samples, complex=True, exempt=ROUNDED),
    Operation(PowerOf, torch.pow, _power_of_samples, complex=True),
    Operation(
        Reciprocal,
        torch.reciprocal,
        _of_entries(_positive),
        functions="reciprocal",
        arguments=alone,
        complex=True,
        exempt=ROUNDED,
    ),
    Operation(Rsqrt, torch.rsqrt, _of_entries(_positive), functions="rsqrt", arguments=alone, complex=True),
    Operation(Sqrt, torch.sqrt, _of_entries(_positive), functions="sqrt", arguments=alone, complex=True),
    Operation(Where, torch.where, _where_samples, complex=True),
    Operation(Acos, torch.acos, _of_entries(_inside), functions="acos arccos", arguments=alone, complex=True),
    Operation(
        Acosh,
        torch.acosh,
        _of_entries(_above_1),
        functions="acosh arccosh",
        arguments=alone,
        complex=True,
        exempt=BELOW_1,
    ),
    Operation(Asin, torch.asin, _of_entries(_inside), functions="asin arcsin", arguments=alone, complex=True),
    Operation(
        Asinh,
        torch.asinh,
        _of_entries(_anywhere),
        functions="asinh arcsinh",
        arguments=alone,
        complex=True,
        exempt=ROUNDED,
    ),
    Operation(
        Atan,
        torch.atan,
        _of_entries(_anywhere),
        functions="atan arctan",
        arguments=alone,
        complex=True,
        exempt=ROUNDED,
    ),
    Operation(
        Atanh,
        torch.atanh,
        _of_entries(_inside),
        functions="atanh arctanh",
        arguments=alone,
        complex=True,
        exempt=ROUNDED,
    ),
    Operation(Cos, torch.cos, _of_entries(_anywhere), functions="cos", arguments=alone, complex=True),
    Operation(Cosh, torch.cosh, _of_entries(_anywhere), functions="cosh", arguments=alone, complex=True),
    Operation(
        Digamma,
        torch.digamma,
        _of_entries(_above_1),
        functions="digamma",
        arguments=alone,
        exempt=ROUNDED,
    ),
    Operation(Erf, torch.erf, _of_entries(_anywhere), functions="erf", arguments=alone),
    Operation(Erfc, torch.erfc, _of_entries(_anywhere), functions="erfc", arguments=alone),
    Operation(Erfinv, torch.erfinv, _of_entries(_inside), functions="erfinv", arguments=alone),
    Operation(I0, torch.special.i0, _of_entries(_anywhere), functions="i0", arguments=alone),
    Operation(
        Lgamma,
        torch.lgamma,
        _of_entries(_above_1),
        functions="lgamma",
        arguments=alone,
        exempt=ROUNDED,
    ),
    Operation(Sin, torch.sin, _of_entries(_anywhere), functions="sin", arguments=alone, complex=True),
    Operation(Sinh, torch.sinh, _of_entries(_anywhere), functions="sinh", arguments=alone, complex=True),
    Operation(Tan, torch.tan, _of_entries(_inside), functions="tan", arguments=alone, complex=True),
    Operation(Atan2, torch.atan2, _pair_samples, functions="atan2 arctan2", arguments=both, cancels=True),
    Operation(Hypot, torch.hypot, _pair_samples, functions="hypot", arguments=both, cancels=True),
    Operation(
        LogAddExp, torch.logaddexp, _pair_samples, functions="logaddexp", arguments=both, complex=True, cancels=True
    ),
    Operation(LogAddExp2, torch.logaddexp2, _pair_samples, functions="logaddexp2", arguments=both, cancels=True),
    Operation(XLogY, torch.xlogy, _two_positive_samples, functions="xlogy", arguments=both, cancels=True),
)
