"""Formulas through torch.compile, one fused kernel each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import mark_static
from torch_manualbp.kernels.blocks import flat, is_flat

__all__ = ["compile_formulas", "compiled", "formulas_are_compiled"]

VECTOR_ELEMENTS = 16
"""Numbers that a kernel is compiled to take at once: float32 in 512 bits."""

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


def compiled(formula: Callable[..., Tensor], args: tuple[Any, ...]) -> Any:
    """``formula(*args)``, which goes entry by entry, in one kernel for tensors of all shapes; NotImplemented for
    tensors that broadcast, and for arguments that are neither tensors nor numbers.

    They come as any number of rows of 16 where that may be: a loop over a number that may be no multiple of 16 divides
    by it at every turn, which takes longer than the turn.
    """
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if not is_flat(*tensors) or not all(isinstance(arg, (Tensor, int, float)) for arg in args):
        return NotImplemented
    given = [_any_rows(arg) if isinstance(arg, Tensor) else float(arg) for arg in args]
    first = tensors[0]
    return _kernel(formula)(*given).as_strided(first.shape, first.stride())


@functools.cache
def _kernel(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(formula, dynamic=True)  # beyond the limit of kernels, without fullgraph, torch runs it plainly


def _any_rows(t: Tensor) -> Tensor:
    t = flat(t)
    if t.numel() % VECTOR_ELEMENTS:
        return t
    rows = t.view(-1, VECTOR_ELEMENTS)
    mark_static(rows, 1)
    return rows
