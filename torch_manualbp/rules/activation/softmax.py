"""The activations that normalise along a dimension: an entry of z moves all entries of a."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.jacobian import AlongDimension
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["LogSoftmax", "Softmax", "Softmin", "log_softmax_delta", "probabilities", "softmax_delta"]


class _AlongDimension(Rule):
    """Keeps a, and along which dimension it sums."""

    jacobian = AlongDimension()

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


@formula(by="whole")
def softmax_delta(da: Tensor, a: Tensor, dim: int) -> Tensor:
    """δ_k = a_k (∂C/∂a_k − Σ_j a_j ∂C/∂a_j). The Jacobian is symmetric: forward mode has the same formula."""
    dtype, da, a = da.dtype, widened(da), widened(a)
    return (a * (da - (a * da).sum(dim, keepdim=True))).to(dtype)


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


@formula(by="whole")
def log_softmax_delta(da: Tensor, a: Tensor, dim: int) -> Tensor:
    """δ_k = ∂C/∂a_k − p_k Σ_j ∂C/∂a_j."""
    dtype, da, p = da.dtype, widened(da), probabilities(widened(a), dim)
    return (da - p * da.sum(dim, keepdim=True)).to(dtype)


@formula(by="whole")
def probabilities(a: Tensor, dim: int) -> Tensor:
    """p = exp(a) of log-probabilities a, which sums to 1 along ``dim``."""
    return a.exp()
