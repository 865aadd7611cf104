"""What is held to the claims, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.measure import Error, References, TwinReferences, error_of, largest
from torch_manualbp.verify.outputs import joined
from torch_manualbp.verify.precision import widened
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import Leaf, Results, Setting, Subject, name_of_dtype

__all__ = ["EXACT", "FEWER", "FLOOR", "Options", "Target", "Trial", "assert_same"]

EPS = torch.finfo(torch.float64).eps

EXACT = 4096.0
"""ε of the terms' size by which two right float64 gradients may differ: 9e-13. Of the rules and of torch's modules none
differs from autograd of the same forward by more than 200."""

FEWER = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of fewer digits than those in which gradients are compared."""

ROUNDINGS = 64.0
"""ε of the largest terms that two gradients may differ by that are computed in float32, or in a dtype of yet fewer
digits, whatever they are given."""

FLOOR = 8.0
"""ε of the largest entry by which each entry may be off, whatever its own size: 1 − a² of a saturated tanh has no more
digits."""


@dataclass(frozen=True)
class Options:
    """What a user says of a target."""

    batch: int | None = None
    """The dimension of samples that do not see each other."""
    dtype: torch.dtype | None = None
    """The dtype that the target computes in."""
    rtol: float | None = None
    atol: float | None = None
    """By how much a gradient may be off, relatively and absolutely."""
    kinks: str = "between"
    """Which derivative a kink has: any "between" those of both sides, or that of "autograd"."""
    deadline: float | None = None
    """When the time is spent."""

    def allows(self, gradient: Tensor, expected: Tensor) -> bool:
        """Whether a difference is one that the user allows."""
        if (self.rtol is None and self.atol is None) or gradient.shape != expected.shape:
            return False
        wide = torch.complex128 if expected.is_complex() else torch.float64
        tolerances = {"rtol": self.rtol or 0.0, "atol": self.atol or 0.0}
        return torch.allclose(gradient.to(wide), expected.to(wide), equal_nan=True, **tolerances)


class Trial:
    """A subject that is held to claims: a rule on one of its samples, a layer, or the target that a user has.

    Rules and layers have a twin in torch: what is claimed of them is meant to the bit, or to 1e-12, and in dtypes,
    bytes and strides as well. A target is held against autograd of its own forward, as closely as its digits allow.
    """

    subject: Subject
    has_twin = True
    options = Options()
    slack = 1.0
    """Times the usual error that is allowed."""
    owes_strides = False
    """Whether its results lie in memory as torch's do."""
    batch: int | None = None
    """The dimension of the inputs over which a target claims to be additive."""
    eps = EPS
    """The ε of the digits that the subject has."""

    @property
    def label(self) -> tuple[str, str]:
        """The row of a matrix, and which of its samples it is."""
        return self.subject.name, ""

    @cached_property
    def references(self) -> References:
        return TwinReferences(self.subject)

    @property
    def exact(self) -> Setting:
        """The call in float64, or the dtype that the target has, which most claims look at."""
        return self.subject.setting(self.subject.wide)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return self.subject.leaves

    @property
    def takes_any_side(self) -> bool:
        """Whether on a kink any value between the derivatives of its sides is right."""
        return not self.has_twin and self.options.kinks == "between" and not self.references.is_numeric

    @property
    def to_the_bit(self) -> float:
        """The slack where the same operations run on the same numbers."""
        return 0.0 if self.has_twin else 1.0

    def exempt(self, check: str) -> str | None:
        """The reason why the check, or a part of it, does not hold here."""
        return None

    def versions(self, at: Setting, count: int) -> list[Setting]:
        """The same call on so many different numbers."""
        factors = [1 - 0.1 * n if n < 8 else 0.97 - 0.05 * n for n in range(count)]
        wanted = {leaf.position for leaf in self.leaves}
        versions = []
        for f in factors:
            changed = at.with_values([v * f if i in wanted else v for i, v in enumerate(at.values)])
            changed.state = {name: t * f if self._is_leaf(name) else t for name, t in at.state.items()}
            versions.append(changed)
        return versions

    def _is_leaf(self, name: str) -> bool:
        return any(leaf.parameter == name for leaf in self.leaves)

    def under_autocast(self, dtype: torch.dtype) -> list[Setting]:
        """The calls that are made under autocast to a dtype."""
        return [self.subject.setting(torch.float32)]

    def joined(self, plain: bool = False) -> Callable[..., Tensor]:
        """The target, or the reference, as a function of the leaves with one output: several in a row."""
        run = self.run_for_second if plain else self.exact.run

        def of_one_output(*leaves: Tensor) -> Tensor:
            outputs = run(leaves)
            return outputs[0] if len(outputs) == 1 else joined(outputs)

        return of_one_output

    def run_for_second(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What second derivatives are held against."""
        return self.exact.run_plain(leaves)

    def size_of(self, name: str) -> float:
        """How large the terms of this leaf's gradient are for the inputs at hand."""
        if self.has_twin:
            return 1.0
        index = next((i for i, leaf in enumerate(self.leaves) if leaf.name == name), None)
        return 0.0 if index is None else largest(self.references.at().scales[index])

    def row(self, name: str, wrong: str = "", **about: Any) -> Row:
        """A row without figures: it holds, or what is wrong."""
        note = about.pop("note", "")
        return Row(name, "", FAILS if wrong else OK, hint=wrong or note, **about)

    def compared(
        self,
        leaf: Leaf | str,
        gradient: Tensor,
        expected: Tensor,
        scale: Tensor | None = None,
        *,
        hint: str = "",
        slack: float = 1.0,
    ) -> Row:
        """A row that holds a float64 gradient, or another result, against the right one.

        Args:
            scale: of the entries; by default the largest of all, here and for the inputs at hand: where terms cancel
                the gradient itself says nothing about their size.
            hint: what it means where it is wrong; by default the correction that would make it right.
            slack: how much more than the usual error is allowed; 0 where nothing is.
        """
        name = leaf if isinstance(leaf, str) else leaf.name
        about: dict[str, Any] = {"dtype": name_of_dtype(expected.dtype), "shape": tuple(expected.shape)}
        if gradient.shape != expected.shape:
            wrong = f"its shape is {tuple(gradient.shape)}, and that of the tensor {tuple(expected.shape)}"
            return self.row(name, wrong, **about)
        if gradient.dtype != expected.dtype or gradient.device != expected.device:
            wrong = f"it is {gradient.dtype} on {gradient.device}, and should be {expected.dtype} on {expected.device}"
            return self.row(name, wrong, **about)
        if expected.is_meta:
            return self.row(name, **about)
        if scale is None:
            usual = self.size_of(name) if self.has_twin or isinstance(leaf, Leaf) else 0.0
            scale = torch.full_like(expected.abs(), max(largest(expected), usual))
        error = error_of(gradient, expected, scale, torch.float64)
        ok = self.is_exact(error, slack) or self.options.allows(gradient, expected)
        if not ok:
            hint = hint or hint_for(gradient, expected)
        figures = {"error_ulps": error.ulps, "error_relative": error.relative, "where": error.where}
        return Row(name, "", OK if ok else FAILS, hint="" if ok else hint, **figures, **about)  # type: ignore[arg-type]

    def same(
        self, found: Results, expected: Results, *, hint: str = "", slack: float = 1.0, outputs: bool = False
    ) -> Iterator[Row]:
        """A row for each gradient, and if asked, or of a subject with a twin, for each output."""
        for leaf, gradient, right in zip(self.leaves, found.gradients, expected.gradients, strict=True):
            yield self.compared(leaf, gradient, right, hint=hint, slack=slack)
        if self.has_twin or outputs:
            assert len(found.outputs) == len(expected.outputs)
            for i, (output, right) in enumerate(zip(found.outputs, expected.outputs, strict=True)):
                yield self.compared(f"output[{i}]", output, right, hint=hint, slack=slack)

    def is_exact(self, error: Error, slack: float = 1.0) -> bool:
        """Whether a float64 gradient is right: nothing is off by more than rounding explains."""
        accuracy = 0.0 if self.has_twin else self.references.at().accuracy
        if accuracy and error.absolute * EPS <= 10 * accuracy:
            return True
        slack *= self.slack
        return error.ulps <= EXACT * slack or error.absolute <= FLOOR * slack


class Target(Trial):
    """A module, a Function or a callable of a user's, whose twin is autograd of its own forward."""

    has_twin = False

    def __init__(self, subject: Subject, options: Options | None = None) -> None:
        self.subject, self.options = subject, options or Options()
        self.batch = self.options.batch
        subject.find_digits(self.options.dtype)
        with widened(subject.widens):
            self.references = References(subject)
            if subject.functions and subject.eps == EPS and subject.dtype in FEWER and self._has_digits_of_float32():
                subject.eps = torch.finfo(torch.float32).eps
                subject.digits = "its gradients have the digits of float32 in float64, too, and are held to those"

    def _has_digits_of_float32(self) -> bool:
        """Whether they are right but for a constant, or a step, that is rounded to float32."""
        if self.references.is_numeric:
            return False
        try:
            found, expected = self.references.own().gradients, self.references.at()
        except Exception:  # which the checks report
            return False
        off = 0.0
        for gradient, right, scale in zip(found, expected.gradients, expected.scales, strict=True):
            if gradient.shape != right.shape or not gradient.isfinite().all():
                return False
            off = max(off, largest(gradient - right) / (largest(scale) or 1.0))
        return EXACT * EPS < off <= 2 * torch.finfo(torch.float32).eps

    @property
    def slack(self) -> float:  # type: ignore[override]
        """What computes in fewer digits than float64's is held to those."""
        return 1.0 if self.eps == EPS else ROUNDINGS * self.eps / (EXACT * EPS)

    @property
    def eps(self) -> float:  # type: ignore[override]
        return self.subject.eps

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of the digits and of the reference."""
        return tuple(note for note in (self.subject.digits, *self.references.notes) if note)

    def shrunk(self) -> Target:
        """The same with the first few of many samples."""
        subject = self.subject.shrunk()
        return self if subject is self.subject else Target(subject, options=self.options)


def assert_same(actual: Tensor, expected: Tensor, what: str, tolerance: float = EXACT * EPS) -> None:
    """Equal in shape and dtype, in the places of NaN and infinities, and elsewhere to the tolerance, relatively to the
    largest entry or 1."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    assert actual.device == expected.device, f"{what}: on {actual.device}, expected on {expected.device}"
    if expected.numel() and not expected.is_meta:
        error = error_of(actual, expected, torch.full_like(expected.abs(), max(1.0, largest(expected))), torch.float64)
        assert error.ulps * EPS <= tolerance, f"{what}: differs by {error.ulps * EPS:.3g}"
