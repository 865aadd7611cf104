"""Sums of products of tensors by named dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, in_dtype

__all__ = ["Einsum"]


class Einsum(Rule):
    """The sum of the products of entries, over the letters that the result lacks.

    ::

        z_r = Σ x_p y_q                       for "p,q->r"
        ⇒
        ∂C/∂x_p = Σ ∂C/∂z_r ȳ_q               by "r,q->p"
        ∂C/∂y_q = Σ ∂C/∂z_r x̄_p               by "r,p->q"

    Shapes: each of p, q and r has a letter for each dimension, none twice; a letter of x that y lacks stands in r, and
    one of y that x lacks. Kept: x where ∂C/∂y is needed, y where ∂C/∂x is needed.
    """

    @staticmethod
    def forward(p: str, q: str, r: str, x: Tensor, y: Tensor) -> Tensor:
        return contraction(p, q, r, x, y).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[str, str, str, Tensor, Tensor], output: Tensor) -> None:
        *ctx.letters, x, y = inputs
        *_, needs_dx, needs_dy = ctx.needs_input_grad
        ctx.dtypes = x.dtype, y.dtype
        ctx.save_for_backward(x if needs_dy else None, y if needs_dx else None)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        p, q, r = ctx.letters
        *_, needs_dx, needs_dy = ctx.needs_input_grad
        # Under autocast z has another dtype, which torch, too, computes its gradients in.
        x, y = (t if t is None else in_dtype(dz.dtype, t.conj()) for t in (x, y))
        dx = in_dtype(ctx.dtypes[0], contraction(r, q, p, dz, y)) if needs_dx else None
        dy = in_dtype(ctx.dtypes[1], contraction(r, p, q, dz, x)) if needs_dy else None
        return None, None, None, dx, dy

    @staticmethod
    def jvp(ctx: Any, _p: None, _q: None, _r: None, dx: Tensor | None, dy: Tensor | None) -> Tensor:
        x, y = ctx.saved_tensors
        p, q, r = ctx.letters
        terms = [
            contraction(p, q, r, first, second)
            for first, second in ((dx, y), (x, dy))
            if first is not None and second is not None
        ]
        return sum(terms[1:], terms[0]).clone()


def contraction(p: str, q: str, r: str, x: Any, y: Any) -> Tensor:
    """Σ x_p y_q, as a batch of products of matrices: a batch of the letters that all three have, and a sum over those
    that r lacks."""
    batch = [k for k in p if k in q and k in r]
    rows, columns = ([k for k in of if k in r and k not in batch] for of in (p, q))
    summed = [k for k in p if k in q and k not in r]
    sizes = {**dict(zip(p, x.shape, strict=True)), **dict(zip(q, y.shape, strict=True))}
    left = _grouped(x, p, sizes, batch, rows, summed)
    z = torch.matmul(left, _grouped(y, q, sizes, batch, summed, columns))
    made = [*batch, *rows, *columns]
    return z.reshape([sizes[k] for k in made]).permute([made.index(k) for k in r])


def _grouped(t: Tensor, letters: str, sizes: dict[str, int], *groups: list[str]) -> Tensor:
    """The tensor with one dimension for each group of letters."""
    apart = t.permute([letters.index(k) for group in groups for k in group])
    return apart.reshape([math.prod([sizes[k] for k in group]) for group in groups])
