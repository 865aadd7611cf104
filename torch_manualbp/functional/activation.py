"""The activations."""

from __future__ import annotations

from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.functional.call import in_place, overridable, run

__all__ = ["relu", "sigmoid", "tanh"]


@overridable
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """a = max(z, 0), with :class:`~torch_manualbp.rules.ReLU`; as :func:`torch.nn.functional.relu`."""
    output = run(rules.ReLU, input)
    return in_place(input, output) if inplace else output


@overridable
def sigmoid(input: Tensor) -> Tensor:
    """a = σ(z), with :class:`~torch_manualbp.rules.Sigmoid`; as :func:`torch.nn.functional.sigmoid`."""
    return run(rules.Sigmoid, input)


@overridable
def tanh(input: Tensor) -> Tensor:
    """a = tanh(z), with :class:`~torch_manualbp.rules.Tanh`; as :func:`torch.nn.functional.tanh`."""
    return run(rules.Tanh, input)
