"""The poolings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


class AvgPool1d(torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` by :class:`torch_manualbp.rules.AvgPool`.

    a(x) = Σ_u z(s x + u − p) / n(x) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


class AvgPool2d(torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` by :class:`torch_manualbp.rules.AvgPool`.

    a(x) = Σ_u z(s x + u − p) / n(x) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d`` by :class:`torch_manualbp.rules.AvgPool`.

    a(x) = Σ_u z(s x + u − p) / n(x) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class MaxPool1d(torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` by :class:`torch_manualbp.rules.MaxPool`.

    a(x) = max_u z(s x + d u − p) = z(i(x)) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` by :class:`torch_manualbp.rules.MaxPool`.

    a(x) = max_u z(s x + d u − p) = z(i(x)) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool3d(torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d`` by :class:`torch_manualbp.rules.MaxPool`.

    a(x) = max_u z(s x + d u − p) = z(i(x)) ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.max_pool3d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class FractionalMaxPool2d(torch.nn.FractionalMaxPool2d):
    """``torch.nn.FractionalMaxPool2d`` by :class:`torch_manualbp.rules.FractionalMaxPool`.

    a(x) = max z = z(i(x)) in each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    _random_samples: Tensor | None

    def forward(self, input: Tensor) -> Any:
        return F.fractional_max_pool2d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class FractionalMaxPool3d(torch.nn.FractionalMaxPool3d):
    """``torch.nn.FractionalMaxPool3d`` by :class:`torch_manualbp.rules.FractionalMaxPool`.

    a(x) = max z = z(i(x)) in each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    _random_samples: Tensor | None

    def forward(self, input: Tensor) -> Any:
        return F.fractional_max_pool3d(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            _random_samples=self._random_samples,
        )


class LPPool1d(torch.nn.LPPool1d):
    """``torch.nn.LPPool1d`` by :class:`torch_manualbp.rules.LPPool`.

    a(x) = (n m(x))^(1/p), m(x) = Σ_u z(s x + u)^p / n(x) ⇒ ∂C/∂z(y) = z(y)^(p−1) Σ ∂C/∂a(x) (n m(x))^(1/p−1) n / n(x)
    over the windows that y is in. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool2d(torch.nn.LPPool2d):
    """``torch.nn.LPPool2d`` by :class:`torch_manualbp.rules.LPPool`.

    a(x) = (n m(x))^(1/p), m(x) = Σ_u z(s x + u)^p / n(x) ⇒ ∂C/∂z(y) = z(y)^(p−1) Σ ∂C/∂a(x) (n m(x))^(1/p−1) n / n(x)
    over the windows that y is in. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class LPPool3d(torch.nn.LPPool3d):
    """``torch.nn.LPPool3d`` by :class:`torch_manualbp.rules.LPPool`.

    a(x) = (n m(x))^(1/p), m(x) = Σ_u z(s x + u)^p / n(x) ⇒ ∂C/∂z(y) = z(y)^(p−1) Σ ∂C/∂a(x) (n m(x))^(1/p−1) n / n(x)
    over the windows that y is in. Kept: z.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """``torch.nn.MaxUnpool1d`` by :class:`torch_manualbp.rules.MaxUnpool`.

    a(i(x)) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(i(x)). Kept: i.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """``torch.nn.MaxUnpool2d`` by :class:`torch_manualbp.rules.MaxUnpool`.

    a(i(x)) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(i(x)). Kept: i.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """``torch.nn.MaxUnpool3d`` by :class:`torch_manualbp.rules.MaxUnpool`.

    a(i(x)) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(i(x)). Kept: i.
    """

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d`` by :class:`torch_manualbp.rules.AdaptiveMaxPool`.

    a(x) = max z = z(i(x)) in each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` by :class:`torch_manualbp.rules.AdaptiveMaxPool`.

    a(x) = max z = z(i(x)) in each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d`` by :class:`torch_manualbp.rules.AdaptiveMaxPool`.

    a(x) = max z = z(i(x)) in each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: i.
    """

    def forward(self, input: Tensor) -> Any:
        return F.adaptive_max_pool3d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d`` by :class:`torch_manualbp.rules.AdaptiveAvgPool`.

    a(x) = Σ z / n(x) of each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` by :class:`torch_manualbp.rules.AdaptiveAvgPool`.

    a(x) = Σ z / n(x) of each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d`` by :class:`torch_manualbp.rules.AdaptiveAvgPool`.

    a(x) = Σ z / n(x) of each window ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) / n(x) over the windows that y is in. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(input, self.output_size)
