"""The losses."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["CrossEntropyLoss", "MSELoss"]


class MSELoss(torch.nn.MSELoss):
    """``torch.nn.MSELoss`` by :class:`torch_manualbp.rules.MeanSquaredError`.

    C = Σ (s − y)² / n ⇒ ∂C/∂s = 2 (s − y) / n.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` by :class:`torch_manualbp.rules.CrossEntropy` for class indices and
    :class:`torch_manualbp.rules.CrossEntropyProbabilities` for class probabilities.

    C = −Σ_k q_k log p_k ⇒ ∂C/∂s = (p Σ_k q_k − q) / n.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
