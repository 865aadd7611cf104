"""What a check is given, a rule and one of its samples, and what all checks share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.rules import Rule
from torch_manualbp.verify.outputs import of_one_output

__all__ = [
    "EXACT",
    "Case",
    "DoesNotApply",
    "assert_same",
    "case_of",
    "cases",
    "finish",
    "gradients",
    "is_floating",
    "leaves",
    "refusal",
    "upstream_for",
]

EXACT = 1e-12
"""Largest difference, relative to the tensor's largest number or 1, that float64 may show against the torch twin."""


class DoesNotApply(Exception):
    """What a check says of a case to which it, or a part of it, does not apply, for these reasons."""

    def __init__(self, *reasons: str, partly: bool = False) -> None:
        self.reasons = tuple(dict.fromkeys(reasons))
        self.partly = partly
        """Whether the rest of the check ran, and passed."""
        super().__init__("; ".join(self.reasons))


@dataclass(frozen=True)
class Case:
    """A rule and the name of one of its samples."""

    entry: Operation
    sample: str

    def __str__(self) -> str:
        return f"{self.entry.name}-{self.sample}"

    @property
    def rule(self) -> type[Rule]:
        return self.entry.rule

    @property
    def apply(self) -> Callable[..., Tensor]:
        """The rule, its outputs joined where there are several."""
        return of_one_output(self.rule.apply)

    @property
    def twin(self) -> Callable[..., Tensor]:
        """The torch twin, its outputs joined where there are several."""
        return of_one_output(self.entry.twin)

    @property
    def twin_for_second(self) -> Callable[..., Tensor]:
        return of_one_output(self.entry.twin_for_second or self.entry.twin)

    def with_rule(self, rule: type[Rule]) -> Case:
        return Case(replace(self.entry, rule=rule), self.sample)

    def args(self, make: Make | None = None, frozen: Sequence[int] = ()) -> list[Any]:
        """Fresh arguments; those that can take a gradient are leaves that do, unless frozen."""
        (sample,) = (s for s in self.entry.samples(make or Make()) if s.name == self.sample)
        positions = set(self.entry.differentiable(sample)) - set(frozen)
        return [a.requires_grad_(i in positions) if isinstance(a, Tensor) else a for i, a in enumerate(sample.args)]

    def differentiable(self) -> tuple[int, ...]:
        return tuple(i for i, a in enumerate(self.args()) if isinstance(a, Tensor) and a.requires_grad)

    def first(self) -> int:
        """Position of the first tensor."""
        return next(i for i, a in enumerate(self.args()) if isinstance(a, Tensor))

    def is_elementwise(self) -> bool:
        """Whether the first argument is the one tensor, and goes entry by entry into an output of its shape."""
        first, *options = self.args()
        if not isinstance(first, Tensor) or any(isinstance(a, Tensor) for a in options):
            return False
        z = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).view(2, 3)
        other = z.clone()
        other[0, 0] += 1  # which must change no other entry
        try:
            before, after = self.twin(z, *options), self.twin(other, *options)
        except (RuntimeError, IndexError):
            return False
        return before.shape == z.shape and torch.equal(before.flatten()[1:], after.flatten()[1:])

    def exempt(self, check: str, variant: str | None = None) -> str | None:
        """The catalogue's reason why the check, or this variant of it, does not hold here."""
        return self.entry.exempt.get(check if variant is None else f"{check}, {variant}")


def cases(entries: Sequence[Operation] = CATALOGUE) -> Iterator[Case]:
    """Every sample of every rule."""
    for entry in entries:
        for sample in entry.samples(Make()):
            yield Case(entry, sample.name)


def case_of(rule: type[Rule], sample: str, entries: Sequence[Operation] = CATALOGUE) -> Case:
    (entry,) = (e for e in entries if e.rule is rule)
    return Case(entry, sample)


def finish(ran: int, reasons: Sequence[str]) -> None:
    """End a check of several parts: say for what reasons some did not run."""
    if reasons:
        raise DoesNotApply(*reasons, partly=ran > 0)


def refusal(function: Callable[..., Any], *args: Any) -> str | None:
    """The reason to give where torch's own function does not do what is asked, in its words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of slow or deprecated ways
            function(*args)
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        return f"torch's own function refuses: {str(error).splitlines()[0].split('. ')[0][:160]}"
    return None


def leaves(args: Sequence[Any]) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def is_floating(a: Any) -> bool:
    return isinstance(a, Tensor) and a.is_floating_point()


def upstream_for(output: Tensor, seed: int = 7) -> Tensor:
    """∂C/∂(output): random numbers of its shape and dtype."""
    return Make(output.dtype, output.device, seed)(*output.shape)


def gradients(
    function: Callable[..., Tensor], args: Sequence[Any], upstream: Tensor | None = None
) -> tuple[Tensor, ...]:
    output = function(*args)
    return torch.autograd.grad(output, leaves(args), upstream_for(output) if upstream is None else upstream)


def assert_same(actual: Tensor, expected: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Equal in shape and dtype, in the places of NaN and infinities, and elsewhere to the tolerance."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    if not expected.numel():
        return
    finite = expected.isfinite()
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN elsewhere than expected"
    odd = ~finite & ~expected.isnan()
    assert torch.equal(actual[odd], expected[odd]), f"{what}: infinities differ"
    if finite.any():
        scale = max(1.0, expected[finite].abs().max().item())
        difference = (actual[finite] - expected[finite]).abs().max().item() / scale
        assert difference <= tolerance, f"{what}: differs by {difference:.3g}"
