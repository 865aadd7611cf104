"""The sizes of windows, as torch's functions take them: a number, or one for each dimension."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["sizes"]


def sizes(dimensions: int, *given: Any) -> list[tuple[int, ...]] | None:
    """Each of these as one number for each of the dimensions; None where one is nothing that torch takes for that, so
    that torch's own function is to say so."""
    found = [_of(dimensions, value) for value in given]
    return None if None in found else found  # type: ignore[return-value]


def _of(dimensions: int, value: Any) -> tuple[int, ...] | None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = (value,)
    if not all(map(_is_integer, value)):
        return None
    numbers = tuple([operator.index(v) if isinstance(v, int) else v for v in value])
    return numbers * dimensions if len(numbers) == 1 else numbers if len(numbers) == dimensions else None


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
