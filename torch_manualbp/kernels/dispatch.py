"""Chooses how a formula is evaluated. It asks about the surroundings once a call.

=====================================  ================================================================================
torch.compile traces                   the formula
a step is recorded                     the kernel that is registered :func:`for_steps`, or the formula
small, or somebody watches             the formula: autograd, torch.func, a mode, a subclass, another device
large, formulas are to be compiled     the formula itself through torch.compile, if it goes entry by entry
large                                  the kernel that is registered :func:`for_large`, or the formula in blocks
=====================================  ================================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from torch_manualbp._torch import (
    dispatch_modes,
    forward_mode_level,
    is_batched,
    is_compiling,
    is_jit_tracing,
    is_transformed,
)
from torch_manualbp.kernels.blocks import by_entries, by_rows, sums
from torch_manualbp.kernels.compiled import compiled, formulas_are_compiled
from torch_manualbp.rules.recording import recorder
from torch_manualbp.rules.rule import Structure

__all__ = [
    "LARGE",
    "LARGE_ELEMENTS",
    "STEPS",
    "dispatch",
    "for_large",
    "for_steps",
    "is_elsewhere",
    "is_watched",
    "plain",
]

F = TypeVar("F", bound=Callable[..., Any])
Formula = Callable[..., Any]

LARGE_ELEMENTS = 1 << 13
"""Numbers from which on fewer passes over memory outweigh more calls."""

LARGE: dict[Formula, Formula] = {}
"""The kernels of large plain tensors on the CPU, by the formulas that they compute."""

STEPS: dict[Formula, Formula] = {}
"""The kernels of recorded steps: no number may decide about them."""

BLOCKS: dict[Structure, Callable[[Formula, tuple[Any, ...]], Any]] = {
    "entries": by_entries,
    "rows": by_rows,
    "sums": sums,
    "whole": lambda formula, args: formula(*args),
}


def for_large(formula: Formula) -> Callable[[F], F]:
    """Register a kernel of a formula, of its arguments and as exact, for large plain tensors. It returns NotImplemented
    for what it leaves to the formula."""
    return _registering(LARGE, formula)


def for_steps(formula: Formula) -> Callable[[F], F]:
    """Register a kernel of a formula, of its arguments and as exact, for steps that are recorded."""
    return _registering(STEPS, formula)


def plain(formula: Formula) -> Formula:
    """The formula as it stands."""
    return inspect.unwrap(formula)


def _registering(kernels: dict[Formula, Formula], formula: Any) -> Callable[[F], F]:
    def register(kernel: F) -> F:
        kernels[plain(formula)] = kernel
        return kernel

    return register


def dispatch(formula: Formula, structure: Structure, args: tuple[Any, ...]) -> Any:
    """What ``formula(*args)`` is."""
    if is_compiling():
        return formula(*args)
    tape = recorder()
    if tape is not None:
        return (formula if tape.how == "pure" else STEPS.get(formula, formula))(*args)
    first = args[0] if args[0] is not None else args[1]
    if not isinstance(first, Tensor) or is_jit_tracing() is not None or first.numel() < LARGE_ELEMENTS:
        return formula(*args)
    kernel = LARGE.get(formula)
    if (kernel is None and structure == "whole") or is_watched(args):
        return formula(*args)
    if structure == "entries" and formulas_are_compiled():
        result = compiled(formula, args)
        if result is not NotImplemented:
            return result
    result = NotImplemented if kernel is None else kernel(*args)
    return BLOCKS[structure](formula, args) if result is NotImplemented else result


def is_watched(args: tuple[Any, ...]) -> bool:
    """Whether somebody records or traces what becomes of the tensors, or one is no plain one in the CPU's memory."""
    return torch.is_grad_enabled() or is_elsewhere(args)


def is_elsewhere(args: tuple[Any, ...]) -> bool:
    """The same without the question whether autograd does."""
    if is_transformed() or forward_mode_level() >= 0:
        return True
    return dispatch_modes() > 0 or not all(_is_plain(t) for t in args if isinstance(t, Tensor))


def _is_plain(t: Tensor) -> bool:
    if type(t) not in (Tensor, Parameter) or t.device.type != "cpu" or t.layout is not torch.strided:
        return False
    return not (is_batched(t) or t.is_neg() or t.is_conj())
