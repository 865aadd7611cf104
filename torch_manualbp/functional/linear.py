"""The linear functions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as torch_functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from torch_manualbp import rules
from torch_manualbp.functional.call import in_low_precision, is_unwatched, overridable, run

__all__ = ["bilinear", "identity", "linear"]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """z = a Wᵀ + b, with :class:`~torch_manualbp.rules.Linear`; as :func:`torch.nn.functional.linear`."""
    # Spelled out where the others have @overridable: a tiny layer feels each microsecond.
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(linear, (input, weight, bias), input, weight, bias=bias)
    if is_unwatched():
        return torch_functional.linear(input, weight, bias)  # the rule's forward
    return in_low_precision(rules.Linear, input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return in_low_precision(rules.Linear, input, weight, bias)


linear.__wrapped__ = _linear  # type: ignore[attr-defined] # which @overridable gives the others


@overridable
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """z_k = Σ_ij x_i W_kij y_j + b_k, with :class:`~torch_manualbp.rules.Bilinear`; as
    :func:`torch.nn.functional.bilinear`."""
    if isinstance(input1, Tensor) and input1.is_complex():
        return torch_functional.bilinear(input1, input2, weight, bias)  # which has no gradient
    return run(rules.Bilinear, input1, input2, weight, bias)


@overridable
def identity(input: Tensor) -> Tensor:
    """a = z as a node of the graph, with :class:`~torch_manualbp.rules.Identity`."""
    return run(rules.Identity, input)
