"""From the recording of a step to its program: what becomes of the gradients, what is returned, the plan, the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp._torch import pytree
from torch_manualbp.derive.article import Article
from torch_manualbp.derive.buffers import changed_buffers, put_changes_last
from torch_manualbp.derive.clipping import BOUNDS, clip
from torch_manualbp.derive.expected import answers_of
from torch_manualbp.derive.held_memory import memory_of
from torch_manualbp.derive.history import History
from torch_manualbp.derive.kernel_text import kernels_of, write_kernel
from torch_manualbp.derive.plan import Plan, plan
from torch_manualbp.derive.processes import Reduction
from torch_manualbp.derive.program import CONSTANT, HELD, INPUT, STATE, Call, Memory, Program, Value
from torch_manualbp.derive.recording import Recording
from torch_manualbp.derive.runs import in_runs
from torch_manualbp.derive.source import Given, Source, used_values, write_source
from torch_manualbp.derive.update import forms_of, kind_of, kind_of_zeros, leave_gradient

__all__ = ["Assembled", "How", "OddStateError", "heading_of", "state_for"]

LETTERS = {"momentum_buffer": "v", "step": "step", "exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "vmax"}
"""What the state of the optimizers is called in formulas."""


@dataclass(frozen=True)
class How:
    """What kind of program is wanted."""

    folds: bool
    """Whether the update is part of it; otherwise it ends at ``.grad``."""

    adds: bool = False
    """Whether gradients are added to what is in ``.grad``."""

    share: float = 1.0
    """The part of the gradient: 1 / n where n of them are averaged."""

    compile: bool = False
    fuse: bool = False
    """Whether runs of calls become kernels."""

    skip_nonfinite: bool = False
    keep_deltas: bool = False
    keep_output: bool = False
    keep_layers: bool = False
    freeze_others: bool = False
    """Whether parameters that the optimizer does not hold are constants."""

    clip_norm: bool = False
    clip_value: bool = False
    """Whether gradients are clipped: by bounds that the step is given."""

    keep_grad_norm: bool = False
    evaluates: bool = False
    """Whether it ends at the loss."""

    processes: int = 1
    """How many processes' gradients it takes the mean of."""

    @property
    def needs_norm(self) -> bool:
        """Whether the norm of the gradients is computed."""
        return self.clip_norm or self.keep_grad_norm

    @property
    def clips(self) -> bool:
        """Whether something comes between the gradients and the update."""
        return self.needs_norm or self.clip_value

    @property
    def bounds(self) -> list[str]:
        """The bounds of gradients that the step is given, by name."""
        return [name for name in BOUNDS if getattr(self, name)]

    @property
    def skips(self) -> str:
        """The section before which a loss that is not finite ends the step, if it is to."""
        if not self.skip_nonfinite:
            return ""
        return "update" if self.folds else "gradients" if self.adds else "buffers"


class Assembled:
    """A program, planned and written.

    Args:
        recording: of the model and the loss; it is planned, and so of no use afterwards.
        named: the parameters and buffers by name.
        held: other tensors that the model and the loss hold, by name.
        heading: what the program is.
        is_looked_at: whether somebody may read it: Python's parser is to find in the text what was written.
    """

    def __init__(
        self,
        recording: Recording,
        optimizer: Optimizer,
        how: How,
        named: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        heading: list[str],
        is_looked_at: bool = True,
    ) -> None:
        self._recording, self._how = recording, how
        self._named = {**named, **held}
        self._names = {id(t): name for name, t in self._named.items()}
        history = None if recording.past is None else History(recording.past)  # before it is planned
        self.parameters = [W.tensor for W, _ in recording.learnt]
        self.groups = _groups(optimizer, self.parameters, self._names, how.folds)
        """The numbers of the optimizer's groups, and the form of the update of each."""

        self.forms: dict[Tensor, tuple[int, Any, dict[str, str]]] = {}
        """By parameter the number and form of its group, and the program's keys of its state."""

        self._state: dict[str, Value] = {}
        self._inputs = [*recording.inputs]
        program, buffers = (
            recording.program,
            changed_buffers(recording.program, map(recording.program.value, self._named.values())),
        )
        self.buffers = [value.tensor for value in buffers]
        """What forward changes: buffers, and parameters that do not learn."""

        self._buffers = {value.memory: value.tensor for value in buffers}
        learnt, grads = self._reduced()
        learnt, self.norm = self._clipped(learnt)
        program.section, program.title = ("update" if how.folds else "gradients"), ()
        if how.folds:
            put_changes_last(program, buffers)
        self._record_update(optimizer, learnt)
        gradients = self._record_gradients(learnt, grads)
        if not how.folds:
            program.section = "buffers"
            put_changes_last(program, buffers)
        self.count_of_gradients = len(gradients)
        """How many gradients it returns, at the end."""

        self.deltas = list(recording.deltas) if how.keep_deltas else []
        self.layers = recording.layers if how.keep_layers else ()
        self.output, self.output_spec = _flat(recording.output if how.keep_output else None)
        """The leaves of the model's output, with values for tensors, and how they are put together."""

        kept = [recording.deltas[path] for path in self.deltas]
        kept += [value for layer in self.layers for value in layer.numbers()]
        outputs = [leaf for leaf in self.output if isinstance(leaf, Value)]
        if self.finite is not None:
            kept.append(self.finite)
        norm = [] if self.norm is None else [self.norm]
        roots = [recording.C, *norm, *outputs, *gradients]
        grouped = in_runs if how.fuse and recording.device == "cpu" else None
        planned = plan(recording.program, roots, kept, lean=not how.compile, grouped=grouped)
        planned.kernels, self.kernels, firsts = kernels_of(planned)
        calls = Counter(planned.kernels.values())
        lengths = {name: sum(not c.is_view for c in call.function.calls) for name, call in firsts.items()}
        self.fused = {name: (count, count * lengths[name]) for name, count in calls.items()}
        """How often a step calls each kernel, and in place of how many calls."""

        kept = norm + kept
        kept = kept[-1:] + kept[:-1] if self.finite is not None else kept  # it is returned second
        self.answers = answers_of(planned.steps)
        """What it reads of the numbers, and has to find."""

        given = self._given(planned, (recording.C, *kept, *outputs, *gradients), held)

        def functions(source: Source) -> None:
            for name, call in firsts.items():
                write_kernel(source, name, call.function)

        self.source = write_source(planned, given, heading, functions)
        self.memory = memory_of(planned, self.source.names, given.returns) if is_looked_at else None
        """What memory it holds, of a program that is looked at."""

        self.source.names = {}  # with the tensors of the recording
        if is_looked_at:
            self.source.check()
        self.changes = self._changes(planned)
        """What each line of the update changes: parameters, and state by its key."""

        self.article = None if history is None else Article(history, self._members(), held, heading, how)
        del self._recording, self._state, self._inputs  # and the tensors of the recording with them

    def _reduced(self) -> tuple[Sequence[tuple[Value, Value]], list[Value]]:
        """The parameters with their gradients, those of all processes, and what is in ``.grad`` to be added to."""
        program, learnt, how = self._recording.program, self._recording.learnt, self._how
        grads = []
        if how.adds:
            grads = [program.add(torch.zeros_like(W.tensor).detach(), INPUT, f"grad_{W.name}") for W, _ in learnt]
            self._inputs += grads
        self.finite: Value | None = None
        """What is not finite where the step is left out by all processes."""

        self.buckets: list[str] = []
        """What is exchanged with other processes, in words, in order."""

        self.rooms: list[tuple[int, torch.dtype, torch.device]] = []
        """The size, dtype and device of each of these buckets."""

        if how.processes == 1 or how.evaluates or not learnt:
            return learnt, grads
        reduction = Reduction(program, learnt, how.processes, grads, self._recording.C if how.skips else None)
        self.finite, self.buckets, self.rooms = reduction.finite, reduction.buckets, reduction.rooms
        return reduction.learnt, grads

    def _clipped(self, learnt: Sequence[tuple[Value, Value]]) -> tuple[Sequence[tuple[Value, Value]], Value | None]:
        """The parameters with their gradients as they are clipped, and the norm of these before it, if it is asked
        for."""
        recording, how = self._recording, self._how
        if not how.clips or not learnt:
            return learnt, None
        if not self.buckets:  # which are the program's own
            others = [*recording.deltas.values(), *recording.outputs, recording.C]
            others += [value for layer in recording.layers for value in layer.numbers()]
            gradients = _fresh(recording.program, learnt, {value.memory for value in others})
            learnt = [(W, g) for (W, _), g in zip(learnt, gradients, strict=True)]
        return learnt, clip(recording.program, [g for _, g in learnt], how)

    def _record_update(self, optimizer: Optimizer, learnt: Sequence[tuple[Value, Value]]) -> None:
        """Fold the update into the program, with the state that the optimizer has, or with one of zeros."""
        program = self._recording.program
        for i, form in self.groups:
            items = []
            of_group = set(map(id, optimizer.param_groups[i]["params"]))
            for W, g in learnt:
                if id(W.tensor) not in of_group:
                    continue
                keys = {key: f"{self._names[id(W.tensor)]} {key}" for key in form.kinds(W.tensor)}
                self.forms[W.tensor] = i, form, keys
                state = {}
                for key, tensor in state_for(form, W.tensor, optimizer.state.get(W.tensor, {})).items():
                    state[key] = self._state[keys[key]] = program.add(tensor, STATE, f"{LETTERS[key]}_{W.name}")
                items.append((W, g, state))
            form.fold(program, items, pure=self._how.compile)

    def _record_gradients(self, learnt: Sequence[tuple[Value, Value]], grads: list[Value]) -> list[Value]:
        """Add the gradients to those that are given, or return them, where the optimizer makes its own step."""
        program = self._recording.program
        if self._how.folds:
            return []
        if not self._how.adds:
            return [g for _, g in learnt] if self._how.clips else _fresh(program, learnt)
        for (_, g), grad in zip(learnt, grads, strict=True):
            if self.buckets:  # with what was there in it
                program.append(Tensor.copy_, grad, g, writes=[grad])
            else:
                leave_gradient(program, grad, g)
        return []

    def _given(self, planned: Plan, returns: tuple[Value, ...], held: Mapping[str, Tensor]) -> Given:
        """What ``build`` and the step are given, and ``tensors``, which ``build`` is given by name."""
        program, how = self._recording.program, self._how
        used = used_values(planned) | set(returns)
        own = {name: program.value(t) for name, t in self._named.items() if program.value(t) in used}
        self.tensors = {name: self._named[name] for name in own}
        made = {value for item in planned.once if isinstance(item, Call) for value in item.results}
        constants: dict[str, Value] = {}
        count = 0
        numbers = program.numbers()  # in the order of the calls, which is the same at all sizes of data
        others = used - made - set(own.values()) - set(numbers)
        for value in (*sorted(others, key=lambda v: (v.name, str(v.tensor.dtype))), *(v for v in numbers if v in used)):
            if value.memory.origin not in (CONSTANT, HELD):
                continue
            if value.number is None:
                count += 1
                constants[f"constant {count}"], self.tensors[f"constant {count}"] = value, value.tensor
            else:
                constants[f"{value.name} {value.tensor.dtype}"] = value
        settings = [name + form.suffix for _, form in self.groups for name in form.settings] + how.bounds
        return Given(
            own, self._state, constants, self._inputs, settings, returns, how.skips, held, self.finite, how.processes
        )

    def _changes(self, planned: Plan) -> list[list[Tensor | str]]:
        keys: dict[Value, Tensor | str] = {value: key for key, value in self._state.items()}
        ids = set(map(id, self.parameters))
        update = [call.results for call in planned.steps if call.section == "update"]
        for v in {v for values in update for v in values} - keys.keys():
            if id(v.tensor) in ids or v.memory in self._buffers:
                keys[v] = self._buffers.get(v.memory, v.tensor)
        return [[keys[v] for v in values if v in keys] for values in update]

    def _members(self) -> list[tuple[Any, dict[str, Any]]]:
        """The form of the update of each group, and by name the kinds of the state of its parameters that learn."""
        members: dict[int, dict[str, Any]] = {i: {} for i, _ in self.groups}
        for p, (i, form, _) in self.forms.items():
            members[i][self._names[id(p)]] = form.kinds(p)
        return [(form, members[i]) for i, form in self.groups]


def _flat(output: Any) -> tuple[list[Any], Any]:
    """The model's output as a list of tensors and constants, and how they are put together."""
    leaves, spec = pytree.tree_flatten(output)
    for leaf in leaves:
        if not isinstance(leaf, Value | bool | int | float | str | None):
            raise ValueError(
                f"keep_output: the model returns a {type(leaf).__name__}, which may hold other numbers at each step; "
                "have it return tensors, or tuples, lists or dicts of them"
            )
    return leaves, spec


def _groups(optimizer: Optimizer, learnt: list[Tensor], names: dict[int, str], folds: bool) -> list[tuple[int, Any]]:
    """Which of the optimizer's groups hold what is learnt, and the form of their update where it is folded."""
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    again = [names[id(p)] for p in learnt if held[id(p)] > 1]
    if again and folds:
        raise ValueError(f"the optimizer holds {', '.join(again)} more than once: give it each parameter once")
    missing = [names[id(p)] for p in learnt if id(p) not in held]
    if missing:
        raise ValueError(
            f"the optimizer does not hold {', '.join(missing)}: give it all parameters that learn, freeze these with "
            "requires_grad_(False), or take them for constants by freeze_others=True"
        )
    ids = {id(p) for p in learnt}
    groups = optimizer.param_groups
    used = [i for i, group in enumerate(groups) if any(id(p) in ids for p in group["params"])]
    return list(zip(used, forms_of(optimizer, used), strict=True)) if folds else []


class OddStateError(RuntimeError):
    """The optimizer's state is of a kind that no program takes: its own step says what becomes of it."""


def state_for(form: Any, parameter: Tensor, theirs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The optimizer's own state, so that all programs have one; zeros where there is none.

    Raises:
        OddStateError: it is of another kind than torch makes it.
    """
    state = {}
    for name, kind in form.kinds(parameter).items():
        found = theirs.get(name)
        if found is None:
            shape, stride, dtype, device = kind
            found = torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()
        elif not isinstance(found, Tensor) or kind_of(found) != kind:
            raise OddStateError
        state[name] = found
    return state


def _fresh(program: Program, learnt: Iterable[tuple[Value, Value]], others: Iterable[Memory] = ()) -> list[Value]:
    """Each gradient in memory of its own, laid out as its parameter, as autograd leaves it in ``.grad``.

    Args:
        others: the memory of what is to stay as it is.
    """
    taken = set(others)
    gradients = []
    for W, g in learnt:
        made_by = program.producer(g)
        is_new = made_by is not None and g.memory in made_by.made and g.is_whole and g.memory not in taken
        shape, stride, _, _ = kind_of_zeros(W.tensor)  # of a parameter whose entries share memory another layout
        if not is_new or g.tensor.stride() != stride:
            with torch.no_grad():
                options = {"dtype": g.tensor.dtype, "device": g.tensor.device}
                room = program.call(torch.empty_strided, (tuple(shape), stride), options)
                program.call(Tensor.copy_, (room, g.tensor), {})
            g, name = program.value(room), f"d{W.name}"
            g.name = name
        taken.add(g.memory)
        gradients.append(g)
    return gradients


def heading_of(model: Module, loss: Any, optimizer: Optimizer, how: How) -> list[str]:
    name = getattr(loss, "__name__", type(loss).__name__)
    what = (
        f"with {type(optimizer).__name__}"
        if how.folds
        else f"up to the gradients, which {type(optimizer).__name__} takes"
    )
    title = f"The loss of {type(model).__name__} on {name}" if how.evaluates else ""
    return [
        f"{title or f'One training step of {type(model).__name__} on {name} {what}'}.",
        "",
        "Derived by torch_manualbp from the formulas of its rules; every line has the shape of what it makes.",
    ]
