"""The gradients of the simpler convolutions: of channels each by itself, and of windows of one entry."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.kernels.dispatch import for_large, for_steps, plain
from torch_manualbp.rules.convolution import CONVOLUTIONS, convolution_input_gradient, convolution_weight_gradient
from torch_manualbp.rules.rule import widened

__all__: list[str] = []

Sizes = tuple[int, ...]

PLACES = 64
"""Places of a sample from which on a matrix product for each sample is worth the call."""


@for_large(convolution_weight_gradient)
def weight_gradient(
    a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Any:
    has_many = a.dim() == len(window) + 2 and math.prod(delta.shape[2:]) >= PLACES
    if has_many and _is_of_one_entry(window, padding, groups) and a.dtype in (torch.float32, torch.float64):
        dW = a.new_zeros(delta.shape[1], a.shape[1])
        for a_n, delta_n in zip(_seen(a, stride).flatten(2), delta.flatten(2), strict=True):
            dW.addmm_(delta_n, a_n.t())
        return dW.reshape(*dW.shape, *window)
    if _is_of_each_channel(a, window, groups):
        return _of_each_channel(a, delta, window, stride, padding, dilation)
    return NotImplemented


def _is_of_each_channel(a: Tensor, window: Sizes, groups: int) -> bool:
    has_samples = a.dim() == len(window) + 2 and a.shape[0] > 1
    return has_samples and 1 < groups == a.shape[1] and widened(a).dtype == torch.float32


def _of_each_channel(a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Tensor:
    """ATen's convolution of as many groups as there are channels sums over the samples last of all, in a loop of its
    own: 8×64×56×56 by 3×3 takes 21 ms, and 2 ms where each sample's channel is a group, and they are summed here."""
    (N, n), out, places = a.shape[:2], delta.shape[1], a.shape[2:]
    if math.prod(delta.shape[2:]) == 1:
        return _of_one_place(a, delta, window, padding, dilation)
    channels = widened(a).unsqueeze(2).expand(N, n, out // n, *places).reshape(1, N * out, *places)
    windows = widened(delta).reshape(N * out, 1, *delta.shape[2:])
    dW = CONVOLUTIONS[len(window) - 1](channels, windows, None, dilation, padding, stride, N * out)
    for d, size in enumerate(window, start=2):  # where the stride leaves rows of a out, there are more
        dW = dW.narrow(d, 0, size)
    return dW.reshape(N, out, 1, *window).sum(0).to(a.dtype)


def _of_one_place(a: Tensor, delta: Tensor, window: Sizes, padding: Sizes, dilation: Sizes) -> Tensor:
    """∂C/∂W_j = Σ δ a_j over the samples: 2×480×1×1 by 3×3 takes 0.04 ms where the convolution takes 1.1."""
    seen = F.pad(widened(a), [size for p in reversed(padding) for size in (p, p)])
    for d, (size, apart) in enumerate(zip(window, dilation, strict=True), start=2):
        seen = seen[(slice(None),) * d + (slice(0, (size - 1) * apart + 1, apart),)]
    dW = (seen.unsqueeze(2) * widened(delta).reshape(*a.shape[:2], -1, *(1 for _ in window))).sum(0)
    return dW.reshape(delta.shape[1], 1, *window).to(a.dtype)


@for_large(convolution_input_gradient)
def input_gradient(
    delta: Tensor, W: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Any:
    """A window of one entry is a convolution, which takes 6.3 ms for the 8.5 of the transposed one at 8×128×56×56, and
    0.3 for 2.8 at 32×32×16×16 where every second place is seen."""
    if not _is_of_one_entry(W.shape[2:], padding, groups) or W.is_complex():
        return NotImplemented
    of_seen = CONVOLUTIONS[len(size) - 1](delta, W.transpose(0, 1))
    if set(stride) == {1}:
        return of_seen
    da = of_seen.new_zeros(*of_seen.shape[: -len(size)], *size)
    _seen(da, stride).copy_(of_seen)
    return da


def _is_of_one_entry(window: Sizes, padding: Sizes, groups: int) -> bool:
    return groups == 1 and set(window) == {1} and not any(padding)


def _seen(a: Tensor, stride: Sizes) -> Tensor:
    """The places that windows of one entry see."""
    first = a.dim() - len(stride)
    if set(stride) == {1}:
        return a
    return a[(slice(None),) * first + tuple([slice(None, None, s) for s in stride])]


@for_steps(convolution_weight_gradient)
def weight_gradient_step(
    a: Tensor, delta: Tensor, window: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """Of windows of one entry a product of matrices, which takes 0.8 ms for the 6 of the convolution at 32×64×16×16."""
    is_cpu = a.device.type == "cpu"
    if is_cpu and _is_of_one_entry(window, padding, groups) and a.dtype in (torch.float32, torch.float64):
        a, delta = (t if t.dim() > len(window) + 1 else t.unsqueeze(0) for t in (_seen(a, stride), delta))
        dW = torch.mm(delta.transpose(0, 1).flatten(1), a.transpose(0, 1).flatten(1).t())
        return dW.reshape(*dW.shape, *window)
    if is_cpu and _is_of_each_channel(a, window, groups):
        return _of_each_channel(a, delta, window, stride, padding, dilation)
    return plain(convolution_weight_gradient)(a, delta, window, stride, padding, dilation, groups)


@for_steps(convolution_input_gradient)
def input_gradient_step(
    delta: Tensor, W: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    args = (delta, W, size, stride, padding, dilation, groups)
    da = input_gradient(*args) if delta.device.type == "cpu" else NotImplemented
    return plain(convolution_input_gradient)(*args) if da is NotImplemented else da
