"""Multi-head attention, and the transformers that are made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as torch_functional

from torch_manualbp import functional as F
from torch_manualbp._torch import forward_mode_level, is_transformed

__all__ = [
    "MultiheadAttention",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


class MultiheadAttention(torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` by :class:`torch_manualbp.rules.Linear` and
    :class:`torch_manualbp.rules.Attention`.

    z = o Wₒᵀ + bₒ, o_h = softmax(s q_h k_hᵀ + M) v_h, q, k, v = x W_qkvᵀ + b_qkv ⇒ δ = P ⊙ (∂C/∂P − Σ_j P ∂C/∂P),
    ∂C/∂q = s δ k, ∂C/∂k = s δᵀ q, ∂C/∂v = Pᵀ ∂C/∂o; those of Linear. Kept: x, q, k, v, o, M, one number a query;
    P where weights are asked for.

    Where no gradient can be asked for, as in evaluation under ``torch.no_grad``, torch's fast path runs.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        masks: dict[str, Any] = {"key_padding_mask": key_padding_mask, "attn_mask": attn_mask}
        about: dict[str, Any] = {
            "need_weights": need_weights,
            "average_attn_weights": average_attn_weights,
            "is_causal": is_causal,
        }
        if query.is_nested or not (self.training or _may_learn()):
            return super().forward(query, key, value, **masks, **about)
        is_transposed = self.batch_first and query.dim() == 3
        if is_transposed:
            first = query.transpose(0, 1)
            second = first if key is query else key.transpose(0, 1)
            third = second if value is key else value.transpose(0, 1)
            query, key, value = first, second, third
        separate: dict[str, Any] = {}
        if not self._qkv_same_embed_dim:
            weights = {f"{name}_proj_weight": getattr(self, f"{name}_proj_weight") for name in "qkv"}
            separate = {"use_separate_proj_weight": True, **weights}
        o, P = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            **masks,
            **about,
            **separate,
        )
        return (o.transpose(0, 1) if is_transposed else o), P


def _may_learn() -> bool:
    return torch.is_grad_enabled() or is_transformed() or forward_mode_level() >= 0


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """``torch.nn.TransformerEncoderLayer`` of our layers, which torch's own code puts together.

    x + attention(norm x), then x + Linear(σ(Linear(norm x))) ⇒ ∂C/∂x = ∂C/∂(the sum), twice, + that of each branch by
    its layers. Kept: what they keep.

    In evaluation without gradients torch's fast path runs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_ours(self)

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(_ours(self.activation)(self.linear1(x)))))


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """``torch.nn.TransformerDecoderLayer`` of our layers, which torch's own code puts together.

    x + attention(norm x), x + attention(norm x, memory), x + Linear(σ(Linear(norm x))) ⇒ ∂C/∂x = ∂C/∂(the sum), three
    times, + that of each branch by its layers. Kept: what they keep.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_ours(self)

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout3(self.linear2(self.dropout(_ours(self.activation)(self.linear1(x)))))


class TransformerEncoder(torch.nn.TransformerEncoder):
    """``torch.nn.TransformerEncoder``, one layer after the other, each ours.

    x ← layer(x) for each layer ⇒ ∂C/∂x by each layer, from the last to the first. Kept: what they keep.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_ours(self)


class TransformerDecoder(torch.nn.TransformerDecoder):
    """``torch.nn.TransformerDecoder``, one layer after the other, each ours.

    x ← layer(x, memory) for each layer ⇒ ∂C/∂x by each layer, from the last to the first; ∂C/∂memory = Σ of theirs.
    Kept: what they keep.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_ours(self)


class Transformer(torch.nn.Transformer):
    """``torch.nn.Transformer`` of our encoder and decoder.

    decoder(y, encoder(x)) ⇒ ∂C/∂y and ∂C/∂memory by the decoder, ∂C/∂x by the encoder, from ∂C/∂memory. Kept: what they
    keep.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _become_ours(self)


def _become_ours(module: Module) -> None:
    """Give the parts that torch's constructor has made our classes in place of torch's."""
    nn = sys.modules[__name__.rpartition(".")[0]]  # which imports this file
    for part in list(module.modules())[1:]:
        cls = type(part)
        ours = getattr(nn, cls.__name__, cls)
        if getattr(torch.nn, cls.__name__, None) is cls and ours is not cls:
            part.__class__ = ours


def _ours(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of ours in place of torch's."""
    name = getattr(activation, "__name__", "")
    is_torchs = name in F.__all__ and getattr(torch_functional, name, None) is activation
    return getattr(F, name) if is_torchs else activation


for _cls in (Transformer, TransformerDecoder, TransformerDecoderLayer, TransformerEncoder, TransformerEncoderLayer):
    update_wrapper(vars(_cls)["__init__"], vars(_cls.__mro__[1])["__init__"])  # which gives it torch's signature
