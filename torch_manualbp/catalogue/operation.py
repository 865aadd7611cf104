"""A row of the catalogue: a rule, what torch calls its operation, its torch twin, and inputs on which the two agree."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule

__all__ = ["Make", "Operation", "Sample", "alone", "both", "named"]


@dataclass(frozen=True)
class Sample:
    """One call of a rule: ``rule.apply(*args)`` and ``twin(*args)``."""

    name: str
    args: tuple[Any, ...]


class Make:
    """Makes the tensors of samples: the same for the same seed, in every dtype the same numbers rounded."""

    def __init__(self, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        """Standard normal numbers; of a complex dtype, in both parts."""
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(shape, dtype=wide, generator=self._generator).to(self.device, self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """Uniform numbers from 0.5 to 1.5."""
        return (torch.rand(shape, dtype=torch.float64, generator=self._generator) + 0.5).to(self.device, self.dtype)

    def probabilities(self, *shape: int, dim: int) -> Tensor:
        """Positive numbers that sum to 1 along ``dim``."""
        logits = torch.randn(shape, dtype=torch.float64, generator=self._generator)
        return logits.softmax(dim).to(self.device, self.dtype)

    def indices(self, classes: int, *shape: int) -> Tensor:
        """Integers from 0 to ``classes`` − 1."""
        return torch.randint(classes, shape, generator=self._generator).to(self.device)


@dataclass(frozen=True)
class Operation:
    """A rule, what torch calls its operation, a torch function of the rule's arguments, and samples of these."""

    rule: type[Rule]
    twin: Callable[..., Any]
    """It returns a tensor, or as many as the rule."""

    samples: Callable[[Make], Iterator[Sample]]
    """Calls that between them take every branch."""

    functions: str = ""
    """The functions and methods of torch that the rule computes, such as ``"neg negative __neg__"``, by their names in
    ``torch``, ``torch.Tensor`` and ``torch.nn.functional``; :mod:`torch_manualbp.functional` has those of the last."""

    layers: str = ""
    """The classes of ``torch.nn`` whose forward is one of these: :mod:`torch_manualbp.nn` has them."""

    arguments: Callable[..., tuple[Any, ...]] | None = None
    """From the arguments of these functions, as torch names them, those of the rule. A row needs it where
    ``functional`` has none of the functions."""

    constants: frozenset[int] = frozenset()
    """Positions of floating-point arguments that torch gives no gradient."""
    complex: bool = False
    """Whether the twin takes complex numbers."""

    twin_for_second: Callable[..., Any] | None = None
    """What second derivatives are held against, where the twin has none or approximates them."""

    reference: Callable[..., Any] | None = None
    """What accuracy is measured against in float64, where there, too, the twin loses digits or underflows."""

    cancels: bool = False
    """Whether the gradient is a sum whose terms cancel, which leaves an entry near 0 few right digits in any order."""

    exempt: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Why a check of the contract does not hold here: the reason under the check's name, under "check, sample" for one
    sample, or under "bytes kept, argument 2 alone" or "changes in place, argument 0" for one argument."""

    @property
    def name(self) -> str:
        """The rule's."""
        return self.rule.__name__

    @property
    def letters(self) -> tuple[str, ...]:
        """What the rule's formulas call its arguments."""
        return tuple(inspect.signature(self.rule.forward).parameters)

    def functions_of_layers(self) -> dict[str, str]:
        """The layers, each with the function that its forward calls: in turn where there are as many, or a multiple."""
        functions, layers = self.functions.split(), self.layers.split()
        some, more = sorted((len(functions), len(layers)))
        calls = functions if some and more % some == 0 else functions[:1]
        return {layer: calls[i % len(calls)] for i, layer in enumerate(layers)}

    def differentiable(self, sample: Sample) -> tuple[int, ...]:
        """Positions of the arguments that take a gradient."""
        return tuple(
            i
            for i, arg in enumerate(sample.args)
            if isinstance(arg, Tensor) and (arg.is_floating_point() or arg.is_complex()) and i not in self.constants
        )


def named(name: str, *hosts: Any) -> list[Any]:
    """What torch calls so: its function, the method of tensors, the function of ``torch.nn.functional``."""
    found = [getattr(host, name, None) for host in hosts or (torch, Tensor, F)]
    return [function for function in found if callable(function)]


def alone(input: Any) -> tuple[Any]:
    """The arguments of a rule of one tensor, from those of torch's function of one."""
    return (input,)


def both(input: Any, other: Any) -> tuple[Any, Any]:
    """The arguments of a rule of two operands, from those of torch's function of two."""
    return input, other
