"""Images of other sizes, and the same entries in other places."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "ChannelShuffle",
    "Fold",
    "PixelShuffle",
    "PixelUnshuffle",
    "Unfold",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
]


class Upsample(torch.nn.Upsample):
    """``torch.nn.Upsample`` by :class:`torch_manualbp.rules.Interpolate`.

    a(x) = Σ_y P(x, y) z(y) ⇒ ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )


class UpsamplingBilinear2d(torch.nn.UpsamplingBilinear2d):
    """``torch.nn.UpsamplingBilinear2d`` by :class:`torch_manualbp.rules.Interpolate`.

    a(x) = Σ_y P(x, y) z(y) ⇒ ∂C/∂z(y) = Σ_x P(x, y) ∂C/∂a(x). Kept: nothing.
    """

    forward = Upsample.forward


class UpsamplingNearest2d(torch.nn.UpsamplingNearest2d):
    """``torch.nn.UpsamplingNearest2d`` by :class:`torch_manualbp.rules.Interpolate`.

    a(x) = z(i(x)) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    forward = Upsample.forward


class PixelShuffle(torch.nn.PixelShuffle):
    """``torch.nn.PixelShuffle`` by :class:`torch_manualbp.rules.PixelShuffle`.

    a_c(r y + i, r x + j) = z_{c r² + i r + j}(y, x) ⇒ ∂C/∂z: ∂C/∂a the way back. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(input, self.upscale_factor)


class PixelUnshuffle(torch.nn.PixelUnshuffle):
    """``torch.nn.PixelUnshuffle`` by :class:`torch_manualbp.rules.PixelUnshuffle`.

    a_{c r² + i r + j}(y, x) = z_c(r y + i, r x + j) ⇒ ∂C/∂z: ∂C/∂a the way back. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_unshuffle(input, self.downscale_factor)


class ChannelShuffle(torch.nn.ChannelShuffle):
    """``torch.nn.ChannelShuffle`` by :class:`torch_manualbp.rules.ChannelShuffle`.

    a_{c g + i} = z_{i n / g + c} ⇒ ∂C/∂z: ∂C/∂a the way back. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.channel_shuffle(input, self.groups)


class Fold(torch.nn.Fold):
    """``torch.nn.Fold`` by :class:`torch_manualbp.rules.Fold`.

    a_c(y) = Σ z_cu(x) over s x + d u − p = y ⇒ ∂C/∂z_cu(x) = ∂C/∂a_c(s x + d u − p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.fold(input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)


class Unfold(torch.nn.Unfold):
    """``torch.nn.Unfold`` by :class:`torch_manualbp.rules.Unfold`.

    a_cu(x) = z_c(s x + d u − p) ⇒ ∂C/∂z_c(y) = Σ ∂C/∂a_cu(x) over s x + d u − p = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
