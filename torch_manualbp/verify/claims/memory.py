"""What is kept for backward, what may happen to it until then, and random numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_manualbp.verify.check import finish
from torch_manualbp.verify.functions import recorded
from torch_manualbp.verify.precision import around
from torch_manualbp.verify.report import ADVICE, FAILS, OK, ROBUSTNESS, Row
from torch_manualbp.verify.subject import Results, Setting, gradients_of, is_number, seed_all, with_zeros
from torch_manualbp.verify.trial import Trial

__all__ = [
    "bytes_kept",
    "changes_in_place",
    "checkpointing",
    "hooks",
    "keeps_no_more_than_torch",
    "randomness",
    "saved_tensors",
    "written_over",
]


def keeps_no_more_than_torch(trial: Trial, every_subset: bool = True) -> Iterator[Row]:
    """The subject keeps no more bytes for backward than its torch twin, whichever of its tensors are frozen. Of a
    target that has none it is only said how many, next to autograd's of the same forward."""
    at = trial.exact
    positions = range(len(trial.leaves))
    subsets = itertools.chain(*(itertools.combinations(positions, n + 1) for n in positions))
    reasons = []
    for needed in subsets if trial.has_twin and every_subset else [tuple(positions)]:
        names = [trial.leaves[i].name for i in needed]
        if reason := trial.exempt(f"bytes kept, {' and '.join(names)} alone"):
            reasons.append(reason)
            continue
        runs = (at.run,) if trial.references.is_numeric else (at.run, at.run_plain)
        ours, *theirs = (bytes_kept(lambda *leaves, run=run: run(leaves), at.leaves(needed)) for run in runs)
        wrong = f"for the gradients of {', '.join(names)} keeps {ours:,} bytes, torch {theirs}"
        note = f"keeps {ours:,} bytes" + "".join(f"; autograd of the same forward {n:,}" for n in theirs)
        yield trial.row("", wrong if trial.has_twin and ours > theirs[0] else "", note=note, dtype="float64")
    finish(len(positions) > len(reasons), reasons)


def bytes_kept(function: Callable[..., Any], args: Sequence[Any]) -> int:
    """Bytes of the storages that the graph of one call holds."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function(*args)
        del output
    return sum(kept.values())


def hooks(trial: Trial) -> Iterator[Row]:
    """Every number that backward uses passes through saved-tensor hooks: tensors moved away and brought back give the
    same gradients to the bit, and nothing else is held on to, so that all may be changed."""
    at = trial.exact.mapped(Tensor.clone, parameters=True)
    moved: list[Tensor] = []

    def pack(t: Tensor) -> int:
        moved.append(t.clone())
        return len(moved) - 1

    leaves = at.leaves()
    with torch.autograd.graph.saved_tensors_hooks(pack, moved.__getitem__):
        outputs = at.run(leaves)
    upstream = at.upstream(outputs)
    kept = [o.detach().clone() for o in outputs]
    with torch.no_grad():  # what was kept elsewhere than in the hooks is now wrong
        for t in (*leaves, *at.values):
            if isinstance(t, Tensor) and t.is_floating_point():
                t.add_(0.5)
    found = Results(kept, with_zeros(gradients_of(outputs, leaves, upstream), leaves))
    yield from trial.same(found, trial.references.own(), hint="wrong under hooks", slack=trial.to_the_bit)


def checkpointing(trial: Trial) -> Iterator[Row]:
    """Under torch.utils.checkpoint, which runs the forward a second time, the gradients are the same; those of rules
    and layers to the bit, and in its reentrant kind, too."""
    at, right = trial.exact, trial.references.own()
    for reentrant in (False, True) if trial.has_twin else (False,):
        leaves = at.leaves()
        outputs = checkpoint(lambda *moved: at.run(moved), *leaves, use_reentrant=reentrant)
        with around(at.dtype):
            torch.autograd.backward(outputs, at.upstream(outputs))  # the reentrant kind works with backward() alone
        found = Results([o.detach() for o in outputs], with_zeros([t.grad for t in leaves], leaves))
        yield from trial.same(found, right, hint="under checkpointing", slack=trial.to_the_bit)


def changes_in_place(trial: Trial) -> Iterator[Row]:
    """A tensor may be changed after the forward where torch allows it, and the gradients are those of the numbers
    before; elsewhere the change is an error, and backward never runs on changed numbers."""
    at, right = trial.exact, trial.references.own()
    leaf_positions = [leaf.position for leaf in trial.leaves]
    others = [i for i in at.tensors() if i not in leaf_positions and at.values[i].numel()] if trial.has_twin else []
    changes: list[tuple[str, Callable[..., Any]]] = [
        (leaf.name, lambda leaves, values, outputs, i=i: [leaves[i]])
        for i, leaf in enumerate(trial.leaves[:8])
        if leaf.tensor.numel()
    ]
    names = trial.subject.value_names
    changes += [(names[i], lambda leaves, values, outputs, i=i: [values[i]]) for i in others]
    if trial.has_twin:
        changes.append(("the output", lambda leaves, values, outputs: outputs))
    reasons = []
    for name, chosen in changes:
        found, error = _after_change(at, False, chosen)
        if found is not None:
            for leaf, gradient, expected in zip(trial.leaves, found, right.gradients, strict=True):
                hint = (
                    f"{name} was changed in place after the forward, and backward took the changed numbers in silence"
                )
                row = trial.compared(leaf, gradient, expected, hint=hint, slack=trial.to_the_bit)
                if not row.ok or trial.has_twin:
                    yield replace(row, kind="" if row.ok else ROBUSTNESS)
        elif trial.has_twin and _after_change(at, True, chosen)[0] is not None:
            reason = trial.exempt(f"changes in place, {name}")
            assert reason, f"torch allows to change {name}, and ours says: {error}"
            reasons.append(reason)
    finish(len(changes) - len(reasons), reasons)


def _after_change(at: Setting, plain: bool, chosen: Callable[..., Any]) -> tuple[list[Tensor] | None, str]:
    """The gradients after a change in place, or None and why there are none."""
    at = at.mapped(Tensor.clone)
    leaves = at.leaves()
    outputs = (at.run_plain if plain else at.run)(leaves)
    upstream = at.upstream(outputs)
    try:
        for t in chosen(leaves, at.values, outputs):
            with torch.set_grad_enabled(t.grad_fn is not None):  # a change of an output is one more operation
                t.add_(0.5) if is_number(t) else t.zero_()  # which stays a class that there is
        return with_zeros(gradients_of(outputs, leaves, upstream), leaves), ""
    except RuntimeError as error:
        if "inplace" not in str(error) or "inside a custom Function" in str(error):  # its own view
            raise
        return None, str(error).split(". ")[0]


def saved_tensors(trial: Trial) -> Iterator[Row]:
    """The bytes that are kept, next to autograd's of the same forward; tensors that were put on ctx outside of
    save_for_backward, where no hook, no checkpointing and no version check sees them; inputs, and what is saved, that
    forward or backward change; and a change in place after the forward is an error, or makes no difference."""
    at = trial.exact
    yield from _on_ctx(trial, at)
    yield from keeps_no_more_than_torch(trial)
    if not trial.subject.makes_copies:
        yield from _changed_by_forward(trial, at)
    yield from _second_backward(trial, at)
    if not trial.subject.makes_copies:
        yield from changes_in_place(trial)


def _on_ctx(trial: Trial, at: Setting) -> Iterator[Row]:
    with recorded() as applications:
        outputs = at.run(at.leaves())
    for application in applications:
        node = application.node
        for attribute, value in vars(node).items() if node is not None else ():
            if any(isinstance(t, Tensor) for t in _parts(value)):
                name = application.function.__name__
                hint = f"ctx.{attribute} of {name} is kept outside of ctx.save_for_backward"
                is_torchs = application.function.__module__.startswith("torch.")
                yield Row(name, verdict=OK if is_torchs else FAILS, hint=hint, kind="" if is_torchs else ADVICE)
    del outputs


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _changed_by_forward(trial: Trial, at: Setting) -> Iterator[Row]:
    leaves = at.leaves()
    before = [t.detach().clone() for t in leaves]
    at.run(leaves)
    for leaf, now, then in zip(trial.leaves, leaves, before, strict=True):
        same = torch.equal(now.detach().nan_to_num(), then.nan_to_num())
        yield trial.row(leaf.name, "" if same else "forward changes it in place")


def _second_backward(trial: Trial, at: Setting) -> Iterator[Row]:
    leaves = at.leaves()
    before = [t.detach().clone() for t in leaves]
    outputs = at.run(leaves)
    first = gradients_of(outputs, leaves, at.upstream(outputs), retain_graph=True)
    over = written_over(trial, leaves, before)
    once = [g.clone() for g in with_zeros(first, leaves)]
    twice = with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)
    for leaf, found, right in zip(trial.leaves, twice, once, strict=True):
        hint = "a second backward through the same graph gives another"
        row = trial.compared(leaf, found, right, hint=f"{hint}, since {over}" if over else hint)
        yield replace(row, kind=ROBUSTNESS) if over and not row.ok else row


def written_over(trial: Trial, leaves: Sequence[Tensor], before: Sequence[Tensor]) -> str:
    """Which inputs backward has written its gradients over, as kernels do that save memory."""
    names = [
        leaf.name
        for leaf, now, then in zip(trial.leaves, leaves, before, strict=True)
        if not torch.equal(now.detach().nan_to_num(), then.nan_to_num())
    ]
    return f"backward writes over {', '.join(names)}" if names else ""


def randomness(trial: Trial) -> Iterator[Row]:
    """The same seed gives the same outputs; and whatever is drawn, backward is that of what forward drew: other
    random numbers in between change nothing."""
    at, seed = trial.exact, trial.subject.seed
    with torch.no_grad():
        one, same, other = (at.run(at.leaves([]), seed=seed + s) for s in (0, 0, 1))
    repeats = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, same, strict=True))
    is_random = not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True))
    if not repeats:
        hint = "two forwards from the same seed differ: nothing can be compared. Is there another source of randomness?"
        yield trial.row("", hint, dtype="float64")
        return
    found = []
    for n in (1, 2):
        leaves = at.leaves()
        outputs = at.run(leaves)
        upstream = at.upstream(outputs)
        seed_all(seed + 1000 * n)
        found.append(with_zeros(gradients_of(outputs, leaves, upstream), leaves))
    for leaf, a, b in zip(trial.leaves, *found, strict=True):
        row = trial.compared(leaf, a, b, hint="backward draws random numbers of its own, in place of forward's")
        note = "random, and the gradient is that of what was drawn" if is_random else "draws nothing"
        yield row if not row.ok else trial.row(leaf.name, note=note, dtype="float64")
