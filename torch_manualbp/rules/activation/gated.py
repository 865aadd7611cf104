"""The activation of which one half opens and shuts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["GLU"]


class GLU(Rule):
    """The gated linear unit of the two halves u and v of z along a dimension.

    ::

        a = u σ(v)
        ⇒
        ∂C/∂u = ∂C/∂a ⊙ σ(v)
        ∂C/∂v = ∂C/∂a ⊙ u σ(v) (1 − σ(v))

    Shapes: z with an even size along ``dim``, a with half of it. Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, dim: int) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # whose forward mode over forward mode ATen's function lacks
            u, v = z.chunk(2, dim)
            return u * torch.sigmoid(v)
        return F.glu(z, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        z, ctx.dim = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        u, v = widened(z).chunk(2, ctx.dim)
        sigma = torch.sigmoid(v)
        du = widened(da) * sigma
        dv = du * (u * (1 - sigma))
        return torch.cat((du, dv), ctx.dim).to(z.dtype), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        u, v = widened(z).chunk(2, ctx.dim)
        du, dv = widened(dz).chunk(2, ctx.dim)
        sigma = torch.sigmoid(v)
        return (sigma * (du + dv * (u * (1 - sigma)))).to(z.dtype)
