"""What a backward is as a function: linear in its upstream gradient, additive over samples and places, the transpose of
forward mode, differentiable again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from torch_manualbp._text import one_line
from torch_manualbp.verify.case import refusal
from torch_manualbp.verify.check import UNSUPPORTED, DoesNotApply, finish
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.numeric import directions, inner
from torch_manualbp.verify.precision import around
from torch_manualbp.verify.report import DOES_NOT_APPLY, Row
from torch_manualbp.verify.subject import Setting, gradients_of, with_zeros
from torch_manualbp.verify.trial import Trial

__all__ = [
    "additivity",
    "forward_mode",
    "linearity",
    "no_upstream",
    "second_derivatives",
    "second_derivatives_agree",
    "second_order",
    "two_places",
    "unused_outputs",
]

SLACK = 4096.0
"""Times the usual error that second derivatives may differ by, 4e-9: ATen's own have constants in them, such as the
1e-12 of binary cross-entropy. Of those that have a twin for these, 10 times."""

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def linearity(trial: Trial) -> Iterator[Row]:
    """Backward is linear in the upstream gradient: of α u + v it is α times that of u plus that of v, also far above 1
    and far below, and of 0 it is 0."""
    at, leaves = trial.exact, trial.exact.leaves()
    outputs = at.run(leaves)
    u, v = at.upstream(outputs, seed=21), at.upstream(outputs, seed=22)

    def of(upstream: Sequence[Tensor]) -> list[Tensor]:
        return with_zeros(gradients_of(outputs, leaves, upstream, retain_graph=True), leaves)

    of_u, of_v = of(u), of(v)
    scales = trial.references.at().scales
    of_zero = of([torch.zeros_like(o) for o in outputs])
    for alpha in (1e4, 1e-4):
        of_sum = of([alpha * a + b for a, b in zip(u, v, strict=True)])
        rows = zip(trial.leaves, of_sum, of_u, of_v, of_zero, scales, strict=True)
        for leaf, total, first, second, zero, scale in rows:
            expected = alpha * first + second
            size = (alpha * first).abs() + second.abs() + (1 + alpha) * largest(scale)
            hint = "of an upstream gradient α u + v it is not α times that of u plus that of v"
            row = trial.compared(leaf, total, expected, size, hint=hint)
            if row.ok and zero.isfinite().all() and zero.any():
                row = trial.row(leaf.name, f"of an upstream gradient of 0 it is up to {largest(zero):.3g}")
            yield row


def unused_outputs(trial: Trial) -> Iterator[Row]:
    """Where a target returns several outputs, gradients are right if only one of them is used."""
    trial.references.require_autograd()
    at = trial.exact
    count = len(trial.references.at().outputs)
    if count < 2:
        raise DoesNotApply("there is one output only")
    for k in range(min(count, 8)):
        results = []
        for run in (at.run, at.run_plain):
            leaves = at.leaves()
            outputs = run(leaves)
            upstream = at.upstream(outputs)
            found = gradients_of(outputs[k : k + 1], leaves, upstream[k : k + 1])
            results.append(with_zeros(found, leaves))
        for leaf, found, right in zip(trial.leaves, *results, strict=True):
            yield trial.compared(leaf, found, right, hint=f"wrong where output {k} alone is used")


class _Cut(Function):
    """Passes a tensor on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> None:
        return None


def no_upstream(trial: Trial) -> None:
    """Where what follows hands back None for its gradient, the arguments get none, or zeros, and what they get from
    elsewhere in the graph stays as it is."""
    leaves = trial.exact.leaves()
    elsewhere = torch.stack([t.sum() for t in leaves]).sum()
    cut: Tensor = _Cut.apply(trial.joined()(*leaves)).sum()  # type: ignore[no-untyped-call]
    for gradient in torch.autograd.grad(cut, leaves, retain_graph=True, allow_unused=True):
        assert gradient is None or not gradient.any(), "a gradient out of none"
    for gradient in torch.autograd.grad(cut + elsewhere, leaves):
        assert torch.equal(gradient, torch.ones_like(gradient)), "another gradient from elsewhere"


def two_places(trial: Trial) -> Iterator[Row]:
    """f(x, x) has the gradient of torch's f(x, x) for every two places that take the same tensor."""
    at = trial.exact
    start = at.leaves([])
    alike = [(t.shape, t.dtype) for t in start]
    pairs = [(p, q) for p, q in itertools.combinations(range(len(start)), 2) if alike[p] == alike[q]]
    if not pairs:
        raise DoesNotApply("no two of the arguments that take a gradient may be the same tensor")
    ran, reasons = 0, []
    for p, q in pairs:

        def twice(run: Run, p: int = p, q: int = q) -> tuple[Tensor, ...]:
            leaves = at.leaves([q])
            leaves[p] = leaves[q]  # the target's numbers, which may not be any
            outputs = run(leaves)
            with around(at.dtype):
                (gradient,) = torch.autograd.grad(outputs, leaves[q], at.upstream(outputs))
            return gradient, *(o.detach() for o in outputs)

        if reason := refusal(twice, at.run_plain):
            reasons.append(reason)
            continue
        for ours, theirs in zip(twice(at.run), twice(at.run_plain), strict=True):
            names = trial.leaves[p].name, trial.leaves[q].name
            yield trial.compared(names[1], ours, theirs, hint=f"wrong for one tensor in the places of {names}")
        ran += 1
    finish(ran, reasons)


def additivity(trial: Trial) -> Iterator[Row]:
    """Over the batch, where the target claims it: gradients of parameters are the sums of those of each sample alone,
    and a sample's own gradient is that which it has alone."""
    dim = trial.batch
    if dim is None:
        raise DoesNotApply("the target does not claim it: pass batch=0 if samples do not see each other")
    at = trial.exact
    first = next((v for v in at.values if isinstance(v, Tensor) and v.dim() > dim), None)
    if first is None or not first.shape[dim]:
        raise DoesNotApply(f"no input has samples along dimension {dim}")
    size = first.shape[dim]
    has_samples = [isinstance(v, Tensor) and v.dim() > dim and v.shape[dim] == size for v in at.values]
    outputs, together = at.results()
    if any(o.dim() <= dim or o.shape[dim] != size for o in outputs):
        raise DoesNotApply(f"outputs have no {size} samples along dimension {dim}")
    upstream = at.upstream(outputs)
    sums = [torch.zeros_like(t) for t in together]
    split = [leaf.position is not None and has_samples[leaf.position] for leaf in trial.leaves]
    for n in range(size):

        def sample(t: Tensor, n: int = n) -> Tensor:
            return t.narrow(dim, n, 1).detach().clone()

        alone = at.with_values([sample(v) if has else v for v, has in zip(at.values, has_samples, strict=True)])
        of_one = alone.results(upstream=[sample(u) for u in upstream]).gradients
        for total, gradient, is_split in zip(sums, of_one, split, strict=True):
            (total.narrow(dim, n, 1) if is_split else total).add_(gradient)
    for leaf, found, right in zip(trial.leaves, together, sums, strict=True):
        yield trial.compared(leaf, found, right, hint="it is not the sum of those of the samples alone")


def forward_mode(trial: Trial) -> Iterator[Row]:
    """⟨J v, u⟩ = ⟨v, Jᵀ u⟩ where forward mode exists, for directions v of all tensors together and of each alone: J v
    by dual numbers, which have the values and the shapes of the outputs; Jᵀ u the right gradients, and those of a rule
    by its own backward."""
    trial.references.require_autograd()
    at, expected = trial.exact, trial.references.at()
    outputs, gradients = trial.references.own() if trial.has_twin else (expected.outputs, expected.gradients)
    if not all(t.isfinite().all() for t in (*outputs, *gradients)):
        raise DoesNotApply("outputs or gradients are not finite here, such as the mean of nothing")
    upstream = at.upstream(outputs)
    tangents = directions(at.leaves(), seed=3)
    several = [None, *range(len(trial.leaves))] if len(trial.leaves) > 1 else [None]
    for chosen in several[:9]:
        along = [v if chosen is None or i == chosen else None for i, v in enumerate(tangents)]
        name = trial.leaves[chosen].name if chosen is not None else ""
        with forward_ad.dual_level():
            leaves = zip(at.leaves([]), along, strict=True)
            duals = at.run([t if v is None else forward_ad.make_dual(t, v) for t, v in leaves])
            pairs = [(v.clone(), None if t is None else t.clone()) for v, t in map(forward_ad.unpack_dual, duals)]
        moved = []
        for (value, tangent), output in zip(pairs, outputs, strict=True):
            if trial.has_twin:
                yield trial.compared(name, value, output, hint="another value on dual numbers")
                assert tangent is not None, f"no tangent from {name or 'all'}"
                assert (tangent.shape, tangent.dtype) == (output.shape, output.dtype), f"tangent is {tangent.shape}"
            moved.append(torch.zeros_like(output) if tangent is None else tangent)
        forward = sum(inner(u, o) for u, o in zip(upstream, moved, strict=True))
        terms = [(g, s, v) for g, s, v in zip(gradients, expected.scales, along, strict=True) if v is not None]
        reverse = sum(inner(g, v) for g, _, v in terms)
        size = sum((scale * v.abs()).square().sum().sqrt().item() for _, scale, v in terms)
        size = max(
            size, *((u.abs() * o.abs()).square().sum().sqrt().item() for u, o in zip(upstream, moved, strict=True))
        )
        relative = abs(forward - reverse) / size if size else 0.0
        wrong = f"⟨J v, u⟩ is {forward:.10g} and ⟨v, Jᵀ u⟩ is {reverse:.10g}: jvp is not the right backward's transpose"
        if relative <= (1e-11 if trial.has_twin else max(1e-10, 64 * trial.eps)) + 10 * expected.accuracy:
            wrong = ""
        yield trial.row(name, wrong, dtype="float64", error_relative=relative)


def second_order(trial: Trial) -> Iterator[Row]:
    """Second derivatives, by value: reverse over reverse with its mixed partials, with an upstream gradient that needs
    a gradient of its own and with one that needs none, and forward over reverse. A target may refuse them (an error);
    it may not give others than autograd of the same forward."""
    for needs in (True, False):
        yield from second_derivatives_agree(trial, needs)
    at = trial.exact
    try:
        right = _forward_over_reverse(at, at.run_plain)
    except (RuntimeError, NotImplementedError):  # some of torch's operations have none
        return
    try:
        found = _forward_over_reverse(at, at.run)
    except (RuntimeError, NotImplementedError) as error:
        if "is not implemented" in str(error) or any(words in str(error) for words in UNSUPPORTED):
            return
        raise
    yield from _rows(trial, found, right, "forward over reverse")


def second_derivatives_agree(trial: Trial, upstream_needs_gradient: bool) -> Iterator[Row]:
    """Second and mixed derivatives are those of autograd of the same forward, or of the torch twin, also where the
    upstream gradient needs none of its own. A target may refuse them."""
    trial.references.require_autograd()
    at = trial.exact
    try:
        right = second_derivatives(at, trial.run_for_second, upstream_needs_gradient)
    except (RuntimeError, NotImplementedError) as error:
        raise DoesNotApply(f"autograd has no second derivative of the forward: {one_line(error)[:160]}") from error
    try:
        found = second_derivatives(at, at.run, upstream_needs_gradient)
    except RuntimeError as error:
        if trial.has_twin or not any(w in str(error) for w in ("once_differentiable", "is not implemented")):
            raise
        yield Row("", "", DOES_NOT_APPLY, "float64", hint=f"refused, as it may be: {one_line(error)[:160]}")
        return
    yield from _rows(trial, found, right, "" if upstream_needs_gradient else "where the upstream gradient needs none")


def _rows(trial: Trial, found: Sequence[Tensor], right: Sequence[Tensor], when: str) -> Iterator[Row]:
    names = [leaf.name for leaf in trial.leaves]
    names += [f"upstream[{i}]" for i in range(len(right) - len(names))]
    for name, derivative, reference in zip(names, found, right, strict=False):
        hint = f"wrong second derivative{' ' if when else ''}{when}"
        if not derivative.any() and reference.any():
            hint += ": it is 0, as if backward were a constant (a detach, no_grad, or an intermediate that was saved)"
        yield trial.compared(name, derivative, reference, hint=hint, slack=10 if trial.has_twin else SLACK)


def second_derivatives(at: Setting, run: Run, upstream_needs_gradient: bool) -> list[Tensor]:
    """∂/∂(leaves, upstream) of Σ w ⊙ gradients, with random w."""
    leaves = at.leaves()
    outputs = run(leaves)
    upstream = [u.requires_grad_(upstream_needs_gradient) for u in at.upstream(outputs)]
    first = gradients_of(outputs, leaves, upstream, create_graph=True)
    total = _contracted(at, first)
    wrt = [*leaves, *(upstream if upstream_needs_gradient else ())]
    if total is None or not total.requires_grad:
        return [torch.zeros_like(t) for t in wrt]
    with around(at.dtype):
        return with_zeros(torch.autograd.grad(total, wrt, allow_unused=True), wrt)


def _contracted(at: Setting, gradients: Sequence[Tensor | None]) -> Tensor | None:
    here = [g for g in gradients if g is not None]
    weights = at.upstream(here, seed=5)
    terms = [(w.conj() * g).real.sum() if g.is_complex() else (w * g).sum() for w, g in zip(weights, here, strict=True)]
    return sum(terms[1:], start=terms[0]) if terms else None


def _forward_over_reverse(at: Setting, run: Run) -> list[Tensor]:
    """The tangents of the gradients along a random direction of all leaves."""
    leaves = at.leaves()
    along = at.upstream(leaves, seed=9)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(leaves, along, strict=True)]
        outputs = run(duals)
        gradients = gradients_of(outputs, duals, at.upstream(outputs), create_graph=True)
        found = []
        for gradient, leaf in zip(gradients, leaves, strict=True):
            tangent = None if gradient is None else forward_ad.unpack_dual(gradient).tangent
            found.append(torch.zeros_like(leaf) if tangent is None else tangent.detach().clone())
    return found
