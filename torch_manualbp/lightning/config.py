"""Objects by configuration, in the form that LightningCLI reads::

    {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}

``init_args`` are keywords, or a list of positional arguments, and may hold further configurations::

    {"class_path": "torch_manualbp.nn.Sequential", "init_args": [{"class_path": "torch_manualbp.nn.ReLU"}, ...]}

A configuration may come out of a checkpoint, whose author must not choose what is run. So its classes are those that
are defined in :data:`PACKAGES`, which are loaded already, and in what the caller allows by name; nothing else is
imported, or looked into.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["PACKAGES", "instantiate", "plain_copy"]

PACKAGES = (
    "torch.nn",
    "torch.optim",
    "torch_manualbp.nn",
    "torch_manualbp.lightning.mlp",
    # All but those that load a model by its name: audio, image, multimodal, text, video.
    *(f"torchmetrics.{part}" for part in ("aggregation", "classification", "clustering", "collections", "detection")),
    *(f"torchmetrics.{part}" for part in ("nominal", "regression", "retrieval", "segmentation", "shape", "wrappers")),
)
"""Where classes may be defined without being allowed by name."""

BASES = (torch.nn.Module, torch.optim.Optimizer, LRScheduler)
MOST_LEVELS, MOST_ENTRIES = 100, 1_000_000
"""Levels and entries of a configuration at most: beyond that it holds itself, or was made to fill the memory."""


def instantiate(
    config: Mapping[str, Any],
    *args: Any,
    path: str = "config",
    allow: str | Sequence[str] = (),
    kind: Any = BASES,
) -> Any:
    """The object that ``config`` describes; ``args`` come before its own arguments.

    Args:
        config: ``class_path`` names a subclass of ``torch.nn.Module`` (which losses and metrics are too),
            ``torch.optim.Optimizer`` or ``LRScheduler``.
        path: what the errors call ``config``.
        allow: packages, modules or classes besides :data:`PACKAGES`, by name; they are imported if they are named.
        kind: the class, or classes, that the object is one of.

    Raises:
        ValueError: ``config`` is not of this form, its class is not allowed or does not take its ``init_args``; in one
            line, with the place in the configuration, the value there, and what would do.
    """
    refuse_too_large(config, path)
    return _instantiate(config, args, path, (allow,) if isinstance(allow, str) else tuple(allow), kind)


def plain_copy(value: Any) -> Any:
    """A copy of ``value`` made of dict, list, tuple, str, int, float, bool, None and torch.dtype, which
    ``torch.load(..., weights_only=True)`` reads.

    Raises:
        TypeError: ``value`` holds anything else, such as a built object.
    """
    if isinstance(value, Mapping):
        return {str(key): plain_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain_copy, value)) if type(value) in (list, tuple) else list(map(plain_copy, value))
    for kind in (bool, str, int, float):
        if isinstance(value, kind):
            return kind(value)  # of NumPy's float64, which is a float, Python's
    if value is None or isinstance(value, torch.dtype):
        return value
    raise TypeError(f"{type(value).__qualname__} is not plain data")


def refuse_too_large(value: Any, path: str) -> None:
    """Say that a configuration is too large to be followed: a list may hold itself, or the same list many times.

    Raises:
        ValueError: it is.
    """
    level, levels = [value], 0
    entries = 0
    while level:
        entries += len(level)
        levels += 1
        if levels > MOST_LEVELS or entries > MOST_ENTRIES:
            what = f"{MOST_LEVELS} levels" if levels > MOST_LEVELS else f"{MOST_ENTRIES:,} entries"
            raise ValueError(f"{path} has more than {what}, and is no configuration")
        level = [
            item
            for holder in level
            if isinstance(holder, Mapping | list | tuple)
            for item in (holder.values() if isinstance(holder, Mapping) else holder)
        ]


def _instantiate(config: Mapping[str, Any], args: tuple[Any, ...], path: str, allow: tuple[str, ...], kind: Any) -> Any:
    unknown = sorted(map(str, config.keys() - {"class_path", "init_args"}))
    if unknown or "class_path" not in config:
        found = f"has the unknown key {unknown[0]!r}" if unknown else "lacks 'class_path'"
        raise ValueError(f"{path} {found}: it takes {{'class_path': 'package.Class', 'init_args': {{...}} or [...]}}")
    class_path, init_args = config["class_path"], config.get("init_args") or {}
    cls = _resolve(class_path, f"{path}.class_path", allow)
    kwargs: dict[str, Any] = {}
    if isinstance(init_args, Mapping):
        for name, value in init_args.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}.init_args has the key {_shown(name)}, which is no name of an argument")
            kwargs[name] = _nested(value, f"{path}.init_args.{name}", allow)
    elif isinstance(init_args, list | tuple):
        args += tuple(_nested(value, f"{path}.init_args[{i}]", allow) for i, value in enumerate(init_args))
    else:
        raise ValueError(f"{path}.init_args is {_shown(init_args)}: it takes a mapping of keywords, or a list")
    _check_arguments(cls, args, kwargs, path)
    try:
        built = cls(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: {class_path} refuses init_args {_shown(init_args)}: {reason}") from error
    if not isinstance(built, kind):
        wanted = " or ".join(c.__qualname__ for c in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{path}.class_path is {class_path!r}, of which an object is no {wanted}")
    return built


def _nested(value: Any, path: str, allow: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        if "class_path" in value:
            return _instantiate(value, (), path, allow, BASES)
        return {key: _nested(item, f"{path}.{key}", allow) for key, item in value.items()}
    if isinstance(value, list):
        return [_nested(item, f"{path}[{i}]", allow) for i, item in enumerate(value)]
    return value


def _resolve(class_path: Any, path: str, allow: tuple[str, ...]) -> Any:
    """The class, found without an import, except of what the caller allows."""
    if not isinstance(class_path, str) or not class_path:
        raise ValueError(
            f"{path} is {_shown(class_path)}: it takes the full name of a class, such as 'torch.optim.SGD'"
        )
    first, *rest = class_path.split(".")
    roots = {name.partition(".")[0] for name in (*PACKAGES, *allow)}
    if first not in roots:
        raise ValueError(f"{path} is {class_path!r}, {_no_class(allow)}{_hint(first, roots, '')}; {_way_out(first)}")
    name, found = first, _module(first, allow)
    for part in rest:
        inner = vars(found).get(part) if inspect.ismodule(found) or inspect.isclass(found) else None
        if inspect.ismodule(inner) and inner.__name__.partition(".")[0] not in roots:  # such as torch.os
            inner = None
        if inner is None and part and (found is None or inspect.ismodule(found)):
            inner = _module(f"{name}.{part}", allow)
        if inner is None and inspect.ismodule(found) and _is_in(name, allow):
            inner = getattr(found, part, None)  # a package may import on demand
        if inner is None:
            hint = _hint(part, vars(found) if found is not None else (), f"{name}.")
            raise ValueError(f"{path} is {class_path!r}, and {name} has no {part!r}{hint}")
        name, found = f"{name}.{part}", inner
    if not (inspect.isclass(found) and issubclass(found, BASES)):
        raise ValueError(f"{path} is {class_path!r}, {_no_class(allow)}")
    if not _is_in(f"{found.__module__}.{found.__qualname__}", (*PACKAGES, *allow)):
        raise ValueError(f"{path} is {class_path!r}, {_no_class(allow)}; {_way_out(found.__module__)}")
    return found


def _is_in(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _module(name: str, allow: tuple[str, ...]) -> Any:
    """A module that is loaded, or that the caller allows, with the packages that it is in."""
    allowed = _is_in(name, allow) or any(_is_in(entry, (name,)) for entry in allow)
    if name not in sys.modules and allowed and not name.rpartition(".")[2].startswith("__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is there, and lacks something itself
    return sys.modules.get(name)


def _no_class(allow: tuple[str, ...]) -> str:
    others = "".join(f", {name}" for name in allow)
    return f"which is not a class of modules, optimizers or schedulers of torch, torch_manualbp, torchmetrics{others}"


def _way_out(name: str) -> str:
    return f"classes of another package are taken with allow=({name!r},)"


def _shown(value: Any) -> str:
    """In one line of some length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _hint(name: str, known: Iterable[str], prefix: str) -> str:
    public = [k for k in known if not k.startswith("_") and k != name]
    close = difflib.get_close_matches(name, public, 1)
    if not close:  # in other letters' case: 'relu' for 'ReLU'
        close = [k for k in public if k.lower() == name.lower()][:1]
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def _check_arguments(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> None:
    """Refuse what ``cls`` does not take, by name: its own TypeError leaves out what it does take."""
    try:
        signature = inspect.signature(cls)
    except ValueError:  # written in C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = [str(p).partition(":")[0] for p in signature.parameters.values()]
        names = [p.name for p in signature.parameters.values()]
        unknown = next((name for name in kwargs if name not in names), None)
        hint = "" if unknown is None else _hint(unknown, names, "")
        raise ValueError(f"{path}.init_args: {cls.__name__} {error}{hint}; it takes ({', '.join(takes)})") from None
