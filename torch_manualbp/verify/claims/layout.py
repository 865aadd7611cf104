"""Shapes and strides: every rank and emptiness that torch takes, any layout of inputs and upstream gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._text import one_line
from torch_manualbp.verify.case import REFUSALS, refusal
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.kinked import beside, is_between
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.report import DOES_NOT_APPLY, ROBUSTNESS, Row
from torch_manualbp.verify.subject import Results, Setting, gradients_of, with_zeros
from torch_manualbp.verify.trial import Trial

__all__ = [
    "any_layout",
    "channels_last",
    "empty_batches",
    "every_rank",
    "strided_inputs",
    "strided_upstream",
    "without_a_sample",
    "zero_features",
]

SHAPES: tuple[tuple[int, ...], ...] = ((), (4,), (3, 4), (2, 4, 4), (2, 4, 3, 4), (2, 4, 1, 3, 4))
"""A shape of each rank from 0 to 5; 4 are the features and the classes of most samples."""

IMAGES = (((2, 4, 3, 4), torch.channels_last), ((2, 4, 2, 3, 4), torch.channels_last_3d))
EMPTY_BATCHES: tuple[tuple[int, ...], ...] = ((0, 4), (0, 4, 4), (0, 4, 3, 4), (0, 4, 1, 3, 4))
NO_FEATURES: tuple[tuple[int, ...], ...] = ((0,), (3, 0), (2, 4, 0), (2, 4, 0, 4), (2, 0, 3, 4))
NO_SUCH_SHAPE = "torch takes no such shapes here"
NO_ENTRIES = "an argument without entries has no numbers to place"


def any_layout(trial: Trial) -> Iterator[Row]:
    """An expanded, a transposed and a strided upstream gradient, and strided and expanded inputs, give what the same
    numbers give laid out plainly; and backward leaves the upstream gradient as it is."""
    for row in strided_upstream(trial):
        if not row.ok:
            yield row
    yield from strided_inputs(trial)
    yield from _expanded(trial)


def strided_upstream(trial: Trial) -> Iterator[Row]:
    """An expanded, a transposed and a strided upstream gradient give what the same numbers give laid out plainly, and
    backward leaves them as they are."""
    at = trial.exact
    leaves = at.leaves()
    outputs = at.run(leaves)
    drawn = at.upstream(outputs)
    kinds = {
        "a contiguous": [u.clone() for u in drawn],
        "an expanded": [torch.full((), 0.75, dtype=o.dtype, device=o.device).expand(o.shape) for o in outputs],
        "a transposed": [u.movedim(-1, 0).contiguous().movedim(0, -1) if u.dim() else u for u in drawn],
        "a reversed": [u.permute(back := list(range(u.dim()))[::-1]).contiguous().permute(back) for u in drawn],
        "a strided": [spread(u) for u in drawn],
    }
    for kind, upstream in kinds.items():
        before = [u.clone(memory_format=torch.contiguous_format) for u in upstream]
        found = with_zeros(gradients_of(outputs, leaves, upstream, retain_graph=True), leaves)
        if any(not torch.equal(a, b) for a, b in zip(upstream, before, strict=True)):
            wrong = "backward changes its upstream gradient in place: others may need it"
            yield trial.row("", wrong, kind=ROBUSTNESS)
            return
        plain = with_zeros(gradients_of(outputs, leaves, before, retain_graph=True), leaves)
        for leaf, gradient, right in zip(trial.leaves, found, plain, strict=True):
            yield trial.compared(leaf, gradient, right, hint=f"other numbers for {kind} upstream gradient")


def spread(t: Tensor) -> Tensor:
    """The same numbers transposed and sliced: as a leaf, with no two entries next to each other."""
    wide = torch.zeros(*t.shape[::-1], 2, dtype=t.dtype, device=t.device)
    view = wide[..., 1].permute(list(reversed(range(t.dim()))))
    view.copy_(t.detach())
    return view.requires_grad_(t.requires_grad)


def strided_inputs(trial: Trial) -> Iterator[Row]:
    """Transposed and sliced inputs give what the same numbers give laid out plainly."""
    at = trial.exact
    right = trial.references.own() if trial.references.is_numeric else trial.references.at()
    expected = Results(right.outputs, right.gradients)
    moved = at.mapped(spread, parameters=True) if trial.has_twin else at
    leaves = [spread(t) for t in at.leaves()]
    try:
        found = moved.results(leaves=leaves)
        if not trial.references.is_numeric:
            with contextlib.suppress(RuntimeError):  # of strides that autograd itself refuses
                expected = moved.results(moved.run_plain, leaves)  # whose masks are drawn in the order of memory
    except RuntimeError as error:
        if trial.subject.functions or trial.has_twin:
            raise
        yield Row("", verdict=DOES_NOT_APPLY, hint=f"torch refuses strided inputs: {one_line(error)[:160]}")
        return
    rows = trial.same(found, expected, hint="strided inputs")
    if trial.has_twin:
        yield from rows
        return
    of_itself = trial.same(found, trial.references.own(), hint="strided inputs")  # which may stand on a kink
    yield from (a if a.ok else b for a, b in zip(rows, of_itself, strict=True))


def _expanded(trial: Trial) -> Iterator[Row]:
    """The first entry along dimension 0 of each input, expanded to the input's shape."""
    if trial.references.is_numeric:
        return
    at = trial.exact
    wide = [leaf.position is not None and leaf.tensor.dim() > 0 and leaf.tensor.shape[0] > 1 for leaf in trial.leaves]
    if not any(wide):
        return
    results = []

    def run_expanded(moved: Sequence[Tensor]) -> Sequence[Tensor]:
        given = zip(moved, at.leaves([]), wide, strict=True)
        return at.run_plain([m.expand(t.shape) if w else m for m, t, w in given])

    for run in (at.run_plain, at.run):
        leaves = at.leaves([])
        bases = [(t[:1].clone() if w else t).requires_grad_() for t, w in zip(leaves, wide, strict=True)]
        outputs = run([b.expand(t.shape) if w else b for b, t, w in zip(bases, leaves, wide, strict=True)])
        results.append(with_zeros(gradients_of(outputs, bases, at.upstream(outputs)), bases))
    sides: list[list[Tensor]] | None = None
    for i, (leaf, right, found) in enumerate(zip(trial.leaves, *results, strict=True)):
        if not right.isfinite().all():
            continue
        row = trial.compared(leaf, found, right, hint="expanded inputs", slack=4)
        if not row.ok and trial.takes_any_side:
            sides = beside(run_expanded, bases, at.upstream(outputs)) if sides is None else sides
            row = (
                trial.row(leaf.name) if is_between(found, right, 1e-6 * largest(right), [s[i] for s in sides]) else row
            )
        yield row


def every_rank(trial: Trial) -> Iterator[Row]:
    """At every rank from 0 to 5 that torch takes, value and gradients are the twin's."""
    return _same_in(trial, [at for shape in SHAPES for at in in_shape(trial, shape)])


def empty_batches(trial: Trial) -> Iterator[Row]:
    """Value and gradients of an empty batch are the twin's, at every rank that torch takes."""
    return _same_in(trial, [at for shape in EMPTY_BATCHES for at in in_shape(trial, shape)])


def zero_features(trial: Trial) -> Iterator[Row]:
    """Where another dimension than the batch is empty and torch takes that, value and gradients are the twin's."""
    return _same_in(trial, [at for shape in NO_FEATURES for at in in_shape(trial, shape)])


def without_a_sample(trial: Trial) -> Iterator[Row]:
    """Without a sample, where autograd of the same forward takes that, gradients are its."""
    trial.references.require_autograd()
    at = trial.exact
    batch = next((v for v in at.values if isinstance(v, Tensor) and v.dim()), None)
    if batch is None or not batch.shape[0]:
        raise DoesNotApply("no input has samples")
    size = batch.shape[0]
    return _same_in(trial, [at.mapped(lambda v: v[:0] if v.dim() and v.shape[0] == size else v)])


def _same_in(trial: Trial, settings: Sequence[Setting]) -> Iterator[Row]:
    """The subject gives what its reference does in each of these settings that the reference takes."""
    taken = 0
    why = ""
    for at in settings:
        if why := refusal(at.results, at.run_plain, errors=REFUSALS if trial.has_twin else (Exception,)) or "":
            continue
        taken += 1
        hint = f"for inputs of shape {', '.join(str(tuple(at.values[i].shape)) for i in at.tensors())}"
        yield from trial.same(at.results(), at.results(at.run_plain), hint=hint)
    if not taken:
        raise DoesNotApply(NO_SUCH_SHAPE if len(settings) > 1 else why)


def channels_last(trial: Trial) -> Iterator[Row]:
    """Images and volumes with their channels last give what they give laid out plainly, and with channels last where
    torch does so."""
    taken = 0
    for shape, form in IMAGES:
        for at in in_shape(trial, shape):
            if refusal(at.results, at.run_plain):
                continue
            taken += 1
            last = at.mapped(lambda t, form=form, shape=shape: _laid_out(t, form, len(shape)))  # type: ignore[misc]
            found = _laid_out_alike(last, last.run)
            yield from trial.same(found, at.results(), hint="wrong for channels last")
            if not refusal(last.results, last.run_plain):
                torchs = _laid_out_alike(last, last.run_plain)
                for ours, theirs in zip(
                    (*found.outputs, *found.gradients), (*torchs.outputs, *torchs.gradients), strict=True
                ):
                    if theirs.dim() == len(shape) and not theirs.is_contiguous():
                        is_kept = ours.is_contiguous(memory_format=form) or not theirs.is_contiguous(memory_format=form)
                        assert is_kept, f"strides {ours.stride()} for channels last, torch's {theirs.stride()}"
    if not taken:
        raise DoesNotApply(NO_SUCH_SHAPE)


def _laid_out_alike(at: Setting, run: Callable[..., Any]) -> Results:
    """The results on an upstream gradient in the layout of the output."""
    leaves = at.leaves()
    outputs = run(leaves)
    upstream = [torch.empty_like(o).copy_(u) for o, u in zip(outputs, at.upstream(outputs), strict=True)]
    return Results([o.detach() for o in outputs], with_zeros(gradients_of(outputs, leaves, upstream), leaves))


def _laid_out(t: Tensor, form: torch.memory_format, dimensions: int) -> Tensor:
    return t.contiguous(memory_format=form) if t.dim() == dimensions else t


def in_shape(trial: Trial, shape: tuple[int, ...]) -> list[Setting]:
    """The call with its first tensor of ``shape``, in each way in which the others may follow it:

    - tensors of the same shape become ``shape``, the others stay (all that is elementwise, and what has parameters);
    - tensors whose shape is that of the first without its last dimension lose that of ``shape`` (one a row);
    - tensors whose shape is that of the first without its classes, dimension 1 of samples, lose that of ``shape``;
    - those that have as many features as the first, in their last dimension, get those of ``shape``.
    """
    at = trial.exact
    first = at.values[at.tensors()[0]].shape
    if not first.numel():
        raise DoesNotApply(NO_ENTRIES)
    rows, features = first[:-1], first[-1:]
    without_classes = first[:1] + first[2:] if len(first) > 1 else first[:0]

    def of_same(t: Tensor) -> Tensor:
        return _cycled(t, shape) if t.shape == first else t

    def of_row(t: Tensor) -> Tensor:
        return _cycled(t, shape[:-1]) if t.shape == rows else of_same(t)

    def of_sample(t: Tensor) -> Tensor:
        inner = shape[:1] + shape[2:] if len(shape) > 1 else shape[:0]
        return _cycled(t, inner) if t.shape == without_classes else of_same(t)

    def of_features(t: Tensor) -> Tensor:
        has = t.dim() and t.shape != first and t.shape[-1:] == features
        return _cycled(t, (*t.shape[:-1], *shape[-1:])) if has else of_same(t)

    versions = [at.mapped(change) for change in (of_same, of_row, of_sample, of_features)]
    about = [[v.values[i].shape for i in v.tensors()] for v in versions]
    return [version for i, version in enumerate(versions) if about[i] not in about[:i]]


def _cycled(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape with the numbers of ``t``, over and over."""
    count = torch.Size(shape).numel()
    return t.detach().flatten()[torch.arange(count) % t.numel()].reshape(shape)
