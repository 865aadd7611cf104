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
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch_manualbp import functional, nn, rules
from torch_manualbp.convert import convert, restore
from torch_manualbp.derive import TrainStep
from torch_manualbp.rules import Rule

if TYPE_CHECKING:
    from torch_manualbp.insight import explain as explain
    from torch_manualbp.insight import local_gradients as local_gradients
    from torch_manualbp.verify.verifier import verify as verify

__all__ = ["Rule", "TrainStep", "convert", "functional", "nn", "restore", "rules"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # These are imported on demand: verification takes as long as the rest of the package.
    if name in ("verify", "insight"):
        return importlib.import_module(f"torch_manualbp.{name}")
    if name in ("explain", "local_gradients"):
        return getattr(importlib.import_module("torch_manualbp.insight"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
