"""Rows of a table that integers name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import overridable, run

__all__ = ["embedding", "embedding_bag"]


@overridable
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """a_s = W_i(s), with :class:`~torch_manualbp.rules.Embedding`; as :func:`torch.nn.functional.embedding`.

    With ``sparse`` it is torch's own, whose gradient is a sparse tensor: rules have dense ones.
    """
    if sparse or not _is_table(weight) or input.is_nested:
        return torch_functional.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if padding_idx is not None and not -weight.shape[0] <= padding_idx < weight.shape[0]:
        return torch_functional.embedding(input, weight, padding_idx)  # says what is wrong
    if max_norm is not None:
        input = input.contiguous()
        _renorm(weight, input, max_norm, norm_type)
    return run(rules.Embedding, weight, input, _row_of(padding_idx, weight), scale_grad_by_freq)


@overridable
def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """a_b = Σ_{s in b} r_s W_i(s), or the mean, with :class:`~torch_manualbp.rules.EmbeddingBag`; or the largest
    entries, with :class:`~torch_manualbp.rules.EmbeddingMax`; as :func:`torch.nn.functional.embedding_bag`.

    With ``sparse`` it is torch's own, whose gradient is a sparse tensor: rules have dense ones.
    """
    given: tuple[Any, ...] = (input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse)
    given += per_sample_weights, include_last_offset, padding_idx
    if sparse or not _is_table(weight) or _is_refused(*given):
        return torch_functional.embedding_bag(*given)  # or says what is wrong
    r = per_sample_weights
    if input.dim() == 2:
        offsets = torch.arange(0, input.numel(), input.shape[1], dtype=input.dtype, device=input.device)
        include_last_offset = False
        r = None if r is None else r.reshape(r.numel())
        input = input.reshape(input.numel())
    if max_norm is not None:
        _renorm(weight, input, max_norm, norm_type)
    padding = _row_of(padding_idx, weight)
    assert offsets is not None
    if mode != "max":
        about = padding, scale_grad_by_freq, mode == "mean", include_last_offset
        return run(rules.EmbeddingBag, weight, input, offsets, r, *about)
    of_torch = None if padding < 0 else padding
    _, _, sizes, k = torch.embedding_bag(weight.detach(), input, offsets, False, 2, False, None, False, of_torch)
    if include_last_offset:  # without the bag of what comes after the end
        sizes, k = sizes[:-1], k[:-1]
    return run(rules.EmbeddingMax, weight, torch.where((sizes == 0).unsqueeze(1), -1, k.long()))


def _is_table(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point()


def _is_refused(*given: Any) -> bool:
    """Whether torch's own function takes the call apart, or refuses it."""
    input, weight, offsets, _, _, by_frequency, mode, _, r, has_end, padding_idx = given
    if input.is_nested or mode not in ("sum", "mean", "max") or (mode == "max" and by_frequency):
        return True
    if padding_idx is not None and not -weight.shape[0] <= padding_idx < weight.shape[0]:
        return True
    if r is not None and (mode != "sum" or r.shape != input.shape or r.dtype != weight.dtype):
        return True
    if input.dim() == 1:
        return offsets is None or offsets.dim() != 1 or (has_end and not offsets.numel())
    return input.dim() != 2 or offsets is not None or not input.shape[1]


def _row_of(padding_idx: int | None, weight: Tensor) -> int:
    """The row of the padding, counted from the first, or −1."""
    return -1 if padding_idx is None else padding_idx % weight.shape[0]


def _renorm(weight: Tensor, input: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows that are named and longer than ``max_norm`` to this length, in place of the weight."""
    with torch.no_grad():
        torch.embedding_renorm_(weight.detach(), input, max_norm, norm_type)
