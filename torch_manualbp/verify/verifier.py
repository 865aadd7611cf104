"""Verify the gradients of a module, a Function or a callable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._text import visible
from torch_manualbp.verify.check import BudgetSpentError
from torch_manualbp.verify.checks import Check, chosen
from torch_manualbp.verify.functions import operator_named
from torch_manualbp.verify.own_process import Seen, in_own_process
from torch_manualbp.verify.precision import widened
from torch_manualbp.verify.report import LEFT_OUT, OK, VALUE, Report, Row
from torch_manualbp.verify.restore import stopped_after, undisturbed
from torch_manualbp.verify.subject import Subject, name_of
from torch_manualbp.verify.trial import Options, Target

__all__ = ["BUDGET_S", "list_until_spent", "run_checks", "verify"]

BUDGET_S = 30.0
"""Seconds that a verification takes at most, if nothing else is said."""


def verify(
    target: Any,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    reference: Callable[..., Any] | None = None,
    checks: Sequence[str] | str | None = None,
    leave_out: Sequence[str] | str = (),
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    kinks: str = "between",
    strict: bool = False,
    budget_s: float = BUDGET_S,
    own_process: bool = False,
    seed: int = 0,
) -> Report:
    """Hold the gradients of a target against autograd of the same forward in float64: on the inputs that are given, and
    on variations of them.

    ::

        report = verify(MyFunction, torch.randn(8, 16))
        print(report)
        report.raise_for_status()

    Nothing is changed: a module is copied, and inputs, gradients, buffers and the random state are as they were.

    Args:
        target: a module; an ``autograd.Function``, with ``setup_context`` or without; an operator of ``torch.library``,
            or its name, ``"ns::op"``; or a callable.
        inputs: what it is called with. Gradients of those are verified that require one, or of all of a floating-point
            dtype if none does.
        kwargs: inputs by keyword.
        params: of a module the names of the parameters to verify (default: all that require a gradient); of a callable
            a dictionary of further tensors that it takes by keyword.
        reference: what is differentiated by autograd in place of the target's own forward; it takes the same arguments,
            and is the whole truth: of a straight-through estimator, say, ``lambda z: z.clone()``.
        checks: names of the checks to run (default: all but "compile", which takes seconds); see
            :data:`~torch_manualbp.verify.CHECKS`.
        leave_out: names of checks not to run.
        batch: the dimension of samples that do not see each other, if the target claims that.
        dtype: the dtype that the target computes in, whatever it is given: it is run in no other.
        rtol: the relative difference from the right gradient that is allowed, where more than rounding is.
        atol: the absolute one.
        kinks: which derivative a kink has: any "between" those of both sides, or the one of "autograd".
        strict: whether findings that are no wrong values make the report not ok.
        budget_s: seconds for all of it; the report says what was left out.
        own_process: whether it runs in a process of its own, a fork, which is ended when the time is over, whatever it
            is doing: a kernel that does not return is left, and one that crashes is a finding.
        seed: where random numbers start from in every run.

    Raises:
        TypeError: the target is nothing that can be called.
        ValueError: no tensor needs a gradient, tensors are on several devices, the forward fails, or no check has such
            a name.
    """
    start = time.perf_counter()
    wanted = chosen(checks, leave_out)
    if kinks not in ("between", "autograd"):
        raise ValueError(f"kinks is {kinks!r}: it takes 'between' or 'autograd'")
    target = operator_named(target)
    options = Options(batch, dtype, rtol, atol, kinks, start + budget_s)

    trials: list[Target] = []

    def found() -> Iterator[Row]:
        trials.append(Target(Subject(target, inputs, kwargs, params, reference, seed), options))
        yield from run_checks(trials[0], wanted)

    def verified(seen: Seen | None = None) -> Report:
        with undisturbed(target, inputs, kwargs), stopped_after(options.deadline):
            rows = list_until_spent(found(), seen)
        if checks is not None:  # what was asked for is what counts
            rows = [replace(row, compares=row.verdict == OK) for row in rows]
        notes = trials[0].notes if trials else ()
        return Report(visible(name_of(target)), tuple(rows), time.perf_counter() - start, notes, strict)

    return in_own_process(verified, visible(name_of(target)), budget_s) if own_process else verified()


def list_until_spent(rows: Iterable[Row], seen: Seen | None = None) -> list[Row]:
    """All rows, or those that were found before the time was over."""
    found: list[Row] = []
    try:
        for row in rows:
            found.append(row)
            if seen is not None:
                seen(row)
    except BudgetSpentError:
        found.append(Row("", "", LEFT_OUT, hint="the budget of time is spent"))
    return found


def run_checks(trial: Target, checks: Iterable[Check]) -> Iterable[Row]:
    """The rows of all checks, those that look at few samples on the first few of many."""
    few: Target | None = None
    is_wrong = False
    deadline = trial.options.deadline
    with widened(trial.subject.widens):
        for check in checks:
            if deadline is not None and time.perf_counter() > deadline:
                yield Row("", check.name, LEFT_OUT, hint="the budget of time is spent")
                continue
            if check.varies and is_wrong:
                yield Row("", check.name, LEFT_OUT, hint="the gradients are wrong on the inputs as they are")
                continue
            if not check.on_all:
                few = trial.shrunk() if few is None else few
            for row in check.rows(trial if check.on_all else few):  # type: ignore[arg-type]
                is_wrong |= not row.ok and row.kind == VALUE
                yield row
