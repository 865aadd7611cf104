"""The rules of the activations: a = f(z) in every entry, so that the local gradient is δ = ∂C/∂a ⊙ f'(z).

Each activation's ``*_delta(upstream, kept)`` is that product. Its Jacobian is diagonal, so forward mode is the same
product with the tangent of z in place of ∂C/∂a. For complex numbers reverse mode takes the conjugate of f'(z), which is
f' of the conjugate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, rounded_once

__all__ = ["ReLU", "Sigmoid", "Tanh", "relu_delta", "sigmoid_delta", "tanh_delta"]


class KeepsOutput(Rule):
    """An activation whose derivative follows from its value, so that a is all it keeps."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)


class ReLU(KeepsOutput):
    """The rectified linear unit.

    ::

        a = max(z, 0)
        ⇒
        δ = ∂C/∂a  where a > 0,  else 0 (= a)

    At the kink z = 0 the derivative is 0; at z = NaN the upstream gradient passes, as in torch. Kept: a.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return relu_delta(da, a)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return relu_delta(dz, a)


def relu_delta(da: Tensor, a: Tensor) -> Tensor:
    """δ = ∂C/∂a where a > 0, else 0.

    A choice and no product, since inf · 0 is NaN; by ``<=``, which lets the upstream pass at NaN as torch does. The 0
    is a's own, so that δ stays a function of z, whose second derivative is 0 and not missing.
    """
    return torch.where(a <= 0, a, da)


class Sigmoid(KeepsOutput):
    """The logistic sigmoid.

    ::

        a = σ(z) = 1 / (1 + exp(−z))
        ⇒
        δ = ∂C/∂a ⊙ a (1 − a)

    Kept: a.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return sigmoid_delta(da, a.conj())

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return sigmoid_delta(dz, a)


@rounded_once
def sigmoid_delta(da: Tensor, a: Tensor) -> Tensor:
    """δ = ∂C/∂a ⊙ a (1 − a), in this form because the digits of a − a² cancel as a nears 1."""
    return da * ((1 - a) * a)


class Tanh(KeepsOutput):
    """The hyperbolic tangent.

    ::

        a = tanh(z)
        ⇒
        δ = ∂C/∂a ⊙ (1 − a²)

    Kept: a.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return tanh_delta(da, a.conj())

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return tanh_delta(dz, a)


@rounded_once
def tanh_delta(da: Tensor, a: Tensor) -> Tensor:
    """δ = ∂C/∂a ⊙ (1 − a²), as (1 − a)(1 + a): each factor is exact near its zero, where 1 − a² loses its digits."""
    return da * ((1 - a) * (1 + a))
