"""A step as a text to read: forward, loss, backward and update as straight-line formulas in the model's names.

It computes what the program computes, runs as it is, and knows nothing of memory: every line makes what it is called.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.derive.buffers import changed_buffers, put_changes_last
from torch_manualbp.derive.clipping import norm_function, write_clipping
from torch_manualbp.derive.formulas import Formulas
from torch_manualbp.derive.history import History
from torch_manualbp.derive.passes import Tenants, needed, without_copies, without_repetition
from torch_manualbp.derive.processes import mean_function, write_reduction
from torch_manualbp.derive.program import INPUT, STATE, Call, Formula, Program, Value, words
from torch_manualbp.derive.recording import Recording
from torch_manualbp.derive.replay import Replay, replayed
from torch_manualbp.derive.source import (
    Given,
    Sections,
    Source,
    shape_of,
    write_expect,
    write_given,
    write_imports,
    write_return,
    write_signature,
)
from torch_manualbp.derive.tape import one_at_a_time
from torch_manualbp.derive.textbook import APPLY, functions_of, write_update

__all__ = ["LETTERS", "Article"]

LETTERS = {"momentum_buffer": "v", "step": "t", "exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "v_max"}
"""What the state of the optimizers is called in formulas."""

MINDS_ORDER = words("view view_as as_strided view_as_real view_as_complex unfold")
"""What depends on the order in which numbers lie in memory."""

WIDTH = 100
"""The columns of a statement that names what stays."""


@dataclass(frozen=True)
class Article:
    """What the text of a step is made of when somebody asks for it.

    Args:
        history: the rules that were applied.
        groups: the form of the update of each group of parameters, and by their names the kinds of their state.
        named: other tensors that the model and the loss hold, by name.
        heading: what the program is.
        how: what kind of program it is.
    """

    history: History
    groups: Sequence[tuple[Any, Mapping[str, Mapping[str, Any]]]]
    held: Mapping[str, Tensor]
    heading: list[str]
    how: Any

    @functools.cached_property
    def _written(self) -> _Writer:
        with one_at_a_time, torch.inference_mode(False):  # Python's parser, too, serves one thread
            recording, replay = replayed(self.history)
            return _Writer(self, recording, replay)

    @property
    def source(self) -> Source:
        """The text.

        Raises:
            NotDerivableError: a rule asks for numbers.
        """
        return self._written.source

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that the text has and that are neither parameters nor buffers, by name."""
        return self._written.tensors

    def text_to_save(self) -> str:
        """The text, with the numbers of the tensors in it that are neither parameters nor buffers."""
        return self.source.text_with(self._written.tensors)


class _Writer:
    """Writes an article down."""

    def __init__(self, article: Article, recording: Recording, replay: Replay) -> None:
        self.article, self.recording, self.replay = article, recording, replay
        self.program: Program = recording.program
        self.tensors = dict(article.held)
        """Those that are neither parameters nor buffers, by the names that the text has for them."""

        self.parameters = {name: replay.value(value) for name, value in article.history.named.items()}
        self.state: dict[str, Value] = {}
        self.inputs = [*recording.inputs]
        how, gradients = article.how, self._update()
        kept, outputs = self._kept()
        kept = kept if self.norm is None else [self.norm, *kept]
        kept = kept if self.finite is None else [self.finite, *kept]
        returns = (recording.C, *kept, *outputs, *gradients)
        self.calls = self._calls(list(returns))
        used = {value for call in self.calls for value in (*call.arguments(), *call.results)} | set(returns)
        given = Given(
            {name: value for name, value in self.parameters.items() if value in used},
            self.state,
            self._constants(used),
            self.inputs,
            [name + form.suffix for form, _ in article.groups for name in form.settings] + how.bounds,
            returns,
            how.skips,
            article.held,
            self.finite,
            how.processes if self.reduces else 1,
        )
        self.source = self._written(given)

    def _update(self) -> list[Value]:
        """Record what becomes of the gradients. Returns those that the step gives away."""
        how, program, learnt = self.article.how, self.program, dict(self.recording.learnt)
        buffers = changed_buffers(program, self.parameters.values())
        grads: dict[Value, Value] = {}
        if how.adds:
            grads = {W: program.add(torch.empty_like(W.tensor), INPUT, f"grad_{W.name}") for W in learnt}
            self.inputs += grads.values()
        self.finite: Value | None = None
        self.reduces = how.processes > 1 and not how.evaluates and bool(learnt)
        if self.reduces:
            learnt, self.finite = write_reduction(program, learnt, grads, self.recording.C if how.skips else None)
        self.norm: Value | None = None
        if how.clips and learnt:
            learnt, self.norm = write_clipping(program, learnt, how)
        program.section, program.title = ("update" if how.folds else "gradients"), ()
        if how.folds:
            put_changes_last(program, buffers)
        for form, members in self.article.groups:
            items = []
            for name, kinds in members.items():
                W = self.parameters[name]
                state = {key: self._state(f"{name} {key}", key, W, kind) for key, kind in kinds.items()}
                items.append((W, learnt[W], state))
            write_update(form, program, items)
        if how.folds:
            return []
        if how.adds:
            for W, g in learnt.items():
                sign = "=" if self.reduces else "+="
                program.append(sign, grads[W], Formula("{}", (g,)), writes=[grads[W]])
        program.section = "buffers"
        put_changes_last(program, buffers)
        return [] if how.adds else list(learnt.values())

    def _state(self, key: str, letter: str, W: Value, kind: Any) -> Value:
        shape, stride, dtype, _ = kind
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device=W.tensor.device)
        self.state[key] = self.program.add(tensor, STATE, f"{LETTERS[letter]}_{W.name}")
        return self.state[key]

    def _kept(self) -> tuple[list[Value], list[Value]]:
        """What is returned beside the loss."""
        how, recording = self.article.how, self.recording
        kept = list(recording.deltas.values()) if how.keep_deltas else []
        if how.keep_layers:
            kept += [value for layer in recording.layers for value in layer.numbers()]
        return kept, list(recording.outputs) if how.keep_output else []

    def _calls(self, returns: list[Value]) -> list[Call]:
        """The calls that somebody reads, each once."""
        calls = needed(self.program.calls, returns)
        tenants = Tenants(calls)
        calls = without_repetition(calls, returns, tenants)
        minds_order = any(call.name in MINDS_ORDER for call in calls)
        return without_copies(calls, returns, tenants, in_any_order=not minds_order)

    def _constants(self, used: set[Value]) -> dict[str, Value]:
        """Tensors that nobody has a name for, as keys of the parameters."""
        known = set(self.parameters.values())
        constants: dict[str, Value] = {}
        for value in sorted(used - known, key=lambda value: value.name):
            if value in self.replay.program.given:
                key = f"constant {len(constants) + 1}"
                constants[key] = value
                self.tensors[key] = self.replay.program.given[value]
        return constants

    def _written(self, given: Given) -> Source:
        formulas = Formulas(self.calls, given)
        source = Source(self.article.heading)
        write_imports(source, formulas.use_functional, skips=bool(given.skips))
        write_expect(source, self.calls)
        for lines in functions_of(form for form, _ in self.article.groups):
            source.function(lines)
        if self.reduces:
            source.function(mean_function(self.article.how.processes))
        if self.norm is not None:
            source.function(norm_function())
        write_given(source, given, formulas.names)
        write_signature(source, given, formulas.names)
        stays = {*given.parameters.values(), *given.state.values()}
        changed = [call.results[0] for call in self.calls if call.function in ("-=", "+=", "*=")]
        _write_nonlocal(source, [formulas.names[value] for value in dict.fromkeys(changed) if value in stays])
        sections = Sections(source, given, formulas.names)
        for call, text in formulas.statements():
            made = call.results[:1] if call.function == APPLY else call.results
            source.add(text, sections.go_to(call), ", ".join(map(shape_of, made)))
        write_return(source, given, formulas.names)
        source.check()
        return source


def _write_nonlocal(source: Source, names: list[str]) -> None:
    """Say that these are the tensors of ``build``: what is assigned to is a function's own otherwise."""
    while names:
        n = 1
        while n < len(names) and len(", ".join(names[: n + 1])) < WIDTH:
            n += 1
        source.add(f"nonlocal {', '.join(names[:n])}", 8)
        names = names[n:]
