"""Scaled losses: in float16 small δ would vanish, so the loss is made larger, and the gradients smaller again.

``torch.amp.GradScaler`` says by how much, leaves out the update where a gradient is not finite, and changes the scale.
It does so with the gradients in ``.grad``, as it does with autograd's. The scale is an input of the program, beside the
target: another one is no other program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Module

__all__ = ["ScaledLoss", "scale_of"]


class ScaledLoss(Module):
    """s C, of a target that is one and the scale s.

    Args:
        loss: C, a function or module of (output, target).
    """

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: tuple[Any, Tensor]) -> Tensor:
        of_loss, scale = target
        C: Tensor = self.loss(output, of_loss)
        return C * scale


def scale_of(scaler: GradScaler) -> Tensor:
    """The scale of now, a tensor of no dimension."""
    scale: Tensor = scaler.scale(torch.ones(()))
    return scale
