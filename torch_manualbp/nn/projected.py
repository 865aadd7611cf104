"""Linear + cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__: list[str] = []

if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # since torch 2.13
    __all__ += ["LinearCrossEntropyLoss"]

    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """``torch.nn.LinearCrossEntropyLoss`` by :class:`torch_manualbp.rules.LinearCrossEntropy` for class indices and
        :class:`torch_manualbp.rules.LinearCrossEntropyProbabilities` for class probabilities.

        C = Σ_k q_k (ℓ − s_k), s = W x + b, ℓ = log Σ_k exp s_k ⇒ ∂C/∂s = (p Σ_k q_k − q) / n. Kept: x, W, b, y, class
        weights, ℓ.
        """

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            W, b = self.linear.weight, self.linear.bias
            return F.linear_cross_entropy(
                input,
                W.reshape(self.num_classes, *self.out_features, W.shape[-1]),
                target,
                linear_bias=None if b is None else b.reshape(self.num_classes, *self.out_features),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )
