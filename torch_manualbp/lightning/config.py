"""Objects by configuration, in the form that LightningCLI reads::

    {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}

``init_args`` are keywords, or a list of positional arguments, and may hold further configurations::

    {"class_path": "torch_manualbp.nn.Sequential", "init_args": [{"class_path": "torch_manualbp.nn.ReLU"}, ...]}
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["instantiate", "plain_copy"]

# A configuration may come out of a checkpoint, whose author must not choose what to run: subprocess.Popen is a class.
BASES = (torch.nn.Module, torch.optim.Optimizer, LRScheduler)


def instantiate(config: Mapping[str, Any], *args: Any, path: str = "config") -> Any:
    """The object that ``config`` describes; ``args`` come before its own arguments.

    Args:
        config: ``class_path`` names a subclass of ``torch.nn.Module`` (which losses and metrics are too),
            ``torch.optim.Optimizer`` or ``LRScheduler``.
        path: what the errors call ``config``.

    Raises:
        ValueError: ``config`` is not of this form, or the class does not take its ``init_args``; in one line, with the
            place in the configuration, the value there, and what would do.
    """
    unknown = sorted(map(str, config.keys() - {"class_path", "init_args"}))
    if unknown or "class_path" not in config:
        found = f"has the unknown key {unknown[0]!r}" if unknown else "lacks 'class_path'"
        raise ValueError(f"{path} {found}: it takes {{'class_path': 'package.Class', 'init_args': {{...}} or [...]}}")
    cls = _resolve(config["class_path"], f"{path}.class_path")
    init_args = config.get("init_args") or {}
    if isinstance(init_args, Mapping):
        kwargs = {name: _nested(value, f"{path}.init_args.{name}") for name, value in init_args.items()}
    elif isinstance(init_args, list | tuple):
        args += tuple(_nested(value, f"{path}.init_args[{i}]") for i, value in enumerate(init_args))
        kwargs = {}
    else:
        raise ValueError(f"{path}.init_args is {init_args!r}: it takes a mapping of keywords, or a list")
    _check_arguments(cls, args, kwargs, path)
    try:
        return cls(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {config['class_path']} refuses init_args {init_args!r}: {reason}") from error


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


def _nested(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        if "class_path" in value:
            return instantiate(value, path=path)
        return {key: _nested(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_nested(item, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def _resolve(class_path: Any, path: str) -> Any:
    if not isinstance(class_path, str) or not class_path:
        raise ValueError(f"{path} is {class_path!r}: it takes the full name of a class, such as 'torch.optim.SGD'")
    first, *rest = class_path.split(".")
    found = _import(first)
    if found is None:
        tops = {name for name in sys.modules if "." not in name and not name.startswith("_")}
        raise ValueError(f"{path} is {class_path!r}, and no {first!r} can be imported{_hint(first, tops, '')}")
    name = first
    for part in rest:
        inner = getattr(found, part, None) if part else None
        if inner is None and part and inspect.ismodule(found):
            inner = _import(f"{name}.{part}")
        if inner is None:
            known = {*dir(found), *(module.name for module in pkgutil.iter_modules(getattr(found, "__path__", ())))}
            raise ValueError(f"{path} is {class_path!r}, and {name} has no {part!r}{_hint(part, known, f'{name}.')}")
        name, found = f"{name}.{part}", inner
    if not (inspect.isclass(found) and issubclass(found, BASES)):
        raise ValueError(f"{path} is {class_path!r}, which is not a class of modules, optimizers or schedulers")
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        return None


def _hint(name: str, known: Iterable[str], prefix: str) -> str:
    public = [k for k in known if not k.startswith("_")]
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
