"""How a formula is evaluated on large tensors: as it stands, or in fewer and cheaper passes over memory."""

from __future__ import annotations

import cmath
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = [
    "BLOCK",
    "are_finite",
    "blocks",
    "compile_formulas",
    "fits_blocks",
    "formulas_are_compiled",
    "fused",
    "in_blocks_of_rows",
    "is_free",
    "is_written_down",
    "keeps_arguments",
    "lays_out_freely",
    "may_read",
    "records_nothing",
    "write_down",
]

BLOCK = 1 << 19
"""Numbers in a block: what a formula makes of it on its way stays in the caches, and fewer blocks are fewer calls."""

BLOCK_OF_ROWS = 1 << 18
"""Numbers in a block of rows, of which a formula makes more intermediates."""

LARGE = 1 << 13
"""Numbers from which on a choice by a product, which is more calls, is faster than one by a mask."""


def records_nothing(*tensors: Any) -> bool:
    """Whether these are plain numbers in the CPU's memory and nobody records what becomes of them."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or _is_traced():
        return False
    return not (_written_as == "pure" and is_written_down()) and all(_is_plain(t) for t in tensors)


def may_read(*tensors: Any) -> bool:
    """Whether these are plain numbers in the CPU's memory, which may decide about what is computed."""
    return not (_is_traced() or is_written_down()) and all(_is_plain(t) for t in tensors)


def _is_traced() -> bool:
    """Whether torch.compile, torch.func or a mode, which make_fx's and linearize's tracing are, sees the operations."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and not is_written_down()


def _is_plain(t: Any) -> bool:
    if type(t) is not Tensor or t.device.type != "cpu" or t.layout is not torch.strided:
        return False
    return not torch._C._functorch.is_legacy_batchedtensor(t)  # as is_grads_batched makes of the upstream gradient


def is_free(t: Tensor, *others: Tensor | None) -> bool:
    """Whether t may be written over: it shares no memory with the others, nor within itself."""
    memory = t.untyped_storage().data_ptr()
    return 0 not in t.stride() and all(o is None or o.untyped_storage().data_ptr() != memory for o in others)


def in_blocks_of_rows(formula: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``formula(*tensors)`` of tensors with a row for each sample, the first of K numbers.

    Of large plain tensors in blocks, since a pass over fresh memory costs four times what one over the cache does.
    """
    rows = tensors[0]
    if rows.numel() < 2 * BLOCK_OF_ROWS or is_written_down() or not records_nothing(*tensors):
        return formula(*tensors)
    blocks = zip(*(t.split(max(BLOCK_OF_ROWS // rows.shape[1], 1)) for t in tensors), strict=True)
    first = formula(*next(blocks))
    result = first.new_empty(rows.shape[0], *first.shape[1:])
    into = iter(result.split(first.shape[0]))
    next(into).copy_(first)
    for part, block in zip(into, blocks, strict=True):
        part.copy_(formula(*block))
    return result


def fits_blocks(*tensors: Tensor) -> bool:
    """Whether an elementwise formula of these may, and should, be evaluated in :func:`blocks`."""
    first = tensors[0]
    if first.numel() < LARGE or is_written_down() or not records_nothing(*tensors):
        return False
    return all(t.is_contiguous() and t.shape == first.shape for t in tensors)


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The corresponding blocks of tensors of one shape.

    What a formula makes on its way is then small, and stays in the cache and in the allocator's hands: it may hand
    tensors of 8 MB back to the system each time, and their new pages cost more than the arithmetic on them.
    """
    return zip(*[t.view(-1).split(BLOCK) for t in tensors], strict=True)


_written_as: str | None = None
_written_by = 0
"""The thread whose calls are written down."""


def write_down(how: str | None) -> str | None:
    """Say that somebody writes down the torch calls that formulas make in this thread, to make the same calls of other
    numbers.

    ``"lean"``: they may write over what is theirs, and lay numbers out as is fastest; ``"rows"``: as lean, laid out as
    torch does; ``"pure"``: they write over nothing, as torch.compile likes it; None: nobody does. Returns what was said
    before.
    """
    global _written_as, _written_by
    before, _written_as, _written_by = _written_as, how, threading.get_ident()
    return before


def is_written_down() -> bool:
    """Whether the calls are written down: then no number may decide about them, and none is in blocks."""
    return _written_as is not None and threading.get_ident() == _written_by


def keeps_arguments(*tensors: Tensor) -> bool:
    """Whether a rule of these is to keep its arguments, and no byproducts: torch.compile decides itself what of the
    forward is kept and what is computed again, a step that is written down has them in any case, torch.jit.trace keeps
    nothing, and a subclass such as DTensor may have functions of its own for the whole."""
    if torch.compiler.is_compiling() or is_written_down() or torch._C._get_tracing_state():
        return True
    return any(type(t) not in (Tensor, Parameter) for t in tensors)


def lays_out_freely() -> bool:
    """Whether numbers may be laid out in another order than torch has them in."""
    return _written_as == "lean" and is_written_down()


_compiles_formulas = False


def compile_formulas(enabled: bool = True) -> None:
    """Have the formulas of the activations run on large CPU tensors as one fused kernel each, which ``torch.compile``
    makes of the formula itself when it is first used: some seconds each, and a C++ compiler is needed.

    For training without ``torch.compile``. The numbers are the same to rounding; small tensors are not affected.
    """
    global _compiles_formulas
    _compiles_formulas = enabled


def formulas_are_compiled() -> bool:
    """Whether :func:`compile_formulas` is on."""
    return _compiles_formulas


VECTOR = 16
"""Numbers that a kernel is compiled to take at once: float32 in 512 bits."""


@functools.cache
def _kernel(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(formula, dynamic=True)  # beyond the limit of kernels, without fullgraph, torch runs it plainly


def fused(formula: Callable[..., Tensor], first: Tensor, *args: Any) -> Tensor:
    """``formula(first, *args)``, which is elementwise, in one kernel for tensors of all shapes.

    They come as any number of rows of 16 where that may be: a loop over a number that may be no multiple of 16 divides
    by it at every turn, which takes longer than the turn.
    """
    flat = [_any_rows(arg) if isinstance(arg, Tensor) else arg for arg in (first, *args)]
    return _kernel(formula)(*flat).view_as(first)


def _any_rows(t: Tensor) -> Tensor:
    if t.numel() % VECTOR:
        return t.view(-1)
    rows = t.view(-1, VECTOR)
    torch._dynamo.mark_static(rows, 1)
    return rows


def are_finite(t: Tensor) -> bool:
    """Whether all are finite, by a sum; if the sum overflows it says no."""
    wide = torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype
    return cmath.isfinite(t.sum(dtype=wide).item())
