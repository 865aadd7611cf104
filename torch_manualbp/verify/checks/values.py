"""The values of the gradients, in each dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._objects import one_line
from torch_manualbp.verify.checks.check import Trial
from torch_manualbp.verify.draws import Draws
from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.measure import Error, error_of, largest, with_zeros
from torch_manualbp.verify.report import ERROR, FAILS, OK, Row
from torch_manualbp.verify.subject import DoesNotApply, Setting, gradients_of, name_of_dtype

__all__ = ["exact_values", "rounded_values"]

ROUNDINGS = 4.0
"""ε of the terms' size that a low-precision gradient may be off where torch's own is better than that. Of the rules
none is off by more than 3.3 there; a GELU rounded to bfloat16 at every step is off by 8."""

BESIDE = 2.0**-16
"""Of the largest entry, what an entry may be smaller before it is not looked at as closely as the others."""

OF_SEVERAL = 32.0
"""The same where several Functions follow each other, each of which rounds what the next is given."""

NEXT_TO_TORCH = 3.0
"""Times the error of torch's own gradient that ours may have."""


def exact_values(trial: Trial, check: str) -> Iterator[Row]:
    """In float64 every gradient is that of autograd of the same forward, to 4,096 ε of the size of its terms."""
    expected = trial.references.at()
    found = trial.references.found()
    for i, leaf in enumerate(trial.subject.leaves):
        yield trial.compared(check, leaf, found[i], expected.gradients[i], expected.scales[i])


def rounded_values(trial: Trial, check: str, dtype: torch.dtype) -> Iterator[Row]:
    """In a dtype of fewer digits no gradient is further from float64's on the same numbers than 4 ε of the size of its
    terms (32 ε after several Functions), or than three times the error of torch's own."""
    subject = trial.subject
    at = subject.setting(dtype)
    draws = Draws()
    name = name_of_dtype(dtype)
    is_numeric = trial.references.is_numeric
    torchs: list[Tensor] | None = None
    if not is_numeric:
        try:
            with draws.recorded():
                torchs, _ = _run(at, plain=True)
        except DoesNotApply:
            raise
        except Exception as error:
            raise DoesNotApply(f"torch's own forward refuses {name}: {one_line(error)}") from error
    try:
        found, outputs = _run(at, plain=False)
    except Exception as error:
        if is_numeric:
            raise DoesNotApply(f"it takes no {name}: {one_line(error)}") from error
        yield Row("", check, ERROR, name, hint=f"where autograd of the same forward works: {one_line(error)}")
        return
    with draws.replayed():
        expected = trial.references.at(dtype) if not draws.any else trial.references.anew(dtype)
    if draws.any and not _same_draws(outputs, expected.outputs):
        raise DoesNotApply(f"it draws other random numbers in {name} than in float64")
    for i, leaf in enumerate(subject.leaves):
        right = expected.gradients[i]
        scale = expected.scales[i] + BESIDE * largest(expected.scales[i])
        about: dict[str, Any] = {"dtype": name, "shape": tuple(right.shape)}
        if found[i].shape != right.shape:
            yield Row(leaf.name, check, FAILS, hint=f"its shape is {tuple(found[i].shape)}", **about)
            continue
        beyond = ~torch.isfinite(right) | (right.abs() > torch.finfo(dtype).max)
        torch_error = None
        if torchs is not None:
            beyond |= ~torchs[i].isfinite()  # torch's own overflows, too
            torch_error = error_of(torchs[i], right, scale, dtype, beyond)
        off = error_of(found[i], right, scale, dtype, beyond)
        roundings = ROUNDINGS if len(subject.functions) <= 1 else OF_SEVERAL
        ok = _is_accurate(off, torch_error, roundings + expected.accuracy / torch.finfo(dtype).eps)
        yield Row(
            leaf.name,
            check,
            OK if ok else FAILS,
            error_ulps=off.ulps,
            error_relative=off.relative,
            torch_ulps=None if torch_error is None else torch_error.ulps,
            where=off.where,
            hint="" if ok else _why(found[i], right, off, dtype),
            **about,
        )


def _why(gradient: Tensor, right: Tensor, error: Error, dtype: torch.dtype) -> str:
    if error.relative > 100 * torch.finfo(dtype).eps or not gradient.isfinite().all():
        return hint_for(gradient.to(right.dtype), right)
    return "digits are lost: compute in float32, or in another order, and round once"


def _is_accurate(error: Error, torchs: Error | None, allowed: float) -> bool:
    if torchs is not None:
        allowed = max(allowed, NEXT_TO_TORCH * torchs.ulps)
    return error.ulps <= allowed


def _run(at: Setting, plain: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients, 0 where there is none, and the outputs."""
    leaves = at.leaves()
    outputs = at.run_plain(leaves) if plain else at.run(leaves)
    found = with_zeros(gradients_of(outputs, leaves, at.upstream(outputs)), leaves)
    return found, [o.detach() for o in outputs]


def _same_draws(outputs: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether the outputs are the same up to rounding, as they are with the same random numbers."""
    for output, right in zip(outputs, expected, strict=True):
        size = largest(right)
        if output.numel() and largest(output.to(right.dtype) - right) > 0.1 * size:
            return False
    return True
