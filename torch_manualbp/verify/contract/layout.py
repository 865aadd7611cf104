"""Shapes and strides: every rank and emptiness that torch takes, any layout of inputs and upstream gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.contract.case import (
    Case,
    DoesNotApply,
    assert_same,
    gradients,
    leaves,
    refusal,
    upstream_for,
)

__all__ = [
    "inputs_may_be_channels_last",
    "inputs_may_have_any_strides",
    "spread",
    "takes_empty_batches",
    "takes_every_rank",
    "takes_zero_features",
    "upstream_may_have_any_strides",
]


def upstream_may_have_any_strides(case: Case) -> None:
    """An expanded and a transposed upstream gradient give what the same numbers give laid out plainly."""
    shape = case.apply(*case.args()).shape
    expanded = torch.tensor(0.7, dtype=torch.float64).expand(shape)
    strided = upstream_for(torch.empty(shape[::-1], dtype=torch.float64)).permute(list(reversed(range(len(shape)))))
    skipping = upstream_for(torch.empty(*shape, 2, dtype=torch.float64))[..., 0]
    for upstream in (expanded, strided, skipping):
        got = gradients(case.apply, case.args(), upstream)
        plain = gradients(case.apply, case.args(), upstream.clone(memory_format=torch.contiguous_format))
        for g, p in zip(got, plain, strict=True):
            assert_same(g, p, f"upstream strides {upstream.stride()}")


def spread(t: Tensor) -> Tensor:
    """The same numbers transposed and sliced: as a leaf, with no two entries next to each other."""
    wide = torch.zeros(*t.shape[::-1], 2, dtype=t.dtype, device=t.device)
    view = wide[..., 1].permute(list(reversed(range(t.dim()))))
    view.copy_(t.detach())
    return view.requires_grad_(t.requires_grad)


def inputs_may_have_any_strides(case: Case) -> None:
    """Transposed and sliced arguments give what the same numbers give laid out plainly."""
    args = [spread(a) if isinstance(a, Tensor) and a.dim() else a for a in case.args()]
    for g, p in zip(_run(case.apply, args), _run(case.apply, case.args()), strict=True):
        assert_same(g, p, "result of strided arguments")


SHAPES: tuple[tuple[int, ...], ...] = ((), (4,), (3, 4), (2, 4, 4), (2, 4, 3, 4), (2, 4, 1, 3, 4))
"""A shape of each rank from 0 to 5; 4 are the features and the classes of most samples."""

IMAGES = (((2, 4, 3, 4), torch.channels_last), ((2, 4, 2, 3, 4), torch.channels_last_3d))
EMPTY_BATCHES: tuple[tuple[int, ...], ...] = ((0, 4), (0, 4, 4), (0, 4, 3, 4), (0, 4, 1, 3, 4))
NO_FEATURES: tuple[tuple[int, ...], ...] = ((0,), (3, 0), (2, 4, 0), (2, 4, 0, 4), (2, 0, 3, 4))


NO_SUCH_SHAPE = "torch takes no such shapes here"


def takes_every_rank(case: Case) -> None:
    """At every rank from 0 to 5 that torch takes, value and gradients are the twin's."""
    _equals_twin_in_shapes(case, SHAPES)


def takes_empty_batches(case: Case) -> None:
    """Of an empty batch, at every rank that torch takes, value and gradients are the twin's."""
    _equals_twin_in_shapes(case, EMPTY_BATCHES)


def takes_zero_features(case: Case) -> None:
    """Where another dimension than the batch is empty and torch takes that, value and gradients are the twin's."""
    _equals_twin_in_shapes(case, NO_FEATURES)


def inputs_may_be_channels_last(case: Case) -> None:
    """Images and volumes with their channels last give what they give laid out plainly, and with channels last where
    torch does so."""
    taken = [(form, args) for shape, form in IMAGES for args in _taken(case, shape)]
    if not taken:
        raise DoesNotApply(NO_SUCH_SHAPE)
    for form, args in taken:
        last = [_channels_last(a, form) if isinstance(a, Tensor) else a for a in args]
        ours, plain = _run(case.apply, _fresh(last)), _run(case.apply, _fresh(args))
        for g, p in zip(ours, plain, strict=True):
            assert_same(g, p, "result of arguments with channels last")
        if refusal(_run, case.twin, _fresh(last)):
            continue
        for i, (g, t) in enumerate(zip(ours, _run(case.twin, _fresh(last)), strict=True)):
            what = f"{'gradient ' + str(i - 1) if i else 'output'} of arguments with channels last"
            kept = t.dim() != args[case.first()].dim() or not t.is_contiguous(memory_format=form) or t.is_contiguous()
            assert kept or g.is_contiguous(memory_format=form), f"{what}: strides {g.stride()}, torch's {t.stride()}"


def _channels_last(t: Tensor, form: torch.memory_format) -> Tensor:
    dimensions = 4 if form == torch.channels_last else 5
    return t.detach().to(memory_format=form).requires_grad_(t.requires_grad) if t.dim() == dimensions else t


def _equals_twin_in_shapes(case: Case, shapes: Sequence[tuple[int, ...]]) -> None:
    taken = [args for shape in shapes for args in _taken(case, shape)]
    if not taken:
        raise DoesNotApply(NO_SUCH_SHAPE)
    for args in taken:
        results = zip(_run(case.apply, _fresh(args)), _run(case.twin, _fresh(args)), strict=True)
        for ours, theirs in results:
            assert_same(ours, theirs, f"result for shape {tuple(args[case.first()].shape)}")


def _taken(case: Case, shape: tuple[int, ...]) -> list[list[Any]]:
    """The sample's arguments in this shape, where torch takes them so."""
    return [args for args in _in_shape(case, shape) if not refusal(_run, case.twin, _fresh(args))]


def _run(function: Callable[..., Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    output = function(*args)
    upstream = torch.empty_like(output).copy_(upstream_for(output))  # in the output's layout
    return output, *torch.autograd.grad(output, leaves(args), upstream)


def _fresh(args: Sequence[Any]) -> list[Any]:
    """Leaves with the same numbers and strides."""
    return [
        a.detach().clone(memory_format=torch.preserve_format).requires_grad_(a.requires_grad)
        if isinstance(a, Tensor)
        else a
        for a in args
    ]


def _in_shape(case: Case, shape: tuple[int, ...]) -> list[list[Any]]:
    """The sample's arguments with the first tensor of ``shape``, in each way in which the others may follow it:

    - tensors of the same shape become ``shape``, the others stay (all that is elementwise, and what has parameters);
    - tensors whose shape is that of the first without its last dimension lose that of ``shape`` (one a row);
    - tensors whose shape is that of the first without its classes, dimension 1 of samples, lose that of ``shape``;
    - those that have as many features as the first, in their last dimension, get those of ``shape``.
    """
    args = case.args()
    first = args[case.first()].shape
    if not first.numel():
        raise DoesNotApply("an argument without entries has no numbers to place")
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

    versions: list[list[Any]] = []
    for change in (of_same, of_row, of_sample, of_features):
        changed = [change(a) if isinstance(a, Tensor) else a for a in args]
        about = [a.shape for a in changed if isinstance(a, Tensor)]
        if about not in [[a.shape for a in v if isinstance(a, Tensor)] for v in versions]:
            versions.append(changed)
    return versions


def _cycled(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A leaf of this shape with the numbers of ``t``, over and over."""
    count = torch.Size(shape).numel()
    numbers = t.detach().flatten()[torch.arange(count) % t.numel()]
    return numbers.reshape(shape).requires_grad_(t.requires_grad)
