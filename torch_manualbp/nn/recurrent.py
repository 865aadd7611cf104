"""The recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional as F

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(torch.nn.RNN):
    """``torch.nn.RNN`` by :class:`torch_manualbp.rules.RNN` or :class:`torch_manualbp.rules.RNNReLU`.

    h_t = f(W x_t + U h_t−1 + b), f = tanh or max(·, 0) ⇒ δ_t = (∂C/∂h_t + δ_t+1 U) ⊙ f', ∂C/∂x_t = δ_t W,
    ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t δ_tᵀ h_t−1. Kept: x, h, the weights.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        return F.recurrent_layer(input, hx, *_options(self))


class LSTM(torch.nn.LSTM):
    """``torch.nn.LSTM`` by :class:`torch_manualbp.rules.LSTM`.

    c_t = f ⊙ c_t−1 + i ⊙ g, h_t = V (o ⊙ tanh c_t), i, f, g, o = σ, σ, tanh, σ of W x_t + U h_t−1 + b
    ⇒ δ_f = ∂C/∂c_t ⊙ c_t−1 ⊙ f (1 − f) and so on, back through time, ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t δ_tᵀ h_t−1.
    Kept: x, c, i, f, g, o, the weights.
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        return F.recurrent_layer(input, hx, *_options(self))


class GRU(torch.nn.GRU):
    """``torch.nn.GRU`` by :class:`torch_manualbp.rules.GRU`.

    h_t = (1 − u) ⊙ n + u ⊙ h_t−1, n = tanh(W x_t + b + r ⊙ (U h_t−1 + β)), r and u = σ(…)
    ⇒ δ_n = ∂C/∂h_t ⊙ (1 − u) (1 − n²) and so on, back through time, ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t ε_tᵀ h_t−1.
    Kept: x, h, r, u, n, y_n, the weights.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        return F.recurrent_layer(input, hx, *_options(self))


class RNNCell(torch.nn.RNNCell):
    """``torch.nn.RNNCell`` by :class:`torch_manualbp.rules.RNN` or :class:`torch_manualbp.rules.RNNReLU`.

    h' = f(W x + U h + b), f = tanh or max(·, 0) ⇒ δ = ∂C/∂h' ⊙ f', ∂C/∂x = δ W, ∂C/∂W = δᵀ x, ∂C/∂U = δᵀ h.
    Kept: x, h, h', the weights.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            return super().forward(input, hx)  # says what is wrong
        h: Tensor = F.recurrent_cell(input, hx, f"rnn_{self.nonlinearity}_cell", *_weights(self))
        return h


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` by :class:`torch_manualbp.rules.LSTM`.

    c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh c' ⇒ δ_f = ∂C/∂c' ⊙ c ⊙ f (1 − f) and so on, ∂C/∂W = δᵀ x, ∂C/∂U = δᵀ h.
    Kept: x, h, c, c', i, f, g, o, the weights.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        hc: tuple[Tensor, Tensor] = F.recurrent_cell(input, hx, "lstm_cell", *_weights(self))
        return hc


class GRUCell(torch.nn.GRUCell):
    """``torch.nn.GRUCell`` by :class:`torch_manualbp.rules.GRU`.

    h' = (1 − u) ⊙ n + u ⊙ h ⇒ δ_n = ∂C/∂h' ⊙ (1 − u) (1 − n²) and so on, ∂C/∂W = δᵀ x, ∂C/∂U = εᵀ h.
    Kept: x, h, r, u, n, y_n, the weights.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h: Tensor = F.recurrent_cell(input, hx, "gru_cell", *_weights(self))
        return h


def _options(layer: Any) -> tuple[Any, ...]:
    """What a call of a layer depends on beside its input and its state."""
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    sizes = layer.input_size, layer.hidden_size, layer.proj_size, layer.num_layers
    return (
        layer.mode,
        weights,
        *sizes,
        layer.bias,
        layer.batch_first,
        layer.dropout,
        layer.training,
        layer.bidirectional,
    )


def _weights(cell: Any) -> tuple[Any, ...]:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
