"""What is kept for backward, what may happen to it until then, and random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.contract.memory import bytes_kept
from torch_manualbp.verify.functions import recorded
from torch_manualbp.verify.measure import with_zeros
from torch_manualbp.verify.report import FAILS, OK, Row
from torch_manualbp.verify.subject import Setting, gradients_of, seed_all

__all__ = ["randomness", "saved_tensors"]


def saved_tensors(trial: Trial, check: str) -> Iterator[Row]:
    """The bytes that are kept, next to autograd's of the same forward; tensors that were put on ctx outside of
    save_for_backward, where no hook, no checkpointing and no version check sees them; inputs, and what is saved, that
    forward or backward change; and a change in place after the forward is an error, or makes no difference."""
    at = trial.exact
    yield from _on_ctx(trial, check, at)
    note = f"keeps {_kept(at, plain=False):,} bytes"
    if not trial.references.is_numeric:
        note += f"; autograd of the same forward {_kept(at, plain=True):,}"
    yield Row("", check, OK, "float64", hint=note)
    if not trial.subject.makes_copies:
        yield from _changed_by_forward(trial, check, at)
    yield from _second_backward(trial, check, at)
    if not trial.subject.makes_copies:
        yield from _changed_in_place(trial, check, at)


def _kept(at: Setting, plain: bool) -> int:
    run: Any = at.run_plain if plain else at.run
    return bytes_kept(lambda *leaves: run(leaves), at.leaves())


def _on_ctx(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    with recorded() as applications:
        outputs = at.run(at.leaves())
    for application in applications:
        node = application.node
        for attribute, value in vars(node).items() if node is not None else ():
            if any(isinstance(t, Tensor) for t in _parts(value)):
                name = application.function.__name__
                hint = f"ctx.{attribute} of {name} is kept outside of ctx.save_for_backward"
                is_torchs = application.function.__module__.startswith("torch.")
                yield Row(name, check, OK if is_torchs else FAILS, hint=hint)
    del outputs


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _changed_by_forward(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    leaves = at.leaves()
    before = [t.detach().clone() for t in leaves]
    at.run(leaves)
    for leaf, now, then in zip(trial.subject.leaves, leaves, before, strict=True):
        same = torch.equal(now.detach().nan_to_num(), then.nan_to_num())
        yield trial.row(check, leaf.name, "" if same else "forward changes it in place")


def _second_backward(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    leaves = at.leaves()
    outputs = at.run(leaves)
    upstream = at.upstream(outputs)
    first = [g.clone() for g in with_zeros(gradients_of(outputs, leaves, upstream, retain_graph=True), leaves)]
    second = with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)
    for leaf, once, twice in zip(trial.subject.leaves, first, second, strict=True):
        row = trial.compared(check, leaf, twice, once, hint="a second backward through the same graph gives another")
        yield row


def _changed_in_place(trial: Trial, check: str, at: Setting) -> Iterator[Row]:
    for i, leaf in enumerate(trial.subject.leaves[:8]):
        results = []
        for changes in (False, True):
            leaves = at.leaves()
            outputs = at.run(leaves)
            upstream = at.upstream(outputs)
            if changes:
                with torch.no_grad():
                    leaves[i].add_(0.5)
            try:
                results.append(with_zeros(gradients_of(outputs, leaves, upstream), leaves))
            except RuntimeError as error:
                if "inplace" not in str(error):
                    raise
                results.append([])
        if not results[1]:
            continue
        for of, before, after in zip(trial.subject.leaves, *results, strict=True):
            hint = (
                f"{leaf.name} was changed in place after the forward, and backward took the changed numbers in silence"
            )
            row = trial.compared(check, of, after, before, hint=hint)
            if not row.ok:
                yield row


def randomness(trial: Trial, check: str) -> Iterator[Row]:
    """Of the same seed the outputs are the same; and whatever is drawn, backward is that of what forward drew: other
    random numbers in between change nothing."""
    at = trial.exact
    with torch.no_grad():
        one, same, other = (at.run(at.leaves([]), seed=trial.subject.seed + s) for s in (0, 0, 1))
    repeats = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, same, strict=True))
    is_random = not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True))
    if not repeats:
        hint = "two forwards from the same seed differ: nothing can be compared. Is there another source of randomness?"
        yield Row("", check, FAILS, "float64", hint=hint)
        return
    found = []
    for seed in (1, 2):
        leaves = at.leaves()
        outputs = at.run(leaves)
        upstream = at.upstream(outputs)
        seed_all(trial.subject.seed + 1000 * seed)
        found.append(with_zeros(gradients_of(outputs, leaves, upstream), leaves))
    for leaf, a, b in zip(trial.subject.leaves, *found, strict=True):
        row = trial.compared(check, leaf, a, b, hint="backward draws random numbers of its own, in place of forward's")
        note = "random, and the gradient is that of what was drawn" if is_random else "draws nothing"
        yield row if not row.ok else trial.row(check, leaf.name, note=note, dtype="float64")
