"""The recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torch_manualbp import functional as F

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


class RNN(torch.nn.RNN):
    """``torch.nn.RNN`` by :class:`torch_manualbp.rules.RNN` or :class:`torch_manualbp.rules.RNNReLU`.

    h_t = f(W x_t + U h_t−1 + b), f = tanh or max(·, 0) ⇒ δ_t = (∂C/∂h_t + δ_t+1 U) ⊙ f', ∂C/∂x_t = δ_t W,
    ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t δ_tᵀ h_t−1. Kept: x, h, the weights.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        function = F.rnn_tanh if self.mode == "RNN_TANH" else F.rnn_relu
        return _forward(self, super().forward, function, input, hx)


class LSTM(torch.nn.LSTM):
    """``torch.nn.LSTM`` by :class:`torch_manualbp.rules.LSTM`.

    c_t = f ⊙ c_t−1 + i ⊙ g, h_t = V (o ⊙ tanh c_t), i, f, g, o = σ, σ, tanh, σ of W x_t + U h_t−1 + b
    ⇒ δ_f = ∂C/∂c_t ⊙ c_t−1 ⊙ f (1 − f) and so on, back through time, ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t δ_tᵀ h_t−1.
    Kept: x, c, i, f, g, o, the weights.
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        return _forward(self, super().forward, F.lstm, input, hx)


class GRU(torch.nn.GRU):
    """``torch.nn.GRU`` by :class:`torch_manualbp.rules.GRU`.

    h_t = (1 − u) ⊙ n + u ⊙ h_t−1, n = tanh(W x_t + b + r ⊙ (U h_t−1 + β)), r and u = σ(…)
    ⇒ δ_n = ∂C/∂h_t ⊙ (1 − u) (1 − n²) and so on, back through time, ∂C/∂W = Σ_t δ_tᵀ x_t, ∂C/∂U = Σ_t ε_tᵀ h_t−1.
    Kept: x, h, r, u, n, y_n, the weights.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        return _forward(self, super().forward, F.gru, input, hx)


class RNNCell(torch.nn.RNNCell):
    """``torch.nn.RNNCell`` by :class:`torch_manualbp.rules.RNN` or :class:`torch_manualbp.rules.RNNReLU`.

    h' = f(W x + U h + b), f = tanh or max(·, 0) ⇒ δ = ∂C/∂h' ⊙ f', ∂C/∂x = δ W, ∂C/∂W = δᵀ x, ∂C/∂U = δᵀ h.
    Kept: x, h, h', the weights.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu") or not _is_row_or_rows(input, hx):
            return super().forward(input, hx)  # says what is wrong
        function = F.rnn_tanh_cell if self.nonlinearity == "tanh" else F.rnn_relu_cell
        return _one_time(self, function, input, hx)


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` by :class:`torch_manualbp.rules.LSTM`.

    c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh c' ⇒ δ_f = ∂C/∂c' ⊙ c ⊙ f (1 − f) and so on, ∂C/∂W = δᵀ x, ∂C/∂U = δᵀ h.
    Kept: x, h, c, c', i, f, g, o, the weights.
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if not _is_row_or_rows(input, *(hx or ())):
            return super().forward(input, hx)
        if input.dim() == 2:
            if hx is None:
                zeros = input.new_zeros(len(input), self.hidden_size)
                hx = zeros, zeros
            return F.lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        rows = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = self.forward(input.unsqueeze(0), rows)
        return h.squeeze(0), c.squeeze(0)


class GRUCell(torch.nn.GRUCell):
    """``torch.nn.GRUCell`` by :class:`torch_manualbp.rules.GRU`.

    h' = (1 − u) ⊙ n + u ⊙ h ⇒ δ_n = ∂C/∂h' ⊙ (1 − u) (1 − n²) and so on, ∂C/∂W = δᵀ x, ∂C/∂U = εᵀ h.
    Kept: x, h, r, u, n, y_n, the weights.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if not _is_row_or_rows(input, hx):
            return super().forward(input, hx)
        return _one_time(self, F.gru_cell, input, hx)


def _forward(layer: Any, of_torch: Any, function: Any, input: Any, hx: Any) -> Any:
    """What torch's forward of a layer does, with ``function`` in place of torch's."""
    is_packed = isinstance(input, PackedSequence)
    x, sizes, order, back = input if is_packed else (input, None, None, None)
    is_one = not is_packed and x.dim() == 2
    states = [] if hx is None else list(hx) if layer.mode == "LSTM" else [hx]
    if not is_packed and (x.dim() not in (2, 3) or any(state.dim() != x.dim() for state in states)):
        return of_torch(input, hx)  # says what is wrong
    batch_dim = 0 if layer.batch_first else 1
    if is_one:
        x, states = x.unsqueeze(batch_dim), [state.unsqueeze(1) for state in states]
    if hx is None:
        n = int(sizes[0]) if sizes is not None else x.shape[batch_dim]
        features = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if layer.mode == "LSTM" else 1]
        of_all = layer.num_layers * (2 if layer.bidirectional else 1)
        states = [x.new_zeros(of_all, n, m) for m in features]
    elif order is not None:
        states = [state.index_select(1, order) for state in states]
    hx = tuple(states) if layer.mode == "LSTM" else states[0]
    layer.check_forward_args(x, hx, sizes)
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    options = layer.bias, layer.num_layers, layer.dropout, layer.training, layer.bidirectional
    if is_packed:
        output, *last = function(x, sizes, hx, weights, *options)
        last = last if back is None else [state.index_select(1, back) for state in last]
        output = PackedSequence(output, sizes, order, back)
    else:
        output, *last = function(x, hx, weights, *options, layer.batch_first)
        if is_one:
            output, last = output.squeeze(batch_dim), [state.squeeze(1) for state in last]
    return output, tuple(last) if layer.mode == "LSTM" else last[0]


def _is_row_or_rows(input: Tensor, *states: Tensor | None) -> bool:
    """Whether a cell of torch's takes these: all of one sample, or all of several."""
    return input.dim() in (1, 2) and all(state is None or state.dim() == input.dim() for state in states)


def _one_time(cell: Any, function: Any, input: Tensor, hx: Tensor | None) -> Tensor:
    """What torch's forward of a cell of one state does."""
    x = input if input.dim() == 2 else input.unsqueeze(0)
    if hx is None:
        hx = x.new_zeros(len(x), cell.hidden_size)
    elif input.dim() == 1:
        hx = hx.unsqueeze(0)
    h: Tensor = function(x, hx, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    return h if input.dim() == 2 else h.squeeze(0)
