"""Formulas in blocks that stay in the caches.

A pass over fresh memory costs four times what one over the cache does; and the allocator may hand tensors of 8 MB back
to the system each time, whose new pages cost more than the arithmetic on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["BLOCK_ELEMENTS", "blocks", "by_entries", "by_rows", "flat", "is_flat", "sums"]

BLOCK_ELEMENTS = 1 << 18
"""Numbers in a block: what a formula makes of it on its way stays in the caches, and fewer blocks are fewer calls."""

Formula = Callable[..., Tensor]


def by_entries(formula: Formula, args: tuple[Any, ...]) -> Tensor:
    """``formula(*args)`` of tensors that broadcast against each other, each entry from the same entry of each.

    Those of the whole shape have to be laid out alike, and then the result is so, too.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    largest = max(tensors, key=Tensor.numel)
    shape = largest.shape
    whole = [t for t in tensors if t.shape == shape]
    if largest.numel() < 2 * BLOCK_ELEMENTS or not is_flat(*whole):
        return formula(*args)
    is_flattened = all(t.shape == shape or not t.dim() for t in tensors)
    if is_flattened:
        shape, tensors = torch.Size([largest.numel()]), [flat(t) if t.dim() else t for t in tensors]
    elif torch.broadcast_shapes(*[t.shape for t in tensors]) != shape:
        return formula(*args)
    result: Tensor | None = None
    done = 0
    for block in blocks(shape, tensors):
        given = iter(block)
        part = formula(*[next(given) if isinstance(arg, Tensor) else arg for arg in args])
        if result is None:
            result = torch.empty_like(largest, dtype=part.dtype)
            into = flat(result) if is_flattened else result
        into[done : done + len(part)] = part
        done += len(part)
    assert result is not None
    return result


def by_rows(formula: Formula, args: tuple[Any, ...]) -> Tensor:
    """``formula(*args)`` of tensors with a row for each sample, the first of K numbers. A tensor with one row, or
    without dimensions, is for all samples."""
    first = args[0]
    samples = first.shape[0]
    if first.numel() < 2 * BLOCK_ELEMENTS or first.dim() < 2 or samples < 2:
        return formula(*args)
    rows = max(BLOCK_ELEMENTS * samples // first.numel(), 1)
    parts = [
        arg.split(rows) if isinstance(arg, Tensor) and arg.dim() and arg.shape[0] == samples else itertools.repeat(arg)
        for arg in args
    ]
    result: Tensor | None = None
    done = 0
    for block in zip(*parts, strict=False):
        part = formula(*block)
        result = part.new_empty(samples, *part.shape[1:]) if result is None else result
        result[done : done + len(part)] = part
        done += len(part)
    assert result is not None
    return result


def sums(formula: Formula, args: tuple[Any, ...]) -> Tensor:
    """``formula(*tensors, *options, reduction)``, its sums block by block: ATen writes the C_i, and for most losses
    several intermediates, before it adds them up.

    No sum of a block is to be rounded to fewer digits than the sum of all is.
    """
    *given, reduction = args
    tensors = [arg for arg in given if isinstance(arg, Tensor)]
    dtypes = {t.dtype for t in tensors}
    is_exact = len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}
    if reduction not in ("sum", "mean") or not is_exact or max([t.numel() for t in tensors]) < 2 * BLOCK_ELEMENTS:
        return formula(*args)
    parts = []
    try:
        shape = torch.broadcast_shapes(*[t.shape for t in tensors])
        for block in blocks(shape, tensors):
            tensor = iter(block)
            parts.append(formula(*[next(tensor) if isinstance(arg, Tensor) else arg for arg in given], "sum"))
    except (RuntimeError, ValueError, TypeError):
        return formula(*args)  # says what is wrong of the whole, and of no block
    C = torch.stack(parts).sum()
    return C / math.prod(shape) if reduction == "mean" else C


def blocks(shape: torch.Size, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, which broadcast to ``shape``, in blocks of corresponding entries."""
    if all(not t.dim() or (t.shape == shape and t.is_contiguous()) for t in tensors):
        tensors = [t.view(-1) if t.dim() else t for t in tensors]
        shape = torch.Size([math.prod(shape)])
    rows = max(BLOCK_ELEMENTS * shape[0] // math.prod(shape), 1)
    parts = [
        t.split(rows) if t.dim() == len(shape) and t.shape[0] == shape[0] else itertools.repeat(t) for t in tensors
    ]
    return zip(*parts, strict=False) if shape[0] > 1 else iter([tuple(tensors)])


def is_flat(*tensors: Tensor) -> bool:
    """Whether corresponding entries lie at the same place in memory that has no gaps."""
    first = tensors[0]
    if all(t.shape == first.shape and t.is_contiguous() for t in tensors):
        return True
    return all(t.shape == first.shape and t.stride() == first.stride() for t in tensors) and _is_dense(first)


def _is_dense(t: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat(t: Tensor) -> Tensor:
    """The entries of a tensor without gaps in the order in which they lie in memory."""
    return t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))
