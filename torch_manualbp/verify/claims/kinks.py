"""Kinks: single numbers where a derivative jumps, which the inputs at hand may never come near."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.claims.scan import NO_SUCH_NUMBER, Scan, scans
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.report import FAILS, OK, ROBUSTNESS, VALUE, Row
from torch_manualbp.verify.trial import EPS, FEWER, Trial

__all__ = ["kinks"]

SCANNED = (-33.1, -21.3, -12.7, *(-8.03 + 0.2 * i for i in range(81)), 12.7, 21.3, 33.1)
"""The numbers that one entry takes, to see where its gradient jumps. Most kinks are at 0, ±½, ±1, ±3 or 6."""

INTERVALS = 6
"""How many of the intervals between these are bisected, those with the largest differences."""

MANY = 50_000
"""Numbers in all leaves, above which fewer points are scanned."""

BRIEF = "of one entry, and the interval in which it changes most: there is no Function whose gradient may be off"
"""Said where a large target has autograd's own gradients, so that kinks are described and nothing is compared."""

ALWAYS = (0.0, -0.0, 5e-324, -5e-324, 1e-310, -1e-310)
"""Where everybody has a kink, and subnormal numbers beside it."""

TINY, HUGE = 2.3e-308, 1e300
"""Below the one numbers are subnormal; above the other a sum of gradients overflows in some orders."""


STEP = 2.0**-30
"""To both sides of a point, by which a kink is seen, relatively."""


@dataclass(frozen=True)
class _Kink:
    """Between two numbers next to each other the derivative jumps."""

    below: float
    above: float
    left: float
    right: float

    @property
    def point(self) -> float:
        """The rounder one of the two."""
        return min(self.below, self.above, key=lambda x: (len(f"{x:.17g}"), abs(x)))

    def probes(self) -> list[float]:
        """Both, and one ulp further on each side."""
        return [_next(self.below, -1), self.below, self.above, _next(self.above, 1)]

    def described(self, trial: Trial, scan: Scan) -> str:
        """Where it is, both one-sided derivatives, which of them is autograd's, and how near the inputs come."""
        numbers = trial.leaves[scan.leaf].tensor.detach().double().reshape(-1)
        if scan.entry is not None:
            numbers = numbers[scan.entry : scan.entry + 1]
        nearest = (numbers - self.point).abs().min().item()
        convention = self.left if self.point == self.below else self.right
        near = "" if nearest < 1e-3 else f", and the inputs come no nearer to it than {nearest:.2g}"
        return f"kink at {self.point:.6g}: {self.left:.4g} | {self.right:.4g}, taken for {convention:.4g} on it{near}"


def kinks(trial: Trial) -> Iterator[Row]:
    """Kinks are found by bisection on the forward's derivative, an entry going from −33 to 33; on each kink and one ulp
    to both sides, and all along the way, the gradients are those of autograd of the same forward. Says where kinks are,
    what autograd takes for the derivative there, and how near the inputs come."""
    trial.references.require_autograd()
    if trial.eps > EPS:
        raise DoesNotApply("in few digits every step looks like a kink")
    is_compared = bool(trial.subject.functions) or trial.subject.reference is not None
    is_brief = not is_compared and not trial.has_twin and trial.subject.size() >= MANY
    looked: set[int] = set()
    for scan in scans(trial, trial.exact):
        if is_brief and scan.leaf in looked:
            continue
        looked.add(scan.leaf)
        leaf = trial.leaves[scan.leaf]
        points = _points(trial, scan)
        slopes = scan.slopes(points, plain=True)
        found = _bisected(scan, points, slopes, 1 if is_brief else INTERVALS)
        wrong: Row | None = None
        if is_compared:
            wrong = _compared(trial, scan, points, slopes)
            probes = [*ALWAYS, *dict.fromkeys(p for kink in found for p in kink.probes())]
            if scan.packed:
                wrong = wrong or _compared(trial, scan, probes, scan.slopes(probes, plain=True))
            else:
                for point in probes:
                    wrong = wrong or _compared_at(trial, scan, point)
        notes = dict.fromkeys([kink.described(trial, scan) for kink in found] + [BRIEF] * is_brief)
        yield wrong or Row(leaf.name, "", OK, "float64", tuple(leaf.tensor.shape), hint="; ".join(notes))
    if not looked:
        raise DoesNotApply("there is no real input to scan")


def _points(trial: Trial, scan: Scan) -> Sequence[float]:
    """What is scanned: of an input all that is usual, of a weight no more than twice what it has."""
    if scan.packed or trial.has_twin:
        return SCANNED
    points = SCANNED if trial.subject.size() < MANY else SCANNED[::3]
    if not scan.leaf and scan.entry is None:
        return points
    numbers = trial.leaves[scan.leaf].tensor.detach().double()
    low, high = min(2 * numbers.min().item(), 0.0), max(2 * numbers.max().item(), 0.0)
    return [p for p in points if low <= p <= high] or [numbers.reshape(-1)[0].item()]


def _compared(trial: Trial, scan: Scan, points: Sequence[float], right: Tensor) -> Row | None:
    """The row of the worst point, if one is wrong."""
    leaf = trial.leaves[scan.leaf]
    found = scan.slopes(points, plain=False)
    found, right = _known(found, right, torch.tensor(points, dtype=right.dtype).unsqueeze(1), _most(trial, leaf.name))
    if trial.takes_any_side:
        sides = [scan.slopes([p + s * STEP * (1 + abs(p)) for p in points], plain=True) for s in (1, -1)]
        right = _nearest(found, right, sides)
    scale = torch.full_like(right, max(right.abs().max().item(), trial.size_of(leaf.name)))
    row = trial.compared(leaf.name, found, right, scale, slack=4)
    if row.ok or _is_below_digits(trial, found, right, scale):
        return None
    i, j = row.where or (0, 0)
    return _failed(row, leaf.name, leaf.name, points[i], found[i, j].item(), right[i, j].item())


def _compared_at(trial: Trial, scan: Scan, point: float) -> Row | None:
    """The row of the first wrong gradient of all leaves where the entry is this number."""
    try:
        references = scan.gradients(point, plain=True)
    except NO_SUCH_NUMBER:
        return None
    sides: list[list[Tensor]] = []
    for leaf, right, found in zip(trial.leaves, references, scan.gradients(point, plain=False), strict=True):
        if found.shape == right.shape:
            found, right = _known(found, right, torch.tensor(point, dtype=torch.float64), _most(trial, leaf.name))
            if trial.takes_any_side and not torch.equal(found, right):
                sides = sides or _gradients_beside(scan, point)
                right = _nearest(found, right, [s[trial.leaves.index(leaf)] for s in sides])
        row = trial.compared(leaf, found, right, slack=4)
        if not row.ok and _is_below_digits(trial, found, right, right):
            continue
        if not row.ok and (trial.has_twin or abs(point) > TINY or not point):
            here, there = (t[row.where or ...].reshape(-1)[0].item() for t in (found, right))
            kind = VALUE if point or found.isfinite().all() else ROBUSTNESS
            return _failed(row, leaf.name, trial.leaves[scan.leaf].name, point, here, there, kind)
    return None


def _gradients_beside(scan: Scan, point: float) -> list[list[Tensor]]:
    found = []
    for side in (1, -1):
        with contextlib.suppress(*NO_SUCH_NUMBER):
            found.append(scan.gradients(point + side * STEP * (1 + abs(point)), plain=True))
    return found


def _nearest(found: Tensor, right: Tensor, sides: Sequence[Tensor]) -> Tensor:
    """The reference; where derivatives beside it differ, what of all between them is nearest to the gradient."""
    several = torch.stack([right, *sides])
    low, high = several.amin(0), several.amax(0)
    width = high - low
    return torch.where(width.isfinite() & found.isfinite(), found.clamp(low - width, high + width), right)


def _most(trial: Trial, name: str) -> float:
    """What a derivative may be at most to be known: beside a pole it is all rounding."""
    return HUGE if trial.has_twin else min(HUGE, 1e8 * trial.size_of(name) or HUGE)


def _is_below_digits(trial: Trial, found: Tensor, right: Tensor, scale: Tensor) -> bool:
    """Whether two derivatives differ by less than the digits of the dtype that the user has: a softplus of torch's is z
    from 20 on, where its derivative is 1 − 2e-9."""
    if trial.has_twin or trial.subject.dtype not in FEWER or found.shape != right.shape:
        return False
    return largest(found - right) <= torch.finfo(torch.float32).eps * largest(scale)


def _known(found: Tensor, right: Tensor, points: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Both, 0 where the reference knows nothing: where it is no number or overflows, and, to three digits, at subnormal
    numbers, of which ATen's logarithm is one in its vectors and another in single numbers."""
    unknown = ~right.isfinite() | (right.abs() > most)
    is_subnormal = (points.abs() > 0) & (points.abs() < TINY)
    unknown = unknown | (is_subnormal.to(right.device) & ((found - right).abs() <= 0.01 * right.abs()))
    return found.masked_fill(unknown, 0), right.masked_fill(unknown, 0)


def _failed(row: Row, name: str, of: str, point: float, found: float, right: float, kind: str = VALUE) -> Row:
    hint = f"where {of} is {point:.17g}: {found:.6g}, and autograd of the forward has {right:.6g}"
    return Row(name, "", FAILS, row.dtype, row.shape, row.error_ulps, row.error_relative, hint=hint, kind=kind)


def _bisected(scan: Scan, scanned: Sequence[float], slopes: Tensor, most: int) -> list[_Kink]:
    """The kinks in the intervals over which the slope changes most."""
    known = slopes.isfinite().all(1)
    points, slopes = [p for p, k in zip(scanned, known.tolist(), strict=True) if k], slopes[known]
    if len(points) < 2:
        return []
    changes = (slopes[1:] - slopes[:-1]).abs()
    size = slopes.abs().max().item()
    order = changes.max(1).values.argsort(descending=True)[:most].tolist()
    found = []
    for k in sorted(order):
        entry = int(changes[k].argmax())
        if changes[k, entry] > 1e-9 * size:
            kink = _bisect(scan, entry, points[k], points[k + 1], slopes[k, entry].item(), slopes[k + 1, entry].item())
            found += [] if kink is None else [kink]
    return found


def _bisect(scan: Scan, entry: int, low: float, high: float, left: float, right: float) -> _Kink | None:
    start, steps = abs(right - left), 0
    while _next(low, 1) < high:
        # By value until a smooth function has shown that it is, then by the bits: 0 is 2⁶² numbers away from 1.
        middle = (low + high) / 2 if steps < 10 else _between(low, high)
        here = scan.slopes([middle], plain=True)[0, entry].item()
        if math.isnan(here):
            return None
        if abs(here - left) >= abs(here - right):
            high, right = middle, here
        else:
            low, left = middle, here
        steps += 1
        if steps in (7, 20) and abs(right - left) < 0.05 * start:
            return None
    return _Kink(low, high, left, right)


def _ordered(x: float) -> int:
    """The bits of a number as an integer that grows with it."""
    bits = int(struct.unpack("<q", struct.pack("<d", x))[0])
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)


def _number(ordered: int) -> float:
    bits = ordered if ordered >= 0 else (-ordered) | -0x8000_0000_0000_0000
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def _between(low: float, high: float) -> float:
    return _number((_ordered(low) + _ordered(high)) // 2)


def _next(x: float, by: int) -> float:
    """The number one ulp above or below."""
    return _number(_ordered(x) + by)
