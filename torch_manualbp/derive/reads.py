"""What a forward reads from Python, so that a program serves only while all of it is as it was.

A program is recorded from one run of a model and its loss. Numbers that are no tensors are part of it: attributes
of any depth, items of lists and dicts, NumPy arrays, class attributes, globals, closures and defaults of functions, and
the functions themselves. :class:`Executed` notes which code runs, :class:`Reads` follows from the model and the loss,
and from the globals of that code, everything whose name stands in it, and tells at each call whether it is still the
same.

Two things are the same if they are one object, or equal numbers or texts of one type: 2 is not 2.0, nor 0.0 -0.0.
Tensors that a forward finds in this way, besides the parameters and buffers, are handed to the program at each call.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import collections.abc
import contextvars
import ctypes
import decimal
import dis
import enum
import functools
import gc
import inspect
import io
import itertools
import logging
import operator
import os
import random
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.backends import cudnn, mkldnn
from torch.nn import Module, Parameter
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torch_manualbp._torch import are_unchanged, dict_version
from torch_manualbp.derive.floats import FloatInput
from torch_manualbp.derive.program import words

__all__ = [
    "Executed",
    "Place",
    "Reads",
    "address_of",
    "are_unchanged",
    "bases_of",
    "dict_of",
    "dict_version",
    "have_hooks",
    "is_trusted",
]

_chain = itertools.chain.from_iterable

SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout)
"""Types that are compared by value, and that hold nothing else."""

NEVER_CHANGE = frozenset((*SCALARS, range, torch.Size, torch.memory_format, types.BuiltinFunctionType, types.CodeType))
"""Types whose objects never change; those of a class that is derived from one of them may."""

HOLDERS = (types.MethodWrapperType, slice, super, operator.itemgetter, operator.attrgetter, operator.methodcaller)
"""Types whose objects are other objects' ways in."""

MODULE_NAMES = words(
    "training _parameters _buffers _modules _forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks "
    "forward __call__ __getattr__ __getattribute__"
)
"""What torch itself reads of every module, or finds in its class."""

NO_PART = words("__doc__ __dict__ __weakref__ __module__ __annotations__ __slotnames__ __firstlineno__")
"""Of a class what has no part in what operators and statements do."""

BY_ANY_NAME = words("getattr vars __dict__ attrgetter __getattribute__ eval exec globals locals")
"""Names in code that may read an attribute whose name does not stand in it."""

PLAIN = types.SimpleNamespace | argparse.Namespace
"""Objects of Python's library with attributes of the user's alone."""

DEEP = 5
"""Attributes by any name are followed this far from a module of the model; beyond it by name."""

LIMIT = 500_000
"""Objects that are followed, some twenty a module; a forward that may read more is refused."""

ASKED: Mapping[str, Callable[[Any], tuple[Any, ...]]] = {
    "are_deterministic_algorithms_enabled": lambda _: (torch.are_deterministic_algorithms_enabled(),),
    "is_deterministic_algorithms_warn_only_enabled": lambda _: (torch.get_deterministic_debug_mode(),),
    "get_deterministic_debug_mode": lambda _: (torch.get_deterministic_debug_mode(),),
    "get_float32_matmul_precision": lambda _: (torch.get_float32_matmul_precision(),),
    "get_num_threads": lambda _: (torch.get_num_threads(),),
    "backends": lambda _: tuple(
        getattr(of, name, None) for of in (cudnn, mkldnn) for name in ("enabled", "benchmark", "deterministic")
    ),
    "Decimal": lambda _: (decimal.getcontext().prec, decimal.getcontext().rounding),
    "geterr": lambda _: (*sys.modules["numpy"].geterr().values(),),
    "current_thread": lambda _: (threading.current_thread(),),
    "get_ident": lambda _: (threading.get_ident(),),
    "getpid": lambda _: (os.getpid(),),
    "getcwd": lambda _: (os.getcwd(),),
    "getrecursionlimit": lambda _: (sys.getrecursionlimit(),),
}
"""Functions that tell a setting of the process, by the names that code has for them, and what they tell."""

SEEDING = {inspect.unwrap(f).__code__ for f in (torch.manual_seed, torch.seed, torch.set_rng_state)}
"""What sets the state of torch's random numbers, as ``torch.random.fork_rng`` does at its end."""

PYTHON_RANDOM: Any = random.random.__self__  # type: ignore[attr-defined]
"""The generator behind the functions of the module ``random``."""


@dataclass(frozen=True)
class Place:
    """Where something is read."""

    path: str
    """The module path."""

    text: str
    """The expression, such as ``self.config.scale``."""

    depth: int = 0
    """Attributes from a module of the model."""

    def at(self, text: str, deeper: bool = False) -> Place:
        """A place that is reached from this one."""
        return Place(self.path, f"{self.text}{text}", self.depth + deeper)


class Executed:
    """A block whose Python code is noted: all that runs in this thread."""

    def __init__(self) -> None:
        self.codes: dict[types.CodeType, dict[str, Any]] = {}
        """The code objects with their globals."""

        self.is_complete = True
        """Whether all was seen: not where a profiler was at work that cannot be put aside, as cProfile's."""

        self.seeds: list[str] = []
        """What set a seed."""

        self.draws = False
        """Whether random numbers of Python's module ``random`` were drawn."""

    def __enter__(self) -> Executed:
        self._before = sys.getprofile()
        self.is_complete = self._before is None or callable(self._before)
        if self.is_complete:
            sys.setprofile(self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_complete:
            sys.setprofile(self._before)

    def _note(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.codes.setdefault(frame.f_code, frame.f_globals)
            if frame.f_code in SEEDING:
                self.seeds.append(f"torch.{frame.f_code.co_name}")
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            self.draws |= owner is PYTHON_RANDOM and argument.__name__ != "getstate"
            if not isinstance(owner, torch.Generator):
                return
            if argument.__name__ in ("manual_seed", "seed", "set_state") and not is_trusted(frame.f_code):
                self.seeds.append(f"Generator.{argument.__name__}")

    def own(self) -> Iterator[tuple[types.CodeType, dict[str, Any]]]:
        """The code that is neither torch's, nor ours, nor Python's library."""
        return ((code, names) for code, names in self.codes.items() if not is_trusted(code))

    def may_draw_by_numpy(self) -> bool:
        """Whether the code names ``numpy.random`` or a function of it: a profiler does not see these called."""
        return not self.is_complete or any(
            "random" in code.co_names or any(_draws_by_numpy(scope.get(name)) for name in code.co_names)
            for code, scope in self.own()
        )

    def ran(self, function: Any) -> bool:
        """Whether this function did."""
        return function.__code__ in self.codes


@dataclass
class _Dict:
    """A dict of which some keys are read."""

    items: Mapping[str, Any]
    may_hold: Callable[[str], bool]
    """Whether a name is among those that may be read."""

    place: Place
    before: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        """What may be read, as it is now."""
        return {name: item for name, item in list(self.items.items()) if isinstance(name, str) and self.may_hold(name)}


class Reads:
    """Everything that these roots may be read for by the code that was executed.

    Args:
        roots: by module path; each module among them with all of its submodules.
        executed: the code of a forward and a loss.
        named: the parameters and buffers that the program is given in any case, by id.
        floats: the attributes of modules that the program is given at each call.
    """

    def __init__(
        self,
        roots: Iterable[tuple[str, Any]],
        executed: Executed,
        named: Iterable[int],
        floats: Sequence[FloatInput] = (),
    ) -> None:
        self.executed = executed
        self.floats = floats
        self._of_modules: dict[int, str] = {}  # the path of a module by the id of its attributes
        self.names = {*MODULE_NAMES}
        self.reads_any_name = not executed.is_complete
        for code in executed.codes:
            if is_trusted(code) and not _is_layer_code(code):
                continue
            found = {*code.co_names, *_texts_in(code.co_consts)}
            self.names |= found | {part for text in found for part in text.split(".")}
            self.reads_any_name |= not is_trusted(code) and not BY_ANY_NAME.isdisjoint(code.co_names)
        self.tensors: list[Tensor] = []
        self._tensor_places: list[Place] = []
        self.held: dict[str, Tensor] = {}
        """The tensors found that are neither parameters nor buffers, by a name."""

        self.beyond: Place | None = None
        """Where the following ended, if there was too much to follow."""

        self._named = set(named)
        self._seen: dict[int, Any] = {}
        self._queue: collections.deque[tuple[Any, Place]] = collections.deque()
        self._dicts: dict[int, _Dict] = {}
        self._whole: list[tuple[Any, Place]] = []  # dicts, lists and sets of which all is read
        self._typed: list[tuple[Any, type, Place]] = []
        self._probed: list[tuple[Any, Callable[[Any], tuple[Any, ...]], Place]] = []
        self._content: list[tuple[Any, Callable[[Any], Any], Any, Place]] = []
        self._moving: list[tuple[Any, Callable[[Any], Any], Any, Place]] = []
        self._weakly: list[tuple[Any, Place]] = []
        self._lines: list[type] = []  # classes, whose bases may be others
        for path, root in roots:
            if isinstance(root, Module):
                for name, module in root.named_modules(prefix=path):
                    self._queue.append((module, Place(name, "self")))
            else:
                self._queue.append((root, Place(path, path)))
        self._add_globals()
        own = set().union(*(code.co_names for code, _ in executed.own()))
        self._may_ask_in_vain = self.reads_any_name or not own.isdisjoint(("hasattr", "AttributeError"))
        packages = {str(scope.get("__package__")) for _, scope in executed.own()} - {"", "None"}
        relative = {f"{package}.{name}" for package in packages for name in own} | packages
        for text in (self.names | relative) & sys.modules.keys():  # which importlib may have been asked for
            self._queue.append((sys.modules[text], Place("", text)))
        for name in own & ASKED.keys():
            self._probe(None, ASKED[name], Place("", f"{name}()"))
        if type(os.environ).__getitem__.__code__ in executed.codes:
            self._queue.append((vars(os.environ)["_data"], Place("", "os.environ")))
        for hooks in _hooks_of_all_modules():
            self._add_whole(hooks, Place("", "the hooks of all modules"))
        self._follow()
        self.has_weak = bool(self._weakly)
        """Whether a referent that is gone lives on while this is kept."""

        for referent, place in self._weakly:
            if id(referent) not in self._seen:  # what nothing else holds
                self.beyond = self.beyond or place.at(", a weak reference")
        self._weakly = []
        self._finish()

    # Following

    def _add_globals(self) -> None:
        """The globals that the executed code names, and of the built-in names those that it has no globals for."""
        wanted: dict[int, set[str]] = {}
        scopes: dict[int, dict[str, Any]] = {}
        for code, scope in self.executed.codes.items():
            if not is_trusted(code) or _is_layer_code(code):
                names = wanted.setdefault(id(scope), set())
                if BY_ANY_NAME.isdisjoint(code.co_names):
                    names.update(_globals_in(code))
                else:
                    names.update(code.co_names, _texts_in(code.co_consts))
                scopes[id(scope)] = scope
        for key, scope in scopes.items():
            place = Place("", f"global {{}} of {scope.get('__name__')}")
            is_ours = _is_trusted_name(scope.get("__name__"))
            if is_ours:
                wanted[key] = {name for name in wanted[key] if _is_called(scope.get(name))}
            self._add_dict(scope, wanted[key].__contains__, place, follow=not is_ours)
            if is_ours:  # of a layer of torch's: the functions that it calls may be replaced
                modules = (scope[name] for name in wanted[key] & scope.keys())
                self._later(*((m, place) for m in modules if isinstance(m, types.ModuleType)))
        built_in = set().union(*wanted.values()) - set().union(*scopes.values())
        self._add_dict(vars(builtins), built_in.__contains__, Place("", "the built-in {}"), follow=False)

    def _follow(self) -> None:
        while self._queue:
            thing, place = self._queue.popleft()
            if isinstance(thing, types.BuiltinFunctionType) and not isinstance(thing.__self__, types.ModuleType):
                thing = thing.__self__  # such as the generator whose method it is
            if type(thing) in NEVER_CHANGE or id(thing) in self._seen or _has_own_life(thing):
                continue
            if isinstance(thing, Optimizer | LRScheduler):
                self._seen[id(thing)] = thing
                self._visit_training(thing, place)
                continue
            if isinstance(thing, logging.Logger | threading.Thread):
                if isinstance(thing, logging.Logger):
                    self._probe(thing, _level_of, place)
                self._seen[id(thing)] = thing
                self._add_dict(vars(thing), self.names.__contains__, place.at(".{}"))
                continue
            if len(self._seen) >= LIMIT:
                self.beyond = place
                return
            self._seen[id(thing)] = thing
            self._visit(thing, place)

    def _visit(self, thing: Any, place: Place) -> None:
        if isinstance(thing, Tensor):
            self._visit_tensor(thing, place)
        elif isinstance(thing, type):
            self._visit_class(thing, place)
        elif isinstance(thing, types.ModuleType):
            # Of torch's own functions it counts whether they are the same: somebody may replace them.
            at, is_own = Place("", f"{thing.__name__}.{{}}"), not _is_trusted_name(thing.__name__)
            called = {name for name in self.names if _is_called(vars(thing).get(name))}
            may_hold = self.names.__contains__ if is_own else called.__contains__
            self._add_dict(vars(thing), may_hold, at, follow=is_own)
        elif isinstance(thing, types.FunctionType):
            self._visit_function(thing, place)
        elif isinstance(thing, types.MethodType):
            self._later((thing.__self__, place), (thing.__func__, place))
        elif isinstance(thing, functools.partial):
            self._probe(thing, operator.attrgetter("func", "args", "keywords"), place)
            self._later((thing.func, place), (thing.args, place), (thing.keywords, place))
        elif isinstance(thing, classmethod | staticmethod):
            self._later((thing.__func__, place))
        elif isinstance(thing, property):
            self._later((thing.fget, place))
        elif isinstance(thing, functools.cached_property):
            self._later((thing.func, place))
        elif isinstance(thing, types.CellType):
            self._probe(thing, _contents, place)
            self._later(*((content, place) for content in _contents(thing)))
        elif isinstance(thing, contextvars.ContextVar):
            self._probe(thing, _value_here, place)
            self._later((thing.get(None), place))
        elif isinstance(thing, weakref.ref):
            referent = thing()
            if isinstance(referent, Module | Parameter | type | types.FunctionType | types.ModuleType | None):
                self._later((referent, place))
            else:
                self._weakly.append((referent, place))
        elif isinstance(thing, threading.local):
            self._probe(thing, _of_this_thread, place)
            self._add_dict(vars(thing), _any_name, place.at(".{}"))
        elif isinstance(thing, types.MappingProxyType | collections.abc.MappingView):
            self._probe(thing, _items_of, place)
            self._later(*((item, place) for item in _items_of(thing)))
        elif isinstance(thing, functools._lru_cache_wrapper):
            self._probe(thing, _cache_of, place)
            self._visit_function(thing.__wrapped__, place, ran=True)
        elif isinstance(thing, tuple | frozenset):
            self._later(*((item, place.at(f"[{i}]")) for i, item in enumerate(thing)))
            self._visit_attributes(thing, place)
        elif isinstance(thing, list | set | dict | collections.deque | collections.UserDict | collections.UserList):
            items = thing.data if isinstance(thing, collections.UserDict | collections.UserList) else thing
            self._add_whole(items, place)
            if isinstance(thing, collections.defaultdict):
                self._probe(thing, operator.attrgetter("default_factory", "default_factory"), place)
                self._later((thing.default_factory, place))
            if items is not thing or not _is_trusted_name(type(thing).__module__):
                self._visit_attributes(thing, place)
        elif not self._visit_changing(thing, place):
            self._visit_attributes(thing, place)

    def _later(self, *items: tuple[Any, Place]) -> None:
        self._queue.extend(items)

    def _visit_training(self, thing: Optimizer | LRScheduler, place: Place) -> None:
        """Of what trains the model what the code asks for by name, or by a method of torch's."""
        asked = self.names | {"_last_lr"} if "get_last_lr" in self.names else self.names
        self._add_dict(vars(thing), asked.__contains__, place.at(".{}"))
        self._later((type(thing), place))

    def _visit_tensor(self, tensor: Tensor, place: Place) -> None:
        self.tensors.append(tensor)
        self._tensor_places.append(place)
        if id(tensor) not in self._named:
            self.held[_free(_key(place), self.held)] = tensor
        if vars(tensor) or self._may_ask_in_vain:
            self._add_dict(vars(tensor), self.names.__contains__, place.at(".{}"))

    def _visit_class(self, cls: type, place: Place) -> None:
        for base in cls.__mro__:
            if base is object or not base.__flags__ & _HEAP_TYPE:
                continue
            at, is_own = Place("", f"{base.__qualname__}.{{}}"), not _is_trusted_name(base.__module__)
            may_hold = functools.partial(_may_be_asked, self.names) if is_own else self.names.__contains__
            self._add_dict(vars(base), may_hold, at, follow=is_own)
        self._lines.append(cls)
        if not _is_trusted_name(type(cls).__module__):
            self._later((type(cls), place))

    def _visit_function(self, function: Any, place: Place, ran: bool = False) -> None:
        if not isinstance(function, types.FunctionType):
            return
        if is_trusted(function.__code__):  # such as a decorator's, by which a function of the user's is called
            if self.executed.ran(function):
                self._later(*((cell, place) for cell in function.__closure__ or ()), (function.__dict__, place))
            return
        if ran or not self.executed.is_complete:
            self.names.update(function.__code__.co_names)
            self._add_dict(function.__globals__, _globals_in(function.__code__).__contains__, place.at(": {}"))
        elif not self.executed.ran(function):
            if function.__dict__:
                self._later((function.__dict__, place))
            return
        self._probe(function, operator.attrgetter("__code__", "__defaults__", "__kwdefaults__"), place)
        self._later(*((cell, place) for cell in function.__closure__ or ()))
        self._later((function.__defaults__, place), (function.__kwdefaults__, place), (function.__dict__, place))
        wrapped = getattr(function, "__wrapped__", None)
        self._later((wrapped, place))

    def _visit_changing(self, thing: Any, place: Place) -> bool:
        """Objects whose state is not in attributes: arrays, memory, and what moves on when it is read."""
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(thing, numpy.ndarray):
            if thing.dtype.hasobject:
                self._probe(thing, _objects_in, place)
                self._later(*((item, place) for item in _objects_in(thing)))
            else:
                self._content.append((thing, _array, _array(thing), place))
            return type(thing) is numpy.ndarray
        if numpy is not None and isinstance(thing, numpy.generic) and not isinstance(thing, numpy.void):
            return True
        if isinstance(thing, io.StringIO | io.BytesIO):
            self._content.append((thing, _stream, _stream(thing), place))
            return False
        if isinstance(thing, ctypes._Pointer) and thing:
            self._later((thing.contents, place))
        if type(thing) in HOLDERS:
            self._later(*((item, place) for item in gc.get_referents(thing)))
        if isinstance(thing, torch.Generator) and "initial_seed" in self.names:
            self._probe(thing, _seed_of, place)
        if isinstance(thing, torch.UntypedStorage):
            self._content.append((thing, _stored, _stored(thing), place))
        moving = _state_of(thing)
        if moving is not None:
            self._moving.append((thing, moving, moving(thing), place))
            if type(thing).__module__ in ("builtins", "itertools"):
                self._later(*((item, place) for item in gc.get_referents(thing)))
            return False
        try:
            memory = memoryview(thing)
        except TypeError:
            return False
        self._content.append((thing, bytes, bytes(memory), place))
        return False

    def _visit_attributes(self, thing: Any, place: Place) -> None:
        cls = type(thing)
        self._later((cls, place))
        # The code of Python's library has its own names for what it keeps.
        is_of_library = _is_trusted_name(cls.__module__) and not isinstance(thing, Module | PLAIN)
        by_any_name = (self.reads_any_name and place.depth < DEEP) or _answers_itself(cls)
        by_any_name |= is_of_library or isinstance(thing, enum.Enum)
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            if not isinstance(thing, Module):
                place = place if place.text else Place(place.path, cls.__name__, place.depth)
            may_hold: Callable[[str], bool] = _any_name if by_any_name else self.names.__contains__
            if isinstance(thing, Module):
                self._of_modules[id(attributes)] = place.path
            if given := {item.name for item in self.floats if item.attributes is attributes}:
                may_hold = _all_but(given, may_hold)
            self._add_dict(attributes, may_hold, place.at(".{}", deeper=True))
        if isinstance(thing, Module) or not _is_trusted_name(cls.__module__):
            self._typed.append((thing, cls, place))
        slots = [n for base in cls.__mro__ for n in _slots(base) if by_any_name or n in self.names]
        if slots:
            getter = _getter_of_slots(tuple(slots))
            self._probe(thing, getter, place)
            self._later(
                *((value, place.at(f".{n}", deeper=True)) for n, value in zip(slots, getter(thing), strict=True))
            )

    def _add_dict(self, items: Any, may_hold: Callable[[str], bool], place: Place, follow: bool = True) -> None:
        known = self._dicts.get(id(items))
        if known is not None:  # of the globals of one file, other functions read other names
            earlier = known.may_hold
            may_hold = _either(earlier, may_hold)
        found = self._dicts[id(items)] = _Dict(items, may_hold, place)
        if follow:
            new = found.before if known is None else found.before.keys() - known.before.keys()
            self._later(*((items[name], _filled(place, name)) for name in found.before if name in new))

    def _add_whole(self, items: Any, place: Place) -> None:
        self._whole.append((items, place))
        if isinstance(items, dict):
            self._later(*((key, place) for key in items), *((v, place.at(f"[{k!r}]")) for k, v in items.items()))
        else:
            self._later(*((item, place.at(f"[{i}]")) for i, item in enumerate(items)))

    def _probe(self, thing: Any, getter: Callable[[Any], tuple[Any, ...]], place: Place) -> None:
        self._probed.append((thing, getter, place))

    # Comparing

    def _finish(self) -> None:
        self._layouts = self._layouts_now()
        self._settle()

    def _settle(self) -> None:
        """Take what is there now for what is to be there."""
        self.versioned = [dict_of(d.items) for d in self._dicts.values()]
        self.versioned += [items for items, _ in self._whole if isinstance(items, dict) and items]
        self.versions = list(map(dict_version, self.versioned))  # before the items, which a thread may change
        self._whole_before = [_all_of(items) for items, _ in self._whole]
        for d in self._dicts.values():
            d.before = d.now()
        self.empty = [items for items, _ in self._whole if not items]
        # What has no version: lists, sets, and what functions hold. A dict that keeps an order of its own counts no
        # change of that order.
        ordered = (collections.OrderedDict, set, list, collections.deque)
        self._loose = [items for items, _ in self._whole if items and isinstance(items, ordered)]
        self._loose_before = self._loose_items()
        self._probed_before = [getter(thing) for thing, getter, _ in self._probed]
        self.objects = [thing for thing, _, _ in self._typed]
        self.classes = [cls for _, cls, _ in self._typed]
        self.derived = [cls for cls in self._lines if not _is_trusted_name(cls.__module__)]
        self.bases = list(map(bases_of, self.derived))
        self._moves = [item for item in self._moving if not isinstance(item[0], torch.Generator)]
        self._settle_tensors()

    def _settle_tensors(self) -> None:
        self._is_laid_out = are_unchanged(self.tensors)
        self.addresses = list(map(address_of, self.tensors))
        self._have_hooks = have_hooks(self.tensors)

    def _loose_items(self) -> list[Any]:
        """All items in order that have no version."""
        loose = self._loose
        return [*map(len, loose), *_chain(loose), *_chain([getter(thing) for thing, getter, _ in self._probed])]

    @property
    def is_simple(self) -> bool:
        """Whether all that is compared is ``versions`` of the dicts, ``addresses`` and layouts of ``tensors``,
        ``classes`` of the objects, and that ``empty`` and the hooks of tensors are empty."""
        return not (self._loose or self._probed or self._content or self._moves or self.floats or self._have_hooks)

    def _layouts_now(self) -> list[Any]:
        tensors = self.tensors
        return [list(map(address_of, tensors)), list(map(_stride, tensors)), list(map(_kind, tensors))]

    def hold(self) -> bool:
        """Whether everything is as it was."""
        try:
            is_untouched = (
                list(map(dict_version, self.versioned)) == self.versions
                and not any(self.empty)
                and (not (self._loose or self._probed) or _are_identical(self._loose_items(), self._loose_before))
                and self._is_laid_out(*self.tensors)
                and list(map(address_of, self.tensors)) == self.addresses
                and not (self._have_hooks or have_hooks(self.tensors))
            )
            return (
                (is_untouched or self._is_equal())
                and list(map(type, self.objects)) == self.classes
                and list(map(bases_of, self.derived)) == self.bases
                and (not self._moves or all(state(thing) == before for thing, state, before, _ in self._moves))
                and (not self._content or self._contents_hold())
                and all(item.is_float() for item in self.floats)
            )
        except (AttributeError, RuntimeError):
            return False

    def _is_equal(self) -> bool:
        """Whether there are the same names and items, by value; from now on the new objects are expected."""
        versions = list(map(dict_version, self.versioned))  # before the items, which a thread may change
        stale = [i for i, (now, before) in enumerate(zip(versions, self.versions, strict=True)) if now != before]
        changed = [d for i, d in enumerate(self._dicts.values()) if i in set(stale)]
        if any(True for d in changed for _ in self._changed_in(d)) or self._layouts_now() != self._layouts:
            return False
        is_loose = not _are_identical(self._loose_items(), self._loose_before) or any(self.empty)
        if is_loose or any(i >= len(self._dicts) for i in stale):
            if any(True for _ in self._changed_whole()):
                return False
            probed = zip(self._probed, self._probed_before, strict=True)
            if not all(_are_same(getter(thing), before) for (thing, getter, _), before in probed):
                return False
            self._settle()
            return True
        for d in changed:
            d.before = d.now()
        self.versions = versions
        self._settle_tensors()
        return True

    def _changed_dicts(self) -> Iterator[Place]:
        for d in self._dicts.values():
            yield from self._changed_in(d)

    def _changed_in(self, d: _Dict) -> Iterator[Place]:
        now = d.now()
        if not _are_same(tuple(now), tuple(d.before)) or not all(map(_are_same, now.values(), d.before.values())):
            names = {**d.before, **now}
            changed = [n for n in names if not _are_same(now.get(n, _MISSING), d.before.get(n, _MISSING))]
            yield from (_filled(d.place, name) for name in changed or names)

    def _changed_whole(self) -> Iterator[Place]:
        for (items, place), before in zip(self._whole, self._whole_before, strict=True):
            if not _are_same(_all_of(items), before):
                yield place

    def _contents_hold(self) -> bool:
        return all(content(thing) == before for thing, content, before, _ in self._content)

    def changed_floats(self) -> list[tuple[dict[str, Any], str, str]]:
        """The attributes of modules that are other floats than before, each with a key, if all else is as it was; and
        those that the program is given."""
        found = []
        for d in self._dicts.values():
            if id(d.items) in self._of_modules:
                path = self._of_modules[id(d.items)]
                pairs = ((name, item, d.before.get(name)) for name, item in d.now().items())
                names = [name for name, a, b in pairs if type(a) is type(b) is float and not _are_same(a, b)]
                found += [(d.items, name, f"{path}.{name}" if path else name) for name in names]
        if not found or len(self.changes()) != len(found):
            return []
        return [*((item.attributes, item.name, item.key) for item in self.floats), *found]  # type: ignore[list-item]

    def changes(self) -> list[Place]:
        """Where something is not as it was: what a forward changes, if it has run meanwhile."""
        places = [at for thing, state, before, at in self._moving if state(thing) != before]
        places += [at for thing, content, before, at in self._content if content(thing) != before]
        if not places and self.hold():
            return []
        places += [*self._changed_dicts(), *self._changed_whole()]
        probed = zip(self._probed, self._probed_before, strict=True)
        places += [place for (thing, getter, place), before in probed if not _are_same(getter(thing), before)]
        places += [place for thing, cls, place in self._typed if type(thing) is not cls]
        layouts = zip(self._tensor_places, *map(zip, self._layouts, self._layouts_now()), strict=True)
        places += [place for place, *pairs in layouts if any(before != now for before, now in pairs)]
        return list(dict.fromkeys(places)) or [Place("", "what it reads")]


_MISSING = object()
_HEAP_TYPE = 1 << 9
address_of: Any = Tensor.data_ptr
bases_of = operator.attrgetter("__mro__")
_stride: Any = Tensor.stride
_hooks = operator.attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")


def have_hooks(tensors: list[Tensor]) -> bool:
    """Whether autograd calls somebody with the gradient of one of these."""
    return any(_chain(map(_hooks, tensors)))


def _kind(t: Tensor) -> tuple[Any, ...]:
    return t.requires_grad, t.dtype, t.shape, *(tuple(hooks.values()) for hooks in _hooks(t) if hooks)


def _are_same(a: Any, b: Any) -> bool:
    """Whether it is one object, or equal numbers or texts of one type, or tuples of such."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and not hasattr(a, "__dict__"):
        return len(a) == len(b) and all(map(_are_same, a, b))
    if type(a) in (float, complex, range):
        return repr(a) == repr(b)  # which tells the sign of 0, and NaN is NaN
    if type(a) is slice:
        return _are_same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, types.MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    if type(a).__module__ == "numpy" and hasattr(a, "tobytes") and not hasattr(a, "__array_finalize__"):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())  # a number of NumPy's
    return type(a) in NEVER_CHANGE and bool(a == b)


def _are_identical(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def dict_of(items: Any) -> dict[str, Any]:
    """A dict itself, or the one behind the attributes of a class, which has a version."""
    found: dict[str, Any] = items if isinstance(items, dict) else gc.get_referents(items)[0]
    return found


def _draws_by_numpy(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    return type(owner).__module__.startswith("numpy.random")


def _has_own_life(thing: Any) -> bool:
    """Whether it changes at every step, and a forward reads nothing of it, as of what this package trains and looks
    with."""
    if isinstance(thing, Module | Tensor | type | types.FunctionType | types.ModuleType):
        return False
    return type(thing).__module__.startswith("torch_manualbp.")


def _all_of(items: Any) -> tuple[Any, ...]:
    return (*items, *(items.values() if isinstance(items, dict) else ()))


def _may_be_asked(names: set[str], name: str) -> bool:
    """Whether code with these names may read this of a class: by its name, or by what operators and statements call."""
    return name in names or (name.startswith("__") and name not in NO_PART)


def _any_name(name: str) -> bool:
    return True


def _all_but(left_out: set[str], may_hold: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: name not in left_out and may_hold(name)


def _either(one: Callable[[str], bool], other: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda name: one(name) or other(name)


def _filled(place: Place, name: str) -> Place:
    return Place(place.path, place.text.replace("{}", name, 1), place.depth)


@functools.lru_cache(1024)
def _globals_in(code: types.CodeType) -> frozenset[str]:
    """The globals that code names. ``co_names`` has attributes, too: ``self.n`` is not the ``n`` of a script's loop."""
    if not BY_ANY_NAME.isdisjoint(code.co_names):
        return frozenset(code.co_names)
    of_names = [item for item in dis.get_instructions(code) if item.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return frozenset(item.argval for item in of_names)


def _texts_in(constants: tuple[Any, ...]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str) and len(constant) < 100:
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _texts_in(tuple(constant))


def _level_of(logger: logging.Logger) -> tuple[Any, ...]:
    return logger.getEffectiveLevel(), logger.disabled


def _is_called(thing: Any) -> bool:
    return callable(thing) or isinstance(thing, types.ModuleType)


def _items_of(mapping: Any) -> tuple[Any, ...]:
    items = _chain(mapping.items()) if isinstance(mapping, types.MappingProxyType) else mapping
    return len(mapping), *items


def _cache_of(function: Any) -> tuple[Any, ...]:
    """How often a cached function has computed something, and how much of it is kept."""
    return function.cache_info()[1:]


def _of_this_thread(local: Any) -> tuple[Any, ...]:
    return (vars(local),)


def _value_here(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    return (variable.get(_MISSING),)


def _contents(cell: Any) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # it is empty
        return (_MISSING,)


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(n for n in names if n not in ("__dict__", "__weakref__"))


@functools.cache
def _getter_of_slots(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda thing: tuple(getattr(thing, name, _MISSING) for name in names)


def _answers_itself(cls: type) -> bool:
    """Whether the class has a Python method that answers for attributes, by names that it makes."""
    found = [getattr(cls, name, None) for name in ("__getattr__", "__getattribute__")]
    return not issubclass(cls, Module) and any(isinstance(f, types.FunctionType) for f in found)


def _objects_in(array: Any) -> tuple[Any, ...]:
    return array.dtype, *array.shape, *_chain(array.tolist() if array.dtype.names else [array.flat])


def _seed_of(generator: torch.Generator) -> tuple[Any, ...]:
    return (generator.initial_seed(),)


def _stored(storage: torch.UntypedStorage) -> bytes:
    content: bytes = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu().numpy().tobytes()
    return content


def _stream(stream: Any) -> Any:
    return None if stream.closed else (stream.tell(), stream.getvalue())


def _array(array: Any) -> Any:
    return array.dtype, array.shape, array.tobytes()


def _state_of(thing: Any) -> Callable[[Any], Any] | None:
    """How to see where an object is that moves on when it is asked for a value; None for others."""
    numpy = sys.modules.get("numpy")
    if isinstance(thing, random.Random):
        return random.Random.getstate
    if isinstance(thing, torch.Generator):
        return lambda generator: generator.get_state().numpy().tobytes()
    if numpy is not None and isinstance(thing, numpy.random.Generator):
        return lambda generator: repr(generator.bit_generator.state)
    if numpy is not None and isinstance(thing, numpy.random.BitGenerator):
        return lambda bits: repr(bits.state)
    if numpy is not None and isinstance(thing, numpy.random.RandomState):
        return lambda state: repr(state.get_state(legacy=False)["state"])
    if isinstance(thing, types.GeneratorType):
        return _place_in
    if hasattr(type(thing), "__next__") and hasattr(type(thing), "__iter__"):
        return _reduced
    return None


def _place_in(generator: Any) -> Any:
    """The instruction that a generator is at, and its variables: numbers and texts as they are."""
    frame = generator.gi_frame
    if frame is None:
        return None
    of = frame.f_locals.items()
    return frame.f_lasti, [(name, repr(item) if type(item) in NEVER_CHANGE else id(item)) for name, item in of]


def _reduced(iterator: Any) -> Any:
    """Where an iterator is, as far as it says."""
    try:
        return repr(iterator.__reduce__()[1:])
    except TypeError:
        return None


def _key(place: Place) -> str:
    """The name of a tensor that is held somewhere: with its module path, as parameters are called."""
    text = place.text.removeprefix("self.")
    return f"{place.path}.{text}" if place.path and not text.startswith(place.path) else text


def _free(wanted: str, taken: Mapping[str, Any]) -> str:
    if wanted not in taken:
        return wanted
    return next(name for i in itertools.count(2) if (name := f"{wanted} ({i})") not in taken)


def _hooks_of_all_modules() -> list[Any]:
    return [
        hooks for name, hooks in vars(torch_module).items() if name.startswith("_global") and isinstance(hooks, dict)
    ]


# The code's owner

_PACKAGES = ("torch", "numpy", "torch_manualbp")
_STDLIB = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(__file__).parents[1])
_LAYERS = tuple(
    os.path.join(root, *parts)
    for root, *folders in (
        (os.path.dirname(torch.__file__), ("nn", "modules"), ("nn", "utils"), ("distributions",)),
        (_OURS, ("nn",)),
    )
    for parts in folders
)


@functools.cache
def _is_trusted_file(name: str) -> bool:
    if name.startswith("<frozen"):
        return True
    path = os.path.abspath(name)
    if path.startswith((os.path.dirname(torch.__file__) + os.sep, _OURS + os.sep)):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None and path.startswith(os.path.dirname(str(numpy.__file__)) + os.sep):
        return True
    return path.startswith(_STDLIB + os.sep) and "site-packages" not in path and "dist-packages" not in path


def is_trusted(code: types.CodeType) -> bool:
    """Whether the code is torch's, NumPy's, ours or of Python's library: it reads no state of its own that changes."""
    return _is_trusted_file(code.co_filename)


def _is_layer_code(code: types.CodeType) -> bool:
    """Whether it is of a layer, which reads its own attributes."""
    return code.co_filename.startswith(_LAYERS)


@functools.cache
def _is_trusted_name(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    return root in _PACKAGES or root in sys.stdlib_module_names or root == "builtins"
