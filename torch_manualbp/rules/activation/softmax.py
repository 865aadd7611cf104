"""The activations that normalise along a dimension: an entry of z moves all entries of a."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.evaluate import is_written_down, records_nothing
from torch_manualbp.rules.rule import Rule, widened

__all__ = ["LogSoftmax", "Softmax", "Softmin", "exp_of_log_softmax", "log_softmax_delta", "softmax_delta"]


LONG = 256
"""Numbers along a dimension from which on their sum is rounded by more than what is done to each of them, so that
formulas with a rounding more, and a pass over memory less, lose nothing."""


class _AlongDimension(Rule):
    """Keeps a, and along which dimension it sums."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.dim = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)


class Softmax(_AlongDimension):
    """Positive numbers that sum to 1 along a dimension.

    ::

        a_k = exp(z_k) / Σ_j exp(z_j)
        ⇒
        δ_k = a_k (∂C/∂a_k − Σ_j a_j ∂C/∂a_j)

    Kept: a.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.softmax(z, dim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return softmax_delta(da, a, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (a,) = ctx.saved_tensors
        return softmax_delta(dz, a, ctx.dim)


def softmax_delta(da: Tensor, a: Tensor, dim: int) -> Tensor:
    """δ_k = a_k (∂C/∂a_k − Σ_j a_j ∂C/∂a_j). The Jacobian is symmetric: forward mode has the same formula."""
    dtype, da, a = da.dtype, widened(da), widened(a)

    share = da * a
    total = share.sum(dim, keepdim=True)
    if records_nothing(share, a):
        if a.numel() >= LONG * total.numel():
            return share.addcmul_(a, total, value=-1).to(dtype)
        return torch.sub(da, total, out=share).mul_(a).to(dtype)
    return ((da - total) * a).to(dtype)


class Softmin(_AlongDimension):
    """The softmax of −z.

    ::

        a_k = exp(−z_k) / Σ_j exp(−z_j)
        ⇒
        δ_k = −a_k (∂C/∂a_k − Σ_j a_j ∂C/∂a_j)

    Kept: a.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.softmax(-z, dim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return -softmax_delta(da, a, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (a,) = ctx.saved_tensors
        return -softmax_delta(dz, a, ctx.dim)


class LogSoftmax(_AlongDimension):
    """The logarithm of the softmax p.

    ::

        a_k = z_k − log Σ_j exp(z_j)
        ⇒
        δ_k = ∂C/∂a_k − p_k Σ_j ∂C/∂a_j,  p = exp(a)

    Kept: a.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        return torch.log_softmax(z, dim)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return log_softmax_delta(da, a, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (a,) = ctx.saved_tensors
        dtype, dz = dz.dtype, widened(dz)
        return (dz - (widened(a).exp() * dz).sum(ctx.dim, keepdim=True)).to(dtype)


def log_softmax_delta(da: Tensor, a: Tensor, dim: int) -> Tensor:
    """δ_k = ∂C/∂a_k − p_k Σ_j ∂C/∂a_j."""
    dtype, da, total = da.dtype, widened(da), widened(da).sum(dim, keepdim=True)
    if records_nothing(da, a) and not is_written_down():
        p = exp_of_log_softmax(widened(a), dim)
        return torch.addcmul(da, p, total, value=-1, out=p).to(dtype)
    p = widened(a).exp()
    if records_nothing(da, p):
        return p.mul_(-total).add_(da).to(dtype)
    return (da - p * total).to(dtype)


def exp_of_log_softmax(a: Tensor, dim: int) -> Tensor:
    """p = exp(a), whose sum along ``dim`` is 1.

    The softmax of a is p too. torch's has a faster exponential, and of many numbers their sum corrects what the
    rounding of a does to all of them.
    """
    is_long = a.dim() > 0 and a.shape[dim] >= LONG
    return torch.softmax(a, dim) if is_long and records_nothing(a) and not is_written_down() else a.exp()
