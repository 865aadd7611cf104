"""Explicit backpropagation for PyTorch: backward formulas derived by hand, written out, and verified against autograd.

- :mod:`torch_manualbp.rules`: the calculus, one ``torch.autograd.Function`` for each operation
- :mod:`torch_manualbp.functional`: ``torch.nn.functional`` over the rules
- :mod:`torch_manualbp.nn`: ``torch.nn`` over the rules
- :func:`torch_manualbp.convert` and :func:`torch_manualbp.restore`: our layers in a built model, and torch's again
- :mod:`torch_manualbp.verify`: gradients held against autograd's
- :mod:`torch_manualbp.lightning`: training under PyTorch Lightning (imported on its own: it loads Lightning)
- ``torch-manualbp``, or ``python -m torch_manualbp``: the command line

Each of these names is loaded when it is first used: the command line says what it takes without waiting for torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_manualbp import functional as functional
    from torch_manualbp import nn as nn
    from torch_manualbp import rules as rules
    from torch_manualbp.convert import convert as convert
    from torch_manualbp.convert import restore as restore
    from torch_manualbp.rules import Rule as Rule

__all__ = ["Rule", "convert", "functional", "nn", "restore", "rules"]
__version__ = "0.1.0"

_MODULES = ("functional", "nn", "rules")
_HOMES = {"Rule": "rules", "convert": "convert", "restore": "convert"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``torch_manualbp.convert`` the function, where an import of the module so named would put the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        named_alike = isinstance(value, ModuleType) and name in _HOMES
        super().__setattr__(name, getattr(value, name) if named_alike else value)


sys.modules[__name__].__class__ = _Package
