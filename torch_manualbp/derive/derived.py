"""One derived program: planned, written, compiled, and what it needs to run."""

from __future__ import annotations

import itertools
import linecache
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from torch_manualbp.derive.article import Article
from torch_manualbp.derive.check import rounding
from torch_manualbp.derive.history import History
from torch_manualbp.derive.plan import plan
from torch_manualbp.derive.program import CONSTANT, HELD, INPUT, STATE, Blocks, Call, Memory, Program, Value
from torch_manualbp.derive.reads import dict_version
from torch_manualbp.derive.recording import KeptLayer, Recording, called, named_tensors, path_of_loss
from torch_manualbp.derive.source import Given, used_values, write_source
from torch_manualbp.derive.update import forms_of, has_odd_state, kind_of, kind_of_zeros, leave_gradient

__all__ = ["Derived", "How", "KeptLayer", "OddStateError", "called", "named_tensors", "path_of_loss"]

_is_autocast_enabled = torch._C._is_any_autocast_enabled
_numbers = itertools.count(1)
_version: Callable[[Tensor], int] = operator.attrgetter("_version")

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
    """Of the gradient: 1 / n where n of them are averaged."""

    compile: bool = False
    skip_nonfinite: bool = False
    keep_deltas: bool = False
    keep_output: bool = False
    keep_layers: bool = False


@dataclass(frozen=True)
class _Statement:
    """A line of the update, in the turn of the loop that it stands in."""

    line: int
    writes: list[Tensor]
    loop: Blocks | None = None
    rows: slice | None = None
    head: int = 0
    """The line of the loop."""

    def is_ahead(self, line: int, turns: dict[str, slice | None]) -> bool:
        """Whether it is still to be done when an exception comes on this line and the loops are in these turns."""
        if self.loop is None or self.rows is None:
            return self.line >= line
        now = turns[self.loop.variable]
        if now != self.rows:
            return now is None or self.rows.start > now.start
        return self.line >= line > self.head  # at the head its turn is over


class Derived:
    """A program, bound to the parameters of a model and the state of an optimizer.

    Args:
        recording: of the model and the loss; it is planned, and so of no use afterwards.
        named: the parameters and buffers by name.
        held: other tensors that the model and the loss hold, by name.
        uneven: which of the data have entries that share memory, or gaps.
        heading: what the program is.
    """

    def __init__(
        self,
        recording: Recording,
        optimizer: Optimizer,
        how: How,
        named: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        uneven: list[int],
        heading: list[str],
    ) -> None:
        self.how = how
        self.optimizer = optimizer
        self.device = recording.device
        self.uneven = uneven
        """Which of the data the program gets copies of, since it knows nothing of gaps and shared entries."""

        self.rounded = rounding(recording.program.dtypes(), recording.rules)
        """The part of itself that a number may be off by in rounding."""

        program = recording.program
        history = None if recording.past is None else History(recording.past)
        named = {**named, **held}
        names = {id(t): name for name, t in named.items()}
        self.parameters = [W.tensor for W, _ in recording.learnt]
        groups = _groups(optimizer, self.parameters, names, how.folds)
        self._groups = groups
        settings = [name + form.suffix for _, form in groups for name in form.settings]
        self._forms: dict[Tensor, tuple[int, Any, dict[str, str]]] = {}
        state: dict[str, Value] = {}
        leaves_of_output, self._output_spec = _flat(recording.output if how.keep_output else None)
        self._output = leaves_of_output
        program.section, program.title = ("update" if how.folds else "gradients"), ()
        for i, form in groups:
            items = []
            of_group = set(map(id, optimizer.param_groups[i]["params"]))
            for W, g in recording.learnt:
                if id(W.tensor) in of_group:
                    keys = {key: f"{names[id(W.tensor)]} {key}" for key in form.kinds(W.tensor)}
                    self._forms[W.tensor] = i, form, keys
                    of_W = {}
                    for key, tensor in _state_for(form, W.tensor, optimizer.state.get(W.tensor, {})).items():
                        of_W[key] = state[keys[key]] = program.add(tensor, STATE, f"{LETTERS[key]}_{W.name}")
                    items.append((W, g, of_W))
            form.fold(program, items, pure=how.compile)
        inputs = [*recording.inputs]
        gradients: list[Value] = []
        if not how.folds and how.adds:
            for W, g in recording.learnt:
                inputs.append(program.add(torch.zeros_like(W.tensor).detach(), INPUT, f"grad_{W.name}"))
                leave_gradient(program, inputs[-1], g)
        elif not how.folds:
            gradients = _fresh(program, recording.learnt)

        self.deltas = list(recording.deltas) if how.keep_deltas else []
        self.layers = recording.layers if how.keep_layers else ()
        kept = [recording.deltas[path] for path in self.deltas]
        kept += [value for layer in self.layers for value in layer.numbers()]
        outputs = [leaf for leaf in self._output if isinstance(leaf, Value)]
        planned = plan(program, [recording.C, *outputs, *gradients], kept, lean=not how.compile)
        self._count_of_gradients = len(gradients)
        tensors, own, constants = _given(planned, program, named, [*outputs, *gradients])
        self._tensors = tensors
        given = Given(
            own,
            state,
            constants,
            inputs,
            settings,
            (recording.C, *kept, *outputs, *gradients),
            skips=how.skip_nonfinite and (how.folds or how.adds),
            held=held,
        )
        self.source = write_source(planned, given, heading)
        self._article: Article | None = None
        if history is not None:
            self._article = Article(history, self._names_of_groups(names), held, heading, how)
        self.filename = f"<derived step {next(_numbers)}>"
        lines = self.source.text.splitlines(True)
        linecache.cache[self.filename] = (len(self.source.text), None, lines, self.filename)
        weakref.finalize(self, linecache.cache.pop, self.filename, None)
        namespace: dict[str, Any] = {}
        exec(compile(self.source.text, self.filename, "exec"), namespace)
        self._build = namespace["build"]
        update = [call.results for call in planned.steps if call.section == "update"]
        keys = {value: key for key, value in state.items()}
        ids = set(map(id, self.parameters))
        self._changes: list[list[Tensor | str]] = [
            [keys.get(v, v.tensor) for v in values if v in keys or id(v.tensor) in ids] for values in update
        ]
        """What each line of the update changes: parameters, and state by its key."""

        self._compiled_settings: tuple[list[float], list[Tensor]] = ([], [])
        self._bind()

    def _names_of_groups(self, names: dict[int, str]) -> list[tuple[Any, list[str]]]:
        """The form of the update of each group, with the names of its parameters that learn."""
        return [(form, [names[id(p)] for p, (of, *_) in self._forms.items() if of == i]) for i, form in self._groups]

    def _bind(self) -> None:
        """Bind the program to the state that the optimizer has, or to a new one."""
        self.state = {
            parameter: _state_for(form, parameter, self.optimizer.state.get(parameter) or {})
            for parameter, (_, form, _) in self._forms.items()
        }
        given = {keys[key]: t for p, (_, _, keys) in self._forms.items() for key, t in self.state[p].items()}
        with torch.device(self.device):  # not on the device that somebody has made the default
            self.step = self._build(self._tensors, given)
        self.written = [*self.parameters, *given.values()]
        self._given_state = given
        self._firsts = list({id(s.writes[0]): s.writes[0] for s in self._update() if s.writes}.values())
        """The first tensor that each line of the update changes."""

        self._stateful = [(p, ours) for p, ours in self.state.items() if ours]
        self._state_of_optimizer: Any = None
        self._dicts_of_state: list[dict[Any, Any]] = []
        self._versions_of_state: list[int] = []
        self._is_new = True
        """Whether the program has not written to the state yet."""

        cells = [cell.cell_contents for cell in self.step.__closure__ or ()]
        self.addresses = {t.untyped_storage().data_ptr() for t in (*cells, *self.written) if isinstance(t, Tensor)}
        """The memory that the program reads and writes while it runs."""

        if self.how.compile:
            self.step = torch.compile(self.step, fullgraph=True)

    def run(self, leaves: list[Tensor]) -> Any:
        """What the program returns. An exception leaves everything as it was before; one that comes once parameters
        have begun to change is raised when all have. Signals are to wait meanwhile."""
        for i in self.uneven:
            leaves[i] = leaves[i].clone()
        if not self.how.folds:
            return self._run(leaves, [])
        firsts = self._take_state()
        groups = self.optimizer.param_groups  # which load_state_dict replaces
        settings: list[Any] = [x for i, form in self._groups for x in form.numbers(groups[i])]
        if firsts:  # where v ← g and not (1 − d) g
            at = zip(((i, name) for i, form in self._groups for name in form.settings), settings, strict=True)
            settings = [0.0 if name == "dampening" and i in firsts else x for (i, name), x in at]
        if self.how.compile:
            settings = self._as_tensors(settings)
        versions = list(map(_version, self._firsts))
        try:
            result = self._run(leaves, settings)
        except BaseException as error:
            if self._complete(error.__traceback__, versions):
                self._commit()
            raise
        if not (self.how.skip_nonfinite and _is_skipped(result)):
            self._commit()
        return result

    def _run(self, leaves: list[Tensor], settings: list[Any]) -> Any:
        if not _is_autocast_enabled():
            return self.step(*leaves, *settings)
        with torch.autocast(self.device, enabled=False):  # the casts are in the program
            return self.step(*leaves, *settings)

    def gradients(self, result: Any) -> list[Tensor]:
        """The gradients among what the program returned, in the order of ``parameters``."""
        return list(result[-self._count_of_gradients :]) if self._count_of_gradients else []

    @property
    def article(self) -> Article:
        """The step as formulas."""
        if self._article is None:
            raise RuntimeError("a program that is only held against autograd has no article")
        return self._article

    def text_to_save(self) -> str:
        """The source, with the numbers of the tensors in it that are neither parameters nor buffers."""
        return self.source.text_with(self._tensors)

    def _as_tensors(self, settings: list[float]) -> list[Tensor]:
        """The hyperparameters as torch.compile takes them without compiling a program for each of their values."""
        if settings != self._compiled_settings[0]:
            self._compiled_settings = settings, [torch.tensor(x, dtype=torch.float64) for x in settings]
        return self._compiled_settings[1]

    def output(self, tensors: Iterable[Tensor]) -> Any:
        """The model's output, from the tensors that the program returns for it."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Value) else leaf for leaf in self._output]
        return pytree.tree_unflatten(leaves, self._output_spec)

    def _take_state(self) -> set[int]:
        """Work on the state that the optimizer has: its own, or what somebody loaded into it. Returns the groups whose
        parameters have none yet."""
        if not self._stateful or self._is_there():
            return set()
        theirs = self.optimizer.state
        if not all(self._has_state_of(p) for p, _ in self._stateful):
            if not self._is_new or any(map(theirs.get, self.state)):
                if has_odd_state(self.optimizer):
                    raise OddStateError
                self._bind()
            lacks = (p for p, ours in self._stateful if any((theirs.get(p) or {}).get(name) is None for name in ours))
            return {self._forms[p][0] for p in lacks}
        return set()

    def _is_there(self) -> bool:
        """Whether the optimizer has our state, as at the end of the last step."""
        return (
            self.optimizer.state is self._state_of_optimizer
            and list(map(dict_version, self._dicts_of_state)) == self._versions_of_state
        )

    def _has_state_of(self, parameter: Tensor) -> bool:
        theirs = self.optimizer.state.get(parameter) or {}
        return all(theirs.get(name) is tensor for name, tensor in self.state[parameter].items())

    def _commit(self) -> None:
        self._is_new = False
        if self._stateful and not self._is_there():
            theirs = self.optimizer.state
            for parameter, ours in self._stateful:
                if not self._has_state_of(parameter):
                    theirs[parameter].update(ours)
            self._state_of_optimizer = theirs
            self._dicts_of_state = [theirs, *(theirs[p] for p, _ in self._stateful)]
            self._versions_of_state = list(map(dict_version, self._dicts_of_state))
        self.optimizer._opt_called = True  # type: ignore[attr-defined] # which learning rate schedulers look at

    def _complete(self, traceback: TracebackType | None, versions: list[int]) -> bool:
        """Make what is left of an update that has begun. Returns whether there was one."""
        frame, line = self._where(traceback)
        first = self.source.sections.get("update")
        if frame is None or first is None or line <= first:
            return False
        statements = list(self._update())
        turns = {loop.variable: frame.f_locals.get(loop.variable) for _, loop in self.source.update if loop is not None}
        reached = next((i for i, it in enumerate(statements) if it.is_ahead(line, turns)), len(statements))
        namespace = {**frame.f_globals, **frame.f_locals}
        for statement in statements[max(reached, self._done(statements, versions)) :]:
            if statement.loop is not None:
                namespace[statement.loop.variable] = statement.rows
            exec(self.source.lines[statement.line - 1].strip(), namespace)
        return True

    def _update(self) -> Iterator[_Statement]:
        """The update, with its loops unrolled."""
        written = [[self._given_state[t] if isinstance(t, str) else t for t in changed] for changed in self._changes]
        lines = zip(self.source.update, written, strict=True)
        for loop, of_loop in itertools.groupby(lines, key=lambda item: item[0][1]):
            body = [(line, writes) for (line, _), writes in of_loop]
            for rows in [None] if loop is None else loop.slices():
                for line, writes in body:
                    yield _Statement(line, writes, loop, rows, head=body[0][0] - 1)

    def _done(self, statements: list[_Statement], versions: list[int]) -> int:
        """How many of them are done for certain, as the versions show of the tensors that they have changed."""
        counts = {id(t): t._version - before for t, before in zip(self._firsts, versions, strict=True)}
        done = 0
        for i, statement in enumerate(statements):
            for t in statement.writes:
                counts[id(t)] = counts.get(id(t), 0) - 1
            if statement.writes and counts[id(statement.writes[0])] >= 0:
                done = i + 1
        return done

    def _where(self, traceback: TracebackType | None) -> tuple[FrameType | None, int]:
        while traceback is not None:
            code = traceback.tb_frame.f_code
            if code.co_filename == self.filename and code.co_name == "step":
                return traceback.tb_frame, traceback.tb_lineno
            traceback = traceback.tb_next
        return None, 0


def _is_skipped(result: Any) -> bool:
    C = result[0] if isinstance(result, tuple) else result
    return not torch.isfinite(C)


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
            f"the optimizer does not hold {', '.join(missing)}: give it all parameters that learn, or freeze these "
            "with requires_grad_(False)"
        )
    ids = {id(p) for p in learnt}
    groups = optimizer.param_groups
    used = [i for i, group in enumerate(groups) if any(id(p) in ids for p in group["params"])]
    return list(zip(used, forms_of(optimizer, used), strict=True)) if folds else []


class OddStateError(RuntimeError):
    """The optimizer's state is of a kind that no program takes: its own step says what becomes of it."""


def _state_for(form: Any, parameter: Tensor, theirs: Mapping[str, Any]) -> dict[str, Tensor]:
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


def _fresh(program: Program, learnt: Iterable[tuple[Value, Value]]) -> list[Value]:
    """Each gradient in memory of its own, laid out as its parameter, as autograd leaves it in ``.grad``."""
    taken: set[Memory] = set()
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


def _given(
    planned: Any, program: Program, named: Mapping[str, Tensor], outputs: list[Value]
) -> tuple[dict[str, Tensor], dict[str, Value], dict[str, Value]]:
    """What ``build`` is given: tensors by name, and the values that the model's and the constants among them are."""
    used = used_values(planned) | set(outputs)
    own = {name: program.value(t) for name, t in named.items() if program.value(t) in used}
    tensors = {name: named[name] for name in own}
    made = {value for item in planned.once if isinstance(item, Call) for value in item.results}
    constants: dict[str, Value] = {}
    for value in sorted(used - made, key=lambda value: value.name):
        if value.memory.origin in (CONSTANT, HELD) and value not in own.values():
            key = f"constant {sum(v.number is None for v in constants.values()) + 1}"
            constants[key if value.number is None else f"{value.name} {value.tensor.dtype}"] = value
            if value.number is None:
                tensors[key] = value.tensor
    return tensors, own, constants


def heading_of(model: Module, loss: Any, optimizer: Optimizer, how: How) -> list[str]:
    name = getattr(loss, "__name__", type(loss).__name__)
    what = (
        f"with {type(optimizer).__name__}"
        if how.folds
        else f"up to the gradients, which {type(optimizer).__name__} takes"
    )
    return [
        f"One training step of {type(model).__name__} on {name} {what}.",
        "",
        "Derived by torch_manualbp from the formulas of its rules; every line has the shape of what it makes.",
    ]
