"""First derivatives: exact in float64, and in dtypes of fewer digits as accurate as torch's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torch_manualbp._text import one_line
from torch_manualbp.catalogue import Make
from torch_manualbp.verify.case import Case, refusal
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.claims.directions import along_directions
from torch_manualbp.verify.claims.order import second_derivatives
from torch_manualbp.verify.draws import Draws
from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.kinked import beside, is_between
from torch_manualbp.verify.measure import LOST, SMALL, Error, error_of, errors_in_ulps, largest
from torch_manualbp.verify.numeric import contraction, directions, inner, slope_along
from torch_manualbp.verify.report import DOES_NOT_APPLY, ERROR, FAILS, OK, ROBUSTNESS, VALUE, Row
from torch_manualbp.verify.subject import Results, Setting, is_number, name_of_dtype
from torch_manualbp.verify.trial import EPS, EXACT, Trial

__all__ = [
    "complex_numbers",
    "exact",
    "finite_differences",
    "is_as_accurate_as_torch",
    "passes_gradcheck",
    "passes_gradgradcheck",
    "rounded",
    "rounds_once",
]

ROUNDINGS = 4.0
"""ε of the terms' size that a low-precision gradient may be off where torch's own is better than that. Of the rules
none is off by more than 3.3 there; a GELU rounded to bfloat16 at every step is off by 8."""

BESIDE = 2.0**-16
"""How much smaller than the largest entry one may be before it is not looked at as closely as the others."""

OF_SEVERAL = 32.0
"""The same where several Functions follow each other, each of which rounds what the next is given."""

NEXT_TO_TORCH = 3.0
"""Times the error of torch's own gradient that ours may have."""

MEAN_OF_NOTHING = "the mean of nothing is NaN, of which there are no finite differences"

COMMON = {torch.float32: 32.0, torch.float16: 2.0, torch.bfloat16: 1.0}
"""ε by which all entries together may be too long: what a factor that is rounded once or twice makes."""

LOST_DIGITS = 64.0
"""ε of the terms' size up to which digits were lost on the way, and nothing is wrong with the formula."""

ON_A_KINK = "on a kink, between the derivatives of its sides"

ROUGH = 1e-5
"""Finite differences whose own error is above this say nothing."""


def exact(trial: Trial) -> Iterator[Row]:
    """In float64 every gradient is that of autograd of the same forward, to 4,096 ε of the size of its terms; those of
    a rule are its torch twin's, as is its value."""
    if trial.references.is_numeric and (trial.subject.size() > SMALL or trial.eps > EPS):
        yield from along_directions(trial, trial.exact)
        return
    expected, found = trial.references.at(), trial.references.own()
    sides: list[list[Tensor]] | None = None
    for i, leaf in enumerate(trial.leaves):
        gradient, right, scale = found.gradients[i], expected.gradients[i], expected.scales[i]
        row = trial.compared(leaf, gradient, right, scale)
        if not row.ok and trial.takes_any_side and gradient.shape == right.shape:
            sides = _sides(trial.exact) if sides is None else sides
            if is_between(gradient, right, EXACT * trial.slack * EPS * (scale + largest(scale)), [s[i] for s in sides]):
                row = trial.row(leaf.name, note=ON_A_KINK, dtype=row.dtype, shape=row.shape)
        yield row
    if trial.subject.narrows:
        wrong = "backward computes in float32 what forward computes in all digits of float64"
        yield trial.row("", wrong, kind=ROBUSTNESS, dtype="float64")
    if trial.has_twin:
        yield from trial.same(found, Results(expected.outputs, expected.gradients))


def _sides(at: Setting) -> list[list[Tensor]]:
    leaves = at.leaves()
    return beside(at.run_plain, leaves, at.upstream(at.run_plain(leaves)))


def complex_numbers(trial: Case) -> Iterator[Row]:
    """Where torch takes complex numbers, value and gradients are the twin's, and finite differences agree."""
    at = trial.exact.with_values(trial.args(Make(torch.complex128)))
    if refusal(at.results, at.run_plain) and not trial.entry.complex:
        raise DoesNotApply("torch takes no complex numbers here")
    yield from trial.same(at.results(), at.results(at.run_plain))
    _gradcheck(trial, at)


def passes_gradcheck(trial: Trial) -> None:
    """Finite differences agree in reverse mode, forward mode and both under vmap: by torch's own gradcheck."""
    _gradcheck(trial, trial.exact)


def _gradcheck(trial: Trial, at: Setting) -> None:
    if any(o.isnan().any() for o in at.run_plain(at.leaves())):
        raise DoesNotApply(MEAN_OF_NOTHING)
    modes = {"check_forward_ad": trial.has_twin, "check_batched_forward_grad": trial.has_twin}
    assert gradcheck(lambda *leaves: at.run(leaves), at.leaves(), check_batched_grad=trial.has_twin, **modes)


def passes_gradgradcheck(trial: Trial) -> None:
    """Finite differences of the backward agree in reverse over reverse and forward over reverse: by torch's own
    gradgradcheck."""
    at = trial.exact
    if any(t.isnan().any() for t in second_derivatives(at, trial.run_for_second, True)):
        raise DoesNotApply(MEAN_OF_NOTHING)
    all_modes = trial.has_twin
    run, leaves = (lambda *moved: at.run(moved)), at.leaves()
    assert gradgradcheck(run, leaves, check_fwd_over_rev=all_modes, check_batched_grad=all_modes)


def rounded(trial: Trial, dtype: torch.dtype) -> Iterator[Row]:
    """In a dtype of fewer digits no gradient is further from float64's on the same numbers than 4 ε of the size of its
    terms (32 ε after several Functions), or than three times the error of torch's own."""
    subject = trial.subject
    at = subject.setting(dtype)
    draws = Draws()
    name = name_of_dtype(dtype)
    is_numeric = trial.references.is_numeric
    torchs: list[Tensor] | None = None
    sides: list[list[Tensor]] | None = None
    if trial.options.dtype not in (None, dtype):
        raise DoesNotApply(subject.digits)
    if is_numeric and trial.eps > EPS:
        raise DoesNotApply("finite differences of few digits have fewer still: see the values in float64")
    if not is_numeric:
        try:
            with draws.recorded():
                torchs = at.results(at.run_plain).gradients
        except DoesNotApply:
            raise
        except Exception as error:
            raise DoesNotApply(f"torch's own forward refuses {name}: {one_line(error)}") from error
    try:
        found, outputs = reversed(at.results())
    except Exception as error:
        if is_numeric:
            raise DoesNotApply(f"it takes no {name}: {one_line(error)}") from error
        kind = VALUE if dtype == subject.dtype else ROBUSTNESS
        yield Row("", "", ERROR, name, hint=f"where autograd of the same forward works: {one_line(error)}", kind=kind)
        return
    with draws.replayed():
        expected = trial.references.at(dtype) if not draws.any else trial.references.anew(dtype)
    if draws.any and not _same_draws(outputs, expected.outputs):
        raise DoesNotApply(f"it draws other random numbers in {name} than in float64")
    if is_numeric and not _same_draws(outputs, expected.outputs):
        raise DoesNotApply(f"what it returns in {name} is another function's")
    for i, leaf in enumerate(trial.leaves):
        right = expected.gradients[i]
        scale = expected.scales[i] + BESIDE * largest(expected.scales[i])
        about: dict[str, Any] = {"dtype": name, "shape": tuple(right.shape)}
        if found[i].shape != right.shape:
            yield trial.row(leaf.name, f"its shape is {tuple(found[i].shape)}", **about)
            continue
        beyond = ~torch.isfinite(right) | (right.abs() > torch.finfo(dtype).max)
        torch_error = None
        if torchs is not None:
            beyond |= ~torchs[i].isfinite()  # torch's own overflows, too
            torch_error = error_of(torchs[i], right, scale, dtype, beyond)
        off = error_of(found[i], right, scale, dtype, beyond)
        allowed = ROUNDINGS if len(subject.functions) <= 1 else OF_SEVERAL
        allowed += expected.accuracy / torch.finfo(dtype).eps
        if torch_error is not None:
            allowed = max(allowed, NEXT_TO_TORCH * torch_error.ulps)
        ok = off.ulps <= allowed or trial.options.allows(found[i], right)
        if not ok and trial.takes_any_side:
            sides = _sides(subject.setting(subject.wide, dtype)) if sides is None else sides
            ok = is_between(found[i], right, allowed * torch.finfo(dtype).eps * scale, [s[i] for s in sides])
        slope, slack = projected(found[i], right, None if torchs is None else torchs[i], scale.where(~beyond, 0), dtype)
        is_lost = off.absolute <= LOST_DIGITS * max(1.0, allowed / ROUNDINGS) and abs(slope) <= slack
        tilted = ""
        if ok and abs(slope) > slack * (1 if allowed == ROUNDINGS else 4) and trial.options.rtol is None:
            ok, tilted = False, f"factor: on the whole it is {1 + slope:.4g} times the right one"
        yield Row(
            leaf.name,
            verdict=OK if ok else FAILS,
            error_ulps=off.ulps,
            error_relative=off.relative,
            torch_ulps=None if torch_error is None else torch_error.ulps,
            where=off.where,
            hint="" if ok else tilted or _why(found[i], right, off, dtype),
            kind="" if ok else ROBUSTNESS if is_lost else VALUE,
            **about,
        )


def projected(
    gradient: Tensor, right: Tensor, torchs: Tensor | None, scale: Tensor, dtype: torch.dtype
) -> tuple[float, float]:
    """By how much a gradient is too long along the right one, relatively, and how much rounding may make of that: the
    errors of many entries cancel, and a factor does not. Entries of scale 0 are not looked at."""
    keep = (scale > 0) & gradient.isfinite() & right.isfinite()
    wide = right.where(keep, 0)
    square = (wide.abs() ** 2).sum().item()
    if not square:
        return 0.0, 0.0
    slopes = [
        ((t.to(right.dtype).where(keep, 0) - wide) * wide.conj()).sum().real.item() / square
        for t in (gradient, torchs)
        if t is not None
    ]
    terms = max(1.0, scale.where(keep, 0).norm().item() / (3 * square**0.5))
    return slopes[0], max([COMMON[dtype] * torch.finfo(dtype).eps * terms, *(3 * abs(s) for s in slopes[1:])])


def _why(gradient: Tensor, right: Tensor, error: Error, dtype: torch.dtype) -> str:
    if error.relative > 100 * torch.finfo(dtype).eps or not gradient.isfinite().all():
        return hint_for(gradient.to(right.dtype), right)
    return "digits are lost: compute in float32, or in another order, and round once"


def _same_draws(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether the outputs are the same up to rounding, as they are with the same random numbers."""
    for output, right in zip(outputs, expected, strict=True):
        size = largest(right)
        if output.numel() and largest(output.to(right.dtype) - right) > 0.1 * size:
            return False
    return True


def is_as_accurate_as_torch(trial: Case, dtype: torch.dtype, seeds: int = 10) -> None:
    """No gradient is further from the float64 reference than torch's own by more than one ulp; in the median where
    terms cancel, since the worst entry is then an accident of rounding for both."""
    errors: tuple[list[Tensor], list[Tensor]] = [], []
    for low in trial.versions(taken_by_torch(trial, dtype), seeds):
        wide = low.mapped(lambda t: t.double() if is_number(t) else t)
        right = wide.results(wide.run_plain)
        for all_of_it, run in zip(errors, (low.run, low.run_plain), strict=True):
            for gradient, reference in zip(low.results(run).gradients, right.gradients, strict=True):
                all_of_it.append(_with_lost(errors_in_ulps(gradient, reference)).flatten())
    ours, theirs = map(torch.cat, errors)
    if ours.numel():
        mine, torchs = (t.median() if trial.entry.cancels else t.max() for t in (ours, theirs))
        assert mine <= torchs + 1, f"off by {mine:.2f} ulp where torch is off by {torchs:.2f}"


def _with_lost(errors: Tensor) -> Tensor:
    """The errors, infinite where an overflow lost the result."""
    return errors.where(errors != LOST, math.inf)


def taken_by_torch(trial: Trial, dtype: torch.dtype) -> Setting:
    """The call in a dtype, if torch's own function takes that."""
    at = trial.subject.setting(dtype)
    if refusal(at.results, at.run_plain):
        raise DoesNotApply(f"torch takes no {name_of_dtype(dtype)} here")
    return at


def rounds_once(trial: Case, dtype: torch.dtype) -> None:
    """In float16 and bfloat16 the formula is, to one ulp, what it is in float64 on the very numbers that it kept."""
    at = taken_by_torch(trial, dtype)
    leaves = at.leaves()
    outputs = at.run(leaves)
    node: Any = outputs[0].grad_fn
    upstream = at.upstream(outputs)
    assert node is not None
    kept = tuple(t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in node.saved_tensors)
    ctx = SimpleNamespace(**vars(node), saved_tensors=kept, needs_input_grad=node.needs_input_grad)
    byproducts = len(node._input_metadata) - len(outputs)  # which have no gradient
    raw = trial.rule.backward(ctx, *[u.double() for u in upstream], *[None] * byproducts)
    right = [g for g in (raw if isinstance(raw, tuple) else (raw,)) if g is not None]
    for gradient, reference in zip(torch.autograd.grad(outputs, leaves, upstream), right, strict=True):
        if reference.numel():
            error = _with_lost(errors_in_ulps(gradient, reference.double())).max()
            assert error <= 1, f"off by {error:.2f} ulp of itself in float64"


def _is_of_a_side(trial: Trial, i: int, direction: Tensor, slope: float, doubt: float) -> bool:
    """Whether the numbers stand on a kink, and the slope is between those of its sides."""
    if not trial.takes_any_side:
        return False
    slopes = [inner(s[i], direction) for s in _sides(trial.exact)]
    width = max(slopes) - min(slopes) if slopes else 0.0
    is_kink = width > 1e-4 * abs(slope)
    return is_kink and min(slopes) - 0.01 * width - doubt <= slope <= max(slopes) + 0.01 * width + doubt


def finite_differences(trial: Trial) -> Iterator[Row]:
    """The reference, along random directions, is the slope of the forward's values; the step is that at which the
    extrapolated differences agree best."""
    if trial.subject.reference is not None and not trial.has_twin:
        raise DoesNotApply("the reference is taken at its word")
    if trial.references.is_numeric and (trial.subject.size() > SMALL or trial.eps > EPS):
        raise DoesNotApply("the values are held against them already")
    at, expected = trial.exact, trial.references.at()
    leaves = at.leaves()
    upstream = at.upstream(expected.outputs)
    cost = contraction(at, upstream)
    # What rounds in the values, the gradient may be far below of.
    floor = max(1e-9, 64 * trial.eps) * sum(
        largest(u) * largest(o) for u, o in zip(upstream, expected.outputs, strict=True)
    )
    for i, leaf in enumerate(trial.leaves[:8]):
        if not leaf.tensor.numel():
            continue
        about: dict[str, Any] = {"dtype": "float64", "shape": tuple(leaf.tensor.shape)}
        for seed in range(3):
            direction = directions(leaves, seed)[i]
            slope, doubt = slope_along(cost, leaves, [direction if j == i else None for j in range(len(leaves))])
            gradient = expected.gradients[i]
            found = inner(gradient, direction)
            size = max((gradient.abs() * direction.abs()).square().sum().sqrt().item(), abs(slope))
            if not doubt <= max(ROUGH * size, floor):
                continue
            off = abs(slope - found)
            wrong = ""
            if not off <= 100 * doubt + 1e-6 * size + floor and not _is_of_a_side(trial, i, direction, slope, doubt):
                wrong = (
                    f"along a random direction the forward's slope is {slope:.8g}, and the gradient says {found:.8g}"
                )
            yield trial.row(leaf.name, wrong, error_relative=off / size if size else 0.0, **about)
            break
        else:
            why = "finite differences do not settle: a kink, or no smooth function, at these numbers"
            yield Row(leaf.name, verdict=DOES_NOT_APPLY, hint=why, **about)
