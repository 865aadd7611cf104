"""The normalisation of each entry by the channels next to its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.rules.rule import Rule, widened

__all__ = ["LocalResponseNorm", "around", "sum_of_channels"]


class LocalResponseNorm(Rule):
    """Each entry divided by a power of the mean square of some channels around its own.

    ::

        s_c = k + α / n Σ_j z_j²                   j = c − ⌊n / 2⌋ … c + ⌊(n − 1) / 2⌋, without those that there are not
        a_c = z_c / s_c^β
        ⇒
        ∂C/∂z_j = ∂C/∂a_j / s_j^β − 2 α β / n z_j Σ_c z_c ∂C/∂a_c / s_c^(β + 1)

    where the last sum goes over the channels c around which j is. Shapes: z and a (samples, channels, *).
    Kept: z.
    """

    @staticmethod
    def forward(z: Tensor, n: int, alpha: float, beta: float, k: float) -> Tensor:
        wide = widened(z)
        return (wide / around(wide, n, alpha, k).pow(beta)).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.options = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        n, alpha, beta, k = ctx.options
        dtype, da, z = z.dtype, widened(da), widened(z)
        s = around(z, n, alpha, k)
        along = sum_of_channels(z * da / s.pow(beta + 1), (n - 1) // 2, n // 2)
        return (da / s.pow(beta) - z * along * (2 * alpha * beta / n)).to(dtype), *[None] * 4

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        (z,) = ctx.saved_tensors
        n, alpha, beta, k = ctx.options
        dtype, dz, z = dz.dtype, widened(dz), widened(z)
        s = around(z, n, alpha, k)
        along = sum_of_channels(z * dz, n // 2, (n - 1) // 2)
        return (dz / s.pow(beta) - z * along / s.pow(beta + 1) * (2 * alpha * beta / n)).to(dtype)


def around(z: Tensor, n: int, alpha: float, k: float) -> Tensor:
    """s_c = k + α / n Σ_j z_j²."""
    return k + sum_of_channels(z.square(), n // 2, (n - 1) // 2) * (alpha / n)


def sum_of_channels(t: Tensor, before: int, after: int) -> Tensor:
    """The sum of each channel itself, of so many before it and so many after it."""
    padded, channels = F.pad(t.movedim(1, -1), (before, after)), t.shape[1]
    shifted = [padded.narrow(-1, i, channels) for i in range(before + after + 1)]
    return sum(shifted[1:], start=shifted[0]).movedim(-1, 1)
