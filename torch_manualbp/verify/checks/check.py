"""What a check is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.measure import Error, References, error_of, largest
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import Leaf, Setting, Subject, name_of_dtype

__all__ = ["EXACT", "FLOOR", "Check", "Trial"]

EPS = torch.finfo(torch.float64).eps

EXACT = 4096.0
"""ε of the terms' size by which two right float64 gradients may differ: 9e-13. Of the rules and of torch's modules none
differs from autograd of the same forward by more than 200."""

FLOOR = 8.0
"""ε of the largest entry by which each entry may be off, whatever its own size: 1 − a² of a saturated tanh has no more
digits."""


@dataclass(frozen=True)
class Trial:
    """A subject that is being verified, and what its checks share."""

    subject: Subject
    references: References
    batch: int | None = None
    """The dimension of the inputs over which the target claims to be additive."""

    @property
    def exact(self) -> Setting:
        """The call in float64, which most checks look at."""
        return self.subject.setting(torch.float64)

    def size_of(self, name: str) -> float:
        """How large the terms of this leaf's gradient are for the inputs at hand."""
        leaves = self.subject.leaves
        index = next((i for i, leaf in enumerate(leaves) if leaf.name == name), None)
        return 0.0 if index is None else largest(self.references.at().scales[index])

    def row(self, check: str, name: str, wrong: str = "", **about: object) -> Row:
        """A row of a check that has no figures: it passed, or what is wrong."""
        return Row(name, check, FAILS if wrong else OK, hint=wrong or str(about.pop("note", "")), **about)  # type: ignore[arg-type]

    def compared(
        self,
        check: str,
        leaf: Leaf | str,
        gradient: Tensor | None,
        expected: Tensor,
        scale: Tensor | None = None,
        *,
        hint: str = "",
        slack: float = 1.0,
    ) -> Row:
        """A row that holds a float64 gradient against the right one.

        Args:
            scale: of the entries; by default the largest of all, here and for the inputs at hand: where terms cancel
                the gradient itself says nothing about their size.
            hint: what it means where it is wrong; by default the correction that would make it right.
            slack: how much more than the usual error is allowed.
        """
        name = leaf if isinstance(leaf, str) else leaf.name
        about = {"dtype": name_of_dtype(expected.dtype), "shape": tuple(expected.shape)}
        if gradient is None:
            gradient = torch.zeros_like(expected)
            hint = hint or ("no gradient" if largest(expected) else "")
        if gradient.shape != expected.shape:
            wrong = f"its shape is {tuple(gradient.shape)}, and that of the tensor {tuple(expected.shape)}"
            return Row(name, check, FAILS, hint=wrong, **about)  # type: ignore[arg-type]
        if scale is None:
            usual = self.size_of(leaf.name) if isinstance(leaf, Leaf) else 0.0
            scale = torch.full_like(expected.abs(), max(largest(expected), usual))
        error = error_of(gradient, expected, scale, torch.float64)
        ok = self.is_exact(error, slack)
        if not ok and not hint:
            hint = hint_for(gradient, expected)
        return Row(
            name,
            check,
            OK if ok else FAILS,
            error_ulps=error.ulps,
            error_relative=error.relative,
            where=error.where,
            hint="" if ok else hint,
            **about,  # type: ignore[arg-type]
        )

    def is_exact(self, error: Error, slack: float = 1.0) -> bool:
        """Whether a float64 gradient is right: nothing is off by more than rounding explains."""
        accuracy = self.references.at().accuracy
        if accuracy and error.absolute * EPS <= 10 * accuracy:
            return True
        return error.ulps <= EXACT * slack or error.absolute <= FLOOR * slack


@dataclass(frozen=True)
class Check:
    """One thing that is looked at: a function that yields rows, or raises
    :class:`~torch_manualbp.verify.subject.DoesNotApply` with the reason why it has nothing to look at."""

    name: str
    function: Callable[[Trial, str], Iterator[Row]]
    slow: bool = False
    """Whether it runs only if it is asked for by its name."""
    on_all: bool = False
    """Whether it looks at all samples; the others are content with the first few of many."""

    @property
    def about(self) -> str:
        """What is looked at, in a sentence or two."""
        return " ".join((self.function.__doc__ or "").split())

    def rows(self, trial: Trial) -> Iterator[Row]:
        """What it finds."""
        return self.function(trial, self.name)


def named(leaves: Sequence[Leaf]) -> str:
    """Their names, for a sentence."""
    return ", ".join(leaf.name for leaf in leaves)
