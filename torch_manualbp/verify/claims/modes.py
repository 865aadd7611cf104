"""Gradients are right whatever surrounds the call: modes, other calls, shared tensors, layouts, memory, dtypes."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._text import one_line
from torch_manualbp._torch import reset_compiler
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.claims.memory import written_over
from torch_manualbp.verify.claims.structure import RUNS_AGAIN
from torch_manualbp.verify.claims.varied import RefusedError, against_autograd
from torch_manualbp.verify.functions import recorded
from torch_manualbp.verify.measure import error_of, largest
from torch_manualbp.verify.precision import around
from torch_manualbp.verify.report import FAILS, OK, ROBUSTNESS, Row
from torch_manualbp.verify.subject import Setting, as_function, gradients_of, name_of_dtype, with_zeros
from torch_manualbp.verify.trial import Trial

__all__ = [
    "accumulated",
    "asks_the_compiler",
    "channels_last",
    "given_dtypes",
    "in_the_other_mode",
    "one_tensor_twice",
    "poisoned_memory",
    "two_forwards",
]

ROUNDED_ON_THE_WAY = 256.0
"""ε of a tensor's dtype by which its gradient is off where it was rounded to a dtype of fewer digits."""

IMAGES = {4: torch.channels_last, 5: torch.channels_last_3d}


def in_the_other_mode(trial: Trial) -> Iterator[Row]:
    """Gradients of a module are right in evaluation and in training mode, whichever it is given in."""
    at = trial.exact
    if not isinstance(at.target, Module):
        raise DoesNotApply("it is no module")
    target = copy.deepcopy(at.target)
    target.train(not at.target.training)
    other = at.with_target(target)
    other.plain = target if trial.subject.reference is None else other.plain
    words = "in training mode" if target.training else "in evaluation mode"
    yield from _held(trial, other, words)


def _held(trial: Trial, at: Setting, words: str) -> Iterator[Row]:
    try:
        yield from against_autograd(trial, at, words)
    except RefusedError as why:
        raise DoesNotApply(f"{words}: {why}") from why


def one_tensor_twice(trial: Trial) -> Iterator[Row]:
    """f(x, x) has the gradient of autograd's f(x, x), for every two inputs that may be one tensor."""
    trial.references.require_autograd()
    at = trial.exact
    start = at.leaves([])
    alike = [(t.shape, t.dtype) for t in start]
    pairs = [(p, q) for p, q in itertools.combinations(range(len(start)), 2) if alike[p] == alike[q]]
    if not pairs:
        raise DoesNotApply("no two of the tensors that take a gradient may be the same")
    ran, why = 0, ""
    for p, q in pairs[:6]:

        def twice(run: Callable[..., Any], p: int = p, q: int = q) -> Tensor:
            leaves = at.leaves([q])
            leaves[p] = leaves[q]
            outputs = run(leaves)
            return with_zeros(gradients_of(outputs, [leaves[q]], at.upstream(outputs)), [leaves[q]])[0]

        try:
            right, found = twice(at.run_plain), twice(at.run)
        except Exception as error:
            why = one_line(error)
            continue
        ran += 1
        names = f"{trial.leaves[p].name} and {trial.leaves[q].name}"
        scale = torch.full_like(right.abs(), max(trial.size_of(trial.leaves[p].name), largest(right)))
        yield trial.compared(trial.leaves[q], found, right, scale, hint=f"wrong where {names} are one tensor", slack=16)
    if not ran:
        raise DoesNotApply(why)


def two_forwards(trial: Trial) -> Iterator[Row]:
    """Two forwards before a backward, on other numbers, are no trouble to each other: nothing of the one is kept where
    the other puts its own."""
    at = trial.exact
    if trial.subject.swaps:
        raise DoesNotApply(RUNS_AGAIN)
    first, second = trial.versions(at, 2)
    apart = [one.results() for one in (first, second)]
    leaves = [one.leaves() for one in (first, second)]
    outputs = [one.run(own) for one, own in zip((first, second), leaves, strict=True)]
    for n in (0, 1):
        found = with_zeros(gradients_of(outputs[n], leaves[n], at.upstream(outputs[n])), leaves[n])
        for leaf, gradient, right in zip(trial.leaves, found, apart[n].gradients, strict=True):
            order = "first" if not n else "second"
            yield trial.compared(leaf, gradient, right, hint=f"wrong for the {order} of two forwards before a backward")


def accumulated(trial: Trial) -> Iterator[Row]:
    """``backward()`` puts into ``.grad`` what ``autograd.grad`` returns, and of two it puts twice that."""
    at, right = trial.exact, trial.references.own()
    leaves = at.leaves()
    before = [t.detach().clone() for t in leaves]
    over = ""
    for times in (1, 2):
        outputs = at.run(leaves)
        pairs = [(o, u) for o, u in zip(outputs, at.upstream(outputs), strict=True) if o.requires_grad]
        with around(at.dtype):
            torch.autograd.backward([o for o, _ in pairs], [u for _, u in pairs])
        found = with_zeros([t.grad for t in leaves], leaves)
        for leaf, gradient, once in zip(trial.leaves, found, right.gradients, strict=True):
            of = "backward()" if times == 1 else "two times backward()"
            hint = f".grad after {of} is not the gradient"
            row = trial.compared(leaf, gradient, times * once, hint=f"{hint}, since {over}" if over else hint, slack=2)
            yield replace(row, kind=ROBUSTNESS) if over and not row.ok else row
        over = written_over(trial, leaves, before)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is not yet written to is full of NaN."""
    was, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def poisoned_memory(trial: Trial) -> Iterator[Row]:
    """Nothing is read that was not written: gradients are the same where new memory is full of NaN."""
    right = trial.references.own()
    with poisoned():
        found = trial.exact.results()
    yield from trial.same(found, right, hint="it reads memory that was never written")


def given_dtypes(trial: Trial) -> Iterator[Row]:
    """Where tensors are of several dtypes, each gradient has the digits of its own tensor: none is rounded to the
    fewer digits of another on its way."""
    trial.references.require_autograd()
    subject = trial.subject
    dtypes = {leaf.tensor.dtype for leaf in trial.leaves}
    if len(dtypes) < 2:
        raise DoesNotApply("all tensors are of one dtype")
    at = Setting(subject, None)  # type: ignore[arg-type]
    leaves = at.leaves()
    with recorded() as applications:
        outputs = at.run(leaves)
    captured: dict[int, Any] = {}
    for n, application in enumerate(applications):
        if application.node is not None:
            application.node.register_prehook(_keeper(captured, n))
    upstream = at.upstream(outputs)
    found = with_zeros(gradients_of(outputs, leaves, upstream, retain_graph=True), leaves)
    narrow: dict[int, torch.dtype] = {}
    for n, of_outputs in captured.items():
        raw = applications[n].node.apply(*of_outputs)
        for gradient, arg in zip(raw if isinstance(raw, tuple) else (raw,), applications[n].args, strict=False):
            if isinstance(gradient, Tensor) and isinstance(arg, Tensor) and _digits(gradient) < _digits(arg):
                narrow[id(arg)] = gradient.dtype
    wide = _wider(at)
    exact = wide.leaves()
    plain = wide.run_plain(exact)
    upstream = [u.to(o.dtype) for u, o in zip(upstream, plain, strict=True)]
    right = with_zeros(gradients_of(plain, exact, upstream), exact)
    for i, leaf in enumerate(trial.leaves):
        about: dict[str, Any] = {"dtype": name_of_dtype(found[i].dtype), "shape": tuple(found[i].shape)}
        scale = torch.full_like(right[i].abs(), largest(right[i]))
        error = error_of(found[i], right[i], scale, found[i].dtype)
        wrong = ""
        if id(leaves[i]) in narrow and error.ulps > ROUNDED_ON_THE_WAY:
            wrong = f"backward returns it in {name_of_dtype(narrow[id(leaves[i])])}, and its digits are lost"
        yield Row(leaf.name, "", FAILS if wrong else OK, error_ulps=error.ulps, hint=wrong, **about)


def _keeper(captured: dict[int, Any], n: int) -> Callable[[Any], None]:
    def keep(upstream: Any) -> None:
        captured[n] = upstream

    return keep


def _digits(t: Tensor) -> float:
    return -torch.finfo(t.dtype).eps if t.is_floating_point() or t.is_complex() else 0.0


def _wider(at: Setting) -> Setting:
    """The same numbers in float64."""
    wide = at.subject.setting(at.subject.wide)
    changed = wide.with_values([wide.cast(v) if isinstance(v, Tensor) else v for v in at.values])
    changed.state = {name: wide.cast(t) for name, t in at.state.items()}
    return changed


def channels_last(trial: Trial) -> Iterator[Row]:
    """Images and volumes with their channels last, as inputs and as upstream gradients, give what they give laid out
    plainly."""
    at = trial.exact
    if not any(at.values[i].dim() in IMAGES for i in at.tensors()):
        raise DoesNotApply("there is no image or volume")
    right = trial.references.own()
    last = at.mapped(_laid_out, parameters=True)
    leaves = last.leaves()
    outputs = last.run(leaves)
    for kind in ("inputs", "inputs and upstream gradients"):
        upstream = [u if kind == "inputs" else _laid_out(u) for u in at.upstream(outputs)]
        found = with_zeros(gradients_of(outputs, leaves, upstream, retain_graph=True), leaves)
        for leaf, gradient, plain in zip(trial.leaves, found, right.gradients, strict=True):
            yield trial.compared(leaf, gradient, plain, hint=f"wrong for channels_last {kind}")


def _laid_out(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=IMAGES[t.dim()]) if t.dim() in IMAGES else t


def asks_the_compiler(trial: Trial) -> Iterator[Row]:
    """What asks whether it is being compiled has the same gradients if it is: first it is told so, and where that makes
    a difference it is compiled."""
    at, right = trial.exact, trial.references.own()
    with _told_it_is_compiled() as asked:
        try:
            found: Sequence[Tensor] = at.results().gradients
        except Exception:
            found = []
    if not asked:
        raise DoesNotApply("it does not ask")
    if len(found) == len(right.gradients) and all(map(torch.equal, found, right.gradients)):
        yield Row("", verdict=OK, hint="it asks, and does the same")
        return
    reset_compiler()
    run = torch.compile(as_function(at), backend="aot_eager")
    compiled = at.results(lambda leaves: run(*leaves))
    yield from trial.same(compiled, right, hint="under torch.compile")


@contextlib.contextmanager
def _told_it_is_compiled() -> Iterator[list[bool]]:
    compiler: Any = torch.compiler
    asked: list[bool] = []
    before = compiler.is_compiling

    def is_compiling() -> bool:
        asked.append(True)
        return True

    compiler.is_compiling = is_compiling
    try:
        yield asked
    finally:
        compiler.is_compiling = before
