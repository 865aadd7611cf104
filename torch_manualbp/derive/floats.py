"""Python numbers that are inputs of a program: attributes of modules that change from step to step.

A schedule sets ``loss.beta = 0.3``. A program that was derived when it was 0.2 says 0.2; where such a number has
changed, and nothing else, the next one is derived with a tensor of no dimension in its place, which gets the number at
each call. Code that asks for the number itself, as ``if self.beta > 0`` does, is seen by the tape: then it stays a
constant, and each value has a program of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["FloatInput", "float_inputs", "in_place_of"]


@dataclass(frozen=True)
class FloatInput:
    """An attribute of a module, and the tensor that stands for it in a program."""

    attributes: dict[str, Any]
    name: str
    key: str
    """What the program calls it: with its module path, as parameters are called."""

    tensor: Tensor

    def is_float(self) -> bool:
        """Whether it is one now."""
        return type(self.attributes.get(self.name)) is float

    def fill(self) -> None:
        """Give the tensor the number of now."""
        self.tensor.fill_(self.attributes[self.name])


def float_inputs(places: Sequence[tuple[dict[str, Any], str, str]], dtype: torch.dtype) -> list[FloatInput]:
    """Inputs for attributes by name and key; none where torch would round numbers otherwise than tensors."""
    if dtype not in (torch.float32, torch.float64):
        return []
    return [FloatInput(at, name, key, torch.tensor(at[name], dtype=dtype)) for at, name, key in places]


@contextlib.contextmanager
def in_place_of(floats: Sequence[FloatInput]) -> Iterator[Mapping[str, Tensor]]:
    """A block in which the tensors stand where the numbers do."""
    before = [item.attributes[item.name] for item in floats]
    for item in floats:
        item.attributes[item.name] = item.tensor
    try:
        yield {item.key: item.tensor for item in floats}
    finally:
        for item, number in zip(floats, before, strict=True):
            item.attributes[item.name] = number
