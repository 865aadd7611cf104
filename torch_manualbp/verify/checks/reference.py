"""The reference itself: finite differences, and forward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp._objects import one_line
from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.numeric import contraction, directions, inner, slope_along
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import DoesNotApply

__all__ = ["adjoint_identity", "finite_differences"]

ROUGH = 1e-5
"""Finite differences whose own error is above this say nothing."""


def finite_differences(trial: Trial, check: str) -> Iterator[Row]:
    """The reference, along random directions, is the slope of the forward's values; the step is that at which the
    extrapolated differences agree best."""
    at, expected, subject = trial.exact, trial.references.at(), trial.subject
    leaves = at.leaves()
    upstream = at.upstream(expected.outputs)
    cost = contraction(at, upstream)
    for leaf_number, leaf in enumerate(subject.leaves):
        if not leaf.tensor.numel():
            continue
        rough = 0
        row: Row | None = None
        for seed in range(3):
            along: list[Tensor | None] = [None] * len(leaves)
            direction = directions(leaves, seed)[leaf_number]
            along[leaf_number] = direction
            slope, doubt = slope_along(cost, leaves, along)
            gradient = expected.gradients[leaf_number]
            found = inner(gradient, direction)
            size = max((gradient.abs() * direction.abs()).square().sum().sqrt().item(), abs(slope))
            # What rounds in the values, the gradient may be far below of.
            floor = 1e-9 * sum(largest(u) * largest(o) for u, o in zip(upstream, expected.outputs, strict=True))
            if not doubt <= max(ROUGH * size, floor):
                rough += 1
                continue
            off = abs(slope - found)
            ok = off <= 100 * doubt + 1e-6 * size + floor
            relative = off / size if size else 0.0
            wrong = f"along a random direction the forward's slope is {slope:.8g}, and the gradient says {found:.8g}"
            about = "float64", tuple(leaf.tensor.shape)
            row = Row(leaf.name, check, OK if ok else FAILS, *about, error_relative=relative, hint="" if ok else wrong)
            break
        if row is None:
            why = "finite differences do not settle: a kink, or no smooth function, at these numbers"
            row = Row(leaf.name, check, "does not apply", "float64", tuple(leaf.tensor.shape), hint=why)
        yield row
        if leaf_number >= 7:
            break


def adjoint_identity(trial: Trial, check: str) -> Iterator[Row]:
    """⟨J v, u⟩ = ⟨v, Jᵀ u⟩ where forward mode exists, for directions v of all tensors together and of each alone: J v
    by forward mode of the target, Jᵀ u the right gradients."""
    trial.references.require_autograd()
    at, expected, subject = trial.exact, trial.references.at(), trial.subject
    if not all(g.isfinite().all() for g in expected.gradients):
        raise DoesNotApply("the gradients are not finite here")
    upstream = at.upstream(expected.outputs)
    tangents = directions(at.leaves(), seed=3)
    several = [None, *range(len(subject.leaves))] if len(subject.leaves) > 1 else [None]
    for chosen in several[:9]:
        along = [v if chosen is None or i == chosen else None for i, v in enumerate(tangents)]
        try:
            moved = pushed_forward(at.run, at.leaves([]), along)
        except (RuntimeError, NotImplementedError) as error:
            if _has_no_forward_mode(str(error)):
                raise DoesNotApply(f"no forward mode: {one_line(error)[:160]}") from error
            raise
        forward = sum(inner(u, o) for u, o in zip(upstream, moved, strict=True))
        terms = zip(expected.gradients, expected.scales, along, strict=True)
        pairs = [(g, scale, v) for g, scale, v in terms if v is not None]
        reverse = sum(inner(g, v) for g, _, v in pairs)
        size = sum((scale * v.abs()).square().sum().sqrt().item() for _, scale, v in pairs)
        size = max(size, *(_size(u, o) for u, o in zip(upstream, moved, strict=True)))
        relative = abs(forward - reverse) / size if size else 0.0
        ok = relative <= 1e-10 + 10 * expected.accuracy
        name = subject.leaves[chosen].name if chosen is not None else ""
        wrong = f"⟨J v, u⟩ is {forward:.10g} and ⟨v, Jᵀ u⟩ is {reverse:.10g}: jvp is not the right backward's transpose"
        yield Row(name, check, OK if ok else FAILS, "float64", error_relative=relative, hint="" if ok else wrong)


def pushed_forward(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]], leaves: Sequence[Tensor], along: Sequence[Tensor | None]
) -> list[Tensor]:
    """J v of each output, in forward mode."""
    with forward_ad.dual_level():
        duals = [t if v is None else forward_ad.make_dual(t, v) for t, v in zip(leaves, along, strict=True)]
        outputs = run(duals)
        found = []
        for output in outputs:
            primal, tangent = forward_ad.unpack_dual(output)
            found.append(torch.zeros_like(primal) if tangent is None else tangent.detach().clone())
    return found


def _size(u: Tensor, o: Tensor) -> float:
    return (u.abs() * o.abs()).square().sum().sqrt().item()


def _has_no_forward_mode(message: str) -> bool:
    return any(words in message for words in ("forward AD", "forward mode", "forward-mode", "jvp", "ForwardAD"))
