"""Rows of a table that integers name, one by one and bag by bag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.rules.rule import Rule, formula, widened

__all__ = ["Embedding", "EmbeddingBag", "EmbeddingMax", "embedding_gradient", "largest_gradient", "part_of_each"]


class Embedding(Rule):
    """The rows of W that integers name.

    ::

        a_s = W_i(s)
        ⇒
        ∂C/∂W_i = Σ_{s: i(s) = i} δ_s / c_i,  0 for i = padding

    c_i is 1, or with ``by_frequency`` how often i is named. A padding of −1 is none. In forward mode, too, the
    padding is held: its tangent is 0, where torch's is not.
    Shapes: W (rows, n), i (*) of integers, a and δ (*, n). Kept: i.
    """

    @staticmethod
    def forward(W: Tensor, i: Tensor, padding: int, by_frequency: bool) -> Tensor:
        return torch.embedding(W, i, padding, by_frequency)

    @staticmethod
    def composite(W: Tensor, i: Tensor, padding: int, by_frequency: bool) -> Tensor:
        flat = i.reshape(i.numel())
        return _held_back(W.index_select(0, flat), flat, W.shape[0], padding, by_frequency).reshape(
            *i.shape, W.shape[1]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
        W, i, ctx.padding, ctx.by_frequency = inputs
        ctx.rows = W.shape[0]
        ctx.save_for_backward(i)
        ctx.save_for_forward(i)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None, None]:
        (i,) = ctx.saved_tensors
        delta = delta.reshape(i.numel(), delta.shape[-1])
        dW = embedding_gradient(widened(delta), i.reshape(i.numel()), ctx.rows, ctx.padding, ctx.by_frequency)
        return dW.to(delta.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, dW: Tensor, *_: None) -> Tensor:
        (i,) = ctx.saved_tensors
        flat = i.reshape(i.numel())
        da = part_of_each(widened(dW.index_select(0, flat)), flat, ctx.rows, ctx.padding, ctx.by_frequency)
        return da.to(dW.dtype).reshape(*i.shape, dW.shape[1])


@formula(by="whole")
def embedding_gradient(delta: Tensor, i: Tensor, rows: int, padding: int = -1, by_frequency: bool = False) -> Tensor:
    """∂C/∂W_i = Σ_{s: i(s) = i} δ_s / c_i, 0 for the padding: (samples, n), (samples) → (rows, n)."""
    return delta.new_zeros(rows, delta.shape[1]).index_add(0, i, part_of_each(delta, i, rows, padding, by_frequency))


def part_of_each(delta: Tensor, i: Tensor, rows: int, padding: int, by_frequency: bool) -> Tensor:
    """δ_s / c_i, 0 for the padding."""
    if padding >= 0:
        delta = torch.where((i == padding).unsqueeze(1), 0, delta)
    if by_frequency:
        c = delta.new_zeros(rows).index_add(0, i, torch.ones_like(i, dtype=delta.dtype))
        delta = delta / c.index_select(0, i).unsqueeze(1)
    return delta


def _held_back(rows: Tensor, i: Tensor, W_rows: int, padding: int, by_frequency: bool) -> Tensor:
    """The rows that each sample names, whose derivatives are a part of theirs: what the backward is of."""
    if padding >= 0:
        rows = torch.where((i == padding).unsqueeze(1), rows.detach(), rows)
    if not by_frequency:
        return rows
    part = part_of_each(rows, i, W_rows, -1, True)
    return rows.detach() + torch.where(rows.isfinite(), part - part.detach(), 0)


class EmbeddingBag(Rule):
    """The sum, or the mean, of the rows of W that the integers of a bag name, each times its r.

    ::

        a_b = Σ_{s in b} r_s W_i(s) / n_b
        ⇒
        ∂C/∂W_i = Σ_{s: i(s) = i} r_s δ_b(s) / (n_b(s) c_i)
        ∂C/∂r_s = W_i(s) · δ_b(s)                             which sums alone have

    n_b is 1 for a sum, for a mean the number of samples of the bag; c_i is 1, or with ``by_frequency`` how often i is
    named. A sample that names the padding (−1: none) has no part in any of these. A bag without samples is 0. By
    frequency torch's own gradient takes the c of another row. Samples after the end are in no bag; torch has them in
    the last one or not, by dtype and padding.
    Shapes: W (rows, n), i and r (samples), ``begins`` (bags), where each bag begins, with ``has_end`` (bags + 1), of
    which the last is where the last one ends; a and δ (bags, n). Kept: i, ``begins``, and of W and r what is needed.
    """

    @staticmethod
    def forward(
        W: Tensor,
        i: Tensor,
        begins: Tensor,
        r: Tensor | None,
        padding: int,
        by_frequency: bool,
        is_mean: bool,
        has_end: bool,
    ) -> Tensor:
        of_torch = None if padding < 0 else padding
        a = torch.embedding_bag(W, i, begins, by_frequency, int(is_mean), False, r, False, of_torch)[0]
        return a[:-1].clone() if has_end else a  # without the bag of what comes after the end

    @staticmethod
    def composite(
        W: Tensor,
        i: Tensor,
        begins: Tensor,
        r: Tensor | None,
        padding: int,
        by_frequency: bool,
        is_mean: bool,
        has_end: bool,
    ) -> Tensor:
        return _bags(_rows(W, i, r, by_frequency), i, begins, padding, is_mean, has_end).to(W.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        W, i, begins, r, ctx.padding, ctx.by_frequency, ctx.is_mean, ctx.has_end = inputs
        needs_dW, _, _, needs_dr, *_ = ctx.needs_input_grad
        ctx.rows, ctx.dtype = W.shape[0], W.dtype
        ctx.save_for_backward(W if needs_dr else None, i, begins, r if needs_dW else None)
        ctx.save_for_forward(W, i, begins, r)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        W, i, begins, r = ctx.saved_tensors
        needs_dW, _, _, needs_dr, *_ = ctx.needs_input_grad
        bag, n = _bag_of_each(i, begins, delta.shape[0] + ctx.has_end, ctx.padding)
        delta = widened(delta)
        if ctx.has_end:  # and a bag of what comes after it
            delta = torch.cat((delta, delta.new_zeros(1, delta.shape[1])))
        if ctx.is_mean:
            delta = delta / n.clamp(min=1).unsqueeze(1)
        delta = part_of_each(delta.index_select(0, bag), i, ctx.rows, ctx.padding, False)
        dW = dr = None
        if needs_dr:
            dr = (_rows(W, i, None, ctx.by_frequency) * delta).sum(1).to(ctx.dtype)
        if needs_dW:
            delta = delta if r is None else widened(r).unsqueeze(1) * delta
            dW = embedding_gradient(delta, i, ctx.rows, ctx.padding, ctx.by_frequency).to(ctx.dtype)
        return dW, None, None, dr, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, dW: Tensor | None, _: None, __: None, dr: Tensor | None, *___: None) -> Tensor | None:
        W, i, begins, r = ctx.saved_tensors
        rows: Tensor | None = None
        if dW is not None:
            rows = part_of_each(_rows(dW, i, r), i, ctx.rows, -1, ctx.by_frequency)
        if dr is not None:
            by_r = _rows(W, i, dr, ctx.by_frequency)
            rows = by_r if rows is None else rows + by_r
        return None if rows is None else _bags(rows, i, begins, ctx.padding, ctx.is_mean, ctx.has_end).to(W.dtype)


def _rows(W: Tensor, i: Tensor, r: Tensor | None, by_frequency: bool = False) -> Tensor:
    """r_s W_i(s): (samples, n)."""
    rows = _held_back(widened(W.index_select(0, i)), i, W.shape[0], -1, by_frequency)
    return rows if r is None else widened(r).unsqueeze(1) * rows


def _bags(rows: Tensor, i: Tensor, begins: Tensor, padding: int, is_mean: bool, has_end: bool) -> Tensor:
    """The sum or mean of the rows of each bag: (samples, n) → (bags, n)."""
    bag, n = _bag_of_each(i, begins, begins.shape[0], padding)
    rows = torch.where((i == padding).unsqueeze(1), 0, rows)
    a = rows.new_zeros(begins.shape[0], rows.shape[1]).index_add(0, bag, rows)
    a = a / n.clamp(min=1).unsqueeze(1) if is_mean else a
    return a[:-1] if has_end else a


def _bag_of_each(i: Tensor, begins: Tensor, bags: int, padding: int) -> tuple[Tensor, Tensor]:
    """b(s) of each sample, and the number of samples in each bag, without the padding."""
    samples = torch.arange(i.shape[0], dtype=begins.dtype, device=i.device)
    bag = torch.searchsorted(begins.contiguous(), samples, right=True) - 1
    return bag, i.new_zeros(bags).index_add(0, bag, (i != padding).to(i.dtype))


class EmbeddingMax(Rule):
    """The largest entries among the rows of W that a bag names.

    ::

        a_bj = W_k(b,j),j
        ⇒
        ∂C/∂W_ij = Σ_{b: k(b,j) = i} δ_bj

    k names the row where the largest entry stands, chosen by the caller, or is −1 for a bag without samples, which is
    0. Shapes: W (rows, n), k, a and δ (bags, n). Kept: k.
    """

    @staticmethod
    def forward(W: Tensor, k: Tensor) -> Tensor:
        return torch.where(k < 0, 0, W.gather(0, k.clamp(min=0)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        W, k = inputs
        ctx.shape = W.shape
        ctx.save_for_backward(k)
        ctx.save_for_forward(k)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None]:
        (k,) = ctx.saved_tensors
        return largest_gradient(widened(delta), k, ctx.shape).to(delta.dtype), None

    @staticmethod
    def jvp(ctx: Any, dW: Tensor, _: None) -> Tensor:
        (k,) = ctx.saved_tensors
        return EmbeddingMax.forward(dW, k)


@formula(by="whole")
def largest_gradient(delta: Tensor, k: Tensor, shape: Sequence[int]) -> Tensor:
    """∂C/∂W_ij = Σ_{b: k(b,j) = i} δ_bj: (bags, n) twice → (rows, n), W's shape."""
    return delta.new_zeros(shape).scatter_add(0, k.clamp(min=0), torch.where(k < 0, 0, delta))
