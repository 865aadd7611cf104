"""One derived program: written down, planned, compiled, and what it needs to run."""

from __future__ import annotations

import contextlib
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

from torch_manualbp.derive.effects import DRAWS
from torch_manualbp.derive.plan import plan
from torch_manualbp.derive.program import CONSTANT, STATE, Blocks, Call, Program, Value
from torch_manualbp.derive.source import Source, used_values, write_source
from torch_manualbp.derive.tape import NotDerivableError, Tape, identifier
from torch_manualbp.derive.update import forms_of, leave_gradient
from torch_manualbp.rules.linear import Linear

__all__ = ["Derived", "How", "KeptLayer", "called", "named_tensors", "path_of_loss"]

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
class KeptLayer:
    """One use of a linear layer, with the activation that takes its z, if one does. What it keeps are values of the
    program, and of a step its tensors: x, z, a, δ = ∂C/∂z, ∂C/∂a. None is what the step does without."""

    path: str
    x: Any
    z: Any
    a: Any
    delta: Any
    da: Any
    f: Callable[[Tensor], Tensor] | None
    """The activation, if it acts on each entry alone."""

    def numbers(self) -> tuple[Any, ...]:
        """What of it is a value or a tensor."""
        return tuple(item for item in self._fields() if item is not None)

    def of_step(self, tensors: Iterator[Tensor]) -> KeptLayer:
        """The same with the tensors of a step, in the order of ``numbers``."""
        x, z, a, delta, da = (None if item is None else next(tensors) for item in self._fields())
        return KeptLayer(self.path, x, z, a, delta, da, self.f)

    def _fields(self) -> tuple[Any, ...]:
        return self.x, self.z, self.a, self.delta, self.da


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
        gradients: the tensors that ``.grad`` is to be, by parameter; those that are missing are added.
    """

    def __init__(
        self,
        model: Module,
        loss: Callable[..., Tensor],
        optimizer: Optimizer,
        inputs: Any,
        target: Any,
        how: How,
        gradients: dict[Tensor, Tensor],
    ) -> None:
        self.how = how
        self.optimizer = optimizer
        named = named_tensors(model, loss)
        tape, C, output, leaves = _run_on_tape(model, loss, named, inputs, target, how)
        program = tape.program
        given = (leaf for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor))
        self.uneven = [i for i, (t, copy) in enumerate(zip(given, leaves, strict=True)) if t.stride() != copy.stride()]
        """Which of the data have entries that share memory, or gaps, which the program knows nothing of."""

        self.device = tape.device
        self.names = {id(p): name for name, p in named.items()}
        order = {id(p): n for n, p in enumerate(named.values())}
        learnt = sorted(tape.gradients.items(), key=lambda item: order[id(item[0].tensor)])
        self.parameters = [W.tensor for W, _ in learnt]
        groups = _groups(optimizer, self.parameters, self.names, how.folds)
        self.settings = [(i, name) for i, form in groups for name in form.settings]
        settings = [name + form.suffix for _, form in groups for name in form.settings]

        state: dict[str, Value] = {}
        tensors_of_state: dict[str, Tensor] = {}
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.gradients: dict[Tensor, Tensor] = {}

        def held(name: str, tensor: Tensor, letters: str) -> Value:
            tensors_of_state[name] = tensor
            state[name] = program.add(tensor, STATE, letters)
            return state[name]

        program.section, program.title = ("update" if how.folds else "gradients"), ()
        for i, form in groups:
            items = []
            for W, g in learnt:
                if any(W.tensor is p for p in optimizer.param_groups[i]["params"]):
                    self.state[W.tensor] = _shared(form.new_state(W.tensor), optimizer.state.get(W.tensor, {}))
                    name = self.names[id(W.tensor)]
                    names = [(key, f"{LETTERS[key]}_{W.name}", t) for key, t in self.state[W.tensor].items()]
                    items.append((W, g, {key: held(f"{name} {key}", t, letters) for key, letters, t in names}))
            form.fold(program, items, pure=how.compile)
        for W, g in learnt if not how.folds else []:
            self.gradients[W.tensor] = gradients.setdefault(W.tensor, torch.zeros_like(W.tensor).detach())
            grad = held(f"{self.names[id(W.tensor)]} grad", self.gradients[W.tensor], f"grad_{W.name}")
            leave_gradient(program, grad, g, how.adds)

        deltas = _deltas(tape, path_of_loss(model)) if how.keep_deltas else {}
        self.deltas = list(deltas)
        self.layers = _layers(tape) if how.keep_layers else []
        kept = [*deltas.values(), *(value for layer in self.layers for value in layer.numbers())]
        leaves_of_output, self._output_spec = _flat(output if how.keep_output else None)
        self._output = [program.value(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves_of_output]
        outputs = [leaf for leaf in self._output if isinstance(leaf, Value)]
        planned = plan(program, [C, *outputs], kept, lean=not how.compile)
        self.written = [*self.parameters, *(t for state in self.state.values() for t in state.values())]
        self.addresses = {t.untyped_storage().data_ptr() for t in self.written}
        ids = set(map(id, self.written))
        update = [call for call in planned.steps if call.section == "update"]
        self._writes = [[v.tensor for v in call.results if id(v.tensor) in ids] for call in update]
        tensors, own, constants = _given(planned, program, named, outputs)
        self.source: Source = write_source(
            planned,
            own,
            state,
            constants,
            [program.value(leaf) for leaf in leaves],
            settings,
            (C, *kept, *outputs),
            heading=_heading(model, loss, optimizer, how),
            skips=how.skip_nonfinite,
        )
        self.filename = f"<derived step {next(_numbers)}>"
        linecache.cache[self.filename] = (
            len(self.source.text),
            None,
            self.source.text.splitlines(True),
            self.filename,
        )
        weakref.finalize(self, linecache.cache.pop, self.filename, None)
        namespace: dict[str, Any] = {}
        exec(compile(self.source.text, self.filename, "exec"), namespace)
        self.step = namespace["build"](tensors, tensors_of_state)
        self._compiled_settings: tuple[list[float], list[Tensor]] = ([], [])
        if how.compile:
            self.step = torch.compile(self.step, fullgraph=True)

    def run(self, leaves: list[Tensor]) -> Any:
        """What the program returns. An exception leaves everything as it was before; one that comes once parameters
        have begun to change is raised when all have."""
        for i in self.uneven:
            leaves[i] = leaves[i].clone()
        groups = self.optimizer.param_groups  # which load_state_dict replaces
        settings: list[Any] = [_setting(groups[i], name) for i, name in self.settings]
        if self.state and not self._take_state():
            settings = [0.0 if name == "dampening" else x for (_, name), x in zip(self.settings, settings, strict=True)]
        if self.how.compile:
            settings = self._as_tensors(settings)
        versions = list(map(_version, self.written))
        try:
            with torch.autocast(self.device, enabled=False) if _is_autocast_enabled() else contextlib.nullcontext():
                # The casts are in the program.
                result = self.step(*leaves, *settings)
        except BaseException as error:
            if self.how.folds and self._complete(error.__traceback__, versions):
                self._commit()
            raise
        if self.how.folds and not (self.how.skip_nonfinite and _is_skipped(result)):
            self._commit()
        return result

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

    def _take_state(self) -> bool:
        """Take over the state that the optimizer has: its own, or what somebody loaded into it. Returns whether it has
        any: on the first step v ← g and not (1 − d) g."""
        has_state = True
        theirs = self.optimizer.state
        for parameter, ours in self.state.items():
            of_parameter = theirs.get(parameter) or {}
            for name, tensor in ours.items():
                found = of_parameter.get(name)
                if found is not tensor:
                    if found is None:
                        tensor.zero_()
                        has_state = False
                    else:
                        tensor.copy_(found)
        return has_state

    def _commit(self) -> None:
        theirs = self.optimizer.state
        for parameter, ours in self.state.items():
            of_parameter = theirs[parameter]
            for name, tensor in ours.items():
                if of_parameter.get(name) is not tensor:
                    of_parameter[name] = tensor
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
        lines = zip(self.source.update, self._writes, strict=True)
        for loop, of_loop in itertools.groupby(lines, key=lambda item: item[0][1]):
            body = [(line, writes) for (line, _), writes in of_loop]
            for rows in [None] if loop is None else loop.slices():
                for line, writes in body:
                    yield _Statement(line, writes, loop, rows, head=body[0][0] - 1)

    def _done(self, statements: list[_Statement], versions: list[int]) -> int:
        """How many of them are done for certain, as the versions show of the tensors that they have changed."""
        counts = {id(t): t._version - before for t, before in zip(self.written, versions, strict=True)}
        done = 0
        for i, statement in enumerate(statements):
            for t in statement.writes:
                counts[id(t)] -= 1
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


def named_tensors(model: Module, loss: Any) -> dict[str, Tensor]:
    """The parameters and buffers of the model, and of a loss that is a module, by name."""
    named: dict[str, Tensor] = {}
    for prefix, root in (("", model), (path_of_loss(model), loss)):
        if isinstance(root, Module):
            named |= dict(root.named_parameters(prefix=prefix))
            named |= dict(root.named_buffers(prefix=prefix))
    return named


def path_of_loss(model: Module) -> str:
    """What the loss is called beside the modules of the model."""
    return next(name for name in ("loss", "loss_", "loss__") if not hasattr(model, name))


def _run_on_tape(*args: Any) -> tuple[Tape, Value, Any, list[Tensor]]:
    """Forward and backward on copies of the data. Returns the tape, the loss, the output and the copies."""
    for _ in range(3):  # since another thread will hardly draw random numbers each time
        result = _run_laid_out(*args)
        if not result[0].may_draw:
            return result
    raise NotDerivableError([DRAWS])


def _run_laid_out(
    model: Module, loss: Callable[..., Tensor], named: dict[str, Tensor], inputs: Any, target: Any, how: How
) -> tuple[Tape, Value, Any, list[Tensor]]:
    """With numbers in torch's order where something depends on it."""
    device = next((t.device.type for t in named.values()), "cpu")
    tape = Tape("pure" if how.compile else "lean", device)
    try:
        result = _run(tape, model, loss, named, inputs, target, how)
    except Exception:
        if not tape.minds_columns:
            raise
    else:
        if not tape.minds_columns:
            return result
    return _run(Tape("rows", device), model, loss, named, inputs, target, how)


def _run(
    tape: Tape, model: Module, loss: Callable[..., Tensor], named: dict[str, Tensor], inputs: Any, target: Any, how: How
) -> tuple[Tape, Value, Any, list[Tensor]]:
    program = tape.program
    for name, tensor in named.items():
        tape.parameter(tensor, _letter(name))
    copies = []
    for letter, tree in (("x", inputs), ("y", target)):
        flat, spec = pytree.tree_flatten(tree)
        count = sum(isinstance(leaf, Tensor) for leaf in flat)
        for i, leaf in enumerate(flat):
            if isinstance(leaf, Tensor):
                if leaf.layout is not torch.strided or leaf.is_nested:
                    raise ValueError(f"{letter}: a {leaf.layout} tensor of shape {tuple(leaf.shape)}; make it dense")
                if leaf.requires_grad:
                    raise ValueError(f"{letter}: a tensor of shape {tuple(leaf.shape)} asks for a gradient; detach it")
                flat[i] = leaf.detach().clone()
                copies.append(flat[i])
                tape.input(flat[i], letter if count == 1 else f"{letter}{i + 1}")
        if letter == "x":
            inputs = pytree.tree_unflatten(flat, spec)
        else:
            target = pytree.tree_unflatten(flat, spec)
    random = torch.get_rng_state()
    path = path_of_loss(model)
    try:
        with tape.running(("", model), (path, loss)):
            program.section = "forward"
            output = called(model, inputs)
            program.section = "loss"
            with tape.within(path):
                C = loss(output, target)
        if tape.problems:
            raise NotDerivableError(tape.problems)
        if not isinstance(C, Tensor) or C.numel() != 1:
            found = f"a tensor of shape {tuple(C.shape)}" if isinstance(C, Tensor) else f"a {type(C).__name__}"
            raise ValueError(f"the loss returns {found}: a step takes one number, such as the mean")
        with tape.running():
            program.section, program.title = "backward", ()
            tape.backward(C, how.share)
        if tape.problems:
            raise NotDerivableError(tape.problems)
        value = program.value(C)
        producer = program.producer(value)
        if producer is None or value.memory not in producer.made:
            # A parameter, or a view: the caller gets a tensor of his own, which no later step changes.
            value = program.value(program.call(torch.clone, (C,), {}))
        value.name, value.is_named = "C", True
    except Exception as error:
        if tape.problems and not isinstance(error, NotDerivableError):
            raise NotDerivableError(tape.problems) from error
        raise
    finally:
        torch.set_rng_state(random)
    return tape, value, output, copies


def called(model: Module, inputs: Any) -> Any:
    """A tuple are several inputs, and a mapping inputs by name."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _flat(output: Any) -> tuple[list[Any], Any]:
    """The model's output as a list of tensors and constants, and how they are put together."""
    leaves, spec = pytree.tree_flatten(output)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | bool | int | float | str | None):
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


def _shared(new: dict[str, Tensor], theirs: dict[str, Any]) -> dict[str, Tensor]:
    """The optimizer's own state where it is of the kind that the program takes, so that all programs have one."""
    kinds = {name: (t.shape, t.stride(), t.dtype, t.device) for name, t in new.items()}
    found = {name: theirs.get(name) for name in new}
    return {
        name: t if isinstance(t, Tensor) and (t.shape, t.stride(), t.dtype, t.device) == kinds[name] else new[name]
        for name, t in found.items()
    }


def _setting(group: dict[str, Any], name: str) -> float:
    """A hyperparameter as a number."""
    value = group["betas"][name == "beta2"] if name.startswith("beta") else group[name]
    return value.item() if isinstance(value, Tensor) else value


def _deltas(tape: Tape, path: str) -> dict[str, Value]:
    """∂C/∂z of each module's output z, by its path: of a module that applies several rules the last one's. ``path`` is
    that of the loss."""
    nodes = [node for node in tape.nodes if node.path and node.path != path and node.delta is not None]
    return {node.path: node.delta for node in nodes if node.delta is not None}


def _layers(tape: Tape) -> list[KeptLayer]:
    """The uses of linear layers that a gradient came back to."""
    deltas = {node.outputs[0]: node.delta for node in tape.nodes if node.delta is not None}
    layers = []
    for node in tape.nodes:
        if node.rule is not Linear or node.delta is None:
            continue
        x, z = node.ctx.saved_tensors[0], node.outputs[0]
        a, f = tape.activations.get(z, (z, None))
        layers.append(
            KeptLayer(node.path, None if x is None else tape.program.value(x), z, a, node.delta, deltas.get(a), f)
        )
    return layers


def _given(
    planned: Any, program: Program, named: dict[str, Tensor], outputs: list[Value]
) -> tuple[dict[str, Tensor], dict[str, Value], dict[str, Value]]:
    """What ``build`` is given: tensors by name, and the values that the model's and the constants among them are."""
    used = used_values(planned) | set(outputs)
    own = {name: program.value(t) for name, t in named.items() if program.value(t) in used}
    tensors = {name: named[name] for name in own}
    made = {value for item in planned.once if isinstance(item, Call) for value in item.results}
    constants: dict[str, Value] = {}
    for value in sorted(used - made, key=lambda value: value.name):
        if value.memory.origin == CONSTANT and value not in own.values():
            key = f"constant {sum(v.number is None for v in constants.values()) + 1}"
            constants[key if value.number is None else f"{value.name} {value.tensor.dtype}"] = value
            if value.number is None:
                tensors[key] = value.tensor
    return tensors, own, constants


def _heading(model: Module, loss: Any, optimizer: Optimizer, how: How) -> list[str]:
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


def _letter(name: str) -> str:
    """W of a weight, b of a bias, and the name itself of any other parameter, with the path of its module."""
    path, _, own = name.rpartition(".")
    own = {"weight": "W", "bias": "b"}.get(own, own)
    return identifier(f"{own}_{path}" if path else own)
