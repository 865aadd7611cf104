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

__all__ = ["BLOCK_ELEMENTS", "blocks", "by_entries", "by_rows", "is_flat", "sums"]

BLOCK_ELEMENTS = 1 << 18
"""Numbers in a block: what a formula makes of it on its way stays in the caches, and fewer blocks are fewer calls."""

Formula = Callable[..., Tensor]


def by_entries(formula: Formula, args: tuple[Any, ...]) -> Tensor:
    """``formula(*args)`` of tensors that broadcast against each other, each entry from the same entry of each."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if max([t.numel() for t in tensors]) < 2 * BLOCK_ELEMENTS:
        return formula(*args)
    shape = torch.broadcast_shapes(*[t.shape for t in tensors])
    flat: Tensor | None = None
    done = 0
    for block in blocks(shape, tensors):
        given = iter(block)
        part = formula(*[next(given) if isinstance(arg, Tensor) else arg for arg in args])
        flat = torch.empty(math.prod(shape), dtype=part.dtype) if flat is None else flat
        flat[done : done + part.numel()].view(part.shape).copy_(part)
        done += part.numel()
    assert flat is not None
    return flat.view(shape)


def by_rows(formula: Formula, args: tuple[Any, ...]) -> Tensor:
    """``formula(*args)`` of tensors with a row for each sample, the first of K numbers."""
    first = args[0]
    if first.numel() < 2 * BLOCK_ELEMENTS:
        return formula(*args)
    rows = max(BLOCK_ELEMENTS * first.shape[0] // first.numel(), 1)
    parts = [t.split(rows) if isinstance(t, Tensor) else itertools.repeat(t) for t in args]
    return torch.cat([formula(*block) for block in zip(*parts, strict=False)])


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
    shape = torch.broadcast_shapes(*[t.shape for t in tensors])
    parts = []
    for block in blocks(shape, tensors):
        tensor = iter(block)
        parts.append(formula(*[next(tensor) if isinstance(arg, Tensor) else arg for arg in given], "sum"))
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
    """Whether corresponding entries lie at the same place in memory."""
    return all(t.shape == tensors[0].shape and t.is_contiguous() for t in tensors)
