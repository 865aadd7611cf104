"""The same gradient by autograd, which knows nothing of the chain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import pytree
from torch_manualbp.convert import restore
from torch_manualbp.derive.derived import called
from torch_manualbp.insight.explanation.weight import Weight

__all__ = ["autograd_value"]


def autograd_value(
    model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, weight: Weight
) -> float | None:
    """∂C/∂w by autograd of the same parameters in a copy of the model whose layers, and so formulas, are torch's own.

    A model that cannot be copied is run itself. None where C does not depend on the weight.
    """
    model, loss = _of_torch(model, loss)
    inputs, target = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (inputs, target))
    with torch.enable_grad():
        C = loss(called(model, inputs), target)
        if not C.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(C.sum(), (weight.parameter,), allow_unused=True)
    return None if gradient is None else float(gradient.reshape(-1)[weight.flat])


def _of_torch(model: Module, loss: Any) -> tuple[Module, Any]:
    """Copies with torch's layers and the same parameters, which a function may hold as well."""
    roots = [root for root in (model, loss) if isinstance(root, Module)]
    shared = {id(p): p for root in roots for p in root.parameters()}
    try:
        copies: tuple[Module, Any] = copy.deepcopy((model, loss), dict(shared))
        for root in copies:
            if isinstance(root, Module):
                restore(root)
    except Exception:  # whatever a module raises that is copied
        return model, loss
    return copies
