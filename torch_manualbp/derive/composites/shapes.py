"""Entries repeated, rearranged, joined, or put elsewhere, made of others."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.derive.composites.refusal import NoRule

__all__ = ["COMPOSITES"]


def _integers(*given: Any) -> tuple[int, ...]:
    """Integers, or one sequence of them."""
    items = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
    return tuple(map(operator.index, items))


def _as_strided(input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    sizes, steps = [int(n) for n in size], [int(step) for step in stride]
    in_memory = input.permute(sorted(range(input.dim()), key=lambda d: (-input.stride()[d], d)))
    last = sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    if storage_offset or not in_memory.is_contiguous() or last >= input.numel():
        raise NoRule("as_strided of a part of what lies in memory has no rule; write reshape, unfold or an index")
    places = torch.zeros(sizes, dtype=torch.int64, device=input.device)
    for dim, (n, step) in enumerate(zip(sizes, steps, strict=True)):
        along = torch.arange(n, device=input.device) * step
        places = places + along.reshape([n if d == dim else 1 for d in range(len(sizes))])
    return rules.Index.apply(in_memory.reshape(input.numel()), places)


# Repeated


def _repeat(input: Tensor, *repeats: Any, **kwargs: Any) -> Tensor:
    times = _integers(*repeats, *kwargs.values())
    shape = (1,) * (len(times) - input.dim()) + tuple(input.shape)
    apart = rules.Reshape.apply(input, tuple(n for size in shape for n in (1, size)))
    spread = rules.Expand.apply(apart, tuple(n for pair in zip(times, shape, strict=True) for n in pair))
    return rules.Reshape.apply(spread, tuple(n * size for n, size in zip(times, shape, strict=True)))


def _tile(input: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    times = _integers(*dims, *kwargs.values())
    return _repeat(input, (1,) * (input.dim() - len(times)) + times)


def _repeat_interleave(
    input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    if dim is None:
        input, dim = input.reshape(input.numel()), 0
    if isinstance(repeats, Tensor):
        if output_size is None:
            raise NoRule(
                "repeat_interleave with a tensor has no rule without output_size: its shape depends on numbers"
            )
        with torch.no_grad():
            index = torch.repeat_interleave(repeats, output_size=output_size)
        return torch.index_select(input, dim, index)
    dim %= input.dim()
    shape = tuple(input.shape)
    spread = rules.Expand.apply(input.unsqueeze(dim + 1), (*shape[: dim + 1], repeats, *shape[dim + 1 :]))
    return rules.Reshape.apply(spread, (*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :]))


def _broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    shape = torch.broadcast_shapes(*[t.shape for t in given])
    return tuple(t.expand(shape) for t in given)


def _meshgrid(*tensors: Any, indexing: str | None = None) -> tuple[Tensor, ...]:
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    n = len(given)
    sizes = [t.numel() for t in given]
    grids = [t.reshape([1] * k + [-1] + [1] * (n - 1 - k)).expand(sizes) for k, t in enumerate(given)]
    return tuple(t.transpose(0, 1) if indexing == "xy" and n > 1 else t for t in grids)


# Rearranged


def _flip(input: Tensor, *dims: Any, **kwargs: Any) -> Tensor:
    return rules.Flip.apply(input, _integers(*dims, *kwargs.values()))


def _fliplr(input: Tensor) -> Tensor:
    return rules.Flip.apply(input, (1,))


def _flipud(input: Tensor) -> Tensor:
    return rules.Flip.apply(input, (0,))


def _rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    turns = k % 4
    if turns in (0, 2):
        return rules.Flip.apply(input, tuple(dims)) if turns else rules.Identity.apply(input)
    return torch.flip(input.transpose(*dims), (dims[0] if turns == 1 else dims[1],))


def _unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    if not input.dim():
        return input.reshape(1)
    dim = dimension % input.dim()
    starts = torch.arange(0, input.shape[dim] - size + 1, step, device=input.device)
    index = starts.unsqueeze(1) + torch.arange(size, device=input.device)
    windows = rules.Index.apply(input, *[None] * dim, index)
    return windows.movedim(dim + 1, -1)


def _diag(input: Tensor, diagonal: int = 0) -> Tensor:
    return torch.diag_embed(input, diagonal) if input.dim() == 1 else torch.diagonal(input, diagonal)


def _diagflat(input: Tensor, offset: int = 0) -> Tensor:
    return torch.diag_embed(input.flatten(), offset)


def _linalg_diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    return torch.diagonal(A, offset, dim1, dim2)


def _adjoint(input: Tensor) -> Tensor:
    z = input.mT
    return z.conj() if z.is_complex() else z


# Joined and cut


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    given = [t.reshape(1) if t.dim() == 0 else t for t in tensors]
    return torch.cat(given, 0 if given[0].dim() == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(1, -1) if t.dim() < 2 else t for t in tensors], 0)


def _dstack(tensors: Sequence[Tensor]) -> Tensor:
    given = [t.reshape(1, -1) if t.dim() < 2 else t for t in tensors]
    return torch.cat([t.unsqueeze(-1) if t.dim() == 2 else t for t in given], 2)


def _column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1, 1) if t.dim() < 2 else t for t in tensors], 1)


def _block_diag(*tensors: Tensor) -> Tensor:
    blocks = [t.reshape(1, -1) if t.dim() < 2 else t for t in tensors]
    width, before, rows = sum(t.shape[1] for t in blocks), 0, []
    for block in blocks:
        left, right = (block.new_zeros(len(block), n) for n in (before, width - before - block.shape[1]))
        rows.append(torch.cat([left, block, right], 1))
        before += block.shape[1]
    return torch.cat(rows, 0)


def _tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    if isinstance(indices_or_sections, Tensor):
        raise NoRule("tensor_split by a tensor has no rule: the shapes depend on numbers; write integers")
    n = input.shape[dim]
    if isinstance(indices_or_sections, int):
        each, more = divmod(n, indices_or_sections)
        sizes = [each + (i < more) for i in range(indices_or_sections)]
    else:
        cuts = [min(c if c >= 0 else max(c + n, 0), n) for c in indices_or_sections]
        sizes = [max(b - a, 0) for a, b in itertools.pairwise([0, *cuts, n])]
        if sum(sizes) != n:
            raise NoRule("tensor_split at places that do not rise has no rule; write slices")
    return rules.Split.apply(input, tuple(sizes), dim)


# Sequences of several lengths, one step of time behind the other


def _pack_padded_sequence(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    steps = input.transpose(0, 1) if batch_first else input
    sizes = _batch_sizes(lengths.tolist())
    n = steps.shape[1]
    index = torch.tensor([t * n + i for t, size in enumerate(sizes) for i in range(size)], device=input.device)
    data = torch.index_select(steps.flatten(0, 1), 0, index)
    return data, torch.tensor(sizes)


def _batch_sizes(lengths: list[int]) -> list[int]:
    """How many of the sequences, the longest first, there are at each step."""
    if not lengths or lengths[-1] < 1 or any(a < b for a, b in itertools.pairwise(lengths)):
        raise ValueError("sequences are packed that are empty, or whose lengths do not fall: give enforce_sorted=False")
    return [sum(t < length for length in lengths) for t in range(lengths[0])]


def _pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    sizes = batch_sizes.tolist()
    n, steps = sizes[0], max(len(sizes), total_length)
    index = torch.tensor([t * n + i for t, size in enumerate(sizes) for i in range(size)], device=data.device)
    room = data.new_full((steps * n, *data.shape[1:]), padding_value)
    padded = torch.index_copy(room, 0, index, data).unflatten(0, (steps, n))
    return (padded.transpose(0, 1) if batch_first else padded), torch.tensor(
        [sum(i < size for size in sizes) for i in range(n)]
    )


# Entries put elsewhere


def _take(input: Tensor, index: Tensor) -> Tensor:
    return rules.Index.apply(input.reshape(input.numel()), index)


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return torch.gather(input.flatten(), 0, indices.flatten())
    shape = list(
        torch.broadcast_shapes(
            *[(*t.shape[: dim % t.dim()], 1, *t.shape[dim % t.dim() + 1 :]) for t in (input, indices)]
        )
    )
    d = dim % len(shape)
    whole, at = ([*shape[:d], t.shape[d], *shape[d + 1 :]] for t in (input, indices))
    return torch.gather(input.expand(whole), d, indices.expand(at))


def _scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: Any = None
) -> Tensor:
    y = src if value is None else value
    if reduce is not None:
        raise NoRule("scatter with reduce has no rule; write scatter_reduce or scatter_add")
    if isinstance(y, Tensor) and y.shape != index.shape:
        y = y[tuple(slice(n) for n in index.shape)]
    return rules.Scatter.apply(input, dim, index, y)


def _scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    y = src if src.shape == index.shape else src[tuple(slice(n) for n in index.shape)]
    return rules.ScatterAdd.apply(input, dim, index, y)


def _scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    if reduce in ("sum", "mean"):
        start = input if include_self else torch.scatter(input, dim, index, 0)
        total = _scatter_add(start, dim, index, src)
        if reduce == "sum":
            return total
        with torch.no_grad():
            ones = torch.ones_like(input) if include_self else torch.scatter(torch.ones_like(input), dim, index, 0)
            count = torch.scatter_add(ones, dim, index, torch.ones_like(index, dtype=input.dtype)).clamp(min=1)
        return total / count
    if reduce == "prod":
        raise NoRule("scatter_reduce with 'prod' has no rule; write the exponential of a sum of logarithms")
    y = src if src.shape == index.shape else src[tuple(slice(n) for n in index.shape)]
    with torch.no_grad():  # each of those that are the extreme has an equal share
        found = torch.scatter_reduce(input, dim, index, y, reduce, include_self=include_self)
        mine = (y == torch.gather(found, dim, index)).to(y.dtype)
        own = input == found
        if not include_self:
            own = own & torch.scatter(torch.ones_like(own), dim, index, False)
        count = torch.scatter_add(own.to(y.dtype), dim, index, mine).clamp(min=1)
    start = torch.where(own, input / count, 0)
    return _scatter_add(start, dim, index, mine * (y / torch.gather(count, dim, index)))


def _before(input: Tensor, dim: int) -> list[None]:
    """What an index has for the dimensions before this one."""
    return [None] * (dim % max(input.dim(), 1))


def _index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    y = source if alpha == 1 else alpha * source
    if not input.dim():
        return input + y.sum()
    return rules.IndexPut.apply(input, y, True, *_before(input, dim), index)


def _index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if not input.dim():
        raise NoRule("index_copy of a number has no rule; write source")
    return rules.IndexPut.apply(input, source, False, *_before(input, dim), index)


def _index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    if not input.dim():
        raise NoRule("index_fill of a number has no rule; write value")
    y = value if isinstance(value, Tensor) else input.new_full((), value)
    return rules.IndexPut.apply(input, y, False, *_before(input, dim), index)


def _index_put(input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices):
        raise NoRule("index_put by booleans has no rule: how many there are depends on numbers; choose by torch.where")
    return rules.IndexPut.apply(input, values, accumulate, *indices)


def _select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    return rules.Assign.apply(input, src, (*[slice(None)] * (dim % input.dim()), index))


def _slice_scatter(
    input: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    return rules.Assign.apply(input, src, (*[slice(None)] * (dim % input.dim()), slice(start, end, step)))


def _diagonal_scatter(input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    with torch.no_grad():  # of each entry of the diagonal where it stands among all
        places = torch.arange(input.numel(), device=input.device).reshape(input.shape).diagonal(offset, dim1, dim2)
        index = places.reshape(src.numel())
    flat = rules.IndexPut.apply(input.reshape(input.numel()), src.reshape(src.numel()), False, index)
    return flat.reshape(input.shape)


def _masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    raise NoRule("which entry goes where depends on numbers; choose by torch.where")


COMPOSITES: Mapping[Callable[..., Any], str] = {
    _as_strided: "as_strided",
    _repeat: "repeat",
    _tile: "tile",
    _repeat_interleave: "repeat_interleave",
    _broadcast_tensors: "broadcast_tensors",
    _meshgrid: "meshgrid",
    _flip: "flip",
    _fliplr: "fliplr",
    _flipud: "flipud",
    _rot90: "rot90",
    _unfold: "unfold",
    _diag: "diag",
    _diagflat: "diagflat",
    _linalg_diagonal: "linalg.diagonal",
    _adjoint: "adjoint",
    _hstack: "hstack",
    _vstack: "vstack row_stack",
    _dstack: "dstack",
    _column_stack: "column_stack",
    _block_diag: "block_diag",
    _tensor_split: "tensor_split",
    _pack_padded_sequence: "_pack_padded_sequence",
    _pad_packed_sequence: "_pad_packed_sequence",
    _take: "take",
    _take_along_dim: "take_along_dim",
    _scatter: "scatter",
    _scatter_add: "scatter_add",
    _scatter_reduce: "scatter_reduce",
    _index_add: "index_add",
    _index_copy: "index_copy",
    _index_fill: "index_fill",
    _index_put: "index_put",
    _select_scatter: "select_scatter",
    _slice_scatter: "slice_scatter",
    _diagonal_scatter: "diagonal_scatter",
    _masked_scatter: "masked_scatter",
}
