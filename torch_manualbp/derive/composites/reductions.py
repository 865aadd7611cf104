"""What makes one number of several, made of others; values that are picked by their order are gathered."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.derive.composites.refusal import NoRule

__all__ = ["COMPOSITES"]


def dims_of(dim: Any) -> tuple[int, ...] | None:
    """Dimensions as a rule takes them, None for all, which torch takes none at all for, too."""
    if dim is None:
        return None
    return tuple(map(operator.index, dim)) or None if isinstance(dim, tuple | list) else (operator.index(dim),)


def _amax(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return rules.Amax.apply(input, dims_of(dim), keepdim)


def _amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return rules.Amin.apply(input, dims_of(dim), keepdim)


def _aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    return torch.return_types.aminmax((_amin(input, dim, keepdim), _amax(input, dim, keepdim)))


def _max(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    other = dim if isinstance(dim, Tensor) else other
    if other is not None:
        return torch.maximum(input, other)
    return rules.Amax.apply(input, None, False) if dim is None else _picked(torch.max, input, dim, keepdim)


def _min(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    other = dim if isinstance(dim, Tensor) else other
    if other is not None:
        return torch.minimum(input, other)
    return rules.Amin.apply(input, None, False) if dim is None else _picked(torch.min, input, dim, keepdim)


def _median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        raise NoRule("median of all has no rule; write input.flatten().median(0).values")
    return _picked(torch.median, input, dim, keepdim)


def _nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        raise NoRule("nanmedian of all has no rule; write input.flatten().nanmedian(0).values")
    return _picked(torch.nanmedian, input, dim, keepdim)


def _mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Any:
    return _picked(torch.mode, input, dim, keepdim)


def _kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return _picked(lambda t, d, keep: torch.kthvalue(t, k, d, keep), input, dim, keepdim)


def _topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return _picked(lambda t, d, _: torch.topk(t, k, d, largest, sorted), input, dim, True)


def _sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    return _picked(lambda t, d, _: torch.sort(t, stable=bool(stable), dim=d, descending=descending), input, dim, True)


def _msort(input: Tensor) -> Any:
    return _sort(input, 0, stable=True).values


def _cummax(input: Tensor, dim: int) -> Any:
    return _picked(lambda t, d, _: torch.cummax(t, d), input, dim, True)


def _cummin(input: Tensor, dim: int) -> Any:
    return _picked(lambda t, d, _: torch.cummin(t, d), input, dim, True)


def _picked(function: Callable[..., Any], input: Tensor, dim: int, keepdim: bool) -> Any:
    """The entries at the indices that torch's function finds, and these."""
    with torch.no_grad():
        found = function(input, dim, keepdim)
    index = found.indices
    keepdim = keepdim or input.dim() == 0
    values = torch.gather(input, dim, index if keepdim else index.unsqueeze(dim))
    return type(found)((values if keepdim else values.squeeze(dim), index))


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return rules.LogSumExp.apply(input, dims_of(dim), keepdim)


def _gumbel_softmax(logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1) -> Tensor:
    noise = -torch.empty_like(logits, memory_format=torch.legacy_contiguous_format).exponential_().log()
    p = torch.softmax((logits + noise) / tau, dim)
    if not hard:
        return p
    with torch.no_grad():
        largest = torch.zeros_like(p).scatter(dim, p.argmax(dim, keepdim=True), 1.0)
        rest = largest - p
    return rest + p


# Sums and products


def _cast(input: Tensor, dtype: torch.dtype | None) -> Tensor:
    return input if dtype is None else input.to(dtype)


def _nansum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return torch.where(input.isnan(), 0, _cast(input, dtype)).sum(dim, keepdim)


def _nanmean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    n = (~input.isnan()).sum(dim, keepdim)
    return _nansum(input, dim, keepdim, dtype=dtype) / n


def _prod(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    input = _cast(input, dtype)
    return rules.Prod.apply(input.flatten(), 0, False) if dim is None else rules.Prod.apply(input, dim, keepdim)


def _cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return rules.Cumsum.apply(_cast(input, dtype), dim)


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    return rules.Cumprod.apply(_cast(input, dtype), dim)


def _trace(input: Tensor) -> Tensor:
    return torch.diagonal(input).sum()


def _trapezoid(y: Tensor, x: Tensor | None = None, *, dx: float = 1, dim: int = -1) -> Tensor:
    n = y.shape[dim]
    means = (y.narrow(dim, 1, n - 1) + y.narrow(dim, 0, n - 1)) / 2
    if x is None:
        return means.sum(dim) * dx
    steps = torch.diff(x, dim=-1 if x.dim() == 1 else dim)
    if x.dim() == 1:
        steps = steps.reshape([-1, *[1] * (y.dim() - 1 - dim % y.dim())])
    return (means * steps).sum(dim)


def _diff(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    parts = [t for t in (prepend, input, append) if t is not None]
    total = torch.cat(parts, dim) if len(parts) > 1 else input
    for _ in range(min(n, total.shape[dim])):
        length = total.shape[dim] - 1
        total = total.narrow(dim, 1, length) - total.narrow(dim, 0, length)
    return total


# Moments and norms


def _var(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    return rules.Var.apply(input, *_of_moments(dim, unbiased, correction), keepdim)


def _std(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> Tensor:
    return rules.Std.apply(input, *_of_moments(dim, unbiased, correction), keepdim)


def _var_mean(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> tuple[Tensor, Tensor]:
    over, c = _of_moments(dim, unbiased, correction)
    return rules.Var.apply(input, over, c, keepdim), rules.Mean.apply(input, over, keepdim)


def _std_mean(
    input: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: Any = None
) -> tuple[Tensor, Tensor]:
    over, c = _of_moments(dim, unbiased, correction)
    return rules.Std.apply(input, over, c, keepdim), rules.Mean.apply(input, over, keepdim)


def _of_moments(dim: Any, unbiased: bool | None, correction: Any) -> tuple[Any, Any]:
    """Dimensions and correction, of the several ways that torch takes them."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return dims_of(dim), int(unbiased is not False) if correction is None else correction


def _vector_norm(
    x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if ord == 0:
        raise NoRule("a norm of order 0 counts, and its derivative is 0; write (input.detach() != 0).sum()")
    return rules.Norm.apply(_cast(x, dtype), ord, dims_of(dim), keepdim)


def _norm(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    if isinstance(p, str) and p != "fro":
        raise NoRule(f"norm with p={p!r} has no rule; write a number")
    return _vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


def _linalg_norm(
    A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    over = A.dim() if dim is None else len(dims_of(dim) or ())
    if ord is None or (over == 1 and not isinstance(ord, str)):
        return _vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)
    return _matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim, dtype=dtype)


def _matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    if ord == "fro":
        return _vector_norm(A, 2, dim, keepdim, dtype=dtype)
    if isinstance(ord, str) or abs(ord) == 2:
        raise NoRule(f"a matrix norm of order {ord!r} has no rule, since singular values have none; write order 'fro'")
    rows, columns = (d % A.dim() for d in dim)
    first, second = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = _cast(A, dtype).abs().sum(first, keepdim=True)
    value = (torch.amax if ord > 0 else torch.amin)(sums, second, keepdim=True)
    return value if keepdim else value.squeeze((rows, columns))


def _norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    if dim == -1:
        return _vector_norm(v, pow)
    return _vector_norm(v, pow, [d for d in range(v.dim()) if d != dim % v.dim()], True) if v.dim() > 1 else v.abs()


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / _norm_except_dim(v, 2, dim))


def _dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    return _vector_norm(input - other, p)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    return _vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


COMPOSITES: Mapping[Callable[..., Any], str] = {
    _amax: "amax",
    _amin: "amin",
    _aminmax: "aminmax",
    _max: "max",
    _min: "min",
    _median: "median",
    _nanmedian: "nanmedian",
    _mode: "mode",
    _kthvalue: "kthvalue",
    _topk: "topk",
    _sort: "sort",
    _msort: "msort",
    _cummax: "cummax",
    _cummin: "cummin",
    _logsumexp: "logsumexp",
    _gumbel_softmax: "nn.functional.gumbel_softmax",
    _nansum: "nansum",
    _nanmean: "nanmean",
    _prod: "prod",
    _cumsum: "cumsum",
    _cumprod: "cumprod",
    _trace: "trace",
    _trapezoid: "trapezoid trapz",
    _diff: "diff",
    _var: "var",
    _std: "std",
    _var_mean: "var_mean",
    _std_mean: "std_mean",
    _vector_norm: "linalg.vector_norm",
    _norm: "norm",
    _linalg_norm: "linalg.norm",
    _matrix_norm: "linalg.matrix_norm",
    _norm_except_dim: "norm_except_dim",
    _weight_norm: "_weight_norm",
    _dist: "dist",
    _cdist: "cdist",
}
