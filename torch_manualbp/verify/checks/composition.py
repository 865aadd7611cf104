"""What else runs around a backward: transforms, checkpointing, autocast, the compiler, other layouts, no samples."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_manualbp._objects import one_line
from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.contract.layout import spread
from torch_manualbp.verify.measure import error_of, largest, with_zeros
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import DoesNotApply, Leaf, Setting, gradients_of

__all__ = ["autocast", "checkpointing", "compiled", "empty_batch", "functorch", "layouts", "vmapped"]

MANY = 50_000
"""Numbers in all leaves, above which vmap maps over the inputs alone."""

NO_TRANSFORMS = ("setup_context", "generate_vmap_rule", "does not have vmap support", "vmap staticmethod")


def layouts(trial: Trial, check: str) -> Iterator[Row]:
    """An expanded, a transposed and a strided upstream gradient, and strided and expanded inputs, give what the same
    numbers give laid out plainly; and backward leaves the upstream gradient as it is."""
    at = trial.exact
    leaves = at.leaves()
    outputs = at.run(leaves)
    for kind, upstream in _upstreams(at, outputs):
        before = [u.clone() for u in upstream]
        found = gradients_of(outputs, leaves, upstream, retain_graph=True)
        if any(not torch.equal(a, b) for a, b in zip(upstream, before, strict=True)):
            yield Row("", check, FAILS, hint="backward changes its upstream gradient in place: others may need it")
            return
        plain = gradients_of(outputs, leaves, before, retain_graph=True)
        for leaf, gradient, right in zip(trial.subject.leaves, found, with_zeros(plain, leaves), strict=True):
            row = trial.compared(check, leaf, gradient, right, hint=f"other numbers for {kind} upstream gradient")
            if not row.ok:
                yield row
    yield from _strided(trial, check, at)
    yield from _expanded(trial, check, at)


def _strided(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    expected = trial.references.at()
    right, scales = expected.gradients, expected.scales
    moved = [spread(t) for t in at.leaves()]
    try:
        outputs = at.run(moved)
        found = gradients_of(outputs, moved, at.upstream(outputs))
        if not trial.references.is_numeric:
            with contextlib.suppress(RuntimeError):  # of strides that autograd itself refuses
                others = at.run_plain(moved)  # a mask that is drawn in the order of memory is another one
                right = with_zeros(gradients_of(others, moved, at.upstream(others)), moved)
    except RuntimeError as error:
        if trial.subject.functions:
            raise
        yield Row("", check, "does not apply", hint=f"torch refuses strided inputs: {one_line(error)[:160]}")
        return
    for i, (leaf, gradient) in enumerate(zip(trial.subject.leaves, found, strict=True)):
        scale = scales[i] + largest(scales[i])
        yield trial.compared(check, leaf, gradient, right[i], scale, hint="strided inputs")


def _upstreams(at: Setting, outputs: Sequence[Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    drawn = at.upstream(outputs)
    yield "a contiguous", [u.clone() for u in drawn]
    yield "an expanded", [torch.full((), 0.75, dtype=o.dtype, device=o.device).expand(o.shape) for o in outputs]
    yield "a transposed", [u.movedim(-1, 0).contiguous().movedim(0, -1) if u.dim() else u for u in drawn]
    yield "a strided", [spread(u) for u in drawn]


def _expanded(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    """The first entry along dimension 0 of each input, expanded to the input's shape."""
    if trial.references.is_numeric:
        return
    wide = [
        leaf.position is not None and leaf.tensor.dim() > 0 and leaf.tensor.shape[0] > 1
        for leaf in trial.subject.leaves
    ]
    if not any(wide):
        return
    results = []
    for run in (at.run_plain, at.run):
        leaves = at.leaves([])
        bases = [(t[:1].clone() if w else t).requires_grad_() for t, w in zip(leaves, wide, strict=True)]
        outputs = run([b.expand(t.shape) if w else b for b, t, w in zip(bases, leaves, wide, strict=True)])
        results.append(with_zeros(gradients_of(outputs, bases, at.upstream(outputs)), bases))
    for leaf, right, found in zip(trial.subject.leaves, *results, strict=True):
        if right.isfinite().all():
            yield trial.compared(check, leaf, found, right, hint="expanded inputs", slack=4)


def empty_batch(trial: Trial, check: str) -> Iterator[Row]:
    """Without a sample, where autograd of the same forward takes that, gradients are its."""
    trial.references.require_autograd()
    at, subject = trial.exact, trial.subject
    batch = next((v for v in at.values if isinstance(v, Tensor) and v.dim()), None)
    if batch is None or not batch.shape[0]:
        raise DoesNotApply("no input has samples")
    size = batch.shape[0]

    def has_samples(v: Any) -> bool:
        return isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == size

    emptied = at.with_values([v[:0] if has_samples(v) else v for v in at.values])
    split = [leaf.position is not None and has_samples(leaf.tensor) for leaf in subject.leaves]

    def result(run: Callable[..., Any]) -> list[Tensor]:
        leaves = [
            (t.detach()[:0] if s else t.detach()).clone().requires_grad_()
            for t, s in zip(at.leaves(), split, strict=True)
        ]
        outputs = run(leaves)
        return with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            right = result(emptied.run_plain)
        except Exception as error:
            raise DoesNotApply(f"autograd of the same forward refuses it: {one_line(error)[:160]}") from error
        found = result(emptied.run)
    for leaf, gradient, reference in zip(subject.leaves, found, right, strict=True):
        yield trial.compared(check, leaf, gradient, reference, hint="of an empty batch")


def functorch(trial: Trial, check: str) -> Iterator[Row]:
    """torch.func.vjp, which torch.func.grad and jacrev are made of, gives the same gradients."""
    at, expected = trial.exact, trial.references.at()

    def run() -> Sequence[Tensor]:
        outputs, pull = torch.func.vjp(lambda *leaves: at.run(leaves), *at.leaves([]))  # type: ignore[misc]
        return pull(tuple(at.upstream(outputs)))

    for i, (leaf, found) in enumerate(zip(trial.subject.leaves, _transformed(trial, run), strict=True)):
        right, scale = expected.gradients[i], expected.scales[i]
        yield trial.compared(check, leaf, found, right, scale + largest(scale) / 16, hint="under torch.func.vjp")


def vmapped(trial: Trial, check: str) -> Iterator[Row]:
    """Outputs and gradients under torch.vmap, over three versions of all tensors, stacked in front and at the end, and
    of some of them, are those of one at a time; each version has an upstream gradient of its own."""
    trial.references.require_autograd()
    at, subject = trial.exact, trial.subject
    start = at.leaves([])
    inputs = tuple(i for i, leaf in enumerate(subject.leaves) if leaf.position is not None)
    everything = tuple(range(len(start)))
    patterns = [inputs or everything, everything, *((i,) for i in everything[:3])]
    if subject.size() > MANY:
        patterns = patterns[:1]
    factors = (1.0, 0.9, 0.8)
    for mapped, in_front in [*((p, True) for p in dict.fromkeys(patterns)), (patterns[0], False)]:
        where = [0 if in_front else t.dim() for t in start]
        dims = tuple(where[i] if i in mapped else None for i in everything)
        stacked = [torch.stack([t * f for f in factors], where[i]) if i in mapped else t for i, t in enumerate(start)]
        found = _transformed(
            trial, partial(_mapped, at, at.run, stacked, dims), partial(_mapped, at, at.run_plain, stacked, dims)
        )
        for n, f in enumerate(factors):
            leaves = [(t * f if i in mapped else t).requires_grad_() for i, t in enumerate(at.leaves([]))]
            outputs = at.run_plain(leaves)
            upstream = [(1 + n) * u for u in at.upstream(outputs)]
            right = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
            names: list[Leaf | str] = [*subject.leaves, *(f"output[{i}]" for i in range(len(outputs)))]
            for name, mine, reference in zip(names, found, [*right, *outputs], strict=True):
                hint = f"under vmap, sample {n}"
                row = trial.compared(check, name, mine[n], reference.detach(), hint=hint, slack=4)
                if not row.ok or n == 0:
                    yield row


def _mapped(at: Setting, run: Callable[..., Any], stacked: Sequence[Tensor], dims: Any) -> Any:
    """Gradients and outputs, the upstream gradient of the n-th version 1 + n times the first."""

    def both(factor: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs, pull = torch.func.vjp(lambda *moved: run(moved), *leaves)  # type: ignore[misc]
        return *pull(tuple(factor.to(u.dtype) * u for u in at.upstream(outputs))), *outputs

    factors = torch.arange(1.0, 4.0, dtype=torch.float64)
    return torch.vmap(both, in_dims=(0, *dims), randomness="same")(factors, *stacked)


def _transformed(trial: Trial, run: Callable[[], Any], run_plain: Callable[[], Any] | None = None) -> Any:
    """The result under a transform of torch.func, or why it does not apply."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if not trial.subject.functions or any(words in str(error) for words in NO_TRANSFORMS):
            raise DoesNotApply(one_line(error)[:200]) from error
        if run_plain is not None:
            try:
                run_plain()
            except Exception:
                raise DoesNotApply(f"torch refuses its own operations, too: {one_line(error)[:160]}") from error
        raise


def checkpointing(trial: Trial, check: str) -> Iterator[Row]:
    """Under torch.utils.checkpoint, which runs the forward a second time, the gradients are the same."""
    at, expected = trial.exact, trial.references.at()
    leaves = at.leaves()
    outputs = checkpoint(lambda *moved: at.run(moved), *leaves, use_reentrant=False)
    found = gradients_of(outputs, leaves, at.upstream(outputs))
    for i, (leaf, gradient) in enumerate(zip(trial.subject.leaves, found, strict=True)):
        right, scale = expected.gradients[i], expected.scales[i]
        yield trial.compared(check, leaf, gradient, right, scale + largest(scale) / 16, hint="under checkpointing")


def autocast(trial: Trial, check: str) -> Iterator[Row]:
    """Under autocast to bfloat16 the gradients are no further off than three times those of plain autograd."""
    if trial.subject.is_function:
        raise DoesNotApply("a Function by itself takes what its caller casts")
    trial.references.require_autograd()
    at = trial.subject.setting(torch.float32)
    device = trial.subject.leaves[0].tensor.device.type

    def result(run: Callable[..., Any]) -> list[Tensor]:
        leaves = at.leaves()
        with torch.autocast(device, torch.bfloat16):
            outputs = run(leaves)
        return with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)

    try:
        plain = result(at.run_plain)
    except Exception as error:
        raise DoesNotApply(f"autograd of the same forward refuses it: {one_line(error)[:160]}") from error
    found = result(at.run)
    expected = trial.references.at(torch.float32)
    for i, leaf in enumerate(trial.subject.leaves):
        right = expected.gradients[i]
        scale = expected.scales[i] + largest(expected.scales[i])
        torchs, off = (error_of(g, right, scale, torch.bfloat16) for g in (plain[i], found[i]))
        ok = off.ulps <= max(8.0, 3 * torchs.ulps)
        yield Row(
            leaf.name,
            check,
            OK if ok else FAILS,
            "bfloat16",
            tuple(right.shape),
            off.ulps,
            off.relative,
            torchs.ulps,
            off.where,
            "" if ok else "wrong under autocast",
        )


def compiled(trial: Trial, check: str) -> Iterator[Row]:
    """Under torch.compile (backend aot_eager) the gradients are the same."""
    at, expected = trial.exact, trial.references.at()
    torch._dynamo.reset()
    run = torch.compile(lambda *leaves: at.run(leaves), backend="aot_eager")
    leaves = at.leaves()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = run(*leaves)
    found = gradients_of(outputs, leaves, at.upstream(outputs))
    for i, (leaf, gradient) in enumerate(zip(trial.subject.leaves, found, strict=True)):
        right, scale = expected.gradients[i], expected.scales[i]
        yield trial.compared(check, leaf, gradient, right, scale + largest(scale) / 16, hint="under torch.compile")
