"""How a formula is evaluated on large tensors: as it stands, or in fewer and cheaper passes over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from torch_manualbp.rules.recording import recorder

__all__ = [
    "BLOCK",
    "blocks",
    "fits_blocks",
    "in_blocks_of_rows",
    "is_free",
    "is_written_down",
    "keeps_arguments",
    "may_read",
    "records_nothing",
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
    return not is_recorded_purely() and all(_is_plain(t) for t in tensors)


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


def is_written_down() -> bool:
    """Whether the calls are written down: then no number may decide about them, and none is in blocks."""
    return not torch.compiler.is_compiling() and recorder() is not None


def keeps_arguments(*tensors: Tensor) -> bool:
    """Whether a rule of these is to keep its arguments, and no byproducts: torch.compile decides itself what of the
    forward is kept and what is computed again, a step that is written down has them in any case, torch.jit.trace keeps
    nothing, and a subclass such as DTensor may have functions of its own for the whole."""
    if torch.compiler.is_compiling() or is_written_down() or torch._C._get_tracing_state():
        return True
    return any(type(t) not in (Tensor, Parameter) for t in tensors)


def is_recorded_purely() -> bool:
    tape = recorder()
    return tape is not None and tape.how == "pure"
