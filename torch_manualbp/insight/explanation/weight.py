"""The weight that is asked for, by the name of its parameter and its index."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_manualbp._text import visible
from torch_manualbp.derive.derived import path_of_loss

__all__ = ["Weight", "find_weight"]


@dataclass(frozen=True)
class Weight:
    """One number of a parameter."""

    parameter: Tensor
    name: str
    """As it was asked for."""

    names: tuple[str, ...]
    """All names of the parameter: a tied one has several."""

    index: tuple[int, ...]
    flat: int
    """The index, counted off."""


def find_weight(model: Module, loss: Any, name: Any, index: int | Sequence[int]) -> Weight:
    """Look a weight up.

    Raises:
        ValueError: there is no parameter of this name, or nothing is learnt of it.
        IndexError: the parameter has no such entry.
    """
    named = _tensors(model, loss, parameters=True)
    if not isinstance(name, str):
        given = next((f"the name of it, {n!r}" for n, tensor in named.items() if tensor is name), "a parameter's name")
        raise ValueError(f"the weight is a {type(name).__name__}: give {given}")
    if name not in named:
        raise ValueError(_not_there(name, named, _tensors(model, loss, parameters=False)))
    parameter, shown = named[name], visible(name)
    if is_lazy(parameter):
        raise ValueError(f"{shown} has no shape yet: run the model once before")
    if not parameter.requires_grad:
        raise ValueError(f"{shown} is frozen: nothing is learnt of it before requires_grad_(True)")
    if parameter.is_complex():
        raise ValueError(f"{shown} is complex: the chain of a weight is one of real numbers")
    at = _index(shown, tuple(parameter.shape), index)
    flat = sum(i * step for i, step in zip(at, _steps(parameter.shape), strict=True))
    names = tuple(other for other, tensor in named.items() if tensor is parameter)
    return Weight(parameter, name, names, at, flat)


def _tensors(model: Module, loss: Any, parameters: bool) -> dict[str, Tensor]:
    """The parameters, or the buffers, under all of their names."""
    named: dict[str, Tensor] = {}
    for prefix, root in (("", model), (path_of_loss(model), loss)):
        if isinstance(root, Module):
            of_root = root.named_parameters if parameters else root.named_buffers
            named |= dict(of_root(prefix, remove_duplicate=False))
    return named


def _not_there(name: str, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> str:
    if name in buffers:
        return f"{visible(name)} is a buffer of shape {tuple(buffers[name].shape)}: nothing is learnt of it"
    if not parameters:
        return f"there is no parameter {name!r}: the model has none"
    near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.4)
    shown = near or list(parameters)[:3]
    these = " or ".join(f"{other!r} of shape {_shape(parameters[other])}" for other in shown)
    question = f"did you mean {these}?" if near else f"there is {these}, and so on"
    return f"there is no parameter {name!r}: {question}"


def _shape(parameter: Tensor) -> str:
    return "that is not known yet" if is_lazy(parameter) else str(tuple(parameter.shape))


def _index(name: str, shape: tuple[int, ...], given: int | Sequence[int]) -> tuple[int, ...]:
    """The index with all of its numbers from 0 up."""
    try:
        index = tuple(map(operator.index, given if isinstance(given, Sequence) else (given,)))
    except TypeError:
        raise IndexError(f"{given!r} is no index: for {name} of shape {shape} give {_such_as(shape)}") from None
    if len(index) != len(shape):
        raise IndexError(
            f"{name} has the shape {shape}: its index is {_count(len(shape))}, such as {_such_as(shape)}, and not "
            f"{given!r}"
        )
    if any(not -n <= i < n for i, n in zip(index, shape, strict=True)):
        last = tuple(n - 1 for n in shape)
        valid = "it has no entries" if 0 in shape else f"from {(0,) * len(shape)} to {last}, negative from the end"
        raise IndexError(f"{name} has the shape {shape}, and no entry {index}: {valid}")
    return tuple(i % n for i, n in zip(index, shape, strict=True))


def _such_as(shape: tuple[int, ...]) -> str:
    return str(tuple(0 for _ in shape))


def _count(n: int) -> str:
    return "one number" if n == 1 else f"{n} numbers"


def _steps(shape: Sequence[int]) -> list[int]:
    """How many entries further each index leads."""
    steps = [1]
    for n in reversed(shape[1:]):
        steps.insert(0, steps[0] * n)
    return steps[: len(shape)]
