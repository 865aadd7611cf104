"""Which activation a call of torch is, by whatever name: torch.relu, Tensor.relu_, torch.nn.functional.relu, ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from torch_manualbp.catalogue.activation import ACTIVATIONS
from torch_manualbp.catalogue.operation import Operation, named
from torch_manualbp.rules.jacobian import Diagonal

__all__ = ["OfModule", "activation_of", "function_of_entries"]

BY_NAME = {
    spelled: operation
    for operation in ACTIVATIONS
    for name in operation.functions.split()
    for spelled in (name, *(function.__name__ for function in named(name)))
}
"""The rows by what their functions call themselves: F.logsigmoid has the name log_sigmoid."""


def activation_of(function: Any) -> Operation | None:
    """The row of the activation that a function of torch or of ours computes, if it is one."""
    return BY_NAME.get(getattr(function, "__name__", "").removesuffix("_"))


def function_of_entries(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function of z alone that ``function(*args, **kwargs)`` was a call of, with the same options; None if it does
    not act on each entry alone, or draws random numbers. Parameters among the options are as they are when it is
    called."""
    operation = activation_of(function)
    jacobian = None if operation is None else operation.rule.jacobian
    if not isinstance(jacobian, Diagonal) or jacobian.slope != "f'":
        return None
    options = tuple((name, value) for name, value in kwargs.items() if name not in ("input", "inplace"))
    return OfEntries(function, args[1:], options)


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
