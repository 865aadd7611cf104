"""A rule with several outputs, looked at as one with a single output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["joined", "of_one_output", "outputs"]


def outputs(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs that a rule, or its torch twin, returned."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def joined(result: Tensor | Sequence[Tensor]) -> Tensor:
    """The one output; of several the entries of all in a row, whose upstream gradient reaches each of them."""
    return result if isinstance(result, Tensor) else torch.cat([output.flatten() for output in result])


def of_one_output(function: Callable[..., Tensor | Sequence[Tensor]]) -> Callable[..., Tensor]:
    """The function with its outputs joined."""

    def apply(*args: Any) -> Tensor:
        return joined(function(*args))

    return apply
