"""One pass forward and back in which every number is kept: for the chain of a weight, and the drawing of a network.

The model runs on the tape of :mod:`torch_manualbp.derive`, so that each operation is a rule, stock layers included;
going back, the rules' own ``backward`` runs, and the gradient of every value on the way is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import pytree, without_torch_function
from torch_manualbp.derive.derived import called, named_tensors, path_of_loss
from torch_manualbp.derive.program import CONSTANT, HELD, INPUT, MADE, PARAMETER, Memory, Value, leaves_of
from torch_manualbp.derive.tape import Node, NotDerivableError, Tape
from torch_manualbp.insight.opened import opened
from torch_manualbp.insight.refusals import refuse_compiled
from torch_manualbp.rules.rule import Rule

__all__ = ["Quantity", "Stage", "Trace", "trace"]


@dataclass(eq=False)
class Quantity:
    """A tensor of the pass: an input, a parameter, or what a rule made; and ∂C/∂(it)."""

    tensor: Tensor
    name: str
    """Of a parameter ``fc1.weight``, of an input ``x``, of the target ``y``, of a constant ``""``, otherwise
    ``z_fc1``, ``a_act1`` and the like."""

    kind: str
    """``"input"``, ``"target"``, ``"parameter"``, ``"constant"`` or ``"made"``."""

    gradient: Tensor | None = None
    """∂C/∂(tensor) in the tensor's shape, or None where C does not depend on it."""

    made_by: Stage | None = None
    used_by: list[Stage] = field(default_factory=list)
    memory: Memory | None = None
    mark: str | None = None
    """Which of several it is that an opened rule makes, as ``"t=3"``, or nothing; None of all others."""


@dataclass(eq=False)
class Stage:
    """One application of a rule."""

    rule: type[Rule]
    path: str
    """The module that it is part of, such as ``fc1``; that of the loss is ``loss``."""

    args: tuple[Any, ...]
    """What ``rule.forward`` got: a :class:`Quantity` for each tensor, and options as they are."""

    outputs: tuple[Quantity, ...]
    _ctx: Any
    _learns: tuple[bool, ...]

    @property
    def output(self) -> Quantity:
        """The first output."""
        return self.outputs[0]

    @property
    def inputs(self) -> tuple[Quantity, ...]:
        """The arguments that a gradient goes back to."""
        pairs = zip(self.args, self._learns, strict=True)
        return tuple(arg for arg, learns in pairs if learns and isinstance(arg, Quantity))

    def backward(self, *upstream: Tensor | None) -> dict[Quantity, Tensor]:
        """The rule's backward formula: from ∂C/∂(each output) the gradient of each of ``inputs``, in their shapes. With
        an upstream that is 1 in one place and 0 elsewhere it is a row of the Jacobian."""
        filled = [
            torch.zeros_like(output.tensor) if g is None else g
            for g, output in zip(upstream, self.outputs, strict=True)
        ]
        with torch.no_grad():
            result = self.rule.backward(self._ctx, *filled)
        result = result if isinstance(result, tuple) else (result,)
        gradients: dict[Quantity, Tensor] = {}
        for arg, learns, g in zip(self.args, self._learns, result, strict=True):
            if learns and g is not None:
                g = g.sum_to_size(arg.tensor.shape).to(arg.tensor.dtype)
                gradients[arg] = gradients[arg] + g if arg in gradients else g
        return gradients


@dataclass(frozen=True)
class Refused:
    """A call that has no rule."""

    problem: tuple[str, str, str]
    given: tuple[Memory, ...]
    """The memory of the tensors that it took."""


@dataclass(eq=False)
class Trace:
    """A pass forward and back."""

    stages: tuple[Stage, ...]
    """In the order of the forward."""

    C: Quantity
    output: Any
    """What the model returned, a :class:`Quantity` in the place of each tensor."""

    parameters: Mapping[str, Quantity]
    """By name; those of a loss that is a module are ``loss.…``."""

    path_of_loss: str
    refused: tuple[Refused, ...] = ()
    """What has no rule and was passed by: the gradients of what it took are not known, nor of what that is made of."""

    def is_refused_between(self, parameter: Quantity) -> bool:
        """Whether something without a rule takes the parameter, or what is made of it."""
        reached = {parameter}
        for stage in self.stages:
            if any(arg in reached for arg in stage.args if isinstance(arg, Quantity)):
                reached.update(stage.outputs)
        memories = {quantity.memory for quantity in reached}
        return any(memory in memories for refused in self.refused for memory in refused.given)

    def quantities(self) -> Iterator[Quantity]:
        """All inputs, parameters and what was made of them, in the order of the forward."""
        seen: dict[Quantity, None] = {}
        for stage in self.stages:
            for quantity in (*(arg for arg in stage.args if isinstance(arg, Quantity)), *stage.outputs):
                seen.setdefault(quantity)
        return iter(seen)


class _Recorder(Tape):
    """A tape that keeps the arguments of the rules."""

    def __init__(self, device: str) -> None:
        super().__init__("pure", device)
        self.may_ask = True  # it runs once, whatever forward reads
        self.recorded: list[tuple[Node, tuple[Any, ...], tuple[Tensor, ...]]] = []
        self.marks: dict[Value, str] = {}
        self.refused: list[Refused] = []

    def _go_on(self, output: Any, given: Any) -> Any:
        if not isinstance(given, Tensor):  # of a tensor alone: what was refused has no output of its own
            memories = tuple(self.program.value(t).memory for t in leaves_of(given, Tensor))
            self.refused.append(Refused(self.problems[-1], memories))
        return super()._go_on(output, given)

    def apply(self, rule: type[Rule], args: tuple[Any, ...]) -> Any:
        with without_torch_function():
            learns = any(isinstance(arg, Tensor) and self._learns_from(arg) for arg in args)
            smaller = opened(rule, args) if learns else None
        if smaller is not None:
            return smaller(self._named)
        count = len(self.nodes)
        # Later writes in place give the tensor objects other memory, so the numbers of now are kept by views of it.
        values = [(self.program.value(arg), _view(arg)) if isinstance(arg, Tensor) else arg for arg in args]
        result = super().apply(rule, args)
        if len(self.nodes) > count:
            outputs = (result,) if isinstance(result, Tensor) else tuple(result)
            self.recorded.append((self.nodes[-1], tuple(values), tuple(map(_view, outputs))))
        return result

    def _named(self, letter: str, tensor: Tensor, mark: str) -> Tensor:
        value = self.program.value(tensor)
        if value.memory.origin == MADE:
            value.name, value.is_named = self._name_here(letter), True
            self.marks[value] = mark
        return tensor

    def learn_from(self, tensor: Tensor) -> None:
        """Have gradients go back to an input, too."""
        self._learns.add(self.program.value(tensor))


def _view(tensor: Tensor) -> Tensor:
    with without_torch_function():
        return tensor.detach()


def trace(model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, *, passes_by: bool = False) -> Trace:
    """Run ``loss(model(inputs), target)`` forward and back.

    Args:
        model: of layers of ``torch_manualbp.nn``, or stock ones that have a twin there, and operations that have rules.
        loss: a function or module of (output, target) that returns one number.
        inputs: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
        target: what the loss takes besides the output.
        passes_by: go on where a call has no rule, and leave it to the caller to ask what depends on it.

    Raises:
        NotDerivableError: the model does what has no rule; the message lists every place.
        ValueError: the loss is not one number, or the model is compiled.
    """
    refuse_compiled(model)
    named = named_tensors(model, loss)
    device = next((t.device.type for t in named.values()), "cpu")
    tape = _Recorder(device)
    for name, parameter in named.items():
        tape.parameter(parameter, name)
    x, y = _given(tape, inputs, "x"), _given(tape, target, "y")
    path = path_of_loss(model)
    try:
        with tape.running(("", model), (path, loss)):
            output = called(model, x)
            with tape.within(path):
                C = loss(output, y)
    except Exception as error:
        if tape.problems and not isinstance(error, NotDerivableError):
            raise NotDerivableError(tape.problems) from error
        raise
    if tape.problems and not (passes_by and [refused.problem for refused in tape.refused] == tape.problems):
        raise NotDerivableError(tape.problems)
    if not isinstance(C, Tensor) or C.numel() != 1:
        found = f"a tensor of shape {tuple(C.shape)}" if isinstance(C, Tensor) else f"a {type(C).__name__}"
        raise ValueError(f"the loss returns {found}: it is to be one number, such as the mean")
    return _linked(tape, C, output, path)


def _given(tape: _Recorder, tree: Any, letter: str) -> Any:
    """Copies of the data that the tape knows, numbered where there are several."""
    leaves, spec = pytree.tree_flatten(tree)
    count = sum(isinstance(leaf, Tensor) for leaf in leaves)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            leaves[i] = leaf.detach().clone()
            tape.input(leaves[i], letter if count == 1 else f"{letter}{i + 1}")
            if letter == "x" and (leaf.is_floating_point() or leaf.is_complex()):
                tape.learn_from(leaves[i])
    return pytree.tree_unflatten(leaves, spec)


def _linked(tape: _Recorder, C: Tensor, output: Any, path: str) -> Trace:
    """The stages with their quantities, and the gradients of these."""
    quantities: dict[Value, Quantity] = {}

    def quantity(value: Value, tensor: Tensor) -> Quantity:
        if value not in quantities:
            origin = value.memory.origin
            origin = CONSTANT if origin == HELD else origin
            kind = "target" if origin == INPUT and value.name.startswith("y") else origin
            name = "" if origin == CONSTANT else value.name
            quantities[value] = Quantity(tensor, name, kind, memory=value.memory, mark=tape.marks.get(value))
        return quantities[value]

    stages = []
    for node, values, results in tape.recorded:
        args = tuple(quantity(*value) if _is_value(value) else value for value in values)
        outputs = tuple(quantity(v, t) for v, t in zip(node.outputs, results, strict=True))
        stage = Stage(node.rule, node.path, args, outputs, node.ctx, node.ctx.needs_input_grad)
        stages.append(stage)
        for output_ in outputs:
            output_.made_by = stage
        for arg in dict.fromkeys(arg for arg in args if isinstance(arg, Quantity)):
            arg.used_by.append(stage)
    parameters = {q.name: q for q in quantities.values() if q.kind == PARAMETER}
    cost = quantity(tape.program.value(C), _view(C))
    returned = pytree.tree_map_only(Tensor, lambda t: quantity(tape.program.value(t), _view(t)), output)
    _go_back(stages, cost)
    return Trace(tuple(stages), cost, returned, parameters, path, tuple(tape.refused))


def _is_value(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Value)


def _go_back(stages: list[Stage], cost: Quantity) -> None:
    """∂C/∂C = 1, and from there the rules in the opposite order; what was used more than once adds up."""
    cost.gradient = torch.ones_like(cost.tensor)
    for stage in reversed(stages):
        upstream = [output.gradient for output in stage.outputs]
        if any(g is not None for g in upstream):
            for arg, g in stage.backward(*upstream).items():
                arg.gradient = g if arg.gradient is None else arg.gradient + g
