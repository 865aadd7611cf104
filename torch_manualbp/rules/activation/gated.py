"""The activation of which one half opens and shuts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["GLU", "glu_gradient"]


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
        return F.glu(z, dim)

    @staticmethod
    def composite(z: Tensor, dim: int) -> Tensor:
        u, v = z.chunk(2, dim)
        return u * torch.sigmoid(v)  # with forward mode over forward mode, which ATen's function lacks

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        z, ctx.dim = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return glu_gradient(da, z, ctx.dim), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        u, v = widened(z).chunk(2, ctx.dim)
        du, dv = widened(dz).chunk(2, ctx.dim)
        sigma = torch.sigmoid(v)
        return (sigma * (du + dv * (u * (1 - sigma)))).to(z.dtype)


@formula(by="whole")
def glu_gradient(da: Tensor, z: Tensor, dim: int) -> Tensor:
    """∂C/∂u = ∂C/∂a ⊙ σ(v) and ∂C/∂v = ∂C/∂u ⊙ u (1 − σ(v)), the halves of ∂C/∂z."""
    u, v = widened(z).chunk(2, dim)
    sigma = torch.sigmoid(v)
    du = widened(da) * sigma
    return torch.cat((du, du * (u * (1 - sigma))), dim).to(z.dtype)
