"""Runs rules forward, then backward, in autograd's place, and records the torch calls that they make.

::

    a¹ = x                                  forward: each rule's ``forward`` and ``setup_context``, in the model's order
    ∂C/∂(output) of the loss = 1
    ∂C/∂(arguments) = rule.backward         backward: the same rules in the opposite order; where a tensor was used
                                            more than once its gradients are added up
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_manualbp._torch import is_autocast_enabled
from torch_manualbp.derive.program import PARAMETER, Program, Value
from torch_manualbp.rules.rule import Rule, RuleWithByproducts

__all__ = ["Context", "Node", "RuleRunner", "formulas", "identifier", "is_continuous", "without_autocast"]

OURS = tuple(str(Path(__file__).parents[1] / room) for room in ("rules", "kernels"))
"""Where the functions are whose local names a program takes over."""


class Context:
    """What a rule's ``setup_context`` and ``backward`` take for autograd's ``ctx``."""

    def __init__(self, needs_input_grad: tuple[bool, ...], kept: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor | None, ...] = ()
        self.non_differentiable: tuple[Tensor, ...] = ()
        self.materializes_grads = True
        self._kept = kept

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep the numbers of now: a later change in place gives the tensor object others."""
        self.saved_tensors = tuple(None if t is None else self._kept(t) for t in tensors)

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Nothing: there is no forward mode here."""

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise NotImplementedError("it changes its arguments in place (mark_dirty)")

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        self.materializes_grads = value


@dataclass(eq=False)
class Node:
    """One application of a rule on the way forward."""

    rule: type[Rule]
    ctx: Context
    path: str
    arguments: tuple[Value | None, ...]
    """Those that need a gradient; None in the other places."""

    outputs: tuple[Value, ...]
    is_tuple: bool
    title: tuple[str, ...] = ()
    delta: Value | None = None
    """∂C/∂(first output), once it is known."""


class _Running:
    """The functions of a rule that are running when it calls torch. Those that run no more at the next call have
    returned: to be told so by Python at each call and return of any function takes as long as all else.

    Args:
        files: where these functions stand, besides those of this package.
        at_return: is given the frame of each one that has returned, inner ones first.
    """

    def __init__(self, files: frozenset[str], at_return: Callable[[FrameType], None]) -> None:
        self._files, self._at_return = files, at_return
        self._frames: list[FrameType] = []

    def look(self) -> None:
        """Note what is running."""
        frames: list[FrameType] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != __file__:
            file = frame.f_code.co_filename
            if file in self._files or file.startswith(OURS):
                frames.append(frame)
            frame = frame.f_back
        frames.reverse()
        n = 0
        while n < min(len(frames), len(self._frames)) and frames[n] is self._frames[n]:
            n += 1
        self._have_returned(n)
        self._frames = frames

    def end(self) -> None:
        """Note that the rule has returned."""
        self._have_returned(0)
        self._frames = []

    def _have_returned(self, n: int) -> None:
        for frame in reversed(self._frames[n:]):
            self._at_return(frame)


class RuleRunner(TorchFunctionMode):
    """Runs rules in autograd's place. What of torch is called outside of rules is a subclass's to record."""

    def __init__(self) -> None:
        super().__init__()
        self.program = Program()
        self.nodes: list[Node] = []
        self.gradients: dict[Value, Value] = {}
        """∂C/∂(parameter)."""

        self.activations: dict[Value, tuple[Value, Any]] = {}
        """By z, the a that an activation made of it, and the function of entries that it is, if it is."""

        self._learns: set[Value] = set()
        self._settled: set[Value] = set()
        """Values that what made them has named: what another rule calls them is of no account."""

        self._settled_calls = 0

        self._paths: list[str] = [""]
        self._is_in_rule = False

    @contextlib.contextmanager
    def within(self, path: str) -> Iterator[None]:
        """Count what happens to the module path ``path``."""
        self._paths.append(path)
        try:
            yield
        finally:
            self._paths.pop()

    def run(self, rule: type[Rule], args: tuple[Any, ...], learns: tuple[bool, ...]) -> Any:
        """Run a rule forward on arguments of which some need a gradient. Returns what its ``forward`` does."""
        path = self._paths[-1]
        forward, backward = formulas(rule)
        label = f"{path}: {rule.__name__}" if path else rule.__name__
        with self._in_rule(rule, self._heading(rule, (label, *forward))) as running:
            output = rule.forward(*args)
            running.end()
            outputs = (output,) if isinstance(output, Tensor) else tuple(output)
            values = tuple(self.program.value(t) for t in outputs)
            self._settle()
            if any(learns):
                ctx = Context(learns, self.program.same)
                rule.setup_context(ctx, args, output)
        self._name(values, rule)
        if not any(learns):
            return output
        arguments = tuple(self.program.value(a) if needs else None for a, needs in zip(args, learns, strict=True))
        for t, value in zip(outputs, values, strict=True):
            if is_continuous(t) and not any(t is other for other in ctx.non_differentiable):
                self._learns.add(value)
        is_tuple = not isinstance(output, Tensor)
        self.nodes.append(Node(rule, ctx, path, arguments, values, is_tuple, (label, *backward)))
        return output

    def _heading(self, rule: type[Rule], title: tuple[str, ...]) -> tuple[str, ...]:
        """What the reader is told above a rule's forward."""
        return title

    def _name(self, values: tuple[Value, ...], rule: type[Rule]) -> None:
        letter = _letter(rule)
        if issubclass(rule, RuleWithByproducts):  # which have names of the rule's own
            values = values[: rule.outputs]
        for i, value in enumerate(values):
            if value.is_named:  # an argument that is passed on
                continue
            suffix = f"_{i}" if len(values) > 1 else ""
            value.name, value.is_named = self._name_here(letter) + suffix, True

    def _name_here(self, name: str) -> str:
        """The name with the module that it is made in."""
        return f"{name}_{identifier(self._paths[-1])}" if self._paths[-1] else name

    @contextlib.contextmanager
    def _in_rule(self, rule: type[Rule], title: tuple[str, ...]) -> Iterator[_Running]:
        """Record each torch call, and give what it makes the name that the rule's own code has for it."""
        self.program.title = title
        suffix = f"_{identifier(self._paths[-1])}" if self._paths[-1] else ""
        self._is_in_rule = True
        self._settle()
        running = _Running(_files_of(rule), functools.partial(self._name_locals, suffix))
        outer, self.program.at_call = self.program.at_call, running.look
        try:
            with torch.no_grad(), without_autocast(self.device_type):
                yield running
        finally:
            self.program.at_call = outer
            running.end()
            self._is_in_rule = False
            self._settle()

    def _settle(self) -> None:
        """Have the names that all values have by now stay theirs."""
        calls = self.program.calls
        for call in calls[self._settled_calls :]:
            if call.path is None:
                call.path = self._paths[-1]
            self._settled.update(call.results)
        self._settled_calls = len(calls)

    device_type = "cpu"

    def _name_locals(self, suffix: str, frame: FrameType) -> None:
        """Call tensors what a function calls them that has returned."""
        for name, local in frame.f_locals.items():
            if type(local) is Tensor and self.program.knows(local):
                value = self.program.value(local)
                if not value.is_named and value not in self._settled and name not in ("output", "result", "t", "_"):
                    value.name = f"{name}{suffix}"

    def backward(self, loss: Tensor, share: float = 1) -> None:
        """Run the rules' backward from ∂C/∂C = 1, or this share of it, and leave the gradients of the parameters in
        ``gradients``."""
        one = torch.ones_like(loss) if share == 1 else torch.full_like(loss, share)
        upstream_of_loss = self.program.value(one)
        upstream_of_loss.name, upstream_of_loss.is_named = "dC", True
        gradients = {self.program.value(loss): one}
        for node in reversed(self.nodes):
            upstream = [gradients.pop(value, None) for value in node.outputs]
            if all(g is None for g in upstream):
                continue
            with self.within(node.path), self._in_rule(node.rule, node.title) as running:
                filled = [
                    torch.zeros_like(value.tensor) if g is None and node.ctx.materializes_grads else g
                    for g, value in zip(upstream, node.outputs, strict=True)
                ]
                node.delta = None if filled[0] is None else self.program.value(filled[0])
                result = node.rule.backward(node.ctx, *filled)
                running.end()
                result = result if isinstance(result, tuple) else (result,)
                for value, g in zip(node.arguments, result, strict=True):
                    if value is not None and g is not None:
                        self._accumulate(gradients, value, g)
        self.gradients = {
            value: self.program.value(g) for value, g in gradients.items() if value.memory.origin == PARAMETER
        }

    def _accumulate(self, gradients: dict[Value, Tensor], value: Value, g: Tensor) -> None:
        if g.shape != value.tensor.shape:
            g = g.sum_to_size(value.tensor.shape)
        if g.dtype != value.tensor.dtype:
            g = g.to(value.tensor.dtype)
        before = gradients.get(value)
        total = g if before is None else torch.add(before, g)
        gradients[value] = total
        gradient = self.program.value(total)
        if not gradient.is_named:
            gradient.name, gradient.is_named = _gradient_name(value.name), True


@functools.cache
def _files_of(rule: type[Rule]) -> frozenset[str]:
    """The files that a rule is written in: somebody's own has names for what it makes, too."""
    own = (member for cls in rule.__mro__[: rule.__mro__.index(Rule)] for member in vars(cls).values())
    functions = (inspect.unwrap(member.__func__) for member in own if isinstance(member, staticmethod))
    return frozenset(function.__code__.co_filename for function in functions if isinstance(function, FunctionType))


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A block without its casts."""
    if not is_autocast_enabled():  # since entering the other takes 0.1 ms
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


@functools.cache
def formulas(rule: type[Rule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines of the formula in a rule's docstring before the ⇒, and after it."""
    doc = rule.__doc__ or ""
    block = re.search(r"::\n\s*\n((?:[ \t]+\S.*\n|\s*\n)*?)(?=\S|\Z)", _dedented(doc))
    lines = [] if block is None else [line.strip() for line in block.group(1).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if "⇒" not in lines:
        return (), ()
    at = lines.index("⇒")
    after = [line for line in lines[at + 1 :] if line and not line.startswith("δ = ∂C/∂z  ")]  # which names, no more
    return tuple(line for line in lines[:at] if line), tuple(after)


def identifier(path: str) -> str:
    """A module path as part of a Python name."""
    name = re.sub(r"\W", "_", path)
    return name if f"_{name}".isidentifier() else re.sub(r"\W", "_", path, flags=re.ASCII)


def _dedented(doc: str) -> str:
    first, _, rest = doc.partition("\n")
    lines = rest.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join([first, *(line[margin:] for line in lines)]) + "\n"


def _letter(rule: type[Rule]) -> str:
    """What the output of a rule is called: z of a linear layer, a of an activation or a norm, C of a loss."""
    module = rule.__module__
    if module.endswith(("rules.convolution", "rules.linear")):
        return "z"
    if ".activation" in module or ".norm" in module:
        return "a"
    return "C" if ".loss" in module else rule.__name__.lower()


def _gradient_name(name: str) -> str:
    return f"delta_{name[2:]}" if name.startswith("z_") else f"d{name}"


def is_continuous(t: Tensor) -> bool:
    """Whether there are derivatives by it."""
    return t.is_floating_point() or t.is_complex()
