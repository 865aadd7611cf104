"""The same entries in another order, on a diagonal, or on one side of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule

__all__ = ["DiagEmbed", "DiagonalEntries", "Flip", "Roll", "Tril", "Triu"]


class Flip(Rule):
    """The entries in the opposite order along some dimensions.

    ::

        a_…i… = z_…(n−1−i)…
        ⇒
        ∂C/∂z_…i… = ∂C/∂a_…(n−1−i)…

    Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, dims: tuple[int, ...]) -> Tensor:
        return torch.flip(z, dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        _, ctx.dims = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.flip(ctx.dims), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.flip(ctx.dims)


class Roll(Rule):
    """The entries some places further on along some dimensions, the last ones in front.

    ::

        a_…(i+k)… = z_…i…,  modulo the size of the dimension
        ⇒
        ∂C/∂z_…i… = ∂C/∂a_…(i+k)…

    Without dimensions the tensor counts as one row. Shapes: any. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, shifts: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
        return torch.roll(z, shifts, dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...], tuple[int, ...]], output: Tensor) -> None:
        _, ctx.shifts, ctx.dims = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None]:
        return da.roll([-k for k in ctx.shifts], ctx.dims), None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return dz.roll(ctx.shifts, ctx.dims)


class Tril(Rule):
    """The entries of matrices on and below a diagonal, and 0 above.

    ::

        a_ij = z_ij where j ≤ i + k,  0 elsewhere
        ⇒
        ∂C/∂z_ij = ∂C/∂a_ij where j ≤ i + k,  0 elsewhere

    Shapes: any of two dimensions and more. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, k: int) -> Tensor:
        return torch.tril(z, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.k = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.tril(ctx.k), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.tril(ctx.k)


class Triu(Rule):
    """The entries of matrices on and above a diagonal, and 0 below.

    ::

        a_ij = z_ij where j ≥ i + k,  0 elsewhere
        ⇒
        ∂C/∂z_ij = ∂C/∂a_ij where j ≥ i + k,  0 elsewhere

    Shapes: any of two dimensions and more. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, k: int) -> Tensor:
        return torch.triu(z, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.k = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None]:
        return da.triu(ctx.k), None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, _: None) -> Tensor:
        return dz.triu(ctx.k)


class DiagonalEntries(Rule):
    """A diagonal of matrices.

    ::

        a_…i = z_…i…(i+k)…
        ⇒
        ∂C/∂z_…i…(i+k)… = ∂C/∂a_…i,  and 0 elsewhere

    Shapes: the dimensions d0 and d1 of z are the matrices'; a lacks them, and has that of the diagonal last. Kept:
    nothing.
    """

    @staticmethod
    def forward(z: Tensor, k: int, d0: int, d1: int) -> Tensor:
        return torch.diagonal(z, k, d0, d1).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        z, *ctx.where = inputs
        ctx.shape = z.shape

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.diagonal_scatter(da.new_zeros(ctx.shape), da, *ctx.where), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return torch.diagonal(dz, *ctx.where).clone()


class DiagEmbed(Rule):
    """Matrices with the entries on a diagonal, and 0 elsewhere.

    ::

        a_…i…(i+k)… = z_…i,  and 0 elsewhere
        ⇒
        ∂C/∂z_…i = ∂C/∂a_…i…(i+k)…

    Shapes: a has dimensions d0 and d1 for those of the matrices in place of z's last. Kept: nothing.
    """

    @staticmethod
    def forward(z: Tensor, k: int, d0: int, d1: int) -> Tensor:
        return torch.diag_embed(z, k, d0, d1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
        _, *ctx.where = inputs

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> tuple[Tensor, None, None, None]:
        return da.diagonal(*ctx.where), None, None, None

    @staticmethod
    def jvp(ctx: Any, dz: Tensor, *_: None) -> Tensor:
        return torch.diag_embed(dz, *ctx.where)
