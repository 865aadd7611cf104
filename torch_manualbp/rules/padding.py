"""Borders put around the last dimensions of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["Border", "Pad", "border_gradient"]


class Pad(Rule):
    """A border of one number.

    ::

        a(x + p) = z(x),  and the number elsewhere
        ⇒
        ∂C/∂z(x) = ∂C/∂a(x + p)

    ``pads`` has, from the last dimension on, how much p comes in front and how much behind; where that is negative so
    much is cut off. Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
        return F.pad(z, pads, "constant", value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], float], output: Tensor) -> None:
        _, ctx.pads, _ = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return F.pad(da, [-p for p in ctx.pads]), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return F.pad(dz, ctx.pads)


class Border(Rule):
    """A border of the tensor's own entries: mirrored (``"reflect"``), the outermost again (``"replicate"``), or those
    of the other side (``"circular"``).

    ::

        a(x) = z(i(x)),  i(x + p) = x where that is in z
        ⇒
        ∂C/∂z(y) = Σ_{x: i(x) = y} ∂C/∂a(x)

    ``pads`` has, from the last dimension on, how much p comes in front and how much behind; where
    that is negative so much is cut off. Shapes: z (N, n, *), or
    without N for one sample, with as many of these * as ``pads`` has pairs. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, pads: tuple[int, ...], mode: str) -> Tensor:
        return F.pad(z, pads, mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], str], output: Tensor) -> None:
        _, ctx.pads, ctx.mode = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return border_gradient(da, ctx.pads, ctx.mode), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return F.pad(dz, ctx.pads, ctx.mode)


@formula(by="whole")
def border_gradient(da: Tensor, pads: tuple[int, ...], mode: str) -> Tensor:
    """∂C/∂z: what lies on the border is added to where it came from, one dimension after the other."""
    dz = widened(da)
    for d, (p, q) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        d = da.dim() - 1 - d
        n = dz.shape[d] - p - q
        if p < 0 or q < 0:
            i = F.pad(torch.arange(n, dtype=torch.float64, device=da.device).unsqueeze(0), (p, q), mode)[0].long()
            dz = dz.new_zeros(*dz.shape[:d], n, *dz.shape[d + 1 :]).index_add(d, i, dz)
            continue
        front, behind = dz.narrow(d, 0, p), dz.narrow(d, p + n, q)
        if mode == "reflect":
            terms = [(front.flip(d), 1), (behind.flip(d), n - 1 - q)]
        elif mode == "replicate":
            terms = [(front.sum(d, keepdim=True), 0), (behind.sum(d, keepdim=True), n - 1)]
        else:
            terms = [(front, n - p), (behind, 0)]
        dz = dz.narrow(d, p, n)
        for term, at in terms:
            m = term.shape[d]
            dz = dz + F.pad(term, [*[0 for _ in range(2 * (da.dim() - 1 - d))], at, n - at - m])
    return dz.to(da.dtype)
