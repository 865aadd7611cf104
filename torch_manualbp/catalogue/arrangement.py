"""The rules of entries in another order or put elsewhere, and of contractions, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.structure import (
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

__all__ = ["ARRANGEMENT"]

IS_NO_PRODUCT_OF_MATRICES = "where nothing is summed torch multiplies entries, which autocast leaves as they are"


def _flip_samples(make: Make) -> Iterator[Sample]:
    yield Sample("cube", (make(2, 3, 4), (0, -1)))


def _roll_samples(make: Make) -> Iterator[Sample]:
    yield Sample("cube", (make(2, 3, 4), (1, -1), (1, 2)))
    yield Sample("as one row", (make(3, 4), (5,), ()))


def _triangle_samples(make: Make) -> Iterator[Sample]:
    yield Sample("square", (make(4, 4), 0))
    yield Sample("batch", (make(2, 3, 4), -1))


def _diagonal_samples(make: Make) -> Iterator[Sample]:
    yield Sample("square", (make(4, 4), 0, 0, 1))
    yield Sample("batch", (make(3, 2, 4), 1, -1, 0))


def _diag_embed_samples(make: Make) -> Iterator[Sample]:
    yield Sample("vector", (make(4), 0, -2, -1))
    yield Sample("batch", (make(3, 2), -1, 0, 2))


def _gather_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(3, 4), 0, make.indices(3, 7, 4)))
    yield Sample("one of each row", (make(5, 4), -1, make.indices(4, 5, 1)))


def _scatter_samples(make: Make) -> Iterator[Sample]:
    places = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i))[:2] for i in range(5)])
    yield Sample("matrix", (make(5, 4), 1, places, make(5, 2)))
    yield Sample("number", (make(5, 4), 1, places, 0.5))


def _scatter_add_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4), 0, make.indices(5, 6, 4), make(6, 4)))
    yield Sample("some columns", (make(5, 4), -1, make.indices(4, 5, 2), make(5, 2)))


def _index_put(z: Tensor, y: Tensor, accumulate: bool, *index: Tensor | None) -> Tensor:
    return torch.ops.aten.index_put(z, list(index), y, accumulate)


def _index_put_samples(make: Make) -> Iterator[Sample]:
    yield Sample("rows", (make(5, 4), make(2, 4), False, torch.tensor([3, 1])))
    yield Sample("entries, added", (make(5, 4), make(6), True, make.indices(5, 6), make.indices(4, 6)))
    yield Sample("columns, broadcast", (make(5, 4), make(1), False, None, torch.tensor([3, 0])))


def _assign(z: Tensor, y: Tensor, index: tuple[Any, ...]) -> Tensor:
    a = z.clone()
    a[index] = y
    return a


def _assign_samples(make: Make) -> Iterator[Sample]:
    yield Sample("some features", (make(5, 4), make(5, 2), (..., slice(1, 3))))
    yield Sample("broadcast", (make(3, 4, 5), make(5), (-1, slice(None, None, 2))))


def _einsum(p: str, q: str, r: str, x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum(f"{p},{q}->{r}", x, y)


def _einsum_samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrices", ("ik", "kj", "ij", make(3, 4), make(4, 2)))
    yield Sample("heads", ("bhqd", "bhkd", "bhqk", make(2, 2, 3, 4), make(2, 2, 5, 4)))
    yield Sample("entries", ("ij", "ji", "ji", make(3, 4), make(4, 3)))
    yield Sample("to a number", ("ij", "ij", "", make(3, 4), make(3, 4)))
    yield Sample("outer", ("i", "j", "ji", make(3), make(4)))


def _rolled(input: Tensor, shifts: Any, dims: Any = ()) -> tuple[Any, ...]:
    return input, (shifts,) if isinstance(shifts, int) else tuple(shifts), (dims,) if isinstance(dims, int) else dims


def _triangle(input: Tensor, diagonal: int = 0) -> tuple[Any, ...]:
    return input, diagonal


def _on_diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> tuple[Any, ...]:
    return input, offset, dim1, dim2


def _onto_diagonal(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> tuple[Any, ...]:
    return input, offset, dim1, dim2


def _gathered(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> tuple[Any, ...]:
    return input, dim, index


ARRANGEMENT: tuple[Operation, ...] = (
    Operation(Assign, _assign, _assign_samples, complex=True),
    Operation(
        DiagEmbed,
        torch.diag_embed,
        _diag_embed_samples,
        functions="diag_embed",
        arguments=_onto_diagonal,
        complex=True,
    ),
    Operation(
        DiagonalEntries, torch.diagonal, _diagonal_samples, functions="diagonal", arguments=_on_diagonal, complex=True
    ),
    Operation(
        Einsum,
        _einsum,
        _einsum_samples,
        complex=True,
        cancels=True,
        exempt={
            f"autocast, {d}, {sample}": IS_NO_PRODUCT_OF_MATRICES
            for d in ("float16", "bfloat16")
            for sample in ("entries", "outer")
        },
    ),
    Operation(Flip, torch.flip, _flip_samples, complex=True),
    Operation(Gather, torch.gather, _gather_samples, functions="gather", arguments=_gathered, complex=True),
    Operation(IndexPut, _index_put, _index_put_samples, complex=True),
    Operation(Roll, torch.roll, _roll_samples, functions="roll", arguments=_rolled, complex=True),
    Operation(Scatter, torch.scatter, _scatter_samples, complex=True),
    Operation(ScatterAdd, torch.scatter_add, _scatter_add_samples, complex=True),
    Operation(Tril, torch.tril, _triangle_samples, functions="tril", arguments=_triangle, complex=True),
    Operation(Triu, torch.triu, _triangle_samples, functions="triu", arguments=_triangle, complex=True),
)
