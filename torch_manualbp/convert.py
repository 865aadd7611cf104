"""Swap the layers of a built model for ours, and back."""

from __future__ import annotations

import dis
import functools
import inspect
import re
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch.nn import Module

from torch_manualbp import functional, nn
from torch_manualbp.recognition import recognised, unrecognised

__all__ = ["Conversion", "LeftLayer", "SwappedLayer", "convert", "restore"]


@dataclass(frozen=True)
class SwappedLayer:
    """A layer whose class was swapped: its path in the model, other paths to the same object, and both classes."""

    path: str
    also: tuple[str, ...]
    before: type[Module]
    after: type[Module]


@dataclass(frozen=True)
class LeftLayer:
    """A layer that stays as it is, and why."""

    path: str
    layer: type[Module]
    reason: str


@dataclass(frozen=True, repr=False)
class Conversion:
    """What :func:`convert` or :func:`restore` did; ``print`` it to read it."""

    swapped: tuple[SwappedLayer, ...]
    left: tuple[LeftLayer, ...]
    already: tuple[str, ...]
    """Paths of the layers that were what they should become before the call."""
    to_ours: bool

    def __str__(self) -> str:
        lines = [f"Swapped for {self._whose}: {_layers(len(self.swapped))}"]
        lines += _rows((s.after, " = ".join(map(_named, (s.path, *s.also)))) for s in self.swapped)
        if self.already:
            lines.append(f"Of {self._whose} already: {_layers(len(self.already))}")
        if self.left:
            lines.append(f"Left as they are: {_layers(len(self.left))}")
        for reason in dict.fromkeys(layer.reason for layer in self.left):
            lines.append(f"  {reason}:")
            lines += _rows(((x.layer, _named(x.path)) for x in self.left if x.reason == reason), indent="    ")
        return "\n".join([*lines, *self._notes()])

    def __repr__(self) -> str:
        left = f", {len(self.left)} left as they are" if self.left else ""
        return f"<Conversion: {_layers(len(self.swapped))} swapped for {self._whose}{left}>"

    def _repr_html_(self) -> str:
        from torch_manualbp import _html  # notebooks alone ask for it

        swapped = _alike((s.after, " = ".join(map(_named, (s.path, *s.also)))) for s in self.swapped)
        rows = [(name, path, str(count), f"swapped for {self._whose}") for name, path, count in swapped]
        for reason in dict.fromkeys(layer.reason for layer in self.left):
            left = _alike((x.layer, _named(x.path)) for x in self.left if x.reason == reason)
            rows += [(name, path, str(count), f"left: {reason}") for name, path, count in left]
        already = f"; of it already: {_layers(len(self.already))}" if self.already else ""
        return _html.section(
            _html.paragraph(f"Swapped for {self._whose}: {_layers(len(self.swapped))}{already}"),
            _html.table(("class", "path", "layers", "what became of it"), rows, numbers={2}),
            *(_html.paragraph(note, "soft") for note in self._notes()),
        )

    @property
    def _whose(self) -> str:
        return "torch_manualbp.nn" if self.to_ours else "torch.nn"

    def _notes(self) -> list[str]:
        if not self.to_ours:
            return []
        return [
            "Functions that a forward calls (torch.relu, F.gelu, x.tanh()) are no layers, and stay torch's.",
            "In code of your own, import torch_manualbp.functional in place of torch.nn.functional.",
        ]


def convert(model: Module) -> Conversion:
    """Give every layer of a built model that has a formula here our class in place of torch's.

    The objects stay the ones they are, ``model`` itself included: parameters, buffers, ``state_dict``, hooks, training
    mode, optimizers and references from elsewhere know nothing of it. A layer whose class is exactly torch's is
    swapped; the answer says what was, what was not, and why::

        model = transformers.BertModel(config)
        print(torch_manualbp.convert(model))       # Swapped for torch_manualbp.nn: 74 layers …
        ...                                        # train it as before
        torch_manualbp.restore(model)

    A layer under ``torch.nn.utils.parametrize`` or ``fully_shard`` is swapped below what they put over it, and a lazy
    one becomes ours when it materialises. What a model keeps in plain lists or builds inside ``forward``, it hides from
    torch too. Converting twice changes nothing more.

    A layer of somebody's own class that computes what one of ours does, such as transformers' ``LlamaRMSNorm``,
    ``NewGELUActivation`` or ``Conv1D``, is recognised by its numbers (:mod:`torch_manualbp.recognition`), and gets a
    subclass of its class whose forward is by our rules.

    Raises:
        TypeError: ``model`` is no built ``torch.nn.Module``.
        RuntimeError: a layer could not be swapped; none is, then, and the message names it.
    """
    return _swap(model, _ours_by_torch(), to_ours=True)


def restore(model: Module) -> Conversion:
    """Give every layer whose class is exactly one of ours torch's class: what :func:`convert` did is undone.

    A layer that was built from our class becomes torch's too, so that the model can be saved for a machine without this
    package. A subclass of our class, which is somebody's own, stays. Raises as :func:`convert` does.
    """
    return _swap(model, {ours: theirs for theirs, ours in _ours_by_torch().items()}, to_ours=False)


def _ours_by_torch() -> dict[type[Module], type[Module]]:
    """torch's class → ours: every class of ``torch_manualbp.nn`` under the torch class that it subclasses."""
    ours = [v for v in vars(nn).values() if isinstance(v, type) and v.__module__.startswith("torch_manualbp.")]
    return {next(base for base in cls.__mro__ if base.__module__.startswith("torch.")): cls for cls in ours}


def _swap(model: Module, table: dict[type[Module], type[Module]], to_ours: bool) -> Conversion:
    _check(model, "convert" if to_ours else "restore")
    swaps: list[tuple[Module, SwappedLayer]] = []
    left: list[LeftLayer] = []
    already: list[str] = []
    for module, (path, *also) in _modules(model):
        before = type(module)
        layer = _layer_class(before)
        if layer in table and "forward" not in vars(module):
            try:
                after = _over_layer_class(before, table[layer])
            except Exception as error:
                raise _failed(path, before, error) from error
            swaps.append((module, SwappedLayer(path, tuple(also), before, after)))
        elif layer in table.values() or (to_ours and unrecognised(before)):
            already.append(path)
        elif other := recognised(module) if to_ours else unrecognised(before):
            swaps.append((module, SwappedLayer(path, tuple(also), before, other)))
        elif reason := _why_left(module, table, to_ours):
            left.append(LeftLayer(path, before, reason))

    done: list[tuple[Module, type[Module]]] = []
    try:
        for module, swap in swaps:
            done.append((module, swap.before))
            # Past any __setattr__: the object's class is Python's business, and no attribute of the layer changes.
            object.__setattr__(module, "__class__", swap.after)
    except BaseException as error:
        for changed, before in reversed(done):
            object.__setattr__(changed, "__class__", before)
        if isinstance(error, Exception):
            raise _failed(swap.path, swap.before, error) from error
        raise
    return Conversion(tuple(swap for _, swap in swaps), tuple(left), tuple(already), to_ours)


def _check(model: Any, function: str) -> None:
    if isinstance(model, type) and issubclass(model, Module):
        raise TypeError(
            f"{function} takes a built module, and was given the class {model.__module__}.{model.__qualname__}: "
            f"build it first, {function}({model.__name__}(...))"
        )
    if not isinstance(model, Module):
        text = repr(model)
        text = text if len(text) <= 60 else text[:57] + "..."
        raise TypeError(
            f"{function} takes a built torch.nn.Module, and was given a {type(model).__name__}: {text}; "
            f"call {function} on the module itself, or on each where there are several"
        )


def _failed(path: str, layer: type[Module], error: Exception) -> RuntimeError:
    return RuntimeError(
        f"the class of {_named(path)}, {layer.__module__}.{layer.__qualname__}, cannot be swapped: {error}; "
        "every layer of the model is as it was"
    )


def _modules(model: Module) -> list[tuple[Module, list[str]]]:
    """Each module once, with every path that leads to it, in the order of ``named_modules``, which models override."""
    order: list[tuple[Module, list[str]]] = []
    paths: dict[int, list[str]] = {}

    def visit(module: Module, path: str) -> None:
        paths.setdefault(id(module), []).append(path)
        if len(paths[id(module)]) > 1:
            return
        order.append((module, paths[id(module)]))
        if not isinstance(module, torch.jit.ScriptModule):  # nothing below one runs Python
            for name, child in module._modules.items():
                if child is not None:
                    visit(child, f"{path}.{name}".lstrip("."))

    visit(model, "")
    return order


def _layer_class(cls: type[Module]) -> type[Module]:
    """The class of the layer below what ``parametrize`` and ``fully_shard`` put over it: classes that torch makes at
    run time, with properties and methods but no forward."""
    while cls.__module__.startswith("torch.") and not _is_importable(cls) and "forward" not in vars(cls):
        cls = cls.__bases__[-1]
    return cls


def _is_importable(cls: type) -> bool:
    return getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


_made_from: weakref.WeakKeyDictionary[type[Module], type[Module]] = weakref.WeakKeyDictionary()


def _over_layer_class(cls: type[Module], layer: type[Module]) -> type[Module]:
    """``cls`` with the class of the layer at its bottom replaced.

    What torch put over it is made once more, and not changed itself, because copies of a model share it.
    """
    if _layer_class(cls) is cls:
        return layer
    bases = (*cls.__bases__[:-1], _over_layer_class(cls.__bases__[-1], layer))
    origin = _made_from.get(cls)
    if origin is not None and origin.__bases__ == bases and _members(origin) == _members(cls):
        return origin
    made = type(cls.__name__, bases, _members(cls))
    _made_from[made] = cls
    return made


def _members(cls: type) -> dict[str, Any]:
    return {name: member for name, member in vars(cls).items() if name not in ("__dict__", "__weakref__")}


def _why_left(module: Module, table: dict[type[Module], type[Module]], to_ours: bool) -> str | None:
    """Why a module was not swapped; None for one that computes nothing by itself that a layer of ours could."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit, which runs no Python" + "; convert before torch.jit.trace" * to_ours
    if _layer_class(cls) in table:
        return "its forward was replaced on the object, and a class's would not be called"
    if cls is torch.nn.modules.linear.NonDynamicallyQuantizableLinear and to_ours:
        return "MultiheadAttention reads its weights and never calls it"
    layers = {*table, *table.values()} if to_ours else {*table}
    if base := next((base for base in cls.__mro__ if base in layers), None):
        package = "torch_manualbp.nn" if base.__module__.startswith("torch_manualbp.") else "torch.nn"
        return f"a subclass of {package}.{base.__name__}, with code of its own"
    if not to_ours:
        return None

    calls = ", ".join(sorted({*_functions_held(module), *_functions_called(cls)}))
    is_torchs = cls.__module__.startswith("torch.")
    reason = "no formula here" if is_torchs else "a forward of its own"
    if calls:
        return f"{reason}, and calls {calls}"
    if module._modules and not (is_torchs and module._parameters):
        return None  # it puts layers together, which are listed themselves
    if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)):
        return None  # and this one none
    if isinstance(module, (torch.nn.ParameterList, torch.nn.ParameterDict)):
        return None
    return reason


@functools.cache
def _torch_names() -> dict[int, str]:
    """What a forward may call in place of a layer of ours: the ids of torch's functions and classes, with names."""
    names = {id(theirs): f"nn.{ours.__name__}" for theirs, ours in _ours_by_torch().items()}
    for function in functional.__all__:
        for prefix, module in (("F", torch.nn.functional), ("torch", torch)):
            if hasattr(module, function):
                names.setdefault(id(getattr(module, function)), f"{prefix}.{function}")
    return names


def _functions_held(module: Module) -> Iterator[str]:
    """Attributes that are torch's functions, like the activation of a TransformerEncoderLayer."""
    for value in vars(module).values():
        function = value.func if isinstance(value, functools.partial) else value
        if id(function) in _torch_names():
            yield _torch_names()[id(function)]


def _functions_called(cls: type[Module]) -> Iterator[str]:
    """Torch's functions that the code of ``forward`` names, there or in a function of the same file."""
    waiting: list[Any] = [inspect.unwrap(cls.forward)]
    seen: set[FunctionType] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        for value in _globals_named(function.__code__, function.__globals__):
            if id(value) in _torch_names():
                yield _torch_names()[id(value)]
            elif isinstance(value, FunctionType) and value.__module__ == function.__module__:
                waiting.append(inspect.unwrap(value))


def _globals_named(code: CodeType, scope: dict[str, Any]) -> Iterator[Any]:
    """What ``name`` and ``module.name`` stand for, wherever the code says so."""
    value: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            value = scope.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
            value = vars(value).get(instruction.argval)
        else:
            if instruction.opname not in ("PUSH_NULL", "CACHE", "PRECALL"):
                value = None
            continue
        yield value
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_named(constant, scope)


def _named(path: str) -> str:
    return path or "(the model itself)"


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _rows(layers: Iterable[tuple[type[Module], str]], indent: str = "  ") -> list[str]:
    """A line for each class and path."""
    return [f"{indent}{name:<24} {path}" + f" ({count})" * (count > 1) for name, path, count in _alike(layers)]


def _alike(layers: Iterable[tuple[type[Module], str]]) -> Iterator[tuple[str, str, int]]:
    """Each class and path, and how many there are: paths that differ in their numbers alone are one."""
    alike: dict[tuple[str, str], list[list[str]]] = {}
    for layer, path in layers:
        parts = re.split(r"([. ])", path)
        pattern = "".join("*" if part.isdigit() else part for part in parts)
        alike.setdefault((layer.__name__, pattern), []).append(parts)
    for (name, _), paths in alike.items():
        path = "".join(part[0] if len({*part}) == 1 else "*" for part in zip(*paths, strict=True))
        yield name, path, len(paths)
