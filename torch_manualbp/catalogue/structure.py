"""The rules of what stands between the layers, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.operation import Make, Operation, Sample, alone, both
from torch_manualbp.rules.structure import (
    Add,
    Cast,
    Cat,
    Difference,
    Divide,
    Expand,
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

__all__ = ["STRUCTURE"]


def _add(x: Any, y: Any, alpha: float) -> Tensor:
    return torch.add(x, y, alpha=alpha)


def _add_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4), 1))
    yield Sample("scaled, broadcast", (make(5, 1), make(4), 0.5))
    yield Sample("number", (make(5, 4), 2.0, 1))


def _difference(s: Any, y: Any, epsilon: float) -> Tensor:
    return s - y + epsilon


def _difference_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4), 0.25))
    yield Sample("broadcast", (make(5, 4), make(4), 0.0))
    yield Sample("broadcast the other way", (make(), make(2, 3), 0.0))
    yield Sample("from a number", (1.0, make(5, 4), 0.0))
    yield Sample("empty batch", (make(0, 4), make(0, 4), 0.25))


def _multiply_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make(5, 4)))
    yield Sample("broadcast", (make(5, 1), make(4)))
    yield Sample("by a number", (make(5, 4), -2.5))


def _divide_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), make.positive(5, 4)))
    yield Sample("broadcast", (make(5, 1), make.positive(4)))
    yield Sample("by a number", (make(5, 4), 3.0))
    yield Sample("of a number", (2.0, make.positive(5, 4)))


def _matmul_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrices", (make(3, 4), make(4, 2)))
    yield Sample("batches, broadcast", (make(2, 1, 3, 4), make(3, 4, 2)))
    yield Sample("batch by one matrix", (make(2, 3, 4), make(4, 2)))
    yield Sample("one matrix by a batch", (make(3, 4), make(2, 4, 2)))
    yield Sample("vectors", (make(4), make(4)))


def _negate_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4),))


def _cast_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), torch.float64))


def _reshape_samples(make: Make) -> Iterator[Sample]:
    yield Sample("flat", (make(2, 3, 4), (2, 12)))
    yield Sample("empty batch", (make(0, 4), (0, 2, 2)))


def _transpose_samples(make: Make) -> Iterator[Sample]:
    yield Sample("cube", (make(2, 3, 4), 0, -1))


def _permute_samples(make: Make) -> Iterator[Sample]:
    yield Sample("cube", (make(2, 3, 4), (2, 0, -2)))


def _expand_samples(make: Make) -> Iterator[Sample]:
    yield Sample("column", (make(10, 1), (2, -1, 4)))


def _cat(dim: int, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, dim)


def _cat_samples(make: Make) -> Iterator[Sample]:
    yield Sample("features", (-1, make(5, 2), make(5, 3)))
    yield Sample("batches", (0, make(2, 4), make(3, 4), make(0, 4)))


def _stack(dim: int, *tensors: Tensor) -> Tensor:
    return torch.stack(tensors, dim)


def _stack_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrices", (-1, make(5, 4), make(5, 4), make(5, 4)))


def _split_samples(make: Make) -> Iterator[Sample]:
    yield Sample("features", (make(5, 4), (1, 3), -1))
    yield Sample("batches", (make(5, 4), (2, 2, 1), 0))


def _unbind_samples(make: Make) -> Iterator[Sample]:
    yield Sample("columns", (make(5, 4), -1))


def _slice_samples(make: Make) -> Iterator[Sample]:
    yield Sample("some features", (make(5, 4), (..., slice(1, 3))))
    yield Sample("numbers and slices", (make(4, 5, 3), (-1, None, slice(None, None, 2))))


def _index(z: Tensor, *index: Tensor | None) -> Tensor:
    """z[index], which for an index without dimensions looks up its number and keeps it."""
    return torch.ops.aten.index(z, list(index))


def _index_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(5, 4), make.indices(5, 6)))
    yield Sample("entries", (make(5, 4), make.indices(5, 2, 1), make.indices(4, 3)))
    yield Sample("one column", (make(5, 4), None, make.indices(4)))
    yield Sample("apart", (make(3, 2, 4), make.indices(3, 6), None, make.indices(4, 6)))


def _over_samples(make: Make) -> Iterator[Sample]:
    yield Sample("all", (make(5, 4), None, False))
    yield Sample("two dimensions", (make(2, 3, 4), (0, -1), False))
    yield Sample("kept dimension", (make(5, 4), (1,), True))
    yield Sample("empty batch", (make(0, 4), None, False))


def _scaled(input: Any, other: Any, *, alpha: float = 1) -> tuple[Any, ...]:
    return input, other, alpha


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> tuple[Any, ...]:
    return dim, *tensors


def _swapped(input: Tensor, dim0: int, dim1: int) -> tuple[Any, ...]:
    return input, dim0, dim1


def _along(input: Tensor, dim: int = 0) -> tuple[Any, ...]:
    return input, dim


KEEPS_ITS_ARGUMENT = (
    "torch keeps a copy of an argument that it expands to the other's batch; ours keeps the argument: to change it "
    "before backward is an error"
)

STRUCTURE: tuple[Operation, ...] = (
    Operation(
        Add,
        _add,
        _add_samples,
        functions="add __add__ __radd__",
        arguments=_scaled,
        complex=True,
    ),
    Operation(Cast, Tensor.to, _cast_samples, complex=True),
    Operation(
        Cat,
        _cat,
        _cat_samples,
        functions="cat concat concatenate",
        arguments=_joined,
        complex=True,
    ),
    Operation(Difference, _difference, _difference_samples, complex=True),
    Operation(Divide, torch.div, _divide_samples, complex=True),
    Operation(Expand, Tensor.expand, _expand_samples, complex=True),
    Operation(Index, _index, _index_samples, complex=True),
    Operation(
        MatMul,
        torch.matmul,
        _matmul_samples,
        functions="matmul __matmul__ mm bmm mv dot",
        arguments=both,
        complex=True,
        cancels=True,
        exempt={f"changes in place, argument {i}": KEEPS_ITS_ARGUMENT for i in (0, 1)},
    ),
    Operation(Mean, torch.mean, _over_samples, complex=True),
    Operation(
        Multiply, torch.mul, _multiply_samples, functions="mul multiply __mul__ __rmul__", arguments=both, complex=True
    ),
    Operation(Negate, torch.neg, _negate_samples, functions="neg negative __neg__", arguments=alone, complex=True),
    Operation(Permute, torch.permute, _permute_samples, complex=True),
    Operation(Reshape, torch.reshape, _reshape_samples, complex=True),
    Operation(Slice, Tensor.__getitem__, _slice_samples, complex=True),
    Operation(Split, torch.split, _split_samples, complex=True),
    Operation(Stack, _stack, _stack_samples, functions="stack", arguments=_joined, complex=True),
    Operation(Sum, torch.sum, _over_samples, complex=True),
    Operation(
        Transpose,
        torch.transpose,
        _transpose_samples,
        functions="transpose swapdims swapaxes",
        arguments=_swapped,
        complex=True,
    ),
    Operation(
        Unbind,
        torch.unbind,
        _unbind_samples,
        functions="unbind",
        arguments=_along,
        complex=True,
    ),
)
