"""The rectified linear units that leak: with a given slope, a learned one, a random one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.constant import TimesConstant
from torch_manualbp.rules.elementwise import Elementwise
from torch_manualbp.rules.jacobian import Diagonal
from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["LeakyReLU", "PReLU", "RReLU", "prelu_delta"]


class LeakyReLU(Elementwise):
    """The rectified linear unit that leaks.

    ::

        a = max(z, 0) + slope min(z, 0)
        ⇒
        δ = ∂C/∂a where z > 0,  slope ∂C/∂a elsewhere

    Kept: z.
    """

    is_piecewise_linear = True

    @staticmethod
    def forward(z: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(z, slope)

    @staticmethod
    def delta(da: Tensor, z: Tensor, slope: float) -> Tensor:
        return torch.where(z > 0, da, slope * da)


class PReLU(Rule):
    """The leaky rectified linear unit that learns its slope w, one for all or one for each channel.

    ::

        a = max(z, 0) + w min(z, 0)
        ⇒
        δ = ∂C/∂a ⊙ f'(z),  f'(z) = 1 where z > 0,  w elsewhere
        ∂C/∂w = Σ ∂C/∂a min(z, 0)          over the samples, and over the channels that share w

    Shapes: z (*) with w () or (1); z (samples, channels, *) with w (channels). Kept: z, w.
    """

    jacobian = Diagonal()

    @staticmethod
    def forward(z: Tensor, w: Tensor) -> Tensor:
        return torch.prelu(z, w)

    @staticmethod
    def composite(z: Tensor, w: Tensor) -> Tensor:
        return torch.where(z > 0, z, z * _along_channels(w, z))  # ATen's function warns under vmap

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z, w = ctx.saved_tensors
        needs_dz, needs_dw = ctx.needs_input_grad
        da_wide, z_wide, w_of_channel = widened(da), widened(z), _along_channels(widened(w), z)
        dz = dw = None
        if needs_dz:
            dz = prelu_delta(da_wide, z_wide, w_of_channel).to(z.dtype)
        if needs_dw:
            by_w = torch.where(z_wide > 0, 0, da_wide * z_wide)
            dw = by_w.sum_to_size(w_of_channel.shape).reshape(w.shape).to(w.dtype)
        return dz, dw

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dw: Tensor | None) -> Tensor | None:
        z, w = ctx.saved_tensors
        da: Tensor | None = None
        if dz is not None:
            da = torch.where(z > 0, dz, dz * _along_channels(w, z))
        if dw is not None:
            by_dw = torch.where(z > 0, 0, z * _along_channels(dw, z))
            da = by_dw if da is None else da + by_dw
        return da


@formula(by="entries")
def prelu_delta(da: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """δ = ∂C/∂a where z > 0, w ∂C/∂a elsewhere, for a w that broadcasts against z."""
    return torch.where(z > 0, da, w * da)


def _along_channels(w: Tensor, z: Tensor) -> Tensor:
    """w in a shape that broadcasts against z: (1, channels, 1, …), or () for a z of one dimension."""
    if w.numel() == 1:
        return w.reshape((1,) * z.dim())
    return w.reshape([w.numel() if d == 1 else 1 for d in range(z.dim())])


class RReLU(TimesConstant):
    """The leaky rectified linear unit with a random slope r for each entry, which is 1 where z > 0.

    ::

        a = r z
        ⇒
        δ = ∂C/∂a ⊙ r

    r is drawn by the caller, and a constant. Kept: r.
    """
