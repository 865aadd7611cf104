"""Runs a model's rules forward, then backward, in autograd's place, and writes down the torch calls that they make.

::

    a¹ = x                                  forward: each rule's ``forward`` and ``setup_context``, in the model's order
    ∂C/∂(output) of the loss = 1
    ∂C/∂(arguments) = rule.backward         backward: the same rules in the opposite order; where a tensor was used
                                            more than once its gradients are added up
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from torch_manualbp.derive.effects import has_global_hooks, has_hooks, is_accumulated_by_others, watched, wrappers
from torch_manualbp.derive.operations import IN_PLACE, OPERATIONS, NoRule, is_in_place
from torch_manualbp.derive.program import (
    CONSTANT,
    INPUT,
    MADE,
    PARAMETER,
    NoMemoryError,
    Program,
    Value,
    leaves_of,
    words,
)
from torch_manualbp.functional.known import function_of_entries, is_activation
from torch_manualbp.rules.evaluate import write_down
from torch_manualbp.rules.linear import Linear
from torch_manualbp.rules.rule import Rule, put_on_tape

__all__ = ["Node", "NotDerivableError", "Tape", "one_at_a_time"]


class NotDerivableError(RuntimeError):
    """A model whose step cannot be written out. ``problems`` lists every place: its module path, what is there,
    and what to do."""

    def __init__(self, problems: list[tuple[str, str, str]]) -> None:
        self.problems = list(dict.fromkeys(problems))
        lines = [f"  {path or 'the model itself'}: {what}; {todo}" for path, what, todo in self.problems]
        places = "one place" if len(lines) == 1 else f"{len(lines)} places"
        super().__init__(f"no step can be derived, because of {places}:\n" + "\n".join(lines))


one_at_a_time = threading.RLock()
"""The thread that has it derives: its rules are on its tape, and its hooks on the modules."""


def _nothing(path: str) -> None:
    """Nothing is to be done at a call."""


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


READS = words("__format__ item __bool__ __int__ __float__ __index__ __contains__ tolist numpy __array__")
READS |= {"equal", "allclose", "is_nonzero", "__complex__", "nonzero", "masked_select", "unique", "unique_consecutive"}
READS |= {"argwhere", "bincount", "_unique2"}
"""What makes Python depend on numbers, or a shape."""

VIEWS = words(
    "view reshape flatten squeeze unsqueeze transpose permute t T mT H mH expand expand_as view_as "
    "reshape_as select narrow split chunk unbind detach unflatten swapaxes swapdims movedim moveaxis "
    "ravel __getitem__ __iter__ tensor_split hsplit vsplit dsplit squeeze_ alias real imag diagonal "
    "unfold data conj adjoint view_as_real view_as_complex as_strided broadcast_to atleast_1d atleast_2d atleast_3d"
)


LAYOUT = words("is_contiguous stride view rrelu rrelu_ as_strided")
"""What depends on the order in which the numbers lie."""

ASKED_OF_AUTOGRAD = words("requires_grad is_leaf grad_fn")
AUTOGRADS = words(
    "backward grad requires_grad_ register_hook register_post_accumulate_grad_hook retain_grad retains_grad"
)
"""What needs the graph."""

MEMORY = words(
    "_version _base untyped_storage storage storage_offset data_ptr _typed_storage __dlpack__ set_ share_memory_ "
    "pin_memory"
)
"""What is about the memory of a tensor, and not about its numbers."""

SHAPED = words(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros "
    "new_ones new_full new_tensor"
)
"""What takes of a tensor its shape and dtype alone."""


class Tape(TorchFunctionMode):
    """Under it rules, and what has a rule, are run and written down.

    Args:
        how: ``"lean"``, ``"rows"`` or ``"pure"``, as for :func:`~torch_manualbp.rules.evaluate.write_down`.
        device: the type of the device that the model is on.
    """

    def __init__(self, how: str = "lean", device: str = "cpu") -> None:
        super().__init__()
        self.how = how
        self.device = device
        self.program = Program()
        self.nodes: list[Node] = []
        self.problems: list[tuple[str, str, str]] = []
        self.gradients: dict[Value, Value] = {}
        """∂C/∂(parameter)."""

        self.activations: dict[Value, tuple[Value, Any]] = {}
        """By z, the a that an activation made of it, and the function of entries that it is, if it is."""

        self.at_call: Callable[[str], None] = _nothing
        """What is called at each call of torch with the path of the module."""

        self.knows_draws = False
        """Whether it is known otherwise that forward draws none of Python's and NumPy's random numbers."""

        self._minds_layout = False  # in which order the numbers of a tensor lie
        self._has_columns = False
        self.may_draw = False
        """Whether somebody, who may be another thread, drew random numbers that are not torch's."""

        self._thread = threading.get_ident()
        self._learns: set[Value] = set()
        self._uneven: set[int] = set()
        self._foreign: set[int] = set()  # tensors that require grad, and that are not the model's
        self._paths: list[str] = [""]
        self._is_in_rule = False
        self._groups: dict[int, set[int]] = {}  # tensors that share memory in torch, where here they may be copies
        self._stale: dict[int, str] = {}

    def is_here(self) -> bool:
        """Whether this thread's rules are to be on the tape."""
        return threading.get_ident() == self._thread

    @property
    def minds_columns(self) -> bool:
        """Whether something depends on the order of numbers that torch would have had in another."""
        return self._has_columns and (self._minds_layout or self.program.draws_into_layout)

    # Forward

    def parameter(self, parameter: Tensor, name: str) -> None:
        """Make a parameter or buffer of the model known."""
        value = self.program.add(parameter, PARAMETER, name)
        if parameter.requires_grad:
            self._learns.add(value)

    def held(self, tensor: Tensor, name: str) -> None:
        """Make a tensor known that the model or the loss holds beside its parameters and buffers."""
        self.program.add(tensor, PARAMETER, name)
        if tensor.requires_grad:
            self._foreign.add(id(tensor))

    def input(self, tensor: Tensor, name: str, is_even: bool = True) -> None:
        """Make a tensor known that the caller gives, and whether it is laid out as the caller's is."""
        self.program.add(tensor, INPUT, name)
        if not is_even:
            self._uneven.add(id(tensor))

    def learns_from(self, tensor: Tensor) -> bool:
        """Whether a gradient goes back through it."""
        return self.program.value(tensor) in self._learns

    @contextlib.contextmanager
    def running(self, *roots: tuple[str, Any]) -> Iterator[None]:
        """Put the rules on the tape, and follow which module of ``roots`` is running."""
        modules = [
            item for prefix, root in roots if isinstance(root, Module) for item in root.named_modules(prefix=prefix)
        ]
        with one_at_a_time:
            if has_global_hooks():
                self._refuse_at("", "a hook of all modules", "remove it: a derived step would never call it")
            for name, module in modules:
                self._refuse_module(name, module)
            tape, written = put_on_tape(self), write_down(self.how)
            try:
                watching = watched(modules, self._refuse_at, self._suspect, draws=not self.knows_draws)
                following = _following(self, {id(module): name for name, module in modules})
                with self.program.draws, self, torch.enable_grad(), watching, following, _refusing_functions(self):
                    yield
            finally:
                put_on_tape(tape)
                write_down(written)

    @contextlib.contextmanager
    def within(self, path: str) -> Iterator[None]:
        """Count what happens to the module path ``path``."""
        self._paths.append(path)
        try:
            yield
        finally:
            self._paths.pop()

    def _suspect(self) -> None:
        self.may_draw = True

    def refuse_function(self, cls: type[Function]) -> None:
        """Refuse a Function that this thread calls where no rule does."""
        if self.is_here() and not self._is_in_rule:
            self._refuse(f"the Function {cls.__name__} is autograd's", "make it a torch_manualbp.Rule")

    def _refuse_at(self, path: str, what: str, todo: str) -> None:
        self.problems.append((path, what, todo))

    def _refuse_module(self, name: str, module: Module) -> None:
        """Refuse what works by being called on the way: hooks, and wrappers that reduce gradients."""
        self.problems += wrappers([(name, module)])
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            if getattr(module, kind):
                what = kind.strip("_").replace("_", " ").removesuffix("s")
                self._refuse_at(name, f"a {what}", "remove it: a derived step would never call it")
        for own, parameter in module._parameters.items():
            if parameter is not None and has_hooks(parameter):
                self._refuse_at(name, f"a hook of {own}", "remove it: a derived step would never call it")
            if parameter is not None and is_accumulated_by_others(parameter):
                todo = "remove it: a derived step would never call it"
                self._refuse_at(name, f"a hook of the node that accumulates the gradient of {own}", todo)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.at_call(self._paths[-1])
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__
        if name == "_set_grad_enabled":
            return function(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            self._refuse("torch.inference_mode in forward", "write torch.no_grad, which a program can do without")
        if self._is_in_rule:
            if name in READS and not all(
                self._is_fixed(self.program.value(t)) for t in leaves_of((args, kwargs), Tensor)
            ):
                self._refuse(f"its rule calls {_named(function)}, which reads numbers", "have formulas choose by where")
            return self.program.call(function, args, kwargs)
        if name in LAYOUT and not (name == "view" and self._need_gradient(args, kwargs)):
            self._minds_layout |= not all(t.is_contiguous() for t in leaves_of((args, kwargs), Tensor))
            if any(id(t) in self._uneven for t in leaves_of((args, kwargs), Tensor)):
                todo = "give the step contiguous tensors, or write reshape"
                self._refuse(f"{_named(function)} asks how a tensor of the batch lies that has gaps", todo)
        self._refuse_stale(args, kwargs)
        self._refuse_foreign(function, args, kwargs)
        output = self._run(function, name, args, kwargs)
        if name in VIEWS:
            self._share(args[0], output)
        return output

    def _run(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        module = getattr(function, "__module__", None) or ""
        if module.startswith("torch_manualbp.functional") and hasattr(function, "__wrapped__"):
            return self._ruled(function, function.__wrapped__, args, kwargs)
        if name == "copy_":
            return self._write(args[0], args[1])
        if name in ("detach", "data"):
            return self._detached(args[0])
        if name == "__set__":
            self._refuse(f"sets the {function.__self__.__name__} of a tensor", "make a new tensor")
            return None
        if _writes(name) and self._is_held(args[0]):
            self._refuse_change_of(args[0])
            return args[0]
        if name in READS or _counts(name, args, kwargs):
            self._refuse(
                f"{_named(function)} reads numbers", "have the step's shape and course follow from shapes alone"
            )
            return function(*args, **kwargs)
        if function in IN_PLACE or (function in OPERATIONS and is_in_place(function, args, kwargs)):
            result = self._ruled(function, IN_PLACE.get(function) or OPERATIONS[function], args, kwargs)
            return self._write(args[0], result)
        if function in OPERATIONS and self._need_gradient(args, kwargs):
            return self._ruled(function, OPERATIONS[function], args, kwargs)
        if name in ASKED_OF_AUTOGRAD:
            return self._autograd_says(name, args[0])
        if name in MEMORY:
            self._refuse(f"{_named(function)} asks where the numbers lie", "a program has memory of its own")
            return function(*args, **kwargs)
        if name in AUTOGRADS:
            self._refuse(
                f"{_named(function)} is autograd's", "derive the step of a model that does without, or use autograd"
            )
            return function(*args, **kwargs)
        return self._plainly(function, args, kwargs)

    def _ruled(self, function: Any, by_rules: Any, args: Any, kwargs: Any) -> Any:
        """Call what makes rules of ``function``."""
        z = self.program.value(args[0]) if args and isinstance(args[0], Tensor) else None
        try:
            with self:
                result = by_rules(*args, **kwargs)
            if z is not None and is_activation(function):
                self.activations[z] = self.program.value(result), function_of_entries(function, args, kwargs)
            return result
        except NoRule as error:
            self._refuse(f"{_named(function)}", str(error))
            with torch.no_grad():
                return function(*args, **kwargs)

    def _plainly(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Write down a call of which nothing is learnt."""
        name = getattr(function, "__name__", "")
        needs_gradient = self._need_gradient(args, kwargs) and name not in SHAPED
        given = list(leaves_of((args, kwargs), Tensor))
        versions, shapes = [t._version for t in given], [t.shape for t in given]
        try:
            with torch.no_grad(), torch.autocast(self.device, enabled=False):
                output = self.program.call(function, args, kwargs)
        except NoMemoryError as error:
            what, _, todo = str(error).partition("; ")
            self._refuse(f"{_named(function)}: {what}", todo)
            raise NotDerivableError(self.problems) from None
        if name.endswith("_") and shapes != [t.shape for t in given]:
            self._refuse(f"{_named(function)} changes the shape of a tensor in place", "write it out of place")
        changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        if changed and (needs_gradient or any(map(self._is_held, changed))):
            self._refuse(f"{_named(function)} changes a tensor in place", "write it out of place")
        elif needs_gradient and any(map(_is_continuous, leaves_of(output, Tensor))):
            todo = "use a layer of torch_manualbp.nn or an operation that has a rule, or write a Rule for it"
            self._refuse(f"{_named(function)} has no rule", todo)
        return output

    def apply(self, rule: type[Rule], args: tuple[Any, ...]) -> Any:
        """Run a rule: what ``rule.apply(*args)`` comes to under the tape."""
        learns = tuple(isinstance(arg, Tensor) and self._learns_from(arg) for arg in args)
        path = self._paths[-1]
        forward, backward = formulas(rule)
        label = f"{path}: {rule.__name__}" if path else rule.__name__
        with self._in_rule((label, *forward)):
            output = rule.forward(*args)
            outputs = (output,) if isinstance(output, Tensor) else tuple(output)
            self._has_columns |= rule is Linear and not output.is_contiguous()
            if not any(learns):
                return output
            ctx = Context(learns, self.program.same)
            rule.setup_context(ctx, args, output)
        values = tuple(self.program.value(t) for t in outputs)
        arguments = tuple(self.program.value(a) if needs else None for a, needs in zip(args, learns, strict=True))
        for t, value in zip(outputs, values, strict=True):
            if _is_continuous(t) and not any(t is other for other in ctx.non_differentiable):
                self._learns.add(value)
        self._name(values, rule, path)
        is_tuple = not isinstance(output, Tensor)
        self.nodes.append(Node(rule, ctx, path, arguments, values, is_tuple, (label, *backward)))
        return output

    def _name(self, values: tuple[Value, ...], rule: type[Rule], path: str) -> None:
        letter = _letter(rule)
        for i, value in enumerate(values):
            suffix = f"_{i}" if len(values) > 1 else ""
            value.name = f"{letter}_{identifier(path)}{suffix}" if path else f"{letter}{suffix}"
            value.is_named = True

    @contextlib.contextmanager
    def _in_rule(self, title: tuple[str, ...]) -> Iterator[None]:
        """Write down each torch call, and give what it makes the name that the rule's own code has for it."""
        self.program.title = title
        suffix = f"_{identifier(self._paths[-1])}" if self._paths[-1] else ""
        profile = sys.getprofile()
        looks = profile is None or callable(profile)  # cProfile's cannot be set again: then names are the plain ones
        self._is_in_rule = True
        if looks:
            sys.setprofile(self._namer(suffix))
        try:
            with torch.no_grad(), torch.autocast(self.device, enabled=False):
                yield
        finally:
            if looks:
                sys.setprofile(profile)
            self._is_in_rule = False

    def _namer(self, suffix: str) -> Callable[[FrameType, str, Any], None]:
        def name_locals(frame: FrameType, event: str, arg: Any) -> None:
            if event != "return" or "torch_manualbp/rules" not in frame.f_code.co_filename.replace("\\", "/"):
                return
            for name, local in frame.f_locals.items():
                if type(local) is Tensor and self.program.knows(local):
                    value = self.program.value(local)
                    if not value.is_named and name not in ("output", "result", "t", "_"):
                        value.name = f"{name}{suffix}"

        return name_locals

    def _learns_from(self, tensor: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        if tensor.requires_grad and (not self.program.knows(tensor) or id(tensor) in self._foreign):
            self._refuse(
                "a parameter that is not the model's", "make it an attribute of the model, or of a loss module"
            )
        return self.program.value(tensor) in self._learns

    def _need_gradient(self, args: Any, kwargs: Any) -> bool:
        return any(self._learns_from(t) for t in leaves_of((args, kwargs), Tensor))

    def _autograd_says(self, name: str, tensor: Tensor) -> Any:
        """What the attribute is under autograd."""
        value = self.program.value(tensor)
        with torch._C.DisableTorchFunction():
            learns = value in self._learns or tensor.requires_grad
        if name == "requires_grad":
            return learns
        is_leaf = not learns or value.memory.origin == PARAMETER
        if name == "is_leaf":
            return is_leaf
        if not is_leaf:
            self._refuse("reads the grad_fn of a tensor, which is autograd's", "do without, or use autograd")
        return None

    def _detached(self, tensor: Tensor) -> Tensor:
        """The same numbers, of which nothing is learnt."""
        with torch.no_grad():
            alias = tensor.detach()
        self.program.alias(alias, of=tensor)
        return alias

    def _write(self, target: Tensor, source: Any) -> Tensor:
        """Have ``target`` mean ``source`` from here on; what shares its memory in torch may not be used any more."""
        if not isinstance(source, Tensor) or source.shape != target.shape or source.dtype != target.dtype:
            self._refuse("an in-place change of shape or dtype", "write it out of place")
            return target
        if self._is_held(target):
            self._refuse_change_of(target)
            return target
        if not torch.is_grad_enabled() and self.program.value(target) in self._learns:
            self._refuse("changes under no_grad what learns", "write it out of place")
            return target
        before = self.program.value(target)
        if before.tensor is target:  # which is to keep its shape and strides
            before.tensor = self.program.same(target)
        self.program.stands_for(target, self.program.value(source))
        target.data = source  # so that views of it are views of the value's memory
        for other in self._groups.get(id(target), set()):
            if other != id(target):
                self._stale[other] = self._paths[-1]
        return target

    def _is_fixed(self, value: Value, seen: frozenset[Value] = frozenset()) -> bool:
        """Whether the numbers are made of nothing that changes from step to step."""
        if value.memory.origin != MADE:
            return value.memory.origin == CONSTANT
        seen |= {value}
        made = [call for call in self.program.calls if value in call.results and call.name not in SHAPED]
        used = {v for call in made for v in call.arguments()} - seen
        return not any(call.is_random for call in made) and all(self._is_fixed(v, seen) for v in used)

    def _is_held(self, tensor: Any) -> bool:
        """Whether somebody has the tensor who would see it change."""
        return isinstance(tensor, Tensor) and self.program.value(tensor).memory.origin != MADE

    def _refuse_change_of(self, tensor: Tensor) -> None:
        if self.program.value(tensor).memory.origin == INPUT:
            self._refuse("changes an input in place", "write it out of place")
        else:
            held = "a parameter, a buffer or a tensor that it holds"
            self._refuse(f"changes {held} in forward", "keep such state out of a derived step")

    def _share(self, base: Any, views: Any) -> None:
        if not isinstance(base, Tensor):
            return
        group = self._groups.setdefault(id(base), {id(base)})
        for t in leaves_of(views, Tensor):
            self.program.value(t)  # which keeps it, and its id, alive
            group.add(id(t))
            self._groups[id(t)] = group

    def _refuse_stale(self, args: Any, kwargs: Any) -> None:
        for t in leaves_of((args, kwargs), Tensor):
            if id(t) in self._stale:
                path = self._stale.pop(id(t))
                self.problems.append(
                    (path, "changes a tensor in place that is used through another view of it", "write it out of place")
                )

    def _refuse_foreign(self, function: Any, args: Any, kwargs: Any) -> None:
        """What cannot be written down, and what torch's transforms hide."""
        for argument in pytree.tree_leaves((args, kwargs)):
            if isinstance(argument, torch.Generator):
                self._refuse(
                    f"{_named(function)} draws from a generator of its own", "draw from torch's: leave it away"
                )
        if torch._C._are_functorch_transforms_active():
            self._refuse(f"{_named(function)} under a transform of torch.func", "write it out for the whole batch")
            raise NotDerivableError(self.problems)

    def _refuse(self, what: str, todo: str) -> None:
        self.problems.append((self._paths[-1], what, todo))

    # Backward

    def backward(self, loss: Tensor, share: float = 1) -> None:
        """Run the rules' backward from ∂C/∂C = 1, or this share of it, and leave the gradients of the parameters in
        ``gradients``."""
        one = torch.ones_like(loss) if share == 1 else torch.full_like(loss, share)
        upstream_of_loss = self.program.value(one)
        upstream_of_loss.name, upstream_of_loss.is_named = ("one" if share == 1 else "share"), True
        gradients = {self.program.value(loss): one}
        for node in reversed(self.nodes):
            upstream = [gradients.pop(value, None) for value in node.outputs]
            if all(g is None for g in upstream):
                continue
            with self.within(node.path), self._in_rule(node.title):
                filled = [
                    torch.zeros_like(value.tensor) if g is None and node.ctx.materializes_grads else g
                    for g, value in zip(upstream, node.outputs, strict=True)
                ]
                node.delta = None if filled[0] is None else self.program.value(filled[0])
                result = node.rule.backward(node.ctx, *filled)
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


@contextlib.contextmanager
def _following(tape: Tape, names: dict[int, str]) -> Iterator[None]:
    """Have the tape know which of these modules is running. Hooks would be in the dicts of the modules, for other
    threads that copy them to see."""
    call: Any = vars(Module)["_call_impl"]

    def follow(module: Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module)) if tape.is_here() else None
        if name is None:
            return call(module, *args, **kwargs)
        with tape.within(name):
            return call(module, *args, **kwargs)

    setattr(Module, "_call_impl", follow)  # noqa: B010 # no assignment, for type checkers
    try:
        yield
    finally:
        setattr(Module, "_call_impl", call)  # noqa: B010


@contextlib.contextmanager
def _refusing_functions(tape: Tape) -> Iterator[None]:
    """autograd.Function's apply runs a forward whose backward nobody would see."""
    _refusing.append(tape)
    setattr(Function, "apply", classmethod(_refuse_or_apply))  # noqa: B010 # no assignment, for type checkers
    try:
        yield
    finally:
        _refusing.remove(tape)
        if not _refusing:
            setattr(Function, "apply", _apply)  # noqa: B010


def _refuse_or_apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    # What imports meanwhile, as torch does on demand, may keep this for good: it holds no tape.
    for tape in _refusing:
        tape.refuse_function(cls)
    return _apply.__get__(None, cls)(*args, **kwargs)


_apply: Any = vars(Function)["apply"]
_refusing: list[Tape] = []
"""The tapes that are running."""


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
    """What the output of a rule is called: z of a layer with weights, a of an activation, C of a loss."""
    module = rule.__module__
    if module.endswith("rules.linear"):
        return "z"
    if ".activation" in module:
        return "a"
    return "C" if ".loss" in module else rule.__name__.lower()


def _gradient_name(name: str) -> str:
    return f"delta_{name[2:]}" if name.startswith("z_") else f"d{name}"


def _named(function: Any) -> str:
    return resolve_name(function) or getattr(function, "__name__", repr(function))


def _writes(name: str) -> bool:
    """Whether a method of this name writes over its tensor."""
    if name.startswith("__"):
        return name == "__setitem__" or name in _AUGMENTED
    return name.endswith("_") and name != "requires_grad_"


_AUGMENTED = words("__iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __imod__ __ifloordiv__ __iand__ __ior__")


def _counts(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the shape of the result is a matter of numbers."""
    if name == "__getitem__":
        items = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        masks = any(item.dtype in (torch.bool, torch.uint8) for item in leaves_of(items, Tensor))
        return masks or any(True for item in items if isinstance(item, slice) for _ in leaves_of(item, Tensor))
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "one_hot":
        return (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1
    if name == "full":
        args = args[:1]
    sizes = args[0 if name in _MADE_OF_SIZES else 1 :]
    given = sizes, {key: value for key, value in kwargs.items() if key != "out"}
    return name in _MADE_OF_SIZES | _SIZED and any(True for _ in leaves_of(given, Tensor))


_MADE_OF_SIZES = words("arange linspace logspace range zeros ones empty full rand randn randint randperm eye")
_SIZED = words(
    "view reshape expand repeat tile unflatten split chunk narrow select tensor_split roll repeat_interleave "
    "new_zeros new_ones new_empty new_full broadcast_to"
)


def _is_continuous(t: Tensor) -> bool:
    """Whether there are derivatives by it."""
    return t.is_floating_point() or t.is_complex()
