"""z, a, δ = ∂C/∂z and ∂C/∂a of every layer, out of ordinary training code."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from torch_manualbp import nn
from torch_manualbp._text import visible
from torch_manualbp._torch import (
    at_the_end_of_backward,
    backward_task,
    forward_mode_level,
    is_batched,
    is_functorch_wrapped,
    is_mapped,
    is_traced_by_make_fx,
    mapped_dim,
    pytree,
    unwrapped,
    without_torch_function,
    without_transforms,
)
from torch_manualbp.catalogue.called import OfModule, activation_of, function_of_entries
from torch_manualbp.insight.record import Call, LocalGradients, NotReachedError
from torch_manualbp.insight.refusals import ONE_PIECE, refuse_compiled

__all__ = ["Watch", "local_gradients", "own_parameters"]

Reduce = Callable[[Tensor], Any]

MODULES = tuple(getattr(torch.nn, name) for name in nn.activation.__all__)
LISTS = (torch.nn.ParameterList, torch.nn.ParameterDict)
KNOWN = ("torch.nn.", "torch_manualbp.nn")
"""Where the modules are from whose forward is known."""


@contextmanager
def local_gradients(model: Module, *, reduce: Reduce | None = None) -> Iterator[LocalGradients]:
    """Record every layer's z, a, δ and ∂C/∂a in ordinary training code, in its one backward pass.

    ::

        with local_gradients(model) as record:
            loss(model(x), y).backward()
        record["fc1"].delta                # δ = ∂C/∂z of fc1, in the shape of its output
        print(record)                      # ‖δ‖ of every layer

    A layer is a module that has no modules in it, or parameters of its own; of ours, of ``torch.nn`` or of anybody's.
    Of a layer with weights z is its output, and a = f(z) the output of the activation that takes z, be it a module or
    a function; a = z where there is none. Of a layer without weights z goes in, and a comes out. A module that is
    called several times has several calls, ``record["fc1"][0]`` and so on. Outputs that are no tensor are looked
    through for the first one. Nothing that the code computes changes by a bit; in-place changes after the fact do not
    reach what is recorded. Calls are those of the thread that enters the block.

    Gradients that the code itself takes and differentiates, by ``torch.autograd.grad(..., create_graph=True)`` or by
    ``torch.func`` inside of the model, are part of C: δ is ∂C/∂z of the backward pass that comes after. What is called
    inside of ``vmap`` is recorded with the samples along the first dimension.

    Args:
        model: what is trained; it may be wrapped, in DistributedDataParallel for example, but not compiled.
        reduce: what to keep of every tensor in place of it, such as ``torch.linalg.vector_norm`` or
            :func:`~torch_manualbp.insight.summary`. It is called on the tensor as soon as it is there.

    Raises:
        ValueError: the model is compiled or scripted, or one of its layers is called while a graph is traced.
        NotReachedError: when the block ends, if no gradient came back to any layer.
    """
    with Watch(model, reduce) as watch:
        yield watch.record
    watch.refuse_if_empty()


def _unseen(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook whose own looks at tensors are no calls to watch: 130 of them in a step of three layers, 7 µs each."""

    @functools.wraps(hook)
    def unseen(*args: Any) -> None:
        with without_torch_function():
            hook(*args)

    return unseen


class Watch(TorchFunctionMode):
    """Follows the calls of a model's modules, and of activations that are functions, between its enter and its exit."""

    def __init__(self, model: Module, reduce: Reduce | None = None) -> None:
        super().__init__()
        refuse_compiled(model)
        self.reduce = reduce
        names: dict[Module, str] = {}
        aliases = {name: names.setdefault(m, name) for name, m in model.named_modules(remove_duplicate=False)}
        self._modules = tuple(names)
        self._layers = {module: name for module, name in names.items() if _is_layer(name, module)}
        self.record = LocalGradients(aliases)
        self._pending: dict[Module, list[tuple[Call, _Made | None]]] = {module: [] for module in self._layers}
        """The calls that are running, and the z that they may be the activation of."""

        self._made: dict[int, _Made] = {}
        """Those that no activation has taken yet."""

        self._copies: dict[int, tuple[Any, int, Any]] = {}
        self._handles: list[Any] = []
        self._parameters = tuple(model.parameters())
        self._held: dict[int, list[tuple[Call, str]]] = {}
        """The gradients of the backward passes that are running."""

        self._provisional: list[tuple[Call, str]] = []
        """What a pass has left that is itself differentiated."""

        self._is_inner = False
        """Whether such a pass is running."""

        self._thread, self._is_called_elsewhere = threading.get_ident(), False
        """The thread whose calls are recorded, and whether others were made."""

        self._batch, self._has_come = 0, False
        """How many times a forward began after gradients had come, and whether some have since."""

    def __deepcopy__(self, memo: Any) -> Watch:
        """A copy of the model has copies of the hooks, which know none of its modules."""
        return self

    def __enter__(self) -> Watch:
        self._is_hooked = any(m._backward_hooks or m._backward_pre_hooks for m in self._modules)
        for module, name in self._layers.items():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._made.clear()  # a graph that is kept knows its hooks, and these the watch
        self._copies.clear()
        self._held.clear()
        self._provisional.clear()

    def refuse_if_empty(self) -> None:
        """Say in one line why there is no δ at all."""
        calls = list(self.record.calls())
        if not calls:
            where = " by the thread that entered it" if self._is_called_elsewhere else ""
            raise NotReachedError(f"no layer of the model was called inside the with block{where}")
        if not any(call.is_reached for call in calls):
            raise NotReachedError(calls[-1].why_not_reached())

    # Modules

    def _before(self, name: str) -> Callable[..., None]:
        @_unseen
        # Without kwargs where another thread calls the module before torch has noted that the hook takes them.
        def before(module: Module, args: Any, kwargs: Any = None) -> None:
            if torch.compiler.is_compiling():
                raise ValueError(f"{visible(name) or 'the model'} is called inside of torch.compile, {ONE_PIECE}")
            if is_traced_by_make_fx():
                traced = "is called while make_fx traces it, as torch.func.linearize does"
                raise ValueError(f"{visible(name) or 'the model'} {traced}, {ONE_PIECE}: use torch.func.jvp")
            if module not in self._pending or self._is_of_another_thread():
                return
            call = self._new_call(name)
            first = args[0] if args else None
            kwargs = kwargs or {}
            given = first if isinstance(first, Tensor) and first.is_floating_point() else _first_tensor((args, kwargs))
            # What an activation of somebody's own does with z inside is no activation by itself, so it takes z now.
            z = self._made_as(given) if _may_be_activation(module, given, (args, kwargs)) else None
            self._pending[module].append((call, None if z is None else self._made.pop(z.key)))
            if given is not None:
                call.x = self._copy(given)
                if not _has_weights(module):
                    self._take_z(call, given)

        return before

    def _is_of_another_thread(self) -> bool:
        """Whether somebody else calls the model meanwhile. The engine recomputes in threads of its own."""
        is_other = threading.get_ident() != self._thread and backward_task() == -1
        self._is_called_elsewhere |= is_other
        return is_other

    def _new_call(self, name: str) -> Call:
        is_recomputed = backward_task() != -1
        if self._has_come and not is_recomputed:
            self._batch, self._has_come = self._batch + 1, False
        under_no_grad = not torch.is_grad_enabled()
        return Call(name, is_under_no_grad=under_no_grad, is_recomputed=is_recomputed, batch=self._batch)

    @_unseen
    def _after(self, module: Module, args: Any, *kwargs_and_output: Any) -> None:
        if not self._pending.get(module) or self._is_of_another_thread():  # it may have begun before the block
            return
        output = kwargs_and_output[-1]
        call, z = self._pending[module].pop()
        self.record.add(call, type(module).__name__, isinstance(module, torch.nn.Linear))
        made = _first_tensor(output)
        if made is None:
            return
        if _has_weights(module):
            self._take_z(call, made)
            call.a = call.z
            node = made.grad_fn if self._is_hooked else None
            self._made[id(made)] = _Made(id(made), weakref.ref(made), _version(made), node, call)
            return
        self._take_a(call, made)
        if z is None:
            return
        if Physical(made).shape != z.call.shape or z.is_still(made):
            self._made[z.key] = z  # what comes next may be its activation
            return
        z.call.f = OfModule(module)
        self._take_a(z.call, made)

    # Functions

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.autograd.grad and kwargs.get("create_graph"):
            return self._differentiated(args, kwargs)
        z = self._made_as(args[0] if args else kwargs.get("input")) if activation_of(function) else None
        result = function(*args, **kwargs)
        if z is not None and isinstance(result, Tensor):
            self._made.pop(z.key, None)
            z.call.f = function_of_entries(function, args, kwargs)
            self._take_a(z.call, result)
        return result

    def _differentiated(self, args: Any, kwargs: Any) -> Any:
        """The gradients of something inside of C."""
        before, self._is_inner = self._is_inner, True
        try:
            return torch.autograd.grad(*args, **kwargs)
        finally:
            self._is_inner = before

    def _made_as(self, z: Any) -> _Made | None:
        """What it was made as, unless it is no z, has changed in place since, or has an activation already."""
        if not isinstance(z, Tensor):
            return None
        made = self._made.get(id(z))
        if made is None and (source := _source_through_hooks(z)) is not None:
            made = next((m for m in reversed(self._made.values()) if m.grad_fn is source), None)
            return made if made is not None and made.version == _version(z) else None
        return made if made is not None and made.is_still(z) else None

    # Numbers

    def _take_z(self, call: Call, z: Tensor) -> None:
        physical = Physical(z)
        call.z, call.shape, call.asks = self._copy(z), physical.shape, physical.tensor.requires_grad
        call.is_transformed = physical.tensor is not z
        call.is_differentiated = forward_mode_level() >= 0
        call.is_of_func = call.is_transformed and not call.asks and z.requires_grad
        self._await(physical, call, "_delta")

    def _take_a(self, call: Call, a: Tensor) -> None:
        call.a, call.is_activated = self._copy(a), True
        self._await(Physical(a), call, "_da")

    def _await(self, physical: Physical, call: Call, attribute: str) -> None:
        t = physical.tensor
        if t.requires_grad and t.is_leaf:  # it outlives the pass
            take = functools.partial(self._take_gradient_of_leaf, call, attribute, physical.order)
            self._handles.append(t.register_hook(take))
        elif t.requires_grad:
            t.register_hook(functools.partial(self._take_gradient, call, attribute, physical.order))

    def _take_gradient_of_leaf(self, call: Call, attribute: str, order: Any, gradient: Tensor) -> None:
        if call.batch == self._batch:  # and not one that has come by another forward
            self._take_gradient(call, attribute, order, gradient)

    def _take_gradient(self, call: Call, attribute: str, order: Any, gradient: Tensor) -> None:
        if is_batch_of_gradients(gradient):
            call.is_of_func = call.is_differentiated = True
            return
        before, is_provisional = getattr(call, attribute), (call, attribute) in self._provisional
        if self._is_inner:
            call.is_differentiated = True
            if before is not None and not is_provisional:
                return
            before = None
            if not is_provisional:
                self._provisional.append((call, attribute))
        else:
            self._has_come = True
            if self._provisional:
                before = None if is_provisional else before
                self._give_up(call.batch)
        g = gradient.detach().clone() if gradient.requires_grad else gradient
        g = g if order is None else g.permute(order)
        with torch.no_grad():
            setattr(call, attribute, self.reduce(g) if self.reduce else g if before is None else before + g)
        if self.reduce is None:
            task = backward_task()
            if task not in self._held:
                part = functools.partial(self._part_from_parameters, task)
                at_the_end_of_backward(part)
            self._held.setdefault(task, []).append((call, attribute))

    def _give_up(self, batch: int) -> None:
        """Forget the gradients of what was inside of the C whose backward pass has come."""
        for call, attribute in self._provisional:
            if call.batch == batch:
                setattr(call, attribute, None)
        self._provisional = [(call, attribute) for call, attribute in self._provisional if call.batch != batch]

    def _part_from_parameters(self, task: int) -> None:
        """Copy what has become a ``.grad``, which clipping would change. Autograd makes none of a tensor that somebody
        holds, but of a view of it, as of the sum with a parameter's view; it is rare, so nothing is copied before."""
        gradients = {_memory(p.grad) for p in self._parameters if p.grad is not None} - {None}
        for call, attribute in self._held.pop(task, ()):
            g = getattr(call, attribute)
            if _memory(g) in gradients:
                setattr(call, attribute, g.clone())

    def _copy(self, t: Tensor) -> Any:
        """Of the numbers of now, which what follows may write over; one for all who ask before that."""
        known, version, copy = self._copies.get(id(t), (_nothing, 0, None))
        if known() is not t or version != _version(t):
            with torch.no_grad(), without_transforms():
                numbers = Physical(t).numbers()
                copy = self.reduce(numbers) if self.reduce else numbers.clone()
            self._copies[id(t)] = weakref.ref(t), _version(t), copy
        return copy


def is_batch_of_gradients(gradient: Tensor) -> bool:
    """Whether it is of many C at a time, by ``is_grads_batched=True`` of autograd or by ``torch.func``."""
    return is_functorch_wrapped(gradient) or is_batched(gradient)


class Physical:
    """The tensor that autograd knows behind one of ``torch.func``'s, with the dimensions that ``vmap`` hides.

    Args:
        t: any tensor; itself where it is none of these.
    """

    def __init__(self, t: Tensor) -> None:
        hidden: list[int] = []
        while is_functorch_wrapped(t):
            if is_mapped(t):
                hidden.append(mapped_dim(t))
            t = unwrapped(t)
        self.tensor = t
        dims = list(range(t.dim())) if hidden else []
        order = [dims.pop(dim) for dim in reversed(hidden)] + dims
        self.order = order if order != sorted(order) else None
        """The order of its dimensions, the hidden ones first; None where they are so."""

    @property
    def shape(self) -> tuple[int, ...]:
        """With the hidden dimensions first."""
        shape = tuple(self.tensor.shape)
        return shape if self.order is None else tuple(shape[dim] for dim in self.order)

    def numbers(self) -> Tensor:
        """What it holds, without history."""
        t = self.tensor.detach()
        return t if self.order is None else t.permute(self.order)


@dataclass(frozen=True, slots=True)
class _Made:
    """A z that a layer made."""

    key: int
    """Its id."""

    reference: Callable[[], Tensor | None]
    version: int
    grad_fn: Any
    """What made it in autograd's graph, if the model has backward hooks."""

    call: Call

    def is_still(self, t: Tensor) -> bool:
        """Whether it is this tensor, and has not changed in place since."""
        return self.reference() is t and _version(t) == self.version


def _source_through_hooks(t: Tensor) -> Any:
    """The node whose output it is, if full backward hooks stand between: these put another tensor in the place of z."""
    node: Any = t.grad_fn
    output, is_hooked = t.output_nr, False
    while type(node).__name__ == "BackwardHookFunctionBackward":
        is_hooked = True
        node, output = node.next_functions[output]
    return node if is_hooked else None


def own_parameters(module: Module) -> dict[str, Tensor]:
    """Those that belong to no module in it that is a layer: its own, what a parametrization makes them of, and those in
    its lists of parameters."""
    own: dict[str, Tensor] = {name: p for name, p in module._parameters.items() if p is not None}
    if is_parametrized(module):
        parametrizations: Any = module.parametrizations
        for name, originals in parametrizations.items():
            own |= dict(originals.named_parameters(name, recurse=False))
    for name, child in module._modules.items():
        if isinstance(child, LISTS):
            own |= dict(child.named_parameters(name))
    return own


def _is_layer(name: str, module: Module) -> bool:
    """Whether it has no modules in it, or weights; and is none of those that make the weights of another."""
    return "parametrizations" not in name.split(".") and (
        not any(True for _ in module.children()) or _has_weights(module)
    )


def _has_weights(module: Module) -> bool:
    """Whether z is made by the module, and not what goes into it."""
    if isinstance(module, MODULES):
        return False
    own = any(p is not None for p in module._parameters.values()) or is_parametrized(module)
    return own or any(isinstance(child, LISTS) for child in module._modules.values())


def _may_be_activation(module: Module, z: Tensor | None, given: Any) -> bool:
    """Whether somebody's own module may be one: of z alone. Torch's and ours call the functions that are known."""
    if _has_weights(module) or type(module).__module__.startswith(KNOWN):
        return False
    return z is not None and [leaf is z for leaf in pytree.tree_leaves(given)] == [True]


def _first_tensor(tree: Any) -> Tensor | None:
    """The first tensor of numbers that gradients are of."""
    if isinstance(tree, Tensor):
        return tree
    tensors = [t for t in _leaves(tree) if isinstance(t, Tensor)]
    return next((t for t in tensors if t.is_floating_point() or t.is_complex()), tensors[0] if tensors else None)


def _leaves(tree: Any) -> Iterator[Any]:
    """What it holds, in dataclasses, too."""
    for leaf in pytree.tree_leaves(tree):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, field.name, None) for field in fields(leaf)])
        else:
            yield leaf


def _nothing() -> None:
    """What a reference to nothing returns."""


def _memory(t: Tensor) -> int | None:
    """Where its storage is; None of what has none, such as sparse tensors and those of torch.func."""
    try:
        return t.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):
        return None


def _version(t: Tensor | None) -> int:
    if t is None:
        return 0
    t = Physical(t).tensor
    return 0 if t.is_inference() else t._version
