"""The normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import overridable, run
from torch_manualbp.rules.rule import widened

__all__ = ["layer_norm", "rms_norm"]


@overridable
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """a = w (z − μ) / √(v + ε) + b over the last dimensions, with :class:`~torch_manualbp.rules.LayerNorm`; as
    :func:`torch.nn.functional.layer_norm`."""
    return run(rules.LayerNorm, input, tuple(normalized_shape), weight, bias, eps)


@overridable
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """a = w z / √(mean z² + ε) over the last dimensions, with :class:`~torch_manualbp.rules.RMSNorm`; as
    :func:`torch.nn.functional.rms_norm`."""
    shape = tuple(normalized_shape)
    is_weight = weight is None or tuple(weight.shape) == shape
    if not shape or tuple(input.shape[-len(shape) :]) != shape or not is_weight or not _has_numbers(input):
        return torch_functional.rms_norm(input, normalized_shape, weight, eps)  # says what is wrong
    eps = torch.finfo(widened(input).dtype).eps if eps is None else eps
    return run(rules.RMSNorm, input, shape, weight, eps)


def _has_numbers(t: Tensor) -> bool:
    """Whether there are derivatives by it; ATen says of what else it does not take."""
    return t.is_floating_point() or t.is_complex()
