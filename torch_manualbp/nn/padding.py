"""The borders."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = [
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]


class ConstantPad1d(torch.nn.ConstantPad1d):
    """``torch.nn.ConstantPad1d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and the value elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ConstantPad2d(torch.nn.ConstantPad2d):
    """``torch.nn.ConstantPad2d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and the value elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ConstantPad3d(torch.nn.ConstantPad3d):
    """``torch.nn.ConstantPad3d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and the value elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ZeroPad1d(torch.nn.ZeroPad1d):
    """``torch.nn.ZeroPad1d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ZeroPad2d(torch.nn.ZeroPad2d):
    """``torch.nn.ZeroPad2d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ZeroPad3d(torch.nn.ZeroPad3d):
    """``torch.nn.ZeroPad3d`` by :class:`torch_manualbp.rules.Pad`.

    a(x + p) = z(x), and 0 elsewhere ⇒ ∂C/∂z(x) = ∂C/∂a(x + p). Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)


class ReflectionPad1d(torch.nn.ReflectionPad1d):
    """``torch.nn.ReflectionPad1d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), mirrored at the borders ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "reflect")


class ReflectionPad2d(torch.nn.ReflectionPad2d):
    """``torch.nn.ReflectionPad2d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), mirrored at the borders ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "reflect")


class ReflectionPad3d(torch.nn.ReflectionPad3d):
    """``torch.nn.ReflectionPad3d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), mirrored at the borders ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "reflect")


class ReplicationPad1d(torch.nn.ReplicationPad1d):
    """``torch.nn.ReplicationPad1d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), the outermost entry again ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "replicate")


class ReplicationPad2d(torch.nn.ReplicationPad2d):
    """``torch.nn.ReplicationPad2d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), the outermost entry again ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "replicate")


class ReplicationPad3d(torch.nn.ReplicationPad3d):
    """``torch.nn.ReplicationPad3d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), the outermost entry again ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "replicate")


class CircularPad1d(torch.nn.CircularPad1d):
    """``torch.nn.CircularPad1d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), from the other side ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor):  # and no proxy of fx
            self._check_input_dim(input)
        return F.pad(input, self.padding, "circular")


class CircularPad2d(torch.nn.CircularPad2d):
    """``torch.nn.CircularPad2d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), from the other side ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor):  # and no proxy of fx
            self._check_input_dim(input)
        return F.pad(input, self.padding, "circular")


class CircularPad3d(torch.nn.CircularPad3d):
    """``torch.nn.CircularPad3d`` by :class:`torch_manualbp.rules.Border`.

    a(x) = z(i(x)), from the other side ⇒ ∂C/∂z(y) = Σ ∂C/∂a(x) over the x with i(x) = y. Kept: nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor):  # and no proxy of fx
            self._check_input_dim(input)
        return F.pad(input, self.padding, "circular")
