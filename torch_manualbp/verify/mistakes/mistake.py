"""One planted mistake, its correct twin, and the inputs that both take."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make

__all__ = ["KINDS", "Mistake"]

KINDS = (
    "sign",
    "factor",
    "wrong variable",
    "transpose",
    "missing sum",
    "missing mean",
    "batch size",
    "wrong count",
    "missing term",
    "option ignored",
    "conj",
    "tiny error",
    "raw structure",
    "upstream",
    "second derivative",
    "forward mode",
    "vmap",
    "kink",
    "special values",
    "precision",
    "layout",
    "empty batch",
    "saved tensors",
    "randomness",
    "frozen arguments",
    "autocast",
)
"""What can be wrong with a backward."""


@dataclass(frozen=True)
class Mistake:
    """A wrong target, and the correct one that differs from it in nothing else."""

    name: str
    """The operation and what is wrong with it, in a few words."""

    kind: str
    """One of :data:`KINDS`."""

    what: str
    """What is wrong, in one line."""

    target: Any
    """An ``autograd.Function``, in either style, or a callable."""

    twin: Any
    """The same without the mistake."""

    inputs: Callable[[Make], tuple[Any, ...]]
    """All arguments, made in any dtype."""

    constants: Collection[int] = ()
    """Positions of floating-point arguments that take no gradient."""

    is_complex: bool = False
    """Whether the mistake is one of complex numbers."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the mistake {self.name!r} is of kind {self.kind!r}; kinds are {', '.join(KINDS)}")

    def args(self, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
        """The arguments in a dtype, fresh at every call; those that take a gradient are leaves that require it."""
        if self.is_complex:
            dtype = dtype.to_complex()
        return tuple(
            arg.requires_grad_() if self._takes_gradient(i, arg) else arg
            for i, arg in enumerate(self.inputs(Make(dtype)))
        )

    def _takes_gradient(self, i: int, arg: Any) -> bool:
        is_number = isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex())
        return is_number and i not in self.constants
