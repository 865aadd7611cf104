"""The activations."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["ReLU", "Sigmoid", "Tanh"]


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` by :class:`torch_manualbp.rules.ReLU`.

    a = max(z, 0) ⇒ δ = ∂C/∂a where a > 0, else 0.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input, inplace=self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """``torch.nn.Sigmoid`` by :class:`torch_manualbp.rules.Sigmoid`.

    a = σ(z) ⇒ δ = ∂C/∂a ⊙ a (1 − a).
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """``torch.nn.Tanh`` by :class:`torch_manualbp.rules.Tanh`.

    a = tanh(z) ⇒ δ = ∂C/∂a ⊙ (1 − a²).
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)
