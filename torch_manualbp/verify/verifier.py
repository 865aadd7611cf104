"""Verify the gradients of a module, a Function or a callable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.checks import Check, chosen
from torch_manualbp.verify.report import LEFT_OUT, Report, Row
from torch_manualbp.verify.subject import Subject
from torch_manualbp.verify.trial import Target

__all__ = ["run_checks", "undisturbed", "verify"]


def verify(
    target: Any,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    reference: Callable[..., Any] | None = None,
    checks: Sequence[str] | str | None = None,
    leave_out: Sequence[str] | str = (),
    batch: int | None = None,
    budget_s: float | None = None,
    seed: int = 0,
) -> Report:
    """Hold the gradients of a target against autograd of the same forward in float64, on identical inputs.

    ::

        report = verify(MyFunction, torch.randn(8, 16))
        print(report)
        report.raise_for_status()

    Nothing is changed: a module is copied, inputs and the random state are as they were.

    Args:
        target: a module; an ``autograd.Function``, with ``setup_context`` or without; or a callable.
        inputs: what it is called with. Gradients of those are verified that require one, or of all of a floating-point
            dtype if none does.
        kwargs: inputs by keyword.
        params: of a module the names of the parameters to verify (default: all that require a gradient); of a callable
            a dictionary of further tensors that it takes by keyword.
        reference: what is differentiated by autograd in place of the target's own forward; it takes the same arguments.
        checks: names of the checks to run (default: all but "compile", which takes seconds); see
            :data:`~torch_manualbp.verify.CHECKS`.
        leave_out: names of checks not to run.
        batch: the dimension of samples that do not see each other, if the target claims that.
        budget_s: seconds after which no further check is started; the report says which were left out.
        seed: where random numbers start from in every run.

    Raises:
        TypeError: the target is nothing that can be called.
        ValueError: no tensor needs a gradient, tensors are on several devices, the forward fails, or no check has such
            a name.
    """
    start = time.perf_counter()
    wanted = chosen(checks, leave_out)
    with undisturbed():
        subject = Subject(target, inputs, kwargs, params, reference, seed)
        trial = Target(subject, batch=batch)
        deadline = None if budget_s is None else start + budget_s
        rows = list(run_checks(trial, wanted, deadline))
    return Report(subject.name, tuple(rows), time.perf_counter() - start, trial.references.notes)


class undisturbed:  # noqa: N801
    """Gradients are on, and random numbers afterwards as they were before."""

    def __enter__(self) -> None:
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self._contexts = torch.random.fork_rng(devices=devices), torch.enable_grad()
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


def run_checks(trial: Target, checks: Iterable[Check], deadline: float | None = None) -> Iterable[Row]:
    """The rows of all checks, those that look at few samples on the first few of many."""
    few: Target | None = None
    for check in checks:
        if deadline is not None and time.perf_counter() > deadline:
            yield Row("", check.name, LEFT_OUT, hint="the budget of time is spent")
        elif check.on_all:
            yield from check.rows(trial)
        else:
            few = trial.shrunk() if few is None else few
            yield from check.rows(few)
