"""Errors of rounding, special numbers, low precision."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue import Make
from torch_manualbp.verify.contract.case import (
    Case,
    DoesNotApply,
    assert_same,
    gradients,
    is_floating,
    leaves,
    refusal,
    upstream_for,
)
from torch_manualbp.verify.outputs import outputs

__all__ = [
    "errors_in_ulps",
    "infinities_spread_as_in_torch",
    "is_as_accurate_as_torch",
    "nan_spreads_as_in_torch",
    "rounds_once",
    "special_values",
    "treats_special_values_as_torch",
]


def errors_in_ulps(case: Case, apply: Callable[..., Tensor], dtype: torch.dtype, seeds: int = 10) -> Tensor:
    """The error of every entry of every gradient in ``dtype``, in units of the last place of the reference: the
    twin in float64 on the same numbers and the same upstream gradient."""
    errors = []
    for seed in range(seeds):
        low = case.args(Make(dtype, seed=seed))
        output = apply(*low)
        upstream = upstream_for(output)
        high = [a.detach().double().requires_grad_(a.requires_grad) if is_floating(a) else a for a in low]
        expected = gradients(case.twin, high, upstream.double())
        for gradient, reference in zip(torch.autograd.grad(output, leaves(low), upstream), expected, strict=True):
            errors.append(((gradient.double() - reference).abs() / _ulp(reference, dtype)).flatten())
    return torch.cat(errors)


def is_as_accurate_as_torch(case: Case, dtype: torch.dtype) -> None:
    """No gradient is further from the float64 reference than torch's own by more than one ulp; in the median where
    terms cancel, since the worst entry is then an accident of rounding for both."""
    _refuse_what_torch_refuses(case, dtype)
    ours = errors_in_ulps(case, case.apply, dtype)
    theirs = errors_in_ulps(case, case.twin, dtype)
    if not ours.numel():
        return
    mine, torchs = (ours.median(), theirs.median()) if case.entry.cancels else (ours.max(), theirs.max())
    assert mine <= torchs + 1, f"off by {mine:.2f} ulp where torch is off by {torchs:.2f}"


def rounds_once(case: Case, dtype: torch.dtype) -> None:
    """In float16 and bfloat16 the formula is, to one ulp, what it is in float64 on the very numbers that it kept."""
    _refuse_what_torch_refuses(case, dtype)
    args = case.args(Make(dtype))
    results = outputs(case.rule.apply(*args))
    node: Any = results[0].grad_fn
    upstream = [upstream_for(output) for output in results]
    assert node is not None
    kept = tuple(t.double() if is_floating(t) else t for t in node.saved_tensors)
    ctx = SimpleNamespace(**vars(node), saved_tensors=kept, needs_input_grad=node.needs_input_grad)
    byproducts = len(node._input_metadata) - len(results)  # which have no gradient
    exact = case.rule.backward(ctx, *[u.double() for u in upstream], *[None] * byproducts)
    exact = [g for g in (exact if isinstance(exact, tuple) else (exact,)) if g is not None]
    for gradient, reference in zip(torch.autograd.grad(results, leaves(args), upstream), exact, strict=True):
        if not reference.numel():
            continue
        error = ((gradient.double() - reference).abs() / _ulp(reference.double(), dtype)).max()
        assert error <= 1, f"off by {error:.2f} ulp of itself in float64"


def _refuse_what_torch_refuses(case: Case, dtype: torch.dtype) -> None:
    if refusal(gradients, case.twin, case.args(Make(dtype))):
        raise DoesNotApply(f"torch takes no {str(dtype).removeprefix('torch.')} here")


def _ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit of the last place that ``dtype`` has at each entry."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** reference.abs().clamp_min(info.tiny).log2().floor()


NO_ENTRIES = "an argument without entries has no numbers to place"

SPECIAL = (0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan"))


def special_values(dtype: torch.dtype) -> Tensor:
    """±0, ±1, the smallest and largest numbers of the dtype, a subnormal, ±inf, NaN."""
    info = torch.finfo(dtype)
    edges = (info.tiny, -info.tiny, info.tiny / 4, -info.tiny / 4, info.max, info.min, info.eps, -info.eps)
    return torch.tensor([*SPECIAL, *edges], dtype=torch.float64).to(dtype)


def minus_nan(dtype: torch.dtype) -> Tensor:
    """One NaN with a minus, as ∞ − ∞ makes it."""
    return torch.tensor([float("nan")], dtype=dtype).abs().neg()


def treats_special_values_as_torch(case: Case, dtype: torch.dtype) -> None:
    """An elementwise rule gives torch's value and gradient for every pair of a special input and a special upstream,
    NaN of either sign among them."""
    if not case.is_elementwise():
        raise DoesNotApply("not elementwise: see NaN and infinities")
    _refuse_what_torch_refuses(case, dtype)
    values = torch.cat([special_values(dtype), minus_nan(dtype)])
    z, upstream = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    options = case.args()[1:]
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    output, expected = case.apply(ours, *options), case.twin(theirs, *options)
    assert_same(output, expected, "value", tolerance=0)
    number = ~expected.isnan()
    assert torch.equal(output.signbit()[number], expected.signbit()[number]), "a zero has the other sign"
    (gradient,) = torch.autograd.grad(output, ours, upstream)
    (reference,) = torch.autograd.grad(expected, theirs, upstream)
    alone = number_by_number(lambda x: case.twin(x, *options), z, upstream)
    info = torch.finfo(dtype)
    as_vector, as_number = (
        torch.isclose(gradient, answer, rtol=2 * info.eps, atol=2 * info.eps * info.tiny, equal_nan=True)
        for answer in (reference, alone)
    )
    wrong = ~(as_vector | as_number)
    assert not wrong.any(), f"gradient at z = {z[wrong][0]}, ∂C/∂a = {upstream[wrong][0]}: {gradient[wrong][0]}"


def number_by_number(function: Callable[..., Tensor], z: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of each number of z alone. At NaN some of torch's kernels say one thing in their vectors and another
    in the numbers left over, which is what its other devices and torch.compile say."""
    gradients = []
    for x, g in zip(z.detach().split(1), upstream.split(1), strict=True):
        leaf = x.clone().requires_grad_()
        gradients += torch.autograd.grad(function(leaf), leaf, g)
    return torch.cat(gradients)


def nan_spreads_as_in_torch(case: Case) -> None:
    """One NaN in the first tensor, of either sign, makes NaN of the same entries of the gradients as in torch."""
    for nan in (minus_nan(torch.float64).abs(), minus_nan(torch.float64)):
        _spreads_as_in_torch(case, nan)


def infinities_spread_as_in_torch(case: Case) -> None:
    """An infinity of either sign in the first tensor makes NaN and infinity of the same entries as in torch."""
    for value in (float("inf"), float("-inf")):
        _spreads_as_in_torch(case, torch.tensor([value], dtype=torch.float64))


def _spreads_as_in_torch(case: Case, value: Tensor) -> None:
    def with_value() -> list[Any]:
        args = case.args()
        with torch.no_grad():
            args[case.first()].view(-1)[:1] = value
        return args

    if not case.args()[case.first()].numel():
        raise DoesNotApply(NO_ENTRIES)
    if reason := refusal(gradients, case.twin, with_value()):
        raise DoesNotApply(reason)
    results = [gradients(function, with_value()) for function in (case.apply, case.twin)]
    if value.isnan() and case.is_elementwise():
        z, *options = with_value()
        first = upstream_for(z.detach()).view(-1)[:1]
        alone = number_by_number(lambda x: case.twin(x, *options), z.view(-1)[:1], first)
        if torch.equal(results[0][0].view(-1)[:1], alone):
            results[1][0].view(-1)[:1] = alone
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs, f"gradient with {value.item()} in it")
