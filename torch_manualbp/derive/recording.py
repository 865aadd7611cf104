"""One run of a model, its loss and their backward pass, recorded as a program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module

from torch_manualbp._torch import pytree
from torch_manualbp.derive.draws import Draws
from torch_manualbp.derive.effects import DRAWS
from torch_manualbp.derive.program import Program, Value
from torch_manualbp.derive.refusals import Problem
from torch_manualbp.derive.runner import RuleRunner
from torch_manualbp.derive.tape import NotDerivableError, Tape, identifier
from torch_manualbp.derive.tracers import Asked
from torch_manualbp.rules.jacobian import Product
from torch_manualbp.rules.rule import Rule

__all__ = ["KeptLayer", "Recording", "called", "named_tensors", "one_number", "path_of_loss", "record"]


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
class Recording:
    """The program of forward, loss and backward, and which of its values are what."""

    program: Program
    device: str
    C: Value
    inputs: tuple[Value, ...]
    learnt: tuple[tuple[Value, Value], ...]
    """Each parameter that learns with its gradient, in the model's order."""

    outputs: tuple[Value, ...]
    """The tensors in what the model returned."""

    output: Any
    """What the model returned, with the values in place of its tensors."""

    deltas: Mapping[str, Value]
    """∂C/∂z of each module's output z, by its path: of a module that applies several rules the last one's."""

    layers: tuple[KeptLayer, ...]
    rules: frozenset[type[Rule]]
    """The rules that it is made of."""

    past: Past | None = None
    """What the article is made of."""

    functions: tuple[tuple[type[Function], tuple[Any, ...], Problem], ...] = ()
    """The autograd.Functions that are no rules, with the arguments that they had, and where."""

    def copied(self) -> Recording:
        """The same of another program, which can be planned apart."""
        program, twin = self.program.copied()
        return replace(
            self,
            program=program,
            C=twin(self.C),
            inputs=tuple(map(twin, self.inputs)),
            learnt=tuple((twin(W), twin(g)) for W, g in self.learnt),
            outputs=tuple(map(twin, self.outputs)),
            output=pytree.tree_map_only(Value, twin, self.output),
            deltas={path: twin(delta) for path, delta in self.deltas.items()},
            layers=(),
            past=None,
        )


@dataclass(frozen=True)
class Past:
    """The way forward as it was when the loss was known."""

    tape: Tape
    calls: int
    """How many calls of the program it took."""

    C: Tensor
    output: Any
    data: tuple[Tensor, ...]
    named: Mapping[str, Tensor]
    """Parameters and buffers, and what model and loss hold beside them."""

    path: str
    """That of the loss."""

    share: float | None
    """∂C/∂C; None where nobody went back."""

    @property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(map(self.tape.program.value, self.data))


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


def called(model: Module, inputs: Any) -> Any:
    """A tuple are several inputs, and a mapping inputs by name."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def one_number(C: Any) -> Tensor:
    """The loss, if it is one.

    Raises:
        ValueError: it is no tensor of one number.
    """
    if not isinstance(C, Tensor) or C.numel() != 1:
        found = f"a tensor of shape {tuple(C.shape)}" if isinstance(C, Tensor) else f"a {type(C).__name__}"
        raise ValueError(f"the loss returns {found}: a step takes one number, such as the mean")
    return C


def record(
    model: Module,
    loss: Callable[..., Tensor],
    named: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    inputs: Any,
    target: Any,
    draws: Draws,
    share: float = 1.0,
    pure: bool = False,
    at_call: Callable[[str], None] | None = None,
    knows_draws: bool = False,
    as_traced: bool = True,
    frozen: Collection[int] = (),
    evaluates: bool = False,
) -> Recording:
    """Run forward, loss and backward on copies of the data, and record the calls of torch.

    Args:
        named: parameters and buffers by name.
        held: other tensors that model and loss hold.
        draws: where random numbers begin.
        share: ∂C/∂C, of which all gradients are multiples.
        pure: whether no call is to write over anything, as torch.compile likes it.
        at_call: called at each call of torch, with the path of the module.
        knows_draws: whether forward is known to draw none of Python's and NumPy's random numbers.
        as_traced: whether code that asks hears that a tracer is at work.
        frozen: the ids of parameters that are constants although they ask for a gradient.
        evaluates: whether it is the loss alone that is wanted.

    Raises:
        MayGoAnotherWay: it reads numbers where it hears of no tracer, and has asked.
        NotDerivableError: some of it cannot be recorded.
        ValueError: the loss is not one number.
    """
    device = next((t.device.type for t in named.values()), "cpu")

    def on(tape: Tape) -> Recording:
        tape.program.draws, tape.knows_draws = draws.again(), knows_draws
        tape.at_call, tape.takes_names = at_call or tape.at_call, True
        tape.asked = Asked(says=as_traced)
        for name, tensor in named.items():
            tape.parameter(tensor, _letter(name), id(tensor) in frozen)
        return _recorded(tape, model, loss, named, held, inputs, target, share, evaluates)

    for _ in range(3):  # since another thread will hardly draw Python's random numbers each time
        tape = Tape("pure" if pure else "lean", device)
        try:
            recording = on(tape)
        except Exception:
            if not tape.minds_columns:
                raise
        if tape.minds_columns:  # with numbers in torch's order where something depends on it
            tape = Tape("rows", device)
            recording = on(tape)
        if not tape.may_draw:
            return recording
    raise NotDerivableError([DRAWS])


def _recorded(
    tape: Tape,
    model: Module,
    loss: Callable[..., Tensor],
    named: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    inputs: Any,
    target: Any,
    share: float,
    evaluates: bool,
) -> Recording:
    program = tape.program
    for name, tensor in held.items():
        tape.held(tensor, _letter(name))
    copies: dict[int, Tensor] = {}
    inputs, given = _known_copies(tape, inputs, "x", copies)
    target, given_target = _known_copies(tape, target, "y", copies)
    path = path_of_loss(model)
    try:
        with tape.running(("", model), (path, loss)):
            program.section = "forward"
            output = called(model, inputs)
            tape.up_to_date(output)
            seen = pytree.tree_map_only(Tensor, program.same, output)  # since a loss may write over its input
            program.section = "loss"
            with tape.within(path):
                C = loss(output, target)
                tape.up_to_date(C)
        output = seen
        written = {memory for call in program.calls for memory in call.written}
        for name, tensor in named.items():
            if _letter(name) in tape.changed and program.value(tensor).memory not in written:
                what = f"changes the buffer {name} in a way that cannot be seen"
                tape.problems.append((name.rpartition(".")[0], what, "write it by torch's functions"))
        if tape.problems:
            raise NotDerivableError(tape.problems)
        one_number(C)
        if not evaluates and not tape.learns_from(C):
            raise NotDerivableError([(path, *NOTHING_LEARNT)])
        data = (*given, *given_target)
        past = Past(tape, len(program.calls), C, output, data, {**named, **held}, path, None if evaluates else share)
        if not evaluates:
            with tape.running():
                program.section, program.title = "backward", ()
                tape.backward(C, share)
            if tape.problems:
                raise NotDerivableError(tape.problems)
            if not tape.gradients:
                raise NotDerivableError([(path, *NOTHING_LEARNT)])
        value = own_loss(tape, C)
    except Exception as error:
        if tape.problems and not isinstance(error, NotDerivableError):
            raise NotDerivableError(tape.problems) from error
        raise
    output = pytree.tree_map_only(Tensor, program.value, output)
    order = [program.value(t) for t in named.values()]
    recording = recording_of(tape, value, past.inputs, order, output, path, tape.device, past)
    return replace(recording, functions=tuple(tape.functions))


def own_loss(runner: RuleRunner, C: Tensor) -> Value:
    """The loss as a tensor of its own, which a step can give away."""
    program = runner.program
    value = program.value(C)
    producer = program.producer(value)
    if producer is None or value.memory not in producer.made:
        # A parameter, or a view: the caller gets a tensor of his own, which no later step changes.
        value = program.value(program.call(torch.clone, (C,), {}))
    value.name, value.is_named = "C", True
    return value


def recording_of(
    runner: RuleRunner,
    C: Value,
    inputs: tuple[Value, ...],
    parameters: Iterable[Value],
    output: Any,
    path: str,
    device: str,
    past: Past | None = None,
) -> Recording:
    """What a runner has recorded forward and back, of a loss that has this path. The output has values for tensors."""
    learnt = [(W, runner.gradients[W]) for W in dict.fromkeys(parameters) if W in runner.gradients]
    return Recording(
        runner.program,
        device,
        C,
        inputs,
        tuple(learnt),
        tuple(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Value)),
        output,
        _deltas(runner, path),
        tuple(_layers(runner)),
        frozenset(node.rule for node in runner.nodes),
        past,
    )


NOTHING_LEARNT = (
    "the loss depends on no parameter that requires grad",
    "have it use the model's output as it is, without detach, and leave a parameter unfrozen",
)


def _known_copies(tape: Tape, tree: Any, letter: str, known: dict[int, Tensor]) -> tuple[Any, list[Tensor]]:
    """The data with copies of its tensors, which the tape knows by this letter, and these. What is given twice is one
    tensor for the model, too."""
    flat, spec = pytree.tree_flatten(tree)
    count = sum(isinstance(leaf, Tensor) for leaf in flat)
    copies = []
    for i, leaf in enumerate(flat):
        if isinstance(leaf, Tensor):
            if id(leaf) in known:
                copies.append(leaf.detach().clone())
                tape.input(copies[-1], f"{letter}{i + 1}_again")
                flat[i] = known[id(leaf)]
                continue
            if leaf.layout is not torch.strided or leaf.is_nested:
                raise ValueError(f"{letter}: a {leaf.layout} tensor of shape {tuple(leaf.shape)}; make it dense")
            if leaf.requires_grad:
                raise ValueError(f"{letter}: a tensor of shape {tuple(leaf.shape)} asks for a gradient; detach it")
            flat[i] = known[id(leaf)] = leaf.detach().clone()
            copies.append(flat[i])
            tape.input(flat[i], letter if count == 1 else f"{letter}{i + 1}", flat[i].stride() == leaf.stride())
    return pytree.tree_unflatten(flat, spec), copies


def _deltas(tape: RuleRunner, path: str) -> dict[str, Value]:
    """∂C/∂z of each module's output z. ``path`` is that of the loss."""
    nodes = [node for node in tape.nodes if node.path and node.path != path and node.delta is not None]
    return {node.path: node.delta for node in nodes if node.delta is not None}


def _layers(tape: RuleRunner) -> list[KeptLayer]:
    """The uses of linear layers that a gradient came back to."""
    deltas = {node.outputs[0]: node.delta for node in tape.nodes if node.delta is not None}
    layers = []
    for node in tape.nodes:
        if not isinstance(node.rule.jacobian, Product) or node.delta is None:
            continue
        x, z = node.ctx.saved_tensors[0], node.outputs[0]
        a, f = tape.activations.get(z, (z, None))
        layers.append(
            KeptLayer(node.path, None if x is None else tape.program.value(x), z, a, node.delta, deltas.get(a), f)
        )
    return layers


def _letter(name: str) -> str:
    """W of a weight, b of a bias, and the name itself of any other parameter, with the path of its module."""
    path, _, own = name.rpartition(".")
    own = {"weight": "W", "bias": "b"}.get(own, own)
    return identifier(f"{own}_{path}" if path else own)
