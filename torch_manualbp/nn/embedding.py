"""The layers whose inputs are integers."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["Embedding", "EmbeddingBag"]


class Embedding(torch.nn.Embedding):
    """``torch.nn.Embedding`` by :class:`torch_manualbp.rules.Embedding`.

    a_s = W_i(s) ⇒ ∂C/∂W_i = Σ_{s: i(s) = i} δ_s, 0 for the padding. Kept: i.

    With ``sparse=True`` the gradient is a sparse tensor, and the function torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


class EmbeddingBag(torch.nn.EmbeddingBag):
    """``torch.nn.EmbeddingBag`` by :class:`torch_manualbp.rules.EmbeddingBag`, or of ``mode="max"``
    :class:`torch_manualbp.rules.EmbeddingMax`.

    a_b = Σ_{s in b} r_s W_i(s) / n_b ⇒ ∂C/∂W_i = Σ_{s: i(s) = i} r_s δ_b(s) / n_b(s), ∂C/∂r_s = W_i(s) · δ_b(s). Kept:
    i, where bags begin, r; W, if r learns.

    With ``sparse=True`` the gradient is a sparse tensor, and the function torch's own.
    """

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        return F.embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
