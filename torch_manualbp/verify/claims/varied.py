"""Gradients are right in other calls than the given one, too: of other shapes, numbers and options."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._text import one_line
from torch_manualbp.verify.check import BudgetSpentError, DoesNotApply
from torch_manualbp.verify.claims.directions import along_directions, sides_with
from torch_manualbp.verify.hints import hint_for
from torch_manualbp.verify.kinked import beside, is_between
from torch_manualbp.verify.measure import largest
from torch_manualbp.verify.report import FAILS, OK, ROBUSTNESS, VALUE, Row
from torch_manualbp.verify.subject import Leaf, Setting, gradients_of, is_number, name_of_dtype, with_zeros
from torch_manualbp.verify.trial import Trial
from torch_manualbp.verify.vary import Varied, numbers, options, shapes

__all__ = [
    "RefusedError",
    "against_autograd",
    "held",
    "in_fewer_digits",
    "other_numbers",
    "other_options",
    "other_shapes",
    "other_sizes",
]

TOLERANCE = 1e-7
"""The share of the largest entry by which a gradient may be off in float64 before it is looked at more closely."""

ENOUGH = 2
"""Wrong calls of one kind after which no more are tried."""


class RefusedError(Exception):
    """The target takes no such call."""


def other_sizes(trial: Trial) -> Iterator[Row]:
    """Gradients are right for a batch of one, of three more and of 1,500 rows, and for other sizes of every dimension:
    3 more, odd ones, 1, and beyond 1,024."""
    return held(trial, shapes.sizes(trial.exact))


def other_shapes(trial: Trial) -> Iterator[Row]:
    """Gradients are right with one dimension more and one fewer, and where a tensor is expanded to another."""
    return held(trial, shapes.dimensions(trial.exact))


def other_options(trial: Trial) -> Iterator[Row]:
    """Gradients are right for other flags, words, numbers and dimensions among the arguments, without a tensor that may
    be absent, and for other indices and masks; each for some other sizes as well."""

    def proposals() -> Iterator[Varied]:
        at = trial.exact
        for varied in itertools.chain(options.options(at), options.indices(at)):
            yield varied
            for by in (1, 3):
                for more in shapes.stretched(varied.at, by):
                    yield Varied(f"{varied.words}, {more.words}", more.at, varied.words + more.group)

    return held(trial, proposals())


def other_numbers(trial: Trial) -> Iterator[Row]:
    """Gradients are right for numbers a hundred times as large, in float32, too, and where a row is 0, nearly 0, nearly
    constant, like another, or large."""
    at = trial.exact
    yield from held(trial, itertools.chain(numbers.large(at), numbers.numbers(at)), of_zeros=True)


def in_fewer_digits(trial: Trial) -> Iterator[Row]:
    """In float32, float16 and bfloat16 gradients of 1,500 rows, and of numbers a hundred times as large, are no
    further off than torch's own of the same forward by more than a few roundings, and finite where those are."""
    trial.references.require_autograd()
    ran, refused = 0, ""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if trial.options.dtype not in (None, dtype):
            continue
        low = trial.subject.setting(dtype)
        rows = (v for v in shapes.sizes(low) if v.words.startswith(f"{shapes.ROWS} along"))
        large = [] if dtype == torch.bfloat16 else numbers.large(low)
        for varied in itertools.chain(large, itertools.islice(rows, 2)):
            _within_budget(trial)
            try:
                found = list(_in_few_digits(trial, varied, dtype))
            except RefusedError as why:
                refused = str(why)
                continue
            ran += 1
            yield from (row for row in found if not row.ok)
    if not ran:
        raise DoesNotApply(refused or "it is run in no such dtype")
    yield Row("", verdict=OK, hint=f"{ran} calls")


def _in_few_digits(trial: Trial, varied: Varied, dtype: torch.dtype) -> Iterator[Row]:
    at = varied.at
    wide = trial.subject.setting(trial.subject.wide, dtype)
    wide = wide.with_values([v.to(wide.cast(v).dtype) if is_number(v) else v for v in at.values])
    runs: list[tuple[Setting, Callable[..., Any]]] = [(wide, wide.run_plain), (at, at.run_plain), (at, at.run)]
    results = []
    try:
        for here, run in runs:
            leaves = here.leaves()
            outputs = run(leaves)
            results.append((outputs, with_zeros(gradients_of(outputs, leaves, here.upstream(outputs)), leaves)))
    except Exception as error:
        raise RefusedError(one_line(error)) from error
    size = largest(results[0][0][0])
    if largest(results[1][0][0].to(results[0][0][0].dtype) - results[0][0][0]) > 0.1 * size:
        raise RefusedError(f"it draws, or computes, other numbers in {name_of_dtype(dtype)}")
    name, eps = name_of_dtype(dtype), torch.finfo(dtype).eps
    for i, leaf in enumerate(at.present):
        right, torchs, found = (r[1][i] for r in results)
        wide_of = right.dtype
        known = right.isfinite() & torchs.isfinite() & (right.abs() < torch.finfo(dtype).max / 16)
        if not known.any() or found.shape != right.shape:
            continue
        lost = int((known & ~found.isfinite()).sum())
        wrong = f"{lost} entries are not finite, and torch's own are" if lost else ""
        keep = known & found.isfinite()
        norm = right.where(keep, 0).norm().item()
        off, theirs = ((t.to(wide_of) - right).where(keep, 0).norm().item() for t in (found, torchs))
        several = 8 if len(trial.subject.functions) > 1 else 1
        tiny = torch.finfo(dtype).tiny * keep.sum().item() ** 0.5
        is_large = " times " in varied.words
        kind = ROBUSTNESS if wrong and dtype != torch.float32 else VALUE
        allowed = max(4 * theirs, 0.9 * norm) if is_large else 4 * several * (theirs + eps * norm + tiny)
        if not wrong and off > allowed:
            is_far = off > (0.1 if dtype == torch.float32 else 0.05) * norm
            is_value = _is_right_with_more_range(trial, varied, i, dtype) if is_large else is_far
            kind = VALUE if is_value else ROBUSTNESS
            parts = [t / norm if norm else math.inf for t in (off, theirs)]
            wrong = f"as a whole it is off by {parts[0]:.2g}, torch's own by {parts[1]:.2g}"
        if wrong and not lost and trial.takes_any_side:
            sides = [s[i] for s in beside(wide.run_plain, wide.leaves(), wide.upstream(results[0][0]))]
            if is_between(found, right, 8 * eps * (right.abs() + norm / right.numel() ** 0.5), sides):
                wrong = ""
        if wrong:
            yield Row(leaf.name, "", FAILS, name, tuple(right.shape), hint=f"{varied.words}: {wrong}", kind=kind)


def _is_right_with_more_range(trial: Trial, varied: Varied, i: int, dtype: torch.dtype) -> bool:
    """Whether the same numbers are no trouble in bfloat16, of fewer digits and more range: what goes wrong with them in
    float16 is no lack of digits."""
    if dtype != torch.float16:
        return False
    low = trial.subject.setting(torch.bfloat16)
    low = low.with_values([v.bfloat16() if is_number(v) else v for v in varied.at.values])
    leaves = low.leaves()
    try:
        found, right = (low.results(run, leaves).gradients[i].double() for run in (low.run, low.run_plain))
    except Exception:
        return False
    return bool((found - right).norm() <= 0.1 * right.norm())


def held(trial: Trial, proposals: Iterable[Varied], of_zeros: bool = False) -> Iterator[Row]:
    """Each varied call that the target takes against autograd of the same forward, until a few are wrong."""
    ran, wrong, refused = 0, 0, {}
    for varied in proposals:
        if varied.group in refused or _expands(trial.exact, varied.at):
            continue
        _within_budget(trial)
        try:
            rows = against_autograd(trial, varied.at, varied.words, ranks=varied.ranks)
            failed = [row for row in rows if not row.ok]
        except RefusedError as why:
            refused[varied.group] = f"{varied.words}: {why}"
            if not _forgets_a_dimension(str(why)) or not _is_told_apart(trial.exact):
                continue
            failed = [trial.row("", refused.pop(varied.group), kind=VALUE)]
        ran += 1
        for row in failed:
            is_edge = of_zeros and "not finite" in row.hint and " times 100" not in row.hint
            yield replace(row, kind=ROBUSTNESS) if is_edge else row
        wrong += bool(failed)
        if wrong >= ENOUGH:
            return
    if not ran:
        raise DoesNotApply(next(iter(refused.values()), "there is nothing of this kind to vary"))
    said = f", and it refuses {len(refused)}, such as {next(iter(refused.values()))[:160]}" if refused else ""
    yield Row("", verdict=OK, hint=f"{ran} calls{said}")


def _expands(given: Setting, varied: Setting) -> bool:
    """Whether a tensor is expanded to another one that had its very shape: not what the target is for."""
    shapes_of = [(given.values[i].shape, getattr(varied.values[i], "shape", None)) for i in given.tensors()]
    for (a, now), (b, then) in itertools.combinations(shapes_of, 2):
        if a != b or now is None or then is None or not a:
            continue
        if len(now) != len(then) or any(m != n and 1 in (m, n) for m, n in zip(now, then, strict=True)):
            return True
    return False


def _forgets_a_dimension(error: str) -> bool:
    """Whether backward sums a gradient over what was expanded, and loses the dimension of size 1, which the engine
    refuses; any other shape says that the target is not made for such a call."""
    found = re.search(r"got \[([\d, ]+)\] but expected shape compatible with \[([\d, ]+), 1\]", error)
    return found is not None and found[1] == found[2]


def _is_told_apart(given: Setting) -> bool:
    """Whether no two dimensions of the first tensor are of one size, so that a shape says which it is."""
    shape = given.values[given.tensors()[0]].shape
    return len(set(shape)) == len(shape)


def _within_budget(trial: Trial) -> None:
    deadline = trial.options.deadline
    if deadline is not None and time.perf_counter() > deadline:
        raise BudgetSpentError


def against_autograd(trial: Trial, at: Setting, words: str, ranks: int | None = 0) -> Iterator[Row]:
    """A row for each gradient of a varied call, held against autograd of the same forward, or where that sees nothing
    against finite differences.

    Raises:
        RefusedError: the forward, or the backward loudly, takes no such call.
    """
    leaves = at.leaves()
    try:
        outputs = at.run(leaves)
    except Exception as error:
        raise RefusedError(one_line(error)) from error
    if not outputs or not any(o.numel() for o in outputs):
        raise RefusedError("there is no output")
    if ranks != 0 and not _follow(trial, outputs, ranks):
        raise RefusedError("its outputs do not follow: it takes that for another call")
    if words.endswith("without dimension 0") and not _are_of_the_first(trial, outputs):
        raise RefusedError("its outputs are not those of the first sample: it takes that for another call")
    if trial.references.is_numeric:
        rows = along_directions(trial, at, count=1, least=1e-3)
        try:
            yield from (replace(row, hint=f"{words}: {row.hint}" if row.hint else "") for row in rows)
        except Exception as error:
            raise RefusedError(one_line(error)) from error
        return
    try:
        others = at.leaves()
        plain = at.run_plain(others)
        upstream = at.upstream(plain)
        right = with_zeros(gradients_of(plain, others, upstream), others)
    except Exception as error:
        raise RefusedError(one_line(error)) from error
    if [o.shape for o in plain] != [o.shape for o in outputs]:
        raise RefusedError("its outputs have other shapes than the reference's")
    try:
        found = with_zeros(gradients_of(outputs, leaves, upstream), leaves)
    except Exception as error:
        raise RefusedError(f"backward raises {one_line(error)}") from error
    for i, leaf in enumerate(at.present):
        yield _judged(trial, at, leaf, i, found[i], right, plain, words)


def _follow(trial: Trial, outputs: Sequence[Tensor], ranks: int | None) -> bool:
    """Whether outputs have so many more dimensions, or are single numbers; or, of None, the very shapes."""
    if ranks is None:
        return [o.shape for o in outputs] == [o.shape for o in trial.references.own().outputs]
    given = [o.dim() for o in trial.references.own().outputs]
    now = [o.dim() for o in outputs]
    return len(given) == len(now) and all(n == (g + ranks if g else 0) for g, n in zip(given, now, strict=True))


def _are_of_the_first(trial: Trial, outputs: Sequence[Tensor]) -> bool:
    """Whether outputs without a dimension of samples are the first of the given call's, where they are not reduced."""
    given = trial.references.own().outputs
    pairs = [(g[0], o) for g, o in zip(given, outputs, strict=True) if g.dim() and g.shape[0]]
    return all(g.shape == o.shape and torch.allclose(g, o, 1e-3, 1e-3 * largest(g), equal_nan=True) for g, o in pairs)


def _judged(
    trial: Trial, at: Setting, leaf: Leaf, i: int, found: Tensor, all_right: list[Tensor], plain: Any, words: str
) -> Row:
    right = all_right[i]
    about: dict[str, Any] = {"dtype": name_of_dtype(right.dtype), "shape": tuple(right.shape)}
    if found.shape != right.shape or trial.options.allows(found, right):
        return trial.row(leaf.name, **about)
    known = right.isfinite()
    lost = int((known & ~found.isfinite()).sum())
    off = (found - right).abs().where(known & found.isfinite(), 0)
    tolerance = max(TOLERANCE, 256 * trial.eps)
    if not lost and largest(off) <= tolerance * largest(right):
        return trial.row(leaf.name, **about)
    upstream = at.upstream(plain)
    if trial.takes_any_side:
        sides = [s[i] for s in beside(at.run_plain, at.leaves(), upstream)]
        if sides and not lost and is_between(found.where(known, right), right, tolerance * largest(right), sides):
            return trial.row(leaf.name, **about)
        moved = max((largest((s - right).where(known & s.isfinite(), 0)) for s in sides[2:]), default=0.0)
        if not lost and largest(off) <= 0.1 * moved:
            return trial.row(leaf.name, **about)  # it is as ill-conditioned here
    if trial.subject.reference is None and not sides_with(at, i, right, None if lost else found, upstream):
        return trial.row(leaf.name, **about)
    wrong = f"{lost} entries are not finite" if lost else hint_for(found.where(known, 0), right.where(known, 0))
    relative = largest(off) / (largest(right) or 1.0)
    return trial.row(leaf.name, f"{words}: {wrong}", error_relative=relative, kind=VALUE, **about)
