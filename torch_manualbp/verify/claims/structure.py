"""What ``backward`` itself returns, before the engine repairs it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.functions import Application, recorded
from torch_manualbp.verify.report import ADVICE, Row
from torch_manualbp.verify.subject import Setting, gradients_of, name_of_dtype
from torch_manualbp.verify.trial import Trial

__all__ = ["frozen", "raw_backward"]

RUNS_AGAIN = "its backward runs its forward again, with what it has then"

MANY = 8
"""Tensors that are looked at one by one; the others are left to the values."""


def raw_backward(trial: Trial) -> Iterator[Row]:
    """Each Function's ``backward`` returns one entry for each argument of ``forward``: None where no gradient is needed
    (a gradient there is work for nothing), elsewhere a tensor of the argument's shape, dtype, device and layout. The
    engine sums, expands and casts some of what is otherwise, and takes None for 0."""
    if not trial.subject.functions:
        raise DoesNotApply("there is no autograd.Function in it")
    for leaf in trial.subject.constants:
        wrong = "backward returns None for it, as for a constant: if it is none, pass it with requires_grad=True"
        yield trial.row(leaf.name, wrong, kind=ADVICE)
    dtypes = dict.fromkeys((torch.float64, torch.float32, trial.subject.dtype))
    seen: set[tuple[str, str]] = set()
    for dtype in [torch.float64] if trial.has_twin else dtypes:
        every: list[list[int] | None] = [None]
        if len(trial.leaves) > 1 and dtype == torch.float64:
            every += [[i] for i in range(len(trial.leaves))]
        for needed in every:
            for row in _of_run(trial, trial.subject.setting(dtype), needed):
                if (row.name, row.hint) not in seen:
                    seen.add((row.name, row.hint))
                    yield row


def _of_run(trial: Trial, at: Setting, needed: list[int] | None) -> Iterator[Row]:
    leaves = at.leaves(needed)
    with recorded() as applications:
        outputs = at.run(leaves)
    captured: dict[int, Any] = {}
    for i, application in enumerate(applications):
        if application.node is not None:

            def capture(upstream: Any, i: int = i) -> None:
                captured[i] = upstream

            application.node.register_prehook(capture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradients_of(outputs, leaves, at.upstream(outputs), retain_graph=True)
    for i, upstream in captured.items():
        raw = applications[i].node.apply(*upstream)
        yield from _rows(trial, applications[i], raw if isinstance(raw, tuple) else (raw,), leaves, at)


def _rows(
    trial: Trial, application: Application, raw: Sequence[Any], leaves: Sequence[Tensor], at: Setting
) -> Iterator[Row]:
    name, args = application.function.__name__, application.args
    dtype = name_of_dtype(at.dtype)
    extra = raw[len(args) :]
    if len(raw) < len(args) or any(e is not None for e in extra):
        wrong = f"backward of {name} returns {len(raw)} gradients for {len(args)} arguments of forward"
        yield trial.row(name, wrong, dtype=dtype)
        return
    where = {id(leaf): trial.leaves[i].name for i, leaf in enumerate(leaves)}
    needed = application.node.needs_input_grad
    for i, (gradient, arg) in enumerate(zip(raw, args, strict=False)):
        of = where.get(id(arg), f"{name} argument {i}")
        wrong, note = _wrong(gradient, arg, needed[i], trial.has_twin)
        if wrong:
            yield trial.row(of, f"backward of {name} returns for argument {i} {wrong}", dtype=dtype)
        elif needed[i] or note:
            shape = tuple(arg.shape) if isinstance(arg, Tensor) else ()
            yield trial.row(of, note=f"argument {i}: {note}" if note else "", dtype=dtype, shape=shape)


def _wrong(gradient: Any, arg: Any, is_needed: bool, is_rule: bool) -> tuple[str, str]:
    """What is wrong with it, and what is only worth knowing: for a rule of ours that is wrong, too."""
    if not is_needed:
        if gradient is not None and not isinstance(arg, Tensor):
            return f"a {type(gradient).__name__}, and it is no tensor: return None", ""
        note = "" if gradient is None else "computed, though it is not needed: see ctx.needs_input_grad"
        return (note, "") if is_rule else ("", note)
    if gradient is None:
        return "None, and it needs a gradient" if is_rule else "", ""  # the values say whether it should be 0
    if not isinstance(gradient, Tensor):
        return f"a {type(gradient).__name__}, and no tensor", ""
    if gradient.shape != arg.shape:
        hint = ""
        if gradient.dim() >= arg.dim() and gradient.numel() > arg.numel():
            hint = ": missing sum, which the engine makes up for where it can"
        return f"a gradient of shape {tuple(gradient.shape)}, and not {tuple(arg.shape)}{hint}", ""
    if gradient.dtype != arg.dtype:
        return f"{name_of_dtype(gradient.dtype)}, and it is {name_of_dtype(arg.dtype)}: the engine casts in silence", ""
    if gradient.device != arg.device:
        return f"a gradient on {gradient.device}, and not {arg.device}", ""
    if gradient.layout != arg.layout and gradient.layout != torch.sparse_coo:
        return f"the layout {gradient.layout}, and not {arg.layout}", ""
    return "", ""


def frozen(trial: Trial) -> Iterator[Row]:
    """With all but one tensor frozen, that one's gradient is the same; those of a target also with others frozen."""
    if len(trial.leaves) < 2 and not trial.has_twin:
        raise DoesNotApply("there is one tensor only")
    if trial.subject.swaps:
        raise DoesNotApply(RUNS_AGAIN)
    every = trial.references.own()
    for needed in _subsets(len(trial.leaves), trial.has_twin):
        found = trial.exact.results(leaves=trial.exact.leaves(needed)).gradients
        hint = "another gradient than beside the others' while these are frozen"
        if len(needed) > 1:
            names = [leaf.name for i, leaf in enumerate(trial.leaves) if i not in needed]
            hint = f"another gradient while {', '.join(names[:3])}{' …' if names[3:] else ''} frozen"
        for i in needed:
            yield trial.compared(trial.leaves[i], found[i], every.gradients[i], hint=hint, slack=trial.to_the_bit)


def _subsets(count: int, alone: bool) -> list[tuple[int, ...]]:
    """Which tensors are not frozen: each alone; and all but one, of few every set."""
    single: list[tuple[int, ...]] = [(i,) for i in range(min(count, MANY))]
    if alone:
        return single
    if count <= 4:
        return [s for n in range(1, count) for s in itertools.combinations(range(count), n)]
    return single + [tuple(i for i in range(count) if i != left) for left in range(min(count, MANY))]
