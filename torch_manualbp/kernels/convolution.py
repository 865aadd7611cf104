"""The gradient of the weights of channels that are convolved each by itself, a group for each sample and channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, for_steps, plain
from torch_manualbp.rules.convolution import CONVOLUTIONS, convolution_weight_gradient
from torch_manualbp.rules.rule import widened

__all__: list[str] = []

Sizes = tuple[int, ...]


@for_large(convolution_weight_gradient)
def of_each_channel(
    a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Any:
    """ATen's convolution of as many groups as there are channels sums over the samples last of all, in a loop of its
    own: 8×64×56×56 by 3×3 takes 21 ms, and 2 ms where the samples are channels, too, and are summed over here."""
    is_of_each = a.dim() == len(window) + 2 and 1 < groups == a.shape[1]
    if not is_of_each or a.shape[0] < 2 or widened(a).dtype != torch.float32:
        return NotImplemented
    (N, out), places = delta.shape[:2], a.shape[2:]
    # A channel for each sample and δ_o.
    channels = widened(a).unsqueeze(2).expand(N, groups, out // groups, *places).reshape(1, N * out, *places)
    windows = widened(delta).reshape(N * out, 1, *delta.shape[2:])
    dW = CONVOLUTIONS[len(window) - 1](channels, windows, None, dilation, padding, stride, N * out)
    for d, size in enumerate(window, start=2):  # where the stride leaves rows of a out, there are more
        dW = dW.narrow(d, 0, size)
    return dW.reshape(N, out, 1, *window).sum(0).to(a.dtype)


@for_steps(convolution_weight_gradient)
def of_each_channel_step(
    a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    args = (a, delta, window, stride, padding, dilation, groups)
    dW = of_each_channel(*args) if a.device.type == "cpu" and a.shape[0] else NotImplemented
    return plain(convolution_weight_gradient)(*args) if dW is NotImplemented else dW
