"""A Function, or a callable, as an operator of ``torch.library``, which ``torch.library.opcheck`` takes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.functions import is_function, run_forward

__all__ = ["as_operator"]

NAMESPACE = "torch_manualbp_self_test"

KINDS = {bool: "bool", int: "int", float: "float", str: "str", type(None): "Tensor?"}
"""The words of a schema."""

_numbers = itertools.count()


@contextlib.contextmanager
def as_operator(target: Any, args: Sequence[Any]) -> Iterator[Any]:
    """While it lasts there is an operator whose kernel is the target's forward, and whose autograd the target is.

    Raises:
        TypeError: a schema has no words for one of the arguments or results.
    """
    name = f"op{next(_numbers)}"
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    try:
        with torch.no_grad():
            results = (run_forward(target, args) if is_function(target) else target(*args)) if args else None
        library.define(f"{name}({_parameters(args)}) -> {_returns(results)}")
        if is_function(target):
            library.impl(name, lambda *given: run_forward(target, given), "CompositeExplicitAutograd")
            library.impl(name, target.apply, "Autograd")
        else:
            library.impl(name, target, "CompositeImplicitAutograd")
        yield getattr(getattr(torch.ops, NAMESPACE), name).default
    finally:
        library._destroy()


def _parameters(args: Sequence[Any]) -> str:
    return ", ".join(f"{_kind(arg)} a{i}" for i, arg in enumerate(args))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "Tensor"
    if isinstance(value, list | tuple) and value and all(type(item) is int for item in value):
        return "int[]"
    if type(value) not in KINDS:
        raise TypeError(f"no schema has a {type(value).__name__}")
    return KINDS[type(value)]


def _returns(results: Any) -> str:
    if isinstance(results, Tensor):
        return "Tensor"
    if not isinstance(results, tuple) or not all(isinstance(t, Tensor) for t in results):
        raise TypeError(f"no schema returns a {type(results).__name__}")
    return f"({', '.join('Tensor' for _ in results)})"
