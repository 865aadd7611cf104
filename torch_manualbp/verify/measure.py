"""The right gradients, how well they are known, and the error of others next to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torch_manualbp._text import one_line
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.numeric import contraction, directions, inner, numeric_gradients, slope_along
from torch_manualbp.verify.subject import Results, Setting, Subject, gradients_of, with_zeros

__all__ = [
    "LOST",
    "SMALL",
    "Error",
    "Expected",
    "References",
    "TwinReferences",
    "error_of",
    "errors_in_ulps",
    "largest",
    "ulp",
]

SMALL = 300
"""As many entries have finite differences for a reference, where autograd has none."""

DRAWS = 2
"""How often the numbers are moved to see how far each gradient moves with them."""

STEP_OFF = 2.0**-9
"""By which the numbers are moved, relatively to the largest, off the kinks that they may stand on."""

MANY = 1_000_000
"""Entries above which one draw is enough."""

MOVE = 2.0**-27
"""By which all numbers are moved, relatively; with float64's 2⁻⁵³ the difference itself still has half its digits."""


@dataclass(frozen=True)
class Expected:
    """Gradients in float64, and for each entry the size of the terms that it is a sum of.

    ::

        scale_i = |g_i| + cond_i,   cond_i = |g_i(x (1 + δ ξ)) − g_i(x)| / δ,   ξ standard normal

    with all inputs, parameters and upstream gradients moved by as much of themselves: rounding each of them, in a dtype
    of unit ε, moves g_i by ε cond_i, so that no way to compute g_i is expected to do much better than ε scale_i.
    """

    outputs: list[Tensor]
    gradients: list[Tensor]
    scales: list[Tensor]
    accuracy: float
    """To which the gradients are known, relatively; of autograd 0."""


class References:
    """The right gradients of a subject, computed once for each dtype that its numbers are rounded to."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._own: Results | None = None
        self._found: dict[torch.dtype | None, Expected] = {}
        self.remark = ""
        """What is wrong with autograd's own gradients, if finite differences say so."""
        self.note = ""
        """Why the reference are finite differences, if they are."""
        if subject.functions and subject.reference is None:
            self.note = self._why_not_autograd()

    @property
    def is_numeric(self) -> bool:
        return bool(self.note)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of the reference."""
        return tuple(note for note in (self.note, self.remark) if note)

    def require_autograd(self) -> None:
        """Say that a check needs more digits, or another order, than finite differences have."""
        if self.note:
            raise DoesNotApply("the reference is finite differences here")

    def at(self, rounded: torch.dtype | None = None) -> Expected:
        """The right gradients on numbers rounded to a dtype."""
        if rounded is not None and self._is_exact_in(rounded):
            rounded = None
        if rounded not in self._found:
            self._found[rounded] = self.anew(rounded)
        return self._found[rounded]

    def anew(self, rounded: torch.dtype | None) -> Expected:
        """The same as :meth:`at`, computed here and now, for random numbers that are being replayed."""
        if self.note:
            return self._numeric(rounded)
        expected = self._by_autograd(rounded)
        accuracy = self._inaccuracy(expected) if rounded is None and self.subject.functions else 0.0
        return replace(expected, accuracy=accuracy)

    def own(self) -> Results:
        """The target's own outputs and gradients in float64."""
        if self._own is None:
            self._own = self.subject.setting(self.subject.wide).results()
        return self._own

    def _inaccuracy(self, expected: Expected) -> float:
        """By how much autograd's own gradients are off, if they are and the target's are not.

        Some of ATen's kernels have a constant of float32 in their float64 gradient, such as hardsigmoid's 1/6. Where
        the two differ by less than 1e-6, finite differences of the entry that differs most say who is right.
        """
        at = self.subject.setting(self.subject.wide)
        leaves = at.leaves()
        try:
            found = self.own().gradients
        except Exception:  # which the checks report
            return 0.0
        cost = contraction(at, at.upstream(expected.outputs))
        worst = 0.0
        for i, (gradient, right, scale) in enumerate(zip(found, expected.gradients, expected.scales, strict=True)):
            if gradient.shape != right.shape or not gradient.numel():
                continue
            off = (gradient - right).abs()
            relative = largest(off) / (largest(scale) or 1.0)
            if not 1e-12 < relative < 1e-6:
                continue
            entry = torch.zeros_like(right).view(-1)
            at_worst = int(off.reshape(-1).argmax())
            entry[at_worst] = 1
            along: list[Tensor | None] = [None] * len(leaves)
            along[i] = entry.view(right.shape)
            slope, doubt = slope_along(cost, leaves, along)
            theirs, ours = abs(slope - right.reshape(-1)[at_worst]), abs(slope - gradient.reshape(-1)[at_worst])
            if doubt < largest(off) / 4 and ours < theirs / 4:
                worst = max(worst, relative)
        if worst:
            name = self.subject.name
            self.remark = f"autograd's own float64 gradient is off by {worst:.1e}: finite differences side with {name}"
        return worst

    def _is_exact_in(self, dtype: torch.dtype) -> bool:
        """Whether rounding to the dtype changes no number, as it is with the dtype that all of them have."""
        return all(torch.promote_types(of_tensor, dtype) == dtype for of_tensor in self.subject.real_dtypes())

    def _by_autograd(self, rounded: torch.dtype | None) -> Expected:
        at = self.subject.setting(self.subject.wide, rounded)
        move = MOVE if self.subject.wide == torch.float64 else 2.0**-10
        leaves = at.leaves()
        outputs = at.run_plain(leaves)
        upstream = at.upstream(outputs)
        gradients = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
        conditions = [torch.zeros(leaf.shape, dtype=torch.float64, device=leaf.device) for leaf in leaves]
        for draw in range(DRAWS if self.subject.size() < MANY else 1):
            generator = torch.Generator().manual_seed(draw)
            moved = [_moved(leaf.detach(), generator, move).requires_grad_() for leaf in leaves]
            others = at.run_plain(moved)
            moved_upstream = [_moved(u, generator, move) for u in upstream]
            found = with_zeros(gradients_of(others, moved, moved_upstream), leaves)
            for condition, there, here in zip(conditions, found, gradients, strict=True):
                torch.maximum(condition, ((there - here).abs().double() / move).nan_to_num(0, 0, 0), out=condition)
        floors = self._noise(gradients, rounded)
        scales = [g.abs().nan_to_num(0, 0, 0) + c + f for g, c, f in zip(gradients, conditions, floors, strict=True)]
        return Expected([o.detach() for o in outputs], gradients, scales, 0.0)

    def _noise(self, gradients: Sequence[Tensor], rounded: torch.dtype | None) -> list[float]:
        """By how many ε float32's own gradients are off: terms may cancel whatever their numbers, as those of a
        bias in front of a batch norm do, which moving the numbers does not show."""
        if self.subject.wide != torch.float64:
            return [0.0 for _ in gradients]
        at = self.subject.setting(torch.float32, rounded)
        leaves = at.leaves()
        try:
            outputs = at.run_plain(leaves)
            found = with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)
        except (RuntimeError, DoesNotApply):  # torch has no float32 here
            return [0.0 for _ in leaves]
        eps = torch.finfo(torch.float32).eps
        off = [largest(f.to(g.dtype) - g) / eps for f, g in zip(found, gradients, strict=True)]
        most = 1000 * max(map(largest, gradients))  # beyond that it is a kink in between, or other random numbers
        # Where nothing is left of the terms, their size is known from one error alone, which may be small by chance.
        return [min(4 * f if f > 100 * largest(g) else f / 1024, most) for f, g in zip(off, gradients, strict=True)]

    def _numeric(self, rounded: torch.dtype | None) -> Expected:
        count = sum(leaf.tensor.numel() for leaf in self.subject.leaves)
        if count > SMALL:
            raise DoesNotApply(
                f"{self.note}, and {count} entries are too many for that: pass reference=, or smaller inputs"
            )
        at = self.subject.setting(self.subject.wide, rounded)
        leaves = at.leaves()
        with torch.no_grad():
            outputs = at.run(leaves)
        upstream = at.upstream(outputs)
        gradients = numeric_gradients(at, leaves, upstream)
        scales = [torch.full_like(g.abs(), largest(g)) for g in gradients]
        return Expected(list(outputs), gradients, scales, 1e-7)

    def _why_not_autograd(self) -> str:
        """Why autograd does not differentiate the forward itself, or nothing."""
        names = ", ".join(dict.fromkeys(f.__name__ for f in self.subject.functions))
        subject = self.subject.shrunk()
        at = subject.setting(subject.wide)
        first = self._hides(at, at.leaves(), names)
        if not first.startswith("the forward of"):
            return first
        generator = torch.Generator().manual_seed(1)
        beside = [_moved(t.detach() + STEP_OFF * largest(t), generator, STEP_OFF) for t in at.leaves()]
        return first and self._hides(at, [t.requires_grad_() for t in beside], names)

    def _hides(self, at: Setting, leaves: list[Tensor], names: str) -> str:
        try:
            outputs = at.run_plain(leaves)
            upstream = at.upstream(outputs)
            gradients = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
        except DoesNotApply:
            return ""
        except Exception as error:
            return (
                f"autograd cannot differentiate the forward of {names} ({one_line(error)}): finite differences instead"
            )
        along = directions(leaves, seed=11)
        slope, doubt = slope_along(contraction(at, upstream), leaves, along, levels=8, enough=1e-8)
        found = sum(inner(g, v) for g, v in zip(gradients, along, strict=True))
        size = max(abs(slope), abs(found), *(_size(g, v) for g, v in zip(gradients, along, strict=True)))
        if doubt <= 0.05 * size and abs(slope - found) > 1e-4 * size + 10 * doubt:
            return (
                f"the forward of {names} hides operations from autograd (.data, no_grad, NumPy, another kernel): "
                "the reference is finite differences"
            )
        return ""


class TwinReferences(References):
    """Those of a subject with a twin in torch, which is right to the last digits: entries are as large as the largest,
    or 1."""

    def _by_autograd(self, rounded: torch.dtype | None) -> Expected:
        at = self.subject.setting(torch.float64, rounded)
        outputs, gradients = at.results(at.run_plain)
        return Expected(outputs, gradients, [torch.full_like(g.abs(), max(1.0, largest(g))) for g in gradients], 0.0)

    def _inaccuracy(self, expected: Expected) -> float:
        return 0.0

    def _why_not_autograd(self) -> str:
        return ""


def _size(g: Tensor, v: Tensor) -> float:
    """√Σ |g v|²: what ⟨g, v⟩ is about."""
    return (g.abs() * v.abs()).square().sum().sqrt().item()


def _moved(t: Tensor, generator: torch.Generator, move: float) -> Tensor:
    noise = torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t.device)
    return (t * (1 + move * noise)).to(t.dtype)


def ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of the numbers of ``dtype`` around each entry, that of its subnormals included."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(reference.abs().nan_to_num(0, info.max).clamp(info.tiny, info.max))
    return info.eps * (exponent.double() - 1).exp2()


LOST = -1.0
"""In place of the error of a result that an overflow on the way made infinite or NaN."""


def errors_in_ulps(result: Tensor, reference: Tensor, has_nan: Tensor | bool = True) -> Tensor:
    """The error of each entry in units in the last place of its dtype; infinite where it is not ±∞ or NaN as it should
    be. What overflows is the number after the largest.

    Args:
        has_nan: whether NaN among the arguments is why the reference is NaN; elsewhere nothing is right or wrong.
    """
    info = torch.finfo(result.dtype)
    beyond = info.max * (1 + info.eps / 2)
    spacing, result = ulp(reference, result.dtype), result.double()
    overflows = (
        reference.isfinite()
        & ~result.isfinite()
        & ~((reference.abs() > info.max) & (result.sign() == reference.sign()))
    )
    errors = (result.clamp(-beyond, beyond) - reference.clamp(-beyond, beyond)).abs() / spacing
    errors = torch.where(result.isnan() != reference.isnan(), math.inf, errors)
    errors = torch.where(result.isnan() & reference.isnan(), 0, errors)
    errors = torch.where(overflows, LOST, errors)
    return torch.where(reference.isnan() & ~torch.as_tensor(has_nan), 0, errors)


@dataclass(frozen=True)
class Error:
    """The largest error of a gradient."""

    ulps: float
    relative: float
    where: tuple[int, ...] | None
    absolute: float
    """In ε of the dtype times the largest entry of the scale, what is left where an entry is tiny beside others."""


def error_of(
    gradient: Tensor, expected: Tensor, scale: Tensor, dtype: torch.dtype, excused: Tensor | None = None
) -> Error:
    """By how much a gradient in ``dtype`` is off, in ε scale_i; infinite where it is not ∞ or NaN as it should be.

    Args:
        excused: entries that are not looked at.
    """
    if not expected.numel():
        return Error(0.0, 0.0, None, 0.0)
    info = torch.finfo(dtype)
    off = _difference(gradient, expected, info.max)
    if not off.any():
        return Error(0.0, 0.0, (0,) * expected.dim(), 0.0)
    # Below the smallest normal number the spacing does not shrink any more.
    unit = info.eps * (scale.double() + info.tiny)
    ulps = torch.where(off == 0, 0.0, off / unit)
    if excused is not None:
        off, ulps = off.where(~excused, 0.0), ulps.where(~excused, 0.0)
    worst = int(ulps.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape))
    size = largest(scale)
    reference = largest(expected)
    biggest = off.max().item()
    return Error(
        ulps.view(-1)[worst].item() if ulps.is_contiguous() else ulps.reshape(-1)[worst].item(),
        biggest / reference if reference else (0.0 if biggest == 0 else math.inf),
        where,
        biggest / (info.eps * size + info.tiny * info.eps),
    )


def _difference(gradient: Tensor, expected: Tensor, largest_number: float) -> Tensor:
    """|gradient − expected|; ∞ where one is NaN or another infinity. What overflows a dtype is infinite in it."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    gradient = gradient.detach().to(wide)
    if expected.is_complex():
        parts = [torch.view_as_real(t.resolve_conj()) for t in (gradient, expected)]
        return _difference(parts[0], parts[1], largest_number).square().sum(-1).sqrt()
    overflows = (expected.abs() > largest_number) & (gradient.sign() == expected.sign())
    off = (gradient - expected).abs()
    same = (gradient == expected) | (gradient.isnan() & expected.isnan()) | (overflows & ~gradient.isfinite())
    return torch.where(same, 0.0, off.nan_to_num(math.inf, math.inf))


def largest(t: Tensor) -> float:
    """The largest finite entry, by its absolute value."""
    if not t.numel():
        return 0.0
    sizes = t.detach().abs()
    size = sizes.max().item()
    if not math.isfinite(size):
        sizes = sizes[sizes.isfinite()]
        size = sizes.max().item() if sizes.numel() else 0.0
    return size
