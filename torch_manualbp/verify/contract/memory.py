"""What a rule keeps for backward, and what may happen to it until then."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_manualbp.verify.contract.case import (
    Case,
    assert_same,
    finish,
    gradients,
    is_floating,
    leaves,
    upstream_for,
)
from torch_manualbp.verify.outputs import joined, outputs

__all__ = [
    "allows_changes_in_place",
    "bytes_kept",
    "frozen_arguments_change_nothing",
    "keeps_no_more_than_torch",
    "works_under_checkpointing",
    "works_under_hooks",
]


def keeps_no_more_than_torch(case: Case) -> None:
    """The rule keeps no more bytes for backward than the torch twin, whichever of its arguments are frozen."""
    positions = case.differentiable()
    ran, reasons = 0, []
    for n in range(1, len(positions) + 1):
        for needed in itertools.combinations(positions, n):
            if n == 1 and (reason := case.exempt("bytes kept", f"argument {needed[0]} alone")):
                reasons.append(reason)
                continue
            frozen = [p for p in positions if p not in needed]
            ours = bytes_kept(case.apply, case.args(frozen=frozen))
            theirs = bytes_kept(case.twin, case.args(frozen=frozen))
            assert ours <= theirs, f"for the gradients of {needed} keeps {ours} bytes, torch {theirs}"
            ran += 1
    finish(ran, reasons)


def bytes_kept(function: Callable[..., Tensor], args: Sequence[Any]) -> int:
    """Bytes of the storages that the graph of one call holds."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function(*args)
        del output
    return sum(kept.values())


def frozen_arguments_change_nothing(case: Case) -> None:
    """With all but one argument frozen, that one's gradient is the same to the bit."""
    positions = case.differentiable()
    every = gradients(case.apply, case.args())
    for p, expected in zip(positions, every, strict=True):
        (alone,) = gradients(case.apply, case.args(frozen=[q for q in positions if q != p]))
        assert torch.equal(alone, expected) or alone.isnan().any(), f"argument {p} alone has another gradient"


def works_under_checkpointing(case: Case) -> None:
    """Gradients are the same to the bit under both kinds of checkpointing."""

    def checkpointed(reentrant: bool) -> Callable[..., Tensor]:
        return lambda *args: checkpoint(case.apply, *args, use_reentrant=reentrant)

    expected = gradients(case.apply, case.args())
    for gradient, reference in zip(gradients(checkpointed(False), case.args()), expected, strict=True):
        assert_same(gradient, reference, "gradient", tolerance=0)
    args = case.args()  # the reentrant kind works with backward() alone
    output = checkpointed(True)(*args)
    output.backward(upstream_for(output))
    for leaf, reference in zip(leaves(args), expected, strict=True):
        assert leaf.grad is not None
        assert_same(leaf.grad, reference, "gradient", tolerance=0)


def works_under_hooks(case: Case) -> None:
    """Every number that backward uses passes through saved-tensor hooks: tensors moved away and brought back give the
    same gradients to the bit, and without the graph nothing holds on to an argument or to the output."""
    expected = gradients(case.apply, case.args())
    moved: list[Tensor] = []

    def pack(t: Tensor) -> int:
        moved.append(t.clone())
        return len(moved) - 1

    args = case.args()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: moved[i]):
        output = case.apply(*args)
    upstream = upstream_for(output)
    inputs = leaves(args)
    with torch.no_grad():  # what was kept elsewhere than in the hooks is now wrong
        for t in (a for a in args if is_floating(a)):
            t.add_(0.5)
    for gradient, reference in zip(torch.autograd.grad(output, inputs, upstream), expected, strict=True):
        assert_same(gradient, reference, "gradient", tolerance=0)


def allows_changes_in_place(case: Case) -> None:
    """A tensor may be changed after the forward where torch allows it, and the gradients are those of the numbers
    before; elsewhere the change is an error, and backward never runs on changed numbers."""
    expected = gradients(case.apply, case.args())
    changed: list[int | None] = [i for i, arg in enumerate(case.args()) if isinstance(arg, Tensor) and arg.numel()]
    reasons: list[str] = []
    for position in [*changed, None]:  # the last is the output
        what = "the output" if position is None else f"argument {position}"
        got, error = _after_change(case, case.rule.apply, position)
        if got is not None:
            for gradient, reference in zip(got, expected, strict=True):
                assert_same(gradient, reference, f"gradient after {what} changed", tolerance=0)
        elif _after_change(case, case.entry.twin, position)[0] is not None:
            reason = case.exempt("changes in place", what)
            assert reason, f"torch allows to change {what}, and ours says: {error}"
            reasons.append(reason)
    finish(len(changed) + 1 - len(reasons), reasons)


def _after_change(
    case: Case, function: Callable[..., Tensor | Sequence[Tensor]], position: int | None
) -> tuple[tuple[Tensor, ...] | None, str]:
    """The gradients after a change in place, or None and why there are none."""
    args = case.args()
    result = function(*args)
    upstream = upstream_for(joined(result))
    try:
        if position is None:
            for output in outputs(result):
                output.add_(1)
        else:
            with torch.no_grad():
                changed = args[position]
                changed.add_(1) if is_floating(changed) else changed.zero_()  # which stays a class that there is
        return torch.autograd.grad(joined(result), leaves(args), upstream), ""
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None, str(error).split(". ")[0]
