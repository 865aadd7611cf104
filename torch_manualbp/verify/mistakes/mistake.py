"""One planted mistake, its correct twin, and what must find it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make
from torch_manualbp.rules import Rule

__all__ = ["BREACHES", "KINDS", "MISTAKES", "Breach", "Mistake", "breaks", "planted"]

T = TypeVar("T")

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
    """A wrong target, and the correct one that differs from it in nothing else: ``verify`` must tell them apart."""

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


@dataclass(frozen=True)
class Breach:
    """A rule with a mistake, a sample of the rule that it subclasses, and the checks of the contract that must fail."""

    rule: type[Rule]
    sample: str
    checks: tuple[str, ...]


MISTAKES: list[Mistake] = []
"""What ``verify`` must find, in the order in which modules define them."""

BREACHES: list[Breach] = []
"""What the contract must find."""


def planted(
    name: str, kind: str, what: str, inputs: Callable[[Make], tuple[Any, ...]], *, twin: Any = None, **about: Any
) -> Callable[[T], T]:
    """List a target among the mistakes; its twin is the class that it subclasses, unless given."""

    def listed(target: T) -> T:
        right = target.__mro__[1] if isinstance(target, type) and twin is None else twin
        MISTAKES.append(Mistake(name, kind, what, target, right, inputs, **about))
        return target

    return listed


def breaks(sample: str, *checks: str) -> Callable[[T], T]:
    """List a subclass of a rule among those that break the contract on a sample, as these checks must find."""

    def listed(rule: T) -> T:
        BREACHES.append(Breach(rule, sample, checks))  # type: ignore[arg-type]
        return rule

    return listed


def matrix(make: Make) -> tuple[Any, ...]:
    """The inputs of a function of one tensor."""
    return (make(5, 4),)


def pair(make: Make) -> tuple[Any, ...]:
    """Those of a function of two of one shape."""
    return make(5, 4), make(5, 4)


def layer(make: Make) -> tuple[Any, ...]:
    """Those of a linear layer."""
    return make(5, 4), make(3, 4), make(3)
