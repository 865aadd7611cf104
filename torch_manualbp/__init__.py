"""Explicit backpropagation for PyTorch: backward formulas derived by hand, written out, and verified against autograd.

- :mod:`torch_manualbp.rules`: the calculus, one ``torch.autograd.Function`` for each operation
- :mod:`torch_manualbp.functional`: ``torch.nn.functional`` over the rules
- :mod:`torch_manualbp.nn`: ``torch.nn`` over the rules
- :func:`torch_manualbp.convert` and :func:`torch_manualbp.restore`: our layers in a built model, and torch's again
- :class:`torch_manualbp.TrainStep`: a training step without an autograd graph, as Python that can be read
- :mod:`torch_manualbp.verify`: gradients held against autograd's: ``torch_manualbp.verify(target, *inputs)``
- :mod:`torch_manualbp.insight`: the backpropagation to look at: :func:`torch_manualbp.local_gradients`, and
  ``torch_manualbp.explain(model, loss, x, y, "fc2.weight", (1, 1))``, why one weight's gradient is what it is
- :mod:`torch_manualbp.lightning`: training under PyTorch Lightning (imported on its own: it loads Lightning)
- ``torch-manualbp``, or ``python -m torch_manualbp``: the command line

Each is imported when it is first asked for: the plugin of pytest stands in this package, and is loaded by every run of
pytest where it is installed, of projects without torch as well.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch_manualbp._version import __version__ as __version__

if TYPE_CHECKING:
    from torch_manualbp import functional as functional
    from torch_manualbp import nn as nn
    from torch_manualbp import rules as rules
    from torch_manualbp.convert import convert as convert
    from torch_manualbp.convert import restore as restore
    from torch_manualbp.derive import TrainStep as TrainStep
    from torch_manualbp.insight import explain as explain
    from torch_manualbp.insight import local_gradients as local_gradients
    from torch_manualbp.rules import Rule as Rule
    from torch_manualbp.verify.verifier import verify as verify

__all__ = ["Rule", "TrainStep", "convert", "functional", "nn", "restore", "rules"]

_PACKAGES = ("derive", "functional", "insight", "nn", "rules", "verify")
_OBJECTS = {  # and the modules that they are in
    "Rule": "rules",
    "TrainStep": "derive",
    "explain": "insight",
    "local_gradients": "insight",
    "restore": "convert",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"torch_manualbp.{name}")
    if name in _OBJECTS:
        found = getattr(importlib.import_module(f"torch_manualbp.{_OBJECTS[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "convert", *_PACKAGES, *_OBJECTS})


class _Package(ModuleType):
    """``convert`` is the function, although a module has this name as well."""

    @property
    def convert(self) -> Any:
        return importlib.import_module("torch_manualbp.convert").convert

    @convert.setter
    def convert(self, module: ModuleType) -> None:
        """Python puts a module that it has imported into its package, where the function stands already."""


sys.modules[__name__].__class__ = _Package
