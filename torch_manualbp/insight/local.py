"""z, a, δ = ∂C/∂z and ∂C/∂a of every layer, out of ordinary training code."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torch_manualbp import nn
from torch_manualbp.functional.known import function_of_entries, is_activation
from torch_manualbp.insight.record import Call, LocalGradients, NotReachedError
from torch_manualbp.insight.refusals import ONE_PIECE, refuse_compiled

__all__ = ["Watch", "local_gradients"]

Reduce = Callable[[Tensor], Any]

MODULES = tuple(getattr(torch.nn, name) for name in nn.activation.__all__)


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
    reach what is recorded.

    Args:
        model: what is trained; it may be wrapped, in DistributedDataParallel for example, but not compiled.
        reduce: what to keep of every tensor in place of it, such as ``torch.linalg.vector_norm`` or
            :func:`~torch_manualbp.insight.summary`. It is called on the tensor as soon as it is there.

    Raises:
        ValueError: the model is compiled or scripted.
        NotReachedError: when the block ends, if no gradient came back to any layer.
    """
    with Watch(model, reduce) as watch:
        yield watch.record
    watch.refuse_if_empty()


def _unseen(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook whose own looks at tensors are no calls to watch: 130 of them in a step of three layers, 7 µs each."""

    @functools.wraps(hook)
    def unseen(*args: Any) -> None:
        with torch._C.DisableTorchFunction():
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
        self._layers = {module: name for module, name in names.items() if _is_layer(name, module)}
        self.record = LocalGradients(aliases)
        self._pending: dict[Module, list[tuple[Call, Call | None]]] = {module: [] for module in self._layers}
        """The calls that are running, and the call whose z they are the activation of."""

        self._in_activation = 0
        self._made: dict[int, tuple[Any, int, Call]] = {}
        self._copies: dict[int, tuple[Any, int, Any]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
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

    def refuse_if_empty(self) -> None:
        """Say in one line why there is no δ at all."""
        calls = list(self.record.calls())
        if not calls:
            raise NotReachedError("no layer of the model was called inside the with block")
        if not any(call.is_reached for call in calls):
            raise NotReachedError(calls[-1].why_not_reached())

    # Modules

    def _before(self, name: str) -> Callable[..., None]:
        @_unseen
        def before(module: Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                raise ValueError(f"{name or 'the model'} is called inside of torch.compile, {ONE_PIECE}")
            call = Call(name, is_under_no_grad=not torch.is_grad_enabled())
            call.is_recomputed = torch._C._current_graph_task_id() != -1
            given = _first_tensor((args, kwargs))
            activated = self._call_of(given) if _is_own_activation(module) else None
            self._in_activation += activated is not None
            self._pending[module].append((call, activated))
            if given is not None:
                call.x = self._copy(given)
                if not _has_weights(module):
                    self._take_z(call, given)

        return before

    @_unseen
    def _after(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        call, activated = self._pending[module].pop()
        self._in_activation -= activated is not None
        self.record.add(call, type(module).__name__)
        made = _first_tensor(output)
        if made is None:
            return
        if _has_weights(module):
            self._take_z(call, made)
            call.a = call.z
            self._made[id(made)] = weakref.ref(made), _version(made), call
            return
        self._take_a(call, made)
        if activated is not None and made.shape == activated.shape:
            activated.f = module.forward
            self._take_a(activated, made)

    # Functions

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = None
        if not self._in_activation and is_activation(function):
            call = self._call_of(args[0] if args else kwargs.get("input"))
        result = function(*args, **kwargs)
        if call is not None and isinstance(result, Tensor):
            call.f = function_of_entries(function, args, kwargs)
            self._take_a(call, result)
        return result

    def _call_of(self, z: Any) -> Call | None:
        """The call whose z this is, unless it has changed in place since, or has an activation already."""
        made, version, call = self._made.get(id(z), (_nothing, 0, None))
        if not isinstance(z, Tensor) or made() is not z or _version(z) != version:
            return None
        if call is None or call.is_activated:
            return None
        return call

    # Numbers

    def _take_z(self, call: Call, z: Tensor) -> None:
        call.z, call.shape, call.asks = self._copy(z), tuple(z.shape), z.requires_grad
        if z.requires_grad:
            z.register_hook(functools.partial(self._take_gradient, call, "_delta"))

    def _take_a(self, call: Call, a: Tensor) -> None:
        call.a, call.is_activated = self._copy(a), True
        if a.requires_grad:
            a.register_hook(functools.partial(self._take_gradient, call, "_da"))

    def _take_gradient(self, call: Call, attribute: str, gradient: Tensor) -> None:
        before = getattr(call, attribute)
        # Held as it is, autograd gives it to no .grad, which clipping would change; so it needs no copy.
        g = gradient.detach().clone() if gradient.requires_grad else gradient
        with torch.no_grad():
            setattr(call, attribute, self.reduce(g) if self.reduce else g if before is None else before + g)

    def _copy(self, t: Tensor) -> Any:
        """Of the numbers of now, which what follows may write over; one for all who ask before that."""
        known, version, copy = self._copies.get(id(t), (_nothing, 0, None))
        if known() is not t or version != _version(t):
            with torch.no_grad():
                copy = self.reduce(t.detach()) if self.reduce else t.detach().clone()
            self._copies[id(t)] = weakref.ref(t), _version(t), copy
        return copy


def _is_layer(name: str, module: Module) -> bool:
    """Whether it has no modules in it, or weights; and is none of those that make the weights of another."""
    return "parametrizations" not in name.split(".") and (
        not any(True for _ in module.children()) or _has_weights(module)
    )


def _has_weights(module: Module) -> bool:
    """Whether z is made by the module, and not what goes into it."""
    own = any(True for _ in module.parameters(recurse=False)) or is_parametrized(module)
    return own and not isinstance(module, MODULES)


def _is_own_activation(module: Module) -> bool:
    """Whether somebody's own module may be an activation; torch's and ours call the functions that are known."""
    return not _has_weights(module) and not type(module).__module__.startswith(("torch.nn.", "torch_manualbp.nn"))


def _first_tensor(tree: Any) -> Tensor | None:
    """The first tensor of numbers that gradients are of."""
    leaves = [tree] if isinstance(tree, Tensor) else pytree.tree_leaves(tree)
    tensors = [t for t in leaves if isinstance(t, Tensor)]
    return next((t for t in tensors if t.is_floating_point() or t.is_complex()), tensors[0] if tensors else None)


def _nothing() -> None:
    """What a reference to nothing returns."""


def _version(t: Tensor | None) -> int:
    return 0 if t is None or t.is_inference() else t._version
