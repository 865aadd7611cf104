"""±∞, NaN, ±0 and the ends of the range, as inputs and as upstream gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.checks.scan import NO_SUCH_NUMBER, Scan, scans
from torch_manualbp.verify.contract.precision import special_values
from torch_manualbp.verify.measure import with_zeros
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import DoesNotApply, gradients_of

__all__ = ["special_inputs"]

TINY = 1e-30
"""Beyond this, and its inverse, products overflow and underflow in some orders."""


def special_inputs(trial: Trial, check: str) -> Iterator[Row]:
    """Of a function of single numbers the gradient at every special number (±0, ±1, ±∞, NaN, ε) with every special
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
                yield _elementwise(trial, check, scan, dtype)
            elif not scan.entry:
                row = _spread(trial, check, scan)
                if row is not None:
                    looked = True
                    yield row
    if not looked:
        raise DoesNotApply("no input takes them")


def _elementwise(trial: Trial, check: str, scan: Scan, dtype: torch.dtype) -> Row:
    pairs = list(product(special_values(dtype).tolist(), repeat=2))
    values, given = [v for v, _ in pairs], [g for _, g in pairs]
    right, found = (scan.pairs(values, given, plain) for plain in (True, False))
    tolerance = 16 * torch.finfo(dtype).eps + 10 * trial.references.at().accuracy
    leaf = trial.subject.leaves[scan.leaf]
    about = str(dtype).removeprefix("torch."), tuple(leaf.tensor.shape)
    for i in (~_alike(found, right, tolerance)).nonzero().flatten().tolist():
        value, upstream = pairs[i]
        if _has_no_authority(found[i], right[i], value, upstream):
            continue
        if _is_torn(scan, value, upstream, found[i], tolerance):
            continue
        hint = (
            f"at {value:.3g} with an upstream gradient of {upstream:.3g}: {found[i].item():.4g}, and autograd of the "
            f"forward has {right[i].item():.4g}"
        )
        return Row(leaf.name, check, FAILS, *about, hint=hint)
    return Row(leaf.name, check, OK, *about)


def _alike(found: Tensor, right: Tensor, tolerance: float) -> Tensor:
    return torch.isclose(found, right, rtol=tolerance, atol=torch.finfo(found.dtype).tiny, equal_nan=True)


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


def _is_torn(scan: Scan, value: float, upstream: float, found: Tensor, tolerance: float) -> bool:
    """Whether at NaN autograd of the same forward says so too of one number, or of a whole vector of them."""
    if value == value:
        return False
    for size in (1, 64):
        numbers = torch.full((size,), value, dtype=found.dtype, device=found.device, requires_grad=True)
        try:
            outputs = scan.at.run_plain([numbers])
            given = [torch.full_like(output, upstream) for output in outputs]
            (alone,) = with_zeros(gradients_of(outputs, [numbers], given), [numbers])
        except (*NO_SUCH_NUMBER, IndexError):  # it takes no single row of numbers
            continue
        if _alike(found, alone[0], tolerance):
            return True
    return False


def _spread(trial: Trial, check: str, scan: Scan) -> Row | None:
    nan = float("nan")
    leaf = trial.subject.leaves[scan.leaf]
    try:
        references = scan.gradients(nan, plain=True)
    except NO_SUCH_NUMBER:
        return None
    for of, right, found in zip(trial.subject.leaves, references, scan.gradients(nan, plain=False), strict=True):
        hidden = right.isnan() & ~found.isnan()
        if hidden.any():
            hint = f"NaN in {leaf.name} leaves {int(hidden.sum())} entries finite that are NaN in autograd"
            return Row(of.name, check, FAILS, "", tuple(right.shape), hint=hint)
    return Row(leaf.name, check, OK, "", tuple(leaf.tensor.shape))
