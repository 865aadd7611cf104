"""Products of matrices and vectors, made of others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.derive.composites.refusal import NoRule

__all__ = ["COMPOSITES"]


def _scaled_sum(input: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    product = product if alpha == 1 else alpha * product
    if beta == 0:
        return product
    return (input if beta == 1 else beta * input) + product


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(input, torch.matmul(mat1, mat2), beta, alpha)


def _addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(input, torch.matmul(mat, vec), beta, alpha)


def _addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(input, _outer(vec1, vec2), beta, alpha)


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(input, torch.matmul(batch1, batch2), beta, alpha)


def _addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _scaled_sum(input, _einsum("bik,bkj->ij", batch1, batch2), beta, alpha)


def _outer(input: Tensor, vec2: Tensor) -> Tensor:
    return input.unsqueeze(-1) * vec2


def _inner(input: Tensor, other: Tensor) -> Tensor:
    if input.dim() == 0 or other.dim() == 0:
        return input * other
    return torch.tensordot(input, other, ([-1], [-1]))


def _vdot(input: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(input.conj() if input.is_complex() else input, other)


def _vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    return ((x.conj() if x.is_complex() else x) * y).sum(dim)


def _tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    if isinstance(dims, int):
        over_a, over_b = [*range(a.dim() - dims, a.dim())], [*range(dims)]
    else:
        over_a, over_b = ([int(d) for d in over] for over in dims)
    of_a = list(range(a.dim()))
    of_b = [a.dim() + d for d in range(b.dim())]
    for i, j in zip(over_a, over_b, strict=True):
        of_b[j] = of_a[i]
    shared = {of_a[i] for i in over_a}
    result = [k for k in (*of_a, *of_b) if k not in shared]
    return _contraction([(a, of_a), (b, of_b)], result)


def _kron(input: Tensor, other: Tensor) -> Tensor:
    n = max(input.dim(), other.dim())
    x_shape, y_shape = ((1,) * (n - t.dim()) + tuple(t.shape) for t in (input, other))
    x = input.reshape([size for n in x_shape for size in (n, 1)])
    y = other.reshape([size for n in y_shape for size in (1, n)])
    return (x * y).reshape([a * b for a, b in zip(x_shape, y_shape, strict=True)])


def _cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        dim = next(d for d, size in enumerate(torch.broadcast_shapes(input.shape, other.shape)) if size == 3)
    x, y = torch.broadcast_tensors(input, other)
    return torch.roll(x, -1, dim) * torch.roll(y, 1, dim) - torch.roll(x, 1, dim) * torch.roll(y, -1, dim)


def _linalg_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    return _cross(input, other, dim)


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, tensors)


def _chain_matmul(*matrices: Any) -> Tensor:
    return _multi_dot(matrices[0] if isinstance(matrices[0], list | tuple) else matrices)


def _matrix_power(input: Tensor, n: int) -> Tensor:
    if n < 1:
        raise NoRule(f"matrix_power with n={n} has no rule; write torch.eye for 0, and solve for an inverse")
    return functools.reduce(torch.matmul, [input] * n)


# Sums of products by letters


def _einsum(equation: str, *operands: Any) -> Tensor:
    if not isinstance(equation, str):
        raise NoRule("einsum with lists of integers has no rule; write its equation as a text")
    tensors: Sequence[Tensor] = operands[0] if isinstance(operands[0], list | tuple) else operands
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise ValueError(f"einsum(): the equation has {len(terms)} operands, and {len(tensors)} are given")
    named = [len(term.replace("...", "")) for term in terms]
    most = max(t.dim() - n for t, n in zip(tensors, named, strict=True))
    letters = [_letters(term, t.dim() - n, most) for term, t, n in zip(terms, tensors, named, strict=True)]
    if arrow:
        result = _letters(right, most if "..." in right else 0, most)
    else:
        every = [*itertools.chain(*letters)]
        once = sorted(k for k in set(every) if isinstance(k, str) and every.count(k) == 1)
        result = [*range(most), *once]
    return _contraction(list(zip(tensors, letters, strict=True)), result)


def _letters(term: str, ellipsis: int, most: int) -> list[Any]:
    """A name for each dimension: the letter, and the integers that end at ``most`` for those of the dots."""
    before, _, behind = term.partition("...")
    return [*before, *range(most - ellipsis, most), *behind]


def _contraction(operands: list[tuple[Tensor, list[Any]]], result: list[Any]) -> Tensor:
    """The sum of the products, whose dimensions have names, two operands at a time from the left."""
    sizes: dict[Any, int] = {}
    for t, names in operands:
        for name, size in zip(names, t.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, size)) if size != 0 else 0
    done = [_without_repeats(t, list(names), sizes) for t, names in operands]
    total, names = done[0]
    for i in range(1, len(done)):
        t, others = done[i]
        later = {*result, *itertools.chain(*(of for _, of in done[i + 1 :]))}
        total, names = _summed(total, names, later | set(others))
        t, others = _summed(t, others, later | set(names))
        kept = [k for k in dict.fromkeys((*names, *others)) if k in later]
        kept = result if i == len(done) - 1 and set(kept) == set(result) else kept
        spell = {k: chr(ord("a") + j) for j, k in enumerate(dict.fromkeys((*names, *others)))}
        p, q, r = ("".join(spell[k] for k in of) for of in (names, others, kept))
        total, names = rules.Einsum.apply(p, q, r, total, t), list(kept)
    total, names = _summed(total, names, set(result))
    missing = [k for k in result if k not in names]  # of dimensions of size 1 that were left away
    total = total.permute([names.index(k) for k in result if k in names]) if names else total
    for k in result:
        if k in missing:
            total = total.unsqueeze(result.index(k))
    return total.expand([sizes[k] for k in result]) if missing else total


def _without_repeats(t: Tensor, names: list[Any], sizes: Mapping[Any, int]) -> tuple[Tensor, list[Any]]:
    """The diagonal where a name comes twice, and without dimensions that broadcast."""
    for name in dict.fromkeys(names):
        while names.count(name) > 1:
            i = names.index(name)
            j = names.index(name, i + 1)
            t = torch.diagonal(t, 0, i, j)
            names = [k for d, k in enumerate(names) if d not in (i, j)] + [name]
    alone = [d for d, k in enumerate(names) if t.shape[d] == 1 and sizes[k] != 1]
    return (t.squeeze(tuple(alone)), [k for d, k in enumerate(names) if d not in alone]) if alone else (t, names)


def _summed(t: Tensor, names: list[Any], needed: set[Any]) -> tuple[Tensor, list[Any]]:
    over = [d for d, k in enumerate(names) if k not in needed]
    return (t.sum(over), [k for k in names if k in needed]) if over else (t, names)


COMPOSITES: Mapping[Callable[..., Any], str] = {
    _addmm: "addmm",
    _addmv: "addmv",
    _addr: "addr",
    _baddbmm: "baddbmm",
    _addbmm: "addbmm",
    _outer: "outer ger",
    _inner: "inner",
    _vdot: "vdot",
    _vecdot: "linalg.vecdot",
    _tensordot: "tensordot",
    _kron: "kron",
    _cross: "cross",
    _linalg_cross: "linalg.cross",
    _multi_dot: "linalg.multi_dot",
    _chain_matmul: "chain_matmul",
    _matrix_power: "matrix_power linalg.matrix_power",
    _einsum: "einsum",
}
