"""The convolutional layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]


def _bordered(layer: torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d, input: Tensor) -> tuple[Tensor, Any]:
    """The input with its border, if that is not of zeros, and what the convolution itself is to pad."""
    if layer.padding_mode == "zeros":
        return input, layer.padding
    return F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0


def _output_padding(
    layer: torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d,
    input: Tensor,
    output_size: list[int] | None,
) -> list[int]:
    """How much larger the output is at its end."""
    n = len(layer.kernel_size)
    if layer.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{n}d")
    about: Any = (layer.stride, layer.padding, layer.kernel_size, n, layer.dilation)
    return layer._output_padding(input, output_size, *about)


class Conv1d(torch.nn.Conv1d):
    """``torch.nn.Conv1d`` by :class:`torch_manualbp.rules.Convolution`.

    z(x) = Σ_u W(u) a(s x + d u − p) + b ⇒ ∂C/∂a: δ convolved with W, transposed, ∂C/∂W: a convolved with δ,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _bordered(self, input)
        return F.conv1d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(torch.nn.Conv2d):
    """``torch.nn.Conv2d`` by :class:`torch_manualbp.rules.Convolution`.

    z(x) = Σ_u W(u) a(s x + d u − p) + b ⇒ ∂C/∂a: δ convolved with W, transposed, ∂C/∂W: a convolved with δ,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _bordered(self, input)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv3d(torch.nn.Conv3d):
    """``torch.nn.Conv3d`` by :class:`torch_manualbp.rules.Convolution`.

    z(x) = Σ_u W(u) a(s x + d u − p) + b ⇒ ∂C/∂a: δ convolved with W, transposed, ∂C/∂W: a convolved with δ,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor) -> Tensor:
        input, padding = _bordered(self, input)
        return F.conv3d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` by :class:`torch_manualbp.rules.TransposedConvolution`.

    z(s x + d u − p) gets W(u) a(x) of all x, u, and b ⇒ ∂C/∂a: δ convolved with W, ∂C/∂W: δ convolved with a,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = _output_padding(self, input, output_size)
        return F.conv_transpose1d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` by :class:`torch_manualbp.rules.TransposedConvolution`.

    z(s x + d u − p) gets W(u) a(x) of all x, u, and b ⇒ ∂C/∂a: δ convolved with W, ∂C/∂W: δ convolved with a,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = _output_padding(self, input, output_size)
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` by :class:`torch_manualbp.rules.TransposedConvolution`.

    z(s x + d u − p) gets W(u) a(x) of all x, u, and b ⇒ ∂C/∂a: δ convolved with W, ∂C/∂W: δ convolved with a,
    ∂C/∂b = Σ δ. Kept: a, if W learns; W, if ∂C/∂a is needed.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = _output_padding(self, input, output_size)
        return F.conv_transpose3d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """``torch.nn.LazyConv1d``: learns the number of its channels from the first input, and becomes our ``Conv1d``."""

    cls_to_become = Conv1d


class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """``torch.nn.LazyConv2d``: learns the number of its channels from the first input, and becomes our ``Conv2d``."""

    cls_to_become = Conv2d


class LazyConv3d(torch.nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    """``torch.nn.LazyConv3d``: learns the number of its channels from the first input, and becomes our ``Conv3d``."""

    cls_to_become = Conv3d


class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """``torch.nn.LazyConvTranspose1d``: learns the number of its channels from the first input, and becomes our
    ``ConvTranspose1d``."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """``torch.nn.LazyConvTranspose2d``: learns the number of its channels from the first input, and becomes our
    ``ConvTranspose2d``."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    """``torch.nn.LazyConvTranspose3d``: learns the number of its channels from the first input, and becomes our
    ``ConvTranspose3d``."""

    cls_to_become = ConvTranspose3d
