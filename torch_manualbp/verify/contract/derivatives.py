"""Values and derivatives: the torch twin's, and those that finite differences show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad, gradcheck, gradgradcheck

from torch_manualbp.catalogue import Make
from torch_manualbp.verify.contract.case import (
    Case,
    DoesNotApply,
    assert_same,
    finish,
    leaves,
    refusal,
    upstream_for,
)
from torch_manualbp.verify.outputs import outputs

__all__ = [
    "adds_up_over_two_places",
    "equals_twin",
    "equals_twin_for_complex_numbers",
    "forward_mode_equals_reverse_mode",
    "passes_gradcheck",
    "passes_gradgradcheck",
    "raw_backward_is_well_formed",
    "second_derivatives_equal_twins",
    "takes_no_upstream",
]


MEAN_OF_NOTHING = "the mean of nothing is NaN, of which there are no finite differences"


def equals_twin(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Value and gradients are the torch twin's to 1e-12 in float64."""
    ours, theirs = case.args(Make(dtype)), case.args(Make(dtype))
    output, expected = case.apply(*ours), case.twin(*theirs)
    assert_same(output, expected, "output")
    upstream = upstream_for(expected)
    pairs = zip(
        case.differentiable(),
        torch.autograd.grad(output, leaves(ours), upstream),
        torch.autograd.grad(expected, leaves(theirs), upstream),
        strict=True,
    )
    for position, gradient, reference in pairs:
        assert_same(gradient, reference, f"gradient of argument {position}")


def equals_twin_for_complex_numbers(case: Case) -> None:
    """Where torch takes complex numbers, value and gradients are the twin's, and finite differences agree."""
    reason = refusal(_value_and_gradients, case.twin, case.args(Make(torch.complex128)))
    if reason and not case.entry.complex:
        raise DoesNotApply("torch takes no complex numbers here")
    equals_twin(case, torch.complex128)
    passes_gradcheck(case, torch.complex128)


def _value_and_gradients(function: Callable[..., Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    output = function(*args)
    return output, *torch.autograd.grad(output, leaves(args), upstream_for(output))


def second_derivatives_equal_twins(case: Case, upstream_needs_gradient: bool) -> None:
    """Second and mixed derivatives are the torch twin's, also where the upstream gradient needs none of its own."""
    ours = _second_derivatives(case.apply, case.args(), upstream_needs_gradient)
    theirs = _second_derivatives(case.twin_for_second, case.args(), upstream_needs_gradient)
    for i, (derivative, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert_same(derivative, reference, f"second derivative {i}", tolerance=1e-11)


def _second_derivatives(
    function: Callable[..., Tensor], args: Sequence[Any], upstream_needs_gradient: bool
) -> list[Tensor]:
    output = function(*args)
    upstream = upstream_for(output).requires_grad_(upstream_needs_gradient)
    inputs = leaves(args)
    first = torch.autograd.grad(output, inputs, upstream, create_graph=True)
    contracted = sum((g * upstream_for(g, seed=i)).sum() for i, g in enumerate(first))
    wrt = [*inputs, upstream] if upstream_needs_gradient else inputs
    assert isinstance(contracted, Tensor)
    if not contracted.requires_grad:  # the operation is linear
        return [torch.zeros_like(t) for t in wrt]
    second = torch.autograd.grad(contracted, wrt, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wrt, second, strict=True)]


def raw_backward_is_well_formed(case: Case) -> None:
    """``backward`` itself returns one entry per argument: None exactly where nothing is needed, elsewhere a gradient of
    the argument's shape, dtype and device. The engine would repair some of that in silence."""
    positions = case.differentiable()
    for needed in itertools.chain([positions], ([p] for p in positions)):
        args = case.args(frozen=[p for p in positions if p not in needed])
        results = outputs(case.rule.apply(*args))
        node: Any = results[0].grad_fn
        byproducts = len(node._input_metadata) - len(results)  # which have no gradient
        raw = node.apply(*map(upstream_for, results), *[None] * byproducts)
        raw = raw if isinstance(raw, tuple) else (raw,)
        assert len(raw) == len(args), f"{len(raw)} gradients for {len(args)} arguments"
        for i, (gradient, arg) in enumerate(zip(raw, args, strict=True)):
            if i not in needed:
                assert gradient is None, f"argument {i} needs no gradient and got one"
                continue
            assert isinstance(gradient, Tensor), f"argument {i} needs a gradient and got {gradient}"
            about = gradient.shape, gradient.dtype, gradient.device
            assert about == (arg.shape, arg.dtype, arg.device), f"argument {i}: gradient is {about}"


def passes_gradcheck(case: Case, dtype: torch.dtype = torch.float64) -> None:
    """Finite differences agree in reverse mode, forward mode and both under vmap."""
    args = case.args(Make(dtype))
    if case.twin(*args).isnan().any():
        raise DoesNotApply(MEAN_OF_NOTHING)
    assert gradcheck(case.apply, args, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


def passes_gradgradcheck(case: Case) -> None:
    """Finite differences of the backward agree in reverse over reverse and forward over reverse."""
    theirs = _second_derivatives(case.twin_for_second, case.args(), True)
    if any(t.isnan().any() for t in theirs):
        raise DoesNotApply(MEAN_OF_NOTHING)
    assert gradgradcheck(case.apply, case.args(), check_fwd_over_rev=True, check_batched_grad=True)


def forward_mode_equals_reverse_mode(case: Case) -> None:
    """On dual numbers, with tangents of all arguments and of each alone, the tangent of the output is the one that
    the gradients make: ⟨upstream, tangent of the output⟩ = Σ ⟨gradient, tangent⟩."""
    positions = case.differentiable()
    args = case.args()
    output = case.apply(*args)
    if output.isnan().any():
        raise DoesNotApply(MEAN_OF_NOTHING)
    upstream = upstream_for(output)
    reverse = dict(zip(positions, torch.autograd.grad(output, leaves(args), upstream), strict=True))
    tangents = {p: upstream_for(args[p], seed=p) for p in positions}
    for moved in dict.fromkeys([positions, *((p,) for p in positions)]):
        with forward_ad.dual_level():
            fixed = case.args(frozen=positions)
            dual = [forward_ad.make_dual(a, tangents[i]) if i in moved else a for i, a in enumerate(fixed)]
            value, tangent = forward_ad.unpack_dual(case.apply(*dual))
            assert_same(value, output.detach(), "value on dual numbers")
            assert tangent is not None, f"no tangent from arguments {moved}"
            assert (tangent.shape, tangent.dtype) == (output.shape, output.dtype), f"tangent is {tangent.shape}"
            got = (tangent * upstream).sum()
        expected = torch.stack([(reverse[p] * tangents[p]).sum() for p in moved]).sum()
        assert_same(got, expected, f"tangent from arguments {moved}", tolerance=1e-11)


class _Cut(Function):
    """Passes a tensor on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> None:
        return None


def _cut(t: Tensor) -> Tensor:
    cut: Tensor = _Cut.apply(t)  # type: ignore[no-untyped-call]
    return cut


def takes_no_upstream(case: Case) -> None:
    """Where what follows hands back None for its gradient, the arguments get none, or zeros, and what they get from
    elsewhere in the graph stays as it is."""
    args = case.args()
    inputs = leaves(args)
    elsewhere = torch.stack([t.sum() for t in inputs]).sum()
    cut = _cut(case.apply(*args)).sum()
    for gradient in torch.autograd.grad(cut, inputs, retain_graph=True, allow_unused=True):
        assert gradient is None or not gradient.any(), "a gradient out of none"
    for gradient in torch.autograd.grad(cut + elsewhere, inputs):
        assert_same(gradient, torch.ones_like(gradient), "gradient from elsewhere", tolerance=0)


def adds_up_over_two_places(case: Case) -> None:
    """f(x, x) has the twin's gradient for every two places that take the same tensor."""
    args = case.args()
    pairs = [
        (p, q)
        for p, q in itertools.combinations(case.differentiable(), 2)
        if (args[p].shape, args[p].dtype) == (args[q].shape, args[q].dtype)
    ]
    if not pairs:
        raise DoesNotApply("no two of the arguments that take a gradient may be the same tensor")
    ran, reasons = 0, []
    for p, q in pairs:

        def twice(function: Callable[..., Tensor], p: int = p, q: int = q) -> tuple[Tensor, ...]:
            args = case.args()
            args[p] = args[q]  # the target's numbers, which may not be any
            output = function(*args)
            return output, *torch.autograd.grad(output, args[p], upstream_for(output))

        if reason := refusal(twice, case.twin):
            reasons.append(reason)
            continue
        for ours, theirs in zip(twice(case.apply), twice(case.twin), strict=True):
            assert_same(ours, theirs, f"one tensor for arguments {p} and {q}")
        ran += 1
    finish(ran, reasons)
