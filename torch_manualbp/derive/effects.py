"""What a forward does besides computing, which no program repeats, and what else would be called beside it."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module

__all__ = [
    "BACKWARD_HOOKS",
    "DRAWS",
    "Restored",
    "has_global_hooks",
    "has_hooks",
    "has_hooks_on_the_way",
    "is_accumulated_by_others",
    "refuse_scripted",
    "watched",
    "wrappers",
]

DRAWS = ("", "forward draws Python's or NumPy's random numbers, or sets torch's seed", "draw with torch.rand")

BACKWARD_HOOKS = ("_backward_pre_hooks", "_backward_hooks")
"""What of a module is called on the way back. What is called on the way forward is a part of it."""

_INTO = {"_buffers": "write into the buffer that is there, self.name.copy_(...), instead of binding its name anew"}

Refuse = Callable[[str, str, str], None]


@contextlib.contextmanager
def watched(
    modules: Iterable[tuple[str, Module]], refuse: Refuse, suspect: Callable[[], None], draws: bool = True
) -> Iterator[None]:
    """Refuse what changes of the modules, and of Python's and NumPy's random numbers if ``draws``, while the body runs;
    where other threads may have drawn the numbers, suspect it."""
    before = [(path, module, _contents(module)) for path, module in modules]
    drawn = _random_states() if draws else []
    yield
    for path, module, contents in before:
        now = _contents(module)
        for name in dict.fromkeys([*contents, *now]):
            if not _is_same(contents.get(name, ()), now.get(name, ())):
                refuse(path, f"forward changes self.{name}", _INTO.get(name, "keep such state out of a derived step"))
    if draws and not _is_same(drawn, _random_states()):
        if threading.active_count() == 1:
            refuse(*DRAWS)
        else:
            suspect()


class Restored:
    """A block after which modules are as before, if an exception ends it: attributes, what is in lists, sets and dicts
    among them, parameters and other tensors with their numbers and ``.grad``. Random numbers go on from where they
    were, too, where no other thread may have drawn some."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self._modules = [m for root in roots if isinstance(root, Module) for m in root.modules()]

    def __enter__(self) -> None:
        self._attributes = [(vars(module), dict(vars(module))) for module in self._modules]
        items = (item for _, attributes in self._attributes for item in attributes.values())
        self._containers = [(item, item.copy()) for item in items if isinstance(item, dict | list | set)]
        tensors = {id(t): t for _, attributes in self._attributes for t in attributes.values() if isinstance(t, Tensor)}
        tensors |= {id(t): t for m in self._modules for t in m._buffers.values() if t is not None}
        self._tensors = [(t, t.detach().clone()) for t in tensors.values()]
        parameters = {id(p): p for m in self._modules for p in m._parameters.values() if p is not None}
        self._parameters = [(p, p.data, p.grad, p.requires_grad) for p in parameters.values()]
        self._tensors += [(p, p.detach().clone()) for p in parameters.values()]
        self._random = _states_of_random_numbers() if threading.active_count() == 1 else None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            return
        for attributes, before in self._attributes:
            if not _is_same(attributes.values(), before.values()):
                attributes.clear()
                attributes.update(before)
        for container, content in self._containers:
            if _is_same(_items(container), _items(content)):
                continue
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for p, data, gradient, requires_grad in self._parameters:
            if p.data_ptr() != data.data_ptr():
                p.data = data
            if p.grad is not gradient:
                p.grad = gradient
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
        for t, numbers in self._tensors:  # of whose changes a batch norm counts no version up
            if not torch.equal(t, numbers):
                with torch.no_grad():
                    (t if t.shape == numbers.shape else t.resize_(numbers.shape)).copy_(numbers)
        if self._random is not None and threading.active_count() == 1:
            for put_back, state in self._random:
                put_back(state)


def _items(container: Any) -> list[Any]:
    return [*container, *(container.values() if isinstance(container, dict) else ())]


def _contents(module: Module) -> dict[str, list[Any]]:
    """Each attribute, and what is in it if it is a list, a set or a dict."""
    contents = {}
    for name, value in vars(module).items():
        items: Iterable[Any] = ()
        if isinstance(value, dict):
            items = [*value.keys(), *value.values()]
        elif isinstance(value, list | set):
            items = value
        contents[name] = [value, *items]
    return contents


def _is_same(before: Iterable[Any], now: Iterable[Any]) -> bool:
    """Whether all are the same objects, or equal numbers and texts, or tuples of them."""
    before, now = list(before), list(now)
    return len(before) == len(now) and all(map(_is_equal, before, now))


def _is_equal(a: Any, b: Any) -> bool:
    if a is b or type(a) is not type(b):
        return a is b
    return _is_same(a, b) if isinstance(a, tuple) else isinstance(a, int | float | str | bytes) and a == b


def _states_of_random_numbers() -> list[tuple[Callable[[Any], Any], Any]]:
    """How to put Python's, NumPy's and torch's random numbers back to where they are now."""
    numpy = sys.modules.get("numpy")
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    return states if numpy is None else [*states, (numpy.random.set_state, numpy.random.get_state())]


def _random_states() -> list[Any]:
    numpy = sys.modules.get("numpy")
    states = [torch.initial_seed(), random.getstate()]
    if numpy is None:
        return states
    _, keys, *rest = numpy.random.get_state()
    return [*states, keys.tobytes(), *rest]


def has_hooks(parameter: Tensor) -> bool:
    """Whether autograd calls somebody with the gradient of a parameter."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def is_accumulated_by_others(parameter: Tensor) -> bool:
    """Whether autograd's node that adds to ``.grad`` has hooks in Python, as those of
    ``torch.distributed.optim._apply_optimizer_in_backward``. It is asked of a node that is gone afterwards, unless
    somebody holds it: one that stays would expect gradients of the shape that the parameter has now."""
    if not parameter.requires_grad or not parameter.is_leaf or parameter.is_inference():
        return False
    with torch.inference_mode(False), torch.enable_grad():
        view = parameter.view_as(parameter)
    assert view.grad_fn is not None
    node = view.grad_fn.next_functions[0][0]
    for register in (node.register_hook, node.register_prehook):  # type: ignore[union-attr]
        handle = register(_nothing)
        others = len(handle.hooks_dict_ref() or ()) > 1
        handle.remove()
        if others:
            return True
    return False


def _nothing(*args: Any) -> None:
    """A hook that is there to see which others are."""


WRAPPERS = frozenset({"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"})
"""Classes of modules that spread the work."""


def wrappers(modules: Iterable[tuple[str, Module]]) -> list[tuple[str, str, str]]:
    """The places of modules whose gradients other processes have a part in. Their forward is not to be called where no
    backward of autograd's follows."""
    modules = list(modules)
    todo = "give TrainStep a DistributedDataParallel of the whole model, or train with autograd"
    spread = [
        (path, f"a {type(p).__name__}, a part of which each process has (FSDP2, tensor parallelism)", todo)
        for path, module in modules
        for p in module._parameters.values()
        if hasattr(p, "to_local")
    ]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        is_alone = torch.distributed.get_world_size() == 1
        what = "SyncBatchNorm, whose statistics are those of all processes"
        synced = [path for path, m in modules if isinstance(m, torch.nn.SyncBatchNorm) and m.training and not is_alone]
        spread += [(path, what, "have a BatchNorm there, or train with autograd") for path in synced]
    return spread + [
        (path, f"{base.__name__}, whose gradients are reduced by hooks of autograd's graph", todo)
        for path, module in modules
        for base in type(module).__mro__
        if base.__name__ in WRAPPERS
    ]


def refuse_scripted(roots: Iterable[Any]) -> None:
    """Refuse modules whose forward is no Python: TorchScript's, and what torch.compile returns.

    Raises:
        ValueError: there is one.
    """
    for root in roots:
        for module in root.modules() if isinstance(root, Module) else ():
            kind = type(module).__name__
            if isinstance(module, torch.jit.ScriptModule) or kind == "OptimizedModule":
                raise ValueError(f"the model holds a {kind}, whose forward is no Python: give the module that it is of")


def has_hooks_on_the_way(roots: Iterable[Any]) -> bool:
    """Whether somebody is called on the way back at a module of these, or with the gradient of a parameter."""
    modules = [m for root in roots if isinstance(root, Module) for m in root.modules()]
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    return (
        has_global_hooks()
        or any(getattr(m, kind) for m in modules for kind in BACKWARD_HOOKS)
        or any(has_hooks(p) or is_accumulated_by_others(p) for p in parameters)
    )


def has_global_hooks() -> bool:
    """Whether torch calls somebody at each module."""
    return any(
        getattr(torch_module, f"_global_{kind}_hooks")
        for kind in ("forward_pre", "forward", "backward_pre", "backward")
    )
