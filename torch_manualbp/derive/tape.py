"""Runs a model with its rules in autograd's place, and records the torch calls that they make.

What is called beside the rules is looked at here: what has a rule becomes one, what nothing is learnt from is recorded
as it is, and what no program can do is refused by name.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module
from torch.overrides import resolve_name
from torch.utils.checkpoint import CheckpointFunction

from torch_manualbp._torch import is_transformed, without_torch_function
from torch_manualbp.catalogue.called import activation_of, function_of_entries
from torch_manualbp.derive.assigned import assigned_names
from torch_manualbp.derive.buffers import Kept
from torch_manualbp.derive.effects import (
    BACKWARD_HOOKS,
    has_global_hooks,
    has_hooks,
    is_accumulated_by_others,
    watched,
    wrappers,
)
from torch_manualbp.derive.expected import (
    ANSWERED,
    COUNTED,
    UNIQUE,
    has_sizes,
    is_answer,
    is_counted,
    with_whole_sizes,
)
from torch_manualbp.derive.foreign import rule_of
from torch_manualbp.derive.history import Application
from torch_manualbp.derive.inner import gradients_inside
from torch_manualbp.derive.operations import COMPOSED, IN_PLACE, OPERATIONS, NoRule, is_in_place
from torch_manualbp.derive.program import (
    CONSTANT,
    INPUT,
    MADE,
    PARAMETER,
    Answer,
    Memory,
    NoMemoryError,
    leaves_of,
    mapped,
    values_in,
    words,
)
from torch_manualbp.derive.refusals import NotDerivableError, Problem, line_of_model
from torch_manualbp.derive.runner import Node, RuleRunner, formulas, identifier, is_continuous, without_autocast
from torch_manualbp.derive.tracers import Asked, MayGoAnotherWay
from torch_manualbp.derive.views import Views
from torch_manualbp.rules.jacobian import Product
from torch_manualbp.rules.recording import recorded_by, recorder
from torch_manualbp.rules.rule import Rule

__all__ = ["Node", "NotDerivableError", "Tape", "formulas", "identifier", "one_at_a_time"]


one_at_a_time = threading.RLock()
"""The thread that has it derives: its rules are on its tape, and its hooks on the modules."""


def _nothing(path: str) -> None:
    """Nothing is to be done at a call."""


READS = words("__format__ __repr__ __reduce_ex__ item __bool__ __int__ __float__ __index__ __contains__ tolist numpy")
READS |= {
    "__array__",
    "equal",
    "allclose",
    "is_nonzero",
    "__complex__",
    "nonzero",
    "masked_select",
    "unique",
    "unique_consecutive",
}
READS |= {"argwhere", "bincount", "_unique2"}
"""What makes Python depend on numbers, or a shape."""

LAYOUT = words("is_contiguous stride view rrelu rrelu_ as_strided")
"""What depends on the order in which the numbers lie."""

LOOKS = frozenset(
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_nested", "is_sparse")
) | {Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.__len__}
LOOKS |= {Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel}
"""What rules ask of tensors besides their numbers: three of four calls, of which nothing is recorded."""

_SHAPE = getattr(Tensor, "shape").__get__  # noqa: B009 # the property's own function, as a mode sees it
_OF_SHAPES = "have the step's shape and course follow from shapes alone"

WRITE_A_RULE = "use a layer of torch_manualbp.nn or an operation that has a rule, or write a Rule for it"

ASKED_OF_AUTOGRAD = words("requires_grad is_leaf grad_fn")
AUTOGRADS = words("backward grad register_hook register_post_accumulate_grad_hook retain_grad retains_grad")
"""What needs the graph."""

FLAT = words("sign floor ceil round trunc fix heaviside")
"""What has the derivative 0 wherever it has one: what it makes is a constant."""

UPDATING = words("batch_norm instance_norm")
"""What writes to buffers where nobody sees it: by rules it writes to them in plain calls."""

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


class Tape(RuleRunner):
    """Under it rules, and what has a rule, are run and recorded.

    Args:
        how: ``"lean"``, ``"rows"`` or ``"pure"``, as for :class:`~torch_manualbp.rules.recording.Recorder`.
        device: the type of the device that the model is on.
    """

    def __init__(self, how: Literal["lean", "rows", "pure"] = "lean", device: str = "cpu") -> None:
        super().__init__()
        self.how: Literal["lean", "rows", "pure"] = how
        self.device = self.device_type = device
        self.applications: list[Application] = []
        """The rules that were applied, in order."""

        self.problems: list[tuple[str, str, str]] = []
        self.at_call: Callable[[str], None] = _nothing
        """What is called at each call of torch with the path of the module."""

        self.functions: list[tuple[type[Function], tuple[Any, ...], Problem]] = []
        """The Functions that are no rules, with the arguments that they had, and where."""

        self.asked = Asked(says=True)
        """What code that asks hears about tracers."""

        self.takes_names = False
        """Whether values are called as the model's code calls them."""

        self.knows_draws = False
        """Whether it is known otherwise that forward draws none of Python's and NumPy's random numbers."""

        self.may_ask = how != "pure"
        """Whether numbers that forward reads may be a matter of the program, and not of one graph for a compiler."""

        self._minds_layout = False  # in which order the numbers of a tensor lie
        self._has_columns = False
        self.may_draw = False
        """Whether somebody, who may be another thread, drew random numbers that are not torch's."""

        self._buffers: dict[str, Tensor] = {}
        self.changed: dict[str, Tensor] = {}
        """The buffers that forward has changed, by name, with the numbers that it gave them."""

        self._may_be_changed: dict[Memory, bool] = {}
        self._is_composing = False  # a function of torch out of others

        self._uneven: set[int] = set()
        self._foreign: set[int] = set()  # tensors that require grad, and that are not the model's
        self._views = Views()

    @property
    def minds_columns(self) -> bool:
        """Whether something depends on the order of numbers that torch would have had in another."""
        minds = self._minds_layout or self._views.minds_layout or self.program.draws_into_layout
        return self._has_columns and minds

    # Forward

    def parameter(self, parameter: Tensor, name: str, is_frozen: bool = False) -> None:
        """Make a parameter or buffer of the model known; a frozen one is a constant although it asks for a gradient."""
        value = self.program.add(parameter, PARAMETER, name)
        if parameter.requires_grad:
            if not is_frozen:
                self._learns.add(value)
        else:
            self._buffers[name] = parameter
        is_alone = value.memory not in self._may_be_changed and value.is_whole
        self._may_be_changed[value.memory] = is_alone and not parameter.requires_grad

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
            watching = watched(modules, self._refuse_at, self._suspect, draws=not self.knows_draws)
            following = _following(self, {id(module): name for name, module in modules})
            kept = Kept(self._buffers if roots else {})
            self.changed = kept.changed
            surroundings = (kept, recorded_by(self), self.program.draws, self, torch.enable_grad(), watching, following)
            with contextlib.ExitStack() as stack:
                for surrounding in (*surroundings, _refusing(), self.asked):
                    stack.enter_context(surrounding)
                yield

    def _suspect(self) -> None:
        self.may_draw = True

    def apply_function(self, cls: type[Function], args: tuple[Any, ...]) -> Any:
        """Run a Function that is no rule, and that no rule calls. Its backward is looked at afterwards."""
        apply = _apply.__get__(None, cls)
        if self._is_in_rule:
            return apply(*args)
        self.up_to_date(args)
        learns = tuple(isinstance(arg, Tensor) and self._learns_from(arg) for arg in args)
        if issubclass(cls, CheckpointFunction):  # whose backward runs the same forward again
            with contextlib.nullcontext() if any(learns) else torch.no_grad():
                return args[0](*args[2:])
        if not any(learns):
            with torch.no_grad():
                return apply(*args)
        with without_torch_function():
            given = tuple(arg.detach().clone() if isinstance(arg, Tensor) else arg for arg in args)
        try:
            output = self.apply(rule_of(cls, learns), args)
        except NotImplementedError as error:
            self._refuse(f"the Function {cls.__name__} is autograd's: {error}", "make it a torch_manualbp.Rule")
            return self._go_on(apply(*args), args)
        self.functions.append((cls, given, Problem.here(self._paths[-1], cls.__name__, "")))
        return output

    def _refuse_at(self, path: str, what: str, todo: str) -> None:
        self.problems.append((path, what, todo))

    def _refuse_module(self, name: str, module: Module) -> None:
        """Refuse what works by being called on the way: hooks, and wrappers that reduce gradients."""
        self.problems += wrappers([(name, module)])
        for kind in BACKWARD_HOOKS:
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
        if self._is_in_rule and function in LOOKS:
            return function(*args, **kwargs)
        self.at_call(self._paths[-1])
        name = getattr(function, "__name__", "")
        if name == "__get__":
            name = function.__self__.__name__
        if name == "_set_grad_enabled":
            return function(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            self._refuse("torch.inference_mode in forward", "write torch.no_grad, which a program can do without")
        if self._is_in_rule:
            if name in READS and not self._are_fixed(args, kwargs):
                self._refuse(f"its rule calls {_named(function)}, which reads numbers", "have formulas choose by where")
            return self.program.call(function, args, kwargs)
        if name in LAYOUT and not (name == "view" and self._need_gradient(args, kwargs)):
            self._minds_layout |= not all(t.is_contiguous() for t in leaves_of((args, kwargs), Tensor))
            if any(id(t) in self._uneven for t in leaves_of((args, kwargs), Tensor)):
                todo = "give the step contiguous tensors, or write reshape"
                self._refuse(f"{_named(function)} asks how a tensor of the batch lies that has gaps", todo)
        if name == "__setitem__":
            self._views.puts_back(*args)
        with self if self._views.are_written else contextlib.nullcontext():
            self.up_to_date((args, kwargs))
        self._refuse_foreign(function, args, kwargs)
        if is_transformed():
            with torch.no_grad():
                return function(*args, **kwargs)
        begin = len(self.program.calls)
        output = self._run(function, name, args, kwargs)
        self._settle()
        if self._is_composing:  # of the call that this one is a part of
            return output
        if self.takes_names and len(self.program.calls) > begin:
            self._take_names(output, begin)
        self._views.made(function, name, args, kwargs, output)
        return output

    def _take_names(self, output: Any, begin: int) -> None:
        """Call what calls from this one on have made as the model's code does."""
        outputs, names = leaves_of(output, Tensor), assigned_names()
        if len(names) == len(outputs):
            made = {value for call in self.program.calls[begin:] for value in call.results}
            for t, name in zip(outputs, names, strict=True):
                value = self.program.value(t)
                if value in made and value.memory.origin == MADE and name != "_":
                    value.name, value.is_named = self._name_here(name), True

    def _run(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        module = getattr(function, "__module__", None) or ""
        if module.startswith("torch_manualbp.functional") and hasattr(function, "__wrapped__"):
            return self._ruled(function, function.__wrapped__, args, kwargs)
        if _writes(name) and self._is_held(args[0]):
            return self._update_held(function, args, kwargs)
        if name == "copy_":
            with self:
                source = _like(args[1], args[0])
            return self._write(args[0], source)
        if name in ("detach", "data"):
            return self._detached(args[0])
        if name == "requires_grad_" or (name == "__set__" and function.__self__.__name__ == "requires_grad"):
            return self._ask_for_gradient(args[0], *args[1:], **kwargs)
        if function is torch.autograd.grad:
            return self._differentiate(args, kwargs)
        if name == "__set__":
            self._refuse(f"sets the {function.__self__.__name__} of a tensor", "make a new tensor")
            return None
        if name in READS or is_counted(name, args, kwargs):
            return self._read(function, name, args, kwargs)
        if not torch.is_grad_enabled() and name.endswith("_") and self.program.value(args[0]) in self._learns:
            return self._plainly(function, args, kwargs)  # which the gradient passes by, as torch has it
        if function in COMPOSED and not self._need_gradient(args, kwargs):
            return self._plainly(function, args, kwargs)
        if function in IN_PLACE or (function in OPERATIONS and is_in_place(function, args, kwargs)):
            result = self._ruled(function, IN_PLACE.get(function) or OPERATIONS[function], args, kwargs)
            return self._write(args[0], result)
        if function in OPERATIONS and (self._need_gradient(args, kwargs) or name in UPDATING):
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

    def _read(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """What forward reads of the numbers is what the program is derived for."""
        is_fixed = self._are_fixed(args, kwargs)
        if is_fixed and has_sizes(name, args, kwargs):
            return self._counted(function, name, args, kwargs)
        if is_fixed:
            return self._plainly(function, args, kwargs)
        if self.asked.was_asked and not self.asked.says:
            raise MayGoAnotherWay
        if self.may_ask and name in UNIQUE:
            output = self._plainly(function, args, kwargs)
            for t in leaves_of(output, Tensor):
                self.program.ask(_SHAPE, (t,), {}, Answer(tuple(t.shape), self._place()))
            return output
        if self.may_ask and is_counted(name, args, kwargs):
            return self._counted(function, name, args, kwargs)
        with torch.no_grad():
            answer = function(*args, **kwargs)
        is_whole = is_answer(answer) or (type(answer) is float and not is_continuous(args[0]))
        if self.may_ask and name in ANSWERED and is_whole:
            self.program.ask(function, args, kwargs, Answer(answer, self._place()))
        else:
            self._refuse(f"{_named(function)} reads numbers", _OF_SHAPES)
        return answer

    def _counted(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Call what makes a tensor whose shape is a matter of numbers, after these are read."""
        is_part, self._is_composing = self._is_composing, True
        try:
            with self:
                if name in COUNTED:
                    return COUNTED[name](*args, **kwargs)
                args, kwargs = with_whole_sizes(name, args, kwargs)
                return function(*args, **kwargs)
        finally:
            self._is_composing = is_part

    def _place(self) -> str:
        """Where the model's code is, for a message."""
        return " ".join(filter(None, (self._paths[-1], f"({line})" if (line := line_of_model()) else "")))

    def _ask_for_gradient(self, tensor: Tensor, requires_grad: bool = True) -> Tensor:
        value = self.program.value(tensor)
        if value.memory.origin == PARAMETER and requires_grad != (value in self._learns):
            what = "starts or stops in forward to learn a parameter or buffer"
            self._refuse(what, "call requires_grad_ outside of the step")
        elif requires_grad:
            self._learns.add(value)
        elif value in self._learns:
            self._refuse("sets the requires_grad of a tensor to False", "write detach")
        return tensor

    def _differentiate(self, args: Any, kwargs: Any) -> Any:
        try:
            with self:
                return gradients_inside(self, *args, **kwargs)
        except NotImplementedError as error:
            self._refuse(f"torch.autograd.grad with {error}", "call it once for each of them")
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            return tuple(self._go_on(torch.zeros_like(t), t) for t in leaves_of(inputs, Tensor))

    def _ruled(self, function: Any, by_rules: Any, args: Any, kwargs: Any) -> Any:
        """Call what makes rules of ``function``."""
        z = self.program.value(args[0]) if args and isinstance(args[0], Tensor) else None
        is_part, self._is_composing = self._is_composing, True
        try:
            with self:
                result = by_rules(*args, **kwargs)
            if z is not None and activation_of(function):
                self.activations[z] = self.program.value(result), function_of_entries(function, args, kwargs)
            return result
        except NoRule as error:
            reason, _, todo = str(error).partition("; ")
            name, own = _named(function), reason.split(" ", 1)[0]
            what = name + reason[len(own) :] if name.endswith(f".{own}") else f"{name}: {reason}"
            self._refuse(what, todo or WRITE_A_RULE)
            with torch.no_grad():
                output = function(*args, **kwargs)
            return self._go_on(output, (args, kwargs))
        finally:
            self._is_composing = is_part

    def _plainly(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of which nothing is learnt."""
        name = getattr(function, "__name__", "")
        needs_gradient = self._need_gradient(args, kwargs) and name not in SHAPED
        given = list(leaves_of((args, kwargs), Tensor))
        versions, shapes = [t._version for t in given], [t.shape for t in given]
        asks_for_gradient = kwargs.pop("requires_grad", False)
        try:
            with torch.no_grad(), without_autocast(self.device):
                output = self.program.call(function, args, kwargs)
        except NoMemoryError as error:
            what, _, todo = str(error).partition("; ")
            self._refuse(f"{_named(function)}: {what}", todo)
            raise NotDerivableError(self.problems) from None
        if asks_for_gradient:
            self._learns.add(self.program.value(output))
        if name.endswith("_") and shapes != [t.shape for t in given]:
            self._refuse(f"{_named(function)} changes the shape of a tensor in place", "write it out of place")
        changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        if changed and (needs_gradient or any(self._is_held(t) and not self._may_change(t) for t in changed)):
            self._refuse(f"{_named(function)} changes a tensor in place", "write it out of place")
        elif needs_gradient and name not in FLAT and any(map(is_continuous, leaves_of(output, Tensor))):
            self._refuse(f"{_named(function)} has no rule", WRITE_A_RULE)
            self._go_on(output, (args, kwargs))
        return output

    def apply(self, rule: type[Rule], args: tuple[Any, ...]) -> Any:
        """Run a rule: what ``rule.apply(*args)`` comes to under the tape."""
        self.up_to_date(args)
        learns = tuple(isinstance(arg, Tensor) and self._learns_from(arg) for arg in args)
        given, begin = mapped(args, Tensor, self.program.value), len(self.program.calls)
        output = self.run(rule, args, learns)
        with without_torch_function():  # this is not the model's question
            self._has_columns |= isinstance(rule.jacobian, Product) and not output.is_contiguous()
        outputs = tuple(self.program.value(t) for t in leaves_of(output, Tensor))
        where = self._paths[-1], self.program.section, (begin, len(self.program.calls))
        self.applications.append(Application(rule, given, learns, outputs, *where))
        return output

    def _learns_from(self, tensor: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        if tensor.requires_grad and (not self.program.knows(tensor) or id(tensor) in self._foreign):
            self._refuse(
                "a parameter that is not the model's", "make it an attribute of the model, or of a loss module"
            )
        return self.program.value(tensor) in self._learns

    def _need_gradient(self, args: Any, kwargs: Any) -> bool:
        return torch.is_grad_enabled() and any(self._learns_from(t) for t in leaves_of((args, kwargs), Tensor))

    def _autograd_says(self, name: str, tensor: Tensor) -> Any:
        """What the attribute is under autograd."""
        value = self.program.value(tensor)
        with without_torch_function():
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
        if not torch.is_grad_enabled() and self.program.value(target) in self._learns:
            self._refuse("changes under no_grad what learns", "write it out of place")
            return target
        if self._views.are_written:
            is_part, self._is_composing = self._is_composing, True
            with self:
                reason = self._views.put_back(target, self._bind, self._is_own)
            self._is_composing = is_part
            if reason:
                self._refuse(reason, "write it out of place")
        self._bind(target, source)
        self._views.written(target)
        return target

    def _are_fixed(self, args: Any, kwargs: Any) -> bool:
        """Whether the numbers of these are made of nothing that changes from step to step, such as those of a mask that
        forward builds."""
        left = {self.program.value(t).memory for t in leaves_of((args, kwargs), Tensor)}
        if any(memory.origin not in (MADE, CONSTANT) for memory in left):
            return False
        for call in reversed(self.program.calls):
            if left.isdisjoint(call.made | call.written):
                continue
            used = values_in((call.args[1:], call.kwargs)) if call.name in SHAPED else call.arguments()
            left |= {value.memory for value in used}
            if call.is_random or any(memory.origin not in (MADE, CONSTANT) for memory in left):
                return False
        return True

    def _is_held(self, tensor: Any) -> bool:
        """Whether somebody has the tensor who would see it change."""
        return isinstance(tensor, Tensor) and self.program.value(tensor).memory.origin != MADE

    def _update_held(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Record what a forward does to a buffer: it is done at each step, together with the update."""
        target = args[0]
        if not self._may_change(target):
            if self.program.value(target).memory.origin == INPUT:
                self._refuse("changes an input in place", "write it out of place")
            else:
                what = "changes in forward a tensor that is neither a buffer nor a parameter without requires_grad"
                self._refuse(what, "make it one by register_buffer")
            return target
        if self._need_gradient(args[1:], kwargs):
            self._refuse("changes a buffer by what learns", "write it under torch.no_grad, or of what is detached")
            return target
        return self._plainly(function, args, kwargs)

    def _may_change(self, tensor: Tensor) -> bool:
        return self._may_be_changed.get(self.program.value(tensor).memory, False)

    def up_to_date(self, tree: Any) -> None:
        """Have tensors have what was written through other views of them. It is for the tape to see."""
        if not self._views.are_written:
            return
        is_part, self._is_composing = self._is_composing, True
        try:
            reason = self._views.refreshed(leaves_of(tree, Tensor), self._bind, self._is_own)
        finally:
            self._is_composing = is_part
        if reason:
            self._refuse(reason, "write it out of place")

    def _is_own(self, tensor: Tensor) -> bool:
        return self.program.value(tensor).memory.origin == MADE

    def _bind(self, target: Tensor, source: Tensor) -> None:
        """Have ``target`` mean ``source`` from here on."""
        before = self.program.value(target)
        if before.tensor is target:  # which is to keep its shape and strides
            before.tensor = self.program.same(target)
        self.program.stands_for(target, self.program.value(source))
        with without_torch_function():
            target.data = source  # so that views of it are views of the value's memory

    def _refuse_foreign(self, function: Any, args: Any, kwargs: Any) -> None:
        """What cannot be recorded, and what torch's transforms hide."""
        if leaves_of((args, kwargs), torch.Generator):
            self._refuse(f"{_named(function)} draws from a generator of its own", "draw from torch's: leave it away")
        if is_transformed():
            self._refuse(f"{_named(function)} under a transform of torch.func", "write it out for the whole batch")

    def _refuse(self, what: str, todo: str) -> None:
        self.problems.append(Problem.here(self._paths[-1], what, todo))

    def _go_on(self, output: Any, given: Any) -> Any:
        """Take what a refused call returns for something that learns, so that what follows it is looked at, too."""
        if self._need_gradient(given, {}):
            self._learns.update(self.program.value(t) for t in leaves_of(output, Tensor) if is_continuous(t))
        return output


@contextlib.contextmanager
def _following(tape: Tape, names: dict[int, str]) -> Iterator[None]:
    """Have the tape know which of these modules is running. Hooks would be in the dicts of the modules, for other
    threads that copy them to see."""
    call: Any = vars(Module)["_call_impl"]

    def follow(module: Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(module)) if recorder() is tape else None
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
def _refusing() -> Iterator[None]:
    """autograd.Function's apply runs a forward whose backward nobody would see. One tape runs at a time."""
    setattr(Function, "apply", classmethod(_refuse_or_apply))  # noqa: B010 # no assignment, for type checkers
    try:
        yield
    finally:
        setattr(Function, "apply", _apply)  # noqa: B010


def _refuse_or_apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
    # What imports meanwhile, as torch does on demand, may keep this for good.
    tape = recorder()
    if isinstance(tape, Tape) and not kwargs:
        return tape.apply_function(cls, args)
    return _apply.__get__(None, cls)(*args, **kwargs)


_apply: Any = vars(Function)["apply"]


def _like(source: Tensor, target: Tensor) -> Tensor:
    """What is copied, in the shape and dtype of where it goes."""
    source = source if source.shape == target.shape else source.expand(target.shape)
    return source if source.dtype == target.dtype else source.to(target.dtype)


def _named(function: Any) -> str:
    return resolve_name(function) or getattr(function, "__name__", repr(function))


def _writes(name: str) -> bool:
    """Whether a method of this name writes over its tensor."""
    if name.startswith("__"):
        return name == "__setitem__" or name in _AUGMENTED
    return name.endswith("_") and name != "requires_grad_"


_AUGMENTED = words("__iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__ __imod__ __ifloordiv__ __iand__ __ior__")
