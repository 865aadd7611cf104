"""Gradients against values of the forward alone, along some directions: of any size, and whatever autograd sees."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.numeric import contraction, directions, inner, slope_along
from torch_manualbp.verify.report import VALUE, Row
from torch_manualbp.verify.subject import Setting, gradients_of, name_of_dtype, with_zeros
from torch_manualbp.verify.trial import EPS, Trial

__all__ = ["along_directions", "order_of", "sides_with"]

FEW_DIGITS = 3e4
"""ε of float32, or fewer digits, to which a slope is known."""

LEAVES = 8
"""Tensors that are looked at one by one; the others all together."""


def along_directions(trial: Trial, at: Setting, count: int = 3, least: float = 1e-6) -> Iterator[Row]:
    """The slope of the forward's values along random directions of each tensor is that which the found gradient says;
    the judge is how fast the remainder of Taylor's formula shrinks."""
    leaves = at.leaves()
    outputs = at.run(leaves)
    upstream = at.upstream(outputs)
    found = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
    leaves = at.leaves()  # a kernel may have written its gradients over the others
    cost = contraction(at, upstream)
    least = max(least, FEW_DIGITS * trial.eps if trial.eps > EPS else 0.0)
    floor = 64 * trial.eps * sum(largest(u) * largest(o) for u, o in zip(upstream, outputs, strict=True))
    noise = rounding_of(trial, upstream, outputs)
    several = [[i] for i in range(len(leaves))][:LEAVES]
    if count == 1 and len(leaves) > 1:
        several = [list(range(len(leaves)))]
    settled = 0
    for chosen in several:
        row: Row | None = None
        for seed in range(count):
            drawn = directions(leaves, seed)
            along = [v if i in chosen else None for i, v in enumerate(drawn)]
            slope, doubt = slope_along(cost, leaves, along, enough=1e-9, noise=noise)
            claimed = sum(inner(found[i], drawn[i]) for i in chosen)
            terms = (found[i].abs().double() * drawn[i].abs() for i in chosen)
            size = max(sum(t.square().sum().sqrt().item() for t in terms), abs(slope))
            if not doubt <= 0.05 * size + floor:
                continue
            settled += 1
            name = at.present[chosen[0]].name if len(chosen) == 1 else ""
            off = abs(slope - claimed)
            wrong = ""
            if not off <= 20 * doubt + least * size + floor:
                order = order_of(cost, leaves, along, claimed, 16 * noise)
                if trial.eps > EPS and not order < 1.5:
                    continue  # in few digits it is the order that tells
                wrong = (
                    f"along a random direction the forward's slope is {slope:.6g}, and the gradient says {claimed:.6g}"
                    f"{_factor(slope, claimed)}: the remainder is of order {order:.2g} in the step, a right one's of 3"
                )
            about = {"dtype": name_of_dtype(at.dtype), "error_relative": off / size if size else 0.0}
            row = trial.row(name, wrong, kind=VALUE if wrong else "", **about)
            if wrong:
                break
        if row is not None:
            yield row
    if not settled:
        raise DoesNotApply("finite differences do not settle: a kink, or no smooth function, at these numbers")


def _factor(slope: float, claimed: float) -> str:
    return f", {claimed / slope:.4g} times as much" if slope and abs(claimed / slope) < 1e6 else ""


def rounding_of(trial: Trial, upstream: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """How far rounding moves ⟨upstream, outputs⟩ of a target of few digits."""
    if trial.eps == EPS:
        return 0.0
    return trial.eps * sum(
        (u * o.detach()).abs().double().norm().item() for u, o in zip(upstream, outputs, strict=True)
    )


def order_of(
    cost: Callable[[Sequence[Tensor]], float],
    leaves: Sequence[Tensor],
    along: Sequence[Tensor | None],
    claimed: float,
    noise: float = 0.0,
) -> float:
    """The order in which the remainder |C(x + h v) − C(x − h v) − 2 h ⟨g, v⟩| shrinks with h: 3 of a right gradient
    (or more, of a polynomial), 1 of a wrong one. Remainders up to the noise of the cost say nothing."""
    start = [leaf.detach() for leaf in leaves]

    def remainder(h: float) -> float:
        both = (cost([t if v is None else t + s * h * v for t, v in zip(start, along, strict=True)]) for s in (1, -1))
        return abs(next(both) - next(both) - 2 * h * claimed)

    sizes = [remainder(2.0**-k) for k in (4, 6, 8)]
    orders = [math.log2(a / b) / 2 for a, b in itertools.pairwise(sizes) if a > noise and b > noise]
    return min(orders, default=math.nan)


def sides_with(at: Setting, i: int, right: Tensor, found: Tensor | None, upstream: Sequence[Tensor]) -> bool:
    """Whether finite differences of the forward side with the right gradient of a leaf against the one that was found,
    along the direction in which these differ most; None is one of no numbers."""
    leaves = at.leaves()
    known = right.isfinite()
    here = right.where(known, 0)
    if found is None:
        direction = _local(directions(leaves, 5)[i].where(known, 0), leaves[i])
        gap = inner(here.abs().to(direction.dtype), direction.abs())
    else:
        difference = (found - right).where(known & found.isfinite(), 0)
        direction = _local(difference, leaves[i])
        gap = inner(difference, direction)
    along = [direction if j == i else None for j in range(len(leaves))]
    slope, doubt = slope_along(contraction(at, upstream), leaves, along, enough=1e-9)
    return doubt < abs(gap) / 4 and abs(slope - inner(here, direction)) < abs(gap) / 4


def _local(difference: Tensor, leaf: Tensor) -> Tensor:
    """The direction along which a difference of gradients is seen, no entry of it larger than the number that moves: a
    row of tiny numbers has its own scale."""
    numbers = leaf.detach()
    moves = numbers.abs() * difference * numbers.abs()
    most = largest(numbers.abs() * difference)
    return moves / most if most else difference / (largest(difference) or 1.0) * (largest(numbers) or 1.0)
