"""What a backward is as a function: linear in its upstream gradient, additive over samples, differentiable again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_manualbp._objects import one_line
from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.checks.reference import _has_no_forward_mode
from torch_manualbp.verify.measure import largest, with_zeros
from torch_manualbp.verify.report import Row
from torch_manualbp.verify.subject import DoesNotApply, Setting, gradients_of

__all__ = ["additivity", "linearity", "second_order", "unused_outputs"]

SLACK = 4096.0
"""Times the usual error that second derivatives may differ by, 4e-9: ATen's own have constants in them, such as the
1e-12 of binary cross-entropy."""

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def linearity(trial: Trial, check: str) -> Iterator[Row]:
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
        rows = zip(trial.subject.leaves, of_sum, of_u, of_v, of_zero, scales, strict=True)
        for leaf, total, first, second, zero, scale in rows:
            expected = alpha * first + second
            size = (alpha * first).abs() + second.abs() + (1 + alpha) * largest(scale)
            hint = "of an upstream gradient α u + v it is not α times that of u plus that of v"
            row = trial.compared(check, leaf, total, expected, size, hint=hint)
            if row.ok and zero.isfinite().all() and zero.any():
                row = trial.row(check, leaf.name, f"of an upstream gradient of 0 it is up to {largest(zero):.3g}")
            yield row


def unused_outputs(trial: Trial, check: str) -> Iterator[Row]:
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
        for leaf, found, right in zip(trial.subject.leaves, *results, strict=True):
            yield trial.compared(check, leaf, found, right, hint=f"wrong where output {k} alone is used")


def additivity(trial: Trial, check: str) -> Iterator[Row]:
    """Over the batch, where the target claims it: gradients of parameters are the sums of those of each sample alone,
    and a sample's own gradient is that which it has alone."""
    dim = trial.batch
    if dim is None:
        raise DoesNotApply("the target does not claim it: pass batch=0 if samples do not see each other")
    at, subject = trial.exact, trial.subject
    first = next((v for v in at.values if isinstance(v, Tensor) and v.dim() > dim), None)
    if first is None or not first.shape[dim]:
        raise DoesNotApply(f"no input has samples along dimension {dim}")
    size = first.shape[dim]
    has_samples = [isinstance(v, Tensor) and v.dim() > dim and v.shape[dim] == size for v in at.values]
    leaves = at.leaves()
    outputs = at.run(leaves)
    upstream = at.upstream(outputs)
    if any(o.dim() <= dim or o.shape[dim] != size for o in outputs):
        raise DoesNotApply(f"outputs have no {size} samples along dimension {dim}")
    together = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
    sums = [torch.zeros_like(t) for t in leaves]
    for n in range(size):

        def sample(t: Tensor, n: int = n) -> Tensor:
            return t.narrow(dim, n, 1).detach().clone()

        values = [sample(v) if has else v for v, has in zip(at.values, has_samples, strict=True)]
        split = [leaf.position is not None and has_samples[leaf.position] for leaf in subject.leaves]
        alone = [(sample(t) if s else t.detach()).requires_grad_() for t, s in zip(leaves, split, strict=True)]
        of_one = with_zeros(
            gradients_of(at.with_values(values).run(alone), alone, [sample(u) for u in upstream]), alone
        )
        for total, gradient, is_split in zip(sums, of_one, split, strict=True):
            (total.narrow(dim, n, 1) if is_split else total).add_(gradient)
    for leaf, found, right in zip(subject.leaves, together, sums, strict=True):
        yield trial.compared(check, leaf, found, right, hint="it is not the sum of those of the samples alone")


def second_order(trial: Trial, check: str) -> Iterator[Row]:
    """Second derivatives, by value: reverse over reverse with its mixed partials, with an upstream gradient that needs
    a gradient of its own and with one that needs none, and forward over reverse. A target may refuse them (an error);
    it may not give others than autograd of the same forward."""
    trial.references.require_autograd()
    at = trial.exact
    for needs in (True, False):
        try:
            right = _second_derivatives(at, at.run_plain, needs)
        except (RuntimeError, NotImplementedError) as error:
            raise DoesNotApply(f"autograd has no second derivative of the forward: {one_line(error)[:160]}") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _second_derivatives(at, at.run, needs)
        except RuntimeError as error:
            if "once_differentiable" not in str(error) and "is not implemented" not in str(error):
                raise
            yield Row("", check, "does not apply", "float64", hint=f"refused, as it may be: {one_line(error)[:160]}")
            continue
        yield from _rows(trial, check, found, right, "" if needs else "where the upstream gradient needs none")
    try:
        right = _forward_over_reverse(at, at.run_plain)
    except (RuntimeError, NotImplementedError):  # some of torch's operations have none
        return
    try:
        found = _forward_over_reverse(at, at.run)
    except (RuntimeError, NotImplementedError) as error:
        if _has_no_forward_mode(str(error)) or "is not implemented" in str(error) or "once_diff" in str(error):
            return
        raise
    yield from _rows(trial, check, found, right, "forward over reverse")


def _rows(trial: Trial, check: str, found: Any, right: Any, when: str) -> Iterator[Row]:
    names = [leaf.name for leaf in trial.subject.leaves]
    names += [f"upstream[{i}]" for i in range(len(right) - len(names))]
    for name, derivative, reference in zip(names, found, right, strict=False):
        hint = f"wrong second derivative{' ' if when else ''}{when}"
        if not derivative.any() and reference.any():
            hint += ": it is 0, as if backward were a constant (a detach, no_grad, or an intermediate that was saved)"
        yield trial.compared(check, name, derivative, reference, hint=hint, slack=SLACK)


def _second_derivatives(at: Setting, run: Run, upstream_needs_gradient: bool) -> list[Tensor]:
    """∂/∂(leaves, upstream) of Σ w ⊙ gradients, with random w."""
    leaves = at.leaves()
    outputs = run(leaves)
    upstream = [u.requires_grad_(upstream_needs_gradient) for u in at.upstream(outputs)]
    first = gradients_of(outputs, leaves, upstream, create_graph=True)
    total = _contracted(at, first)
    wrt = [*leaves, *(upstream if upstream_needs_gradient else ())]
    if total is None or not total.requires_grad:
        return [torch.zeros_like(t) for t in wrt]
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
