"""Which torch functions are activations, by whatever name they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from torch_manualbp.functional import activation

__all__ = ["function_of_entries", "is_activation"]

ACTIVATIONS = frozenset({*activation.__all__, "log_sigmoid", "_threshold"})
"""The names of the functions of torch and of torch.nn.functional, of ours, and of methods."""

OTHERS = frozenset({"softmax", "log_softmax", "softmin", "glu", "rrelu"})
"""Those that see several entries, or draw random numbers."""


def is_activation(function: Any) -> bool:
    """Whether it is one: torch.relu, Tensor.relu_, torch.nn.functional.relu, ours."""
    return _name(function) in ACTIVATIONS


def function_of_entries(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function of z alone that ``function(*args, **kwargs)`` was a call of, with the same options; None if it does
    not act on each entry alone. Parameters among the options are as they are when it is called."""
    if _name(function) in OTHERS:
        return None
    options = {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
    return functools.partial(_called, function, args[1:] if args else (), options)


def _called(function: Any, options: tuple[Any, ...], named: Mapping[str, Any], z: Tensor) -> Tensor:
    return function(z.clone(), *options, **named)  # a copy, since the function may write over it


def _name(function: Any) -> str:
    return getattr(function, "__name__", "").removesuffix("_")
