"""The rules of functions of each entry that are no activations, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.activation import OVERFLOWS
from torch_manualbp.catalogue.operation import Make, Operation, Sample, alone, both
from torch_manualbp.rules.entrywise import (
    Abs,
    Clamp,
    Exp,
    Exp2,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    MaskedFill,
    Maximum,
    Minimum,
    Power,
    PowerOf,
    Reciprocal,
    Rsqrt,
    Sqrt,
    Where,
)

__all__ = ["ENTRYWISE"]

ONE_SIDED = {"gradgradcheck, ties": "on either side of a tie the derivative is another number"}
ROUNDS_BEFORE_THE_PRODUCT = "torch rounds f'(z) to float16, where it overflows or is 0, before it multiplies"


def _anywhere(make: Make, *shape: int) -> Tensor:
    return make(*shape)


def _positive(make: Make, *shape: int) -> Tensor:
    return make.positive(*shape) if not make.dtype.is_complex else make(*shape)


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
    Operation(
        Power, torch.pow, _power_samples, complex=True, exempt={"special values, float16": ROUNDS_BEFORE_THE_PRODUCT}
    ),
    Operation(PowerOf, torch.pow, _power_of_samples, complex=True),
    Operation(
        Reciprocal,
        torch.reciprocal,
        _of_entries(_positive),
        functions="reciprocal",
        arguments=alone,
        complex=True,
        exempt={"special values, float16": ROUNDS_BEFORE_THE_PRODUCT},
    ),
    Operation(Rsqrt, torch.rsqrt, _of_entries(_positive), functions="rsqrt", arguments=alone, complex=True),
    Operation(Sqrt, torch.sqrt, _of_entries(_positive), functions="sqrt", arguments=alone, complex=True),
    Operation(Where, torch.where, _where_samples, complex=True),
)
