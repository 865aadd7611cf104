"""Which torch functions are activations, by whatever name they are called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from torch_manualbp.functional import activation

__all__ = ["OfModule", "function_of_entries", "is_activation"]

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
    named = tuple((name, value) for name, value in kwargs.items() if name not in ("input", "inplace"))
    return OfEntries(function, args[1:], named)


@dataclass(frozen=True)
class OfEntries:
    """A function of z alone; equal to others of the same options."""

    function: Callable[..., Tensor]
    options: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z.clone(), *self.options, **dict(self.named))  # a copy, which it may write over


@dataclass(frozen=True)
class OfModule:
    """Somebody's own module as a function of z that leaves the module as it is."""

    module: Module

    def __call__(self, z: Tensor) -> Tensor:
        twin = copy.copy(self.module)
        twin.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in twin._buffers.items()}
        result: Tensor = twin.forward(z.clone())
        return result


def _name(function: Any) -> str:
    return getattr(function, "__name__", "").removesuffix("_")
