"""±∞, NaN, ±0 and the ends of the range, as inputs and as upstream gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torch_manualbp.verify.case import refusal
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.claims.layout import NO_ENTRIES
from torch_manualbp.verify.claims.scan import NO_SUCH_NUMBER, Scan, scans
from torch_manualbp.verify.claims.values import taken_by_torch
from torch_manualbp.verify.report import Row
from torch_manualbp.verify.subject import Setting, gradients_of, name_of_dtype, with_zeros
from torch_manualbp.verify.trial import Trial, assert_same

__all__ = [
    "infinities_spread",
    "minus_nan",
    "nan_spreads",
    "number_by_number",
    "special_inputs",
    "special_pairs",
    "special_values",
]

TINY = 1e-30
"""Beyond this, and its inverse, products overflow and underflow in some orders."""


def special_values(dtype: torch.dtype) -> Tensor:
    """±0, ±1, the smallest and largest numbers of the dtype, a subnormal, ±inf, NaN."""
    info = torch.finfo(dtype)
    edges = (info.tiny, -info.tiny, info.tiny / 4, -info.tiny / 4, info.max, info.min, info.eps, -info.eps)
    special = 0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan")
    return torch.tensor([*special, *edges], dtype=torch.float64).to(dtype)


def minus_nan(dtype: torch.dtype) -> Tensor:
    """One NaN with a minus, as ∞ − ∞ makes it."""
    return torch.tensor([float("nan")], dtype=dtype).abs().neg()


def special_inputs(trial: Trial) -> Iterator[Row]:
    """The gradient of a function of single numbers at every special number (±0, ±1, ±∞, NaN, ε) with every special
    upstream gradient is autograd's. NaN of numbers that are none is no reference, nor is what ATen's
    kernels say one way in their vectors and another beside them. Of any other: NaN in an entry of the first input
    spreads as in autograd."""
    trial.references.require_autograd()
    if not trial.subject.functions and trial.subject.reference is None:
        raise DoesNotApply("every operation is torch's own")
    looked = False
    for dtype in (torch.float64, torch.float32):
        for scan in scans(trial, trial.subject.setting(dtype), most=1):
            if scan.packed:
                looked = True
                yield _at_pairs(trial, scan, dtype)
            elif not scan.entry:
                for row in _spread(trial, scan, float("nan")):
                    looked = True
                    yield row
    if not looked:
        raise DoesNotApply("no input takes them")


def special_pairs(trial: Trial, dtype: torch.dtype) -> Iterator[Row]:
    """A rule of single numbers gives torch's value and gradient for every pair of a special input and a special
    upstream, NaN of either sign among them."""
    at = taken_by_torch(trial, dtype)
    values = torch.cat([special_values(dtype), minus_nan(dtype)])
    many = torch.linspace(0.1, 0.9, len(values) ** 2, dtype=dtype)
    at = at.with_values([many if i == at.tensors()[0] else v for i, v in enumerate(at.values)])
    takes_them = at.tensors() == [0] and not refusal(at.run_plain, at.leaves([]))
    found = [scan for scan in scans(trial, at, most=1) if scan.packed] if takes_them else []
    if not found:
        raise DoesNotApply("not elementwise: see NaN and infinities")
    with torch.no_grad():
        ours, theirs = (run([values])[0] for run in (at.run, at.run_plain))
    assert_same(ours, theirs, "value", tolerance=0)
    number = ~theirs.isnan()
    assert torch.equal(ours.signbit()[number], theirs.signbit()[number]), "a zero has the other sign"
    yield _at_pairs(trial, found[0], dtype, values)


def _at_pairs(trial: Trial, scan: Scan, dtype: torch.dtype, numbers: Tensor | None = None) -> Row:
    numbers = special_values(dtype) if numbers is None else numbers
    z, g = (t.flatten() for t in torch.meshgrid(numbers, numbers, indexing="ij"))
    right, found = (scan.pairs(z, g, plain) for plain in (True, False))
    info = torch.finfo(dtype)
    tolerance, smallest = 16 * max(info.eps, trial.eps) + 10 * trial.references.at().accuracy, info.tiny
    if trial.has_twin:
        tolerance, smallest = 2 * info.eps, 2 * info.eps * info.tiny

    def alike(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.isclose(ours, theirs, rtol=tolerance, atol=smallest, equal_nan=True)

    leaf = trial.leaves[scan.leaf]
    for i in (~alike(found, right)).nonzero().flatten().tolist():
        if not trial.has_twin and _has_no_authority(found[i], right[i], z[i].item(), g[i].item()):
            continue
        torn = trial.has_twin or bool(z[i].isnan())
        if torn and any(alike(found[i], alone) for alone in _alone(scan.at, z[i], g[i])):
            continue
        wrong = (
            f"at {z[i].item():.3g} with an upstream gradient of {g[i].item():.3g}: {found[i].item():.4g}, and autograd "
            f"of the forward has {right[i].item():.4g}"
        )
        return trial.row(leaf.name, wrong, dtype=name_of_dtype(dtype), shape=tuple(leaf.tensor.shape))
    return trial.row(leaf.name, dtype=name_of_dtype(dtype), shape=tuple(leaf.tensor.shape))


def _has_no_authority(found: Tensor, right: Tensor, value: float, upstream: float) -> bool:
    """Whether autograd's answer is none: NaN of numbers, such as ∞ − ∞, or what another order overflows in."""
    z, g = (torch.tensor(x, dtype=torch.float64) for x in (value, upstream))
    if z.isnan():
        return bool(found.isnan())  # what was no number stays none, whatever ATen chooses
    if any(x.isfinite() and x and not TINY < x.abs() < 1 / TINY for x in (z, g)):
        return True  # the order decides what overflows or underflows on the way
    if not g.isfinite() and z == 0 and found.isnan() and right == 0:
        return True  # a derivative that is 0 in one point, times ∞
    return bool(right.isnan())


def _alone(at: Setting, z: Tensor, upstream: Tensor) -> Iterator[Tensor]:
    """What autograd of the same forward says of one number, and of one in a whole vector of them: at NaN some of
    torch's kernels say one thing in their vectors and another in the numbers left over, which is what its other devices
    and torch.compile say."""
    for size in (1, 64):
        numbers = z.expand(size).clone().requires_grad_()
        with contextlib.suppress(*NO_SUCH_NUMBER, IndexError):  # it may take no single row of numbers
            outputs = at.run_plain([numbers])
            given = [upstream.to(o.dtype).expand(o.shape).clone() for o in outputs]
            yield with_zeros(gradients_of(outputs, [numbers], given), [numbers])[0][0]


def number_by_number(function: Callable[[Tensor], Tensor], z: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of each number of z alone."""
    gradients = []
    for x, g in zip(z.detach().split(1), upstream.split(1), strict=True):
        leaf = x.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf), leaf, g)
    return torch.cat(gradients)


def nan_spreads(trial: Trial) -> Iterator[Row]:
    """One NaN in the first tensor, of either sign, makes NaN of the same entries of the gradients as in torch."""
    for nan in (minus_nan(torch.float64).abs(), minus_nan(torch.float64)):
        yield from _in_first_entry(trial, nan)


def infinities_spread(trial: Trial) -> Iterator[Row]:
    """An infinity of either sign in the first tensor makes NaN and infinity of the same entries as in torch."""
    for value in (float("inf"), float("-inf")):
        yield from _in_first_entry(trial, torch.tensor([value], dtype=torch.float64))


def _in_first_entry(trial: Trial, value: Tensor) -> Iterator[Row]:
    at = trial.exact.mapped(Tensor.clone)
    first = at.values[at.tensors()[0]]
    if not first.numel():
        raise DoesNotApply(NO_ENTRIES)
    first.view(-1)[:1] = value
    if reason := refusal(at.results, at.run_plain):
        raise DoesNotApply(reason)
    found, right = at.results(), at.results(at.run_plain)
    if value.isnan() and any(scan.packed for scan in scans(trial, trial.exact, most=1)):
        mine, theirs = found.gradients[0].view(-1), right.gradients[0].view(-1)
        upstream = at.upstream(found.outputs)[0].view(-1)[0]
        if any(torch.equal(alone, mine[0]) for alone in _alone(at, value, upstream)):
            theirs[0] = mine[0]
    yield from trial.same(found, right, hint=f"with {value.item()} in it")


def _spread(trial: Trial, scan: Scan, value: float) -> Iterator[Row]:
    """NaN in an entry hides nowhere where autograd has it."""
    leaf = trial.leaves[scan.leaf]
    try:
        references = scan.gradients(value, plain=True)
    except NO_SUCH_NUMBER:
        return
    for of, right, found in zip(trial.leaves, references, scan.gradients(value, plain=False), strict=True):
        hidden = int((right.isnan() & ~found.isnan()).sum())
        wrong = f"NaN in {leaf.name} leaves {hidden} entries finite that are NaN in autograd" if hidden else ""
        yield trial.row(of.name, wrong, shape=tuple(right.shape))
