"""The rules of the linear layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule

__all__ = ["Identity", "Linear", "linear_bias_gradient", "linear_input_gradient", "linear_weight_gradient"]


class Identity(Rule):
    """The layer that passes its input on.

    ::

        a = z
        ⇒
        ∂C/∂z = ∂C/∂a

    Shapes: any. The output is a tensor of its own, so that it may be changed in place.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        return dz.clone()


class Linear(Rule):
    """The weighted input of a layer of neurons.

    ::

        z = a Wᵀ + b
        ⇒
        δ = ∂C/∂z                      the local gradient, which comes from above
        ∂C/∂a = δ W
        ∂C/∂W = δᵀ a
        ∂C/∂b = Σ_samples δ

    Shapes: a (*, in), W (out, in), b (out), z and δ (*, out), where * is any number of dimensions, of which every entry
    is a sample. A W of shape (in) without b gives z of shape (*). For complex numbers W and a are conjugated.
    Kept: a where ∂C/∂W is needed, W where ∂C/∂a is needed.
    """

    @staticmethod
    def forward(a: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        z = F.linear(a, W, b)
        # Of other than matrices z is a view of one, and what a Function returns as a view may not be changed in place.
        return z if a.dim() == W.dim() == 2 else torch.ops.aten._unsafe_view(z, z.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        a, W, b = inputs
        needs_da, needs_dW, _ = ctx.needs_input_grad
        ctx.save_for_backward(a if needs_dW else None, W if needs_da else None)
        ctx.save_for_forward(a, W)
        ctx.bias_shape = None if b is None else b.shape
        ctx.weight_is_vector = W.dim() == 1

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        a, W = ctx.saved_tensors
        needs_da, needs_dW, needs_db = ctx.needs_input_grad
        if ctx.weight_is_vector:  # one neuron whose z has no dimension of its own
            delta = delta.unsqueeze(-1)
        da = linear_input_gradient(delta, W) if needs_da else None
        dW = linear_weight_gradient(delta, a) if needs_dW else None
        db = linear_bias_gradient(delta, ctx.bias_shape) if needs_db else None
        if ctx.weight_is_vector and dW is not None:
            dW = dW.squeeze(0)
        return da, dW, db

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, dW: Tensor | None, db: Tensor | None) -> Tensor | None:
        a, W = ctx.saved_tensors
        dz: Tensor | None = None
        if da is not None:
            dz = F.linear(da, W)
        if dW is not None:
            dz = F.linear(a, dW) if dz is None else dz + F.linear(a, dW)
        if db is not None:
            db = db.expand(*a.shape[:-1], W.shape[0])
            dz = db.clone() if dz is None else dz + db
        return dz


def linear_input_gradient(delta: Tensor, W: Tensor) -> Tensor:
    """∂C/∂a = δ W: (*, out), (out, in) → (*, in)."""
    W = W.conj()
    return torch.matmul(delta, W if W.dim() == 2 else W.unsqueeze(0))


def linear_weight_gradient(delta: Tensor, a: Tensor) -> Tensor:
    """∂C/∂W = δᵀ a, summed over the samples by the product: (*, out), (*, in) → (out, in)."""
    return torch.mm(_samples_as_rows(delta).t(), _samples_as_rows(a.conj()))


def linear_bias_gradient(delta: Tensor, shape: torch.Size | None = None) -> Tensor:
    """∂C/∂b = Σ_samples δ: (*, out) → (out), or → ``shape`` for a bias that was broadcast from it."""
    if shape is None or shape == delta.shape[-1:]:
        return _samples_as_rows(delta).sum(0)
    return delta.sum_to_size(shape[-delta.dim() :]).reshape(shape)


def _samples_as_rows(t: Tensor) -> Tensor:
    """(*, n) → (samples, n). The number of samples is written out: ``reshape(-1, n)`` fails for n = 0."""
    return t if t.dim() == 2 else t.reshape(math.prod(t.shape[:-1]), t.shape[-1])
