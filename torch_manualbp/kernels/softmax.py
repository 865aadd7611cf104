"""The softmaxes in fewer passes over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, for_steps
from torch_manualbp.rules.activation.softmax import log_softmax_delta, probabilities, softmax_delta
from torch_manualbp.rules.rule import widened

__all__: list[str] = []

LONG = 256
"""Numbers along a dimension from which on their sum is rounded by more than what is done to each of them, so that
formulas with a rounding more, and a pass over memory less, lose nothing."""


@for_large(softmax_delta)
@for_steps(softmax_delta)
def softmax(da: Tensor, a: Tensor, dim: int) -> Tensor:
    """a ∂C/∂a − a Σ a ∂C/∂a."""
    dtype, da, a = da.dtype, widened(da), widened(a)
    share = da * a
    total = share.sum(dim, keepdim=True)
    if a.numel() >= LONG * total.numel():
        return share.addcmul_(a, total, value=-1).to(dtype)
    return torch.sub(da, total, out=share).mul_(a).to(dtype)


@for_large(log_softmax_delta)
def log_softmax(da: Tensor, a: Tensor, dim: int) -> Tensor:
    dtype, da, total = da.dtype, widened(da), widened(da).sum(dim, keepdim=True)
    p = softmax_of_logarithms(widened(a), dim)
    return torch.addcmul(da, p, total, value=-1, out=p).to(dtype)


@for_steps(log_softmax_delta)
def log_softmax_step(da: Tensor, a: Tensor, dim: int) -> Tensor:
    dtype, da, total = da.dtype, widened(da), widened(da).sum(dim, keepdim=True)
    return widened(a).exp().mul_(-total).add_(da).to(dtype)


@for_large(probabilities)
def softmax_of_logarithms(a: Tensor, dim: int) -> Tensor:
    """The softmax of a is p too. torch's has a faster exponential, and of many numbers their sum corrects what the
    rounding of a does to all of them."""
    is_long = a.dim() > 0 and a.shape[dim] >= LONG
    return torch.softmax(a, dim) if is_long else a.exp()
