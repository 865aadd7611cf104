"""The functions of the recurrent layers, which torch has in ``torch`` and not in ``torch.nn.functional``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torch_manualbp import rules
from torch_manualbp._torch import is_autocast_enabled, pytree
from torch_manualbp.functional.call import in_low_precision, in_precision_of, overridable

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell"]

Parameters = Sequence[Tensor]
Sizes = tuple[int, ...]
Layer = Callable[[Tensor, Sequence[Tensor], Parameters, bool, Sizes, bool], tuple[Tensor, ...]]
"""Makes the rows and the last states of rows, states, parameters, whether biases are among these, sizes, direction."""


@overridable
def lstm(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Long short-term memory of several layers, each direction of each :class:`~torch_manualbp.rules.LSTM`.

    As ``torch.lstm``: of ``(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)``
    or, packed, ``(data, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional)`` the output,
    h_n and c_n.
    """
    return _layers(torch.lstm, _lstm, (input, *args))


@overridable
def gru(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Gated recurrent units of several layers, each direction of each :class:`~torch_manualbp.rules.GRU`; as
    ``torch.gru``, whose arguments are those of :func:`lstm`, with one hx."""
    return _layers(torch.gru, _gru, (input, *args))


@overridable
def rnn_tanh(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Recurrent layers, each direction of each :class:`~torch_manualbp.rules.RNN`; as ``torch.rnn_tanh``, whose
    arguments are those of :func:`gru`."""
    return _layers(torch.rnn_tanh, _rnn_tanh, (input, *args))


@overridable
def rnn_relu(input: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Recurrent layers, each direction of each :class:`~torch_manualbp.rules.RNNReLU`; as ``torch.rnn_relu``, whose
    arguments are those of :func:`gru`."""
    return _layers(torch.rnn_relu, _rnn_relu, (input, *args))


@overridable
def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One time of :class:`~torch_manualbp.rules.LSTM`; as ``torch.lstm_cell``."""
    if not _fits(input, hx, w_ih, w_hh, b_ih, b_hh):
        return torch.lstm_cell(input, tuple(hx), w_ih, w_hh, b_ih, b_hh)  # says what is wrong
    bias = _sum(b_ih, b_hh)
    _, h, c = in_precision_of(hx[1], rules.LSTM, input, *hx, w_ih, w_hh, bias, None, (len(input),), False)
    return h, c


@overridable
def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One time of :class:`~torch_manualbp.rules.GRU`; as ``torch.gru_cell``."""
    if not _fits(input, [hx], w_ih, w_hh, b_ih, b_hh):
        return torch.gru_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    _, h = in_precision_of(hx, rules.GRU, input, hx, w_ih, w_hh, b_ih, b_hh, (len(input),), False)
    return h


@overridable
def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One time of :class:`~torch_manualbp.rules.RNN`; as ``torch.rnn_tanh_cell``."""
    if not _fits(input, [hx], w_ih, w_hh, b_ih, b_hh):
        return torch.rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    _, h = in_low_precision(rules.RNN, input, hx, w_ih, w_hh, _sum(b_ih, b_hh), (len(input),), False)
    return h


@overridable
def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One time of :class:`~torch_manualbp.rules.RNNReLU`; as ``torch.rnn_relu_cell``."""
    if not _fits(input, [hx], w_ih, w_hh, b_ih, b_hh):
        return torch.rnn_relu_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    _, h = in_low_precision(rules.RNNReLU, input, hx, w_ih, w_hh, _sum(b_ih, b_hh), (len(input),), False)
    return h


@overridable
def recurrent_layer(
    input: Tensor | PackedSequence,
    hx: Any,
    mode: str,
    weights: Parameters,
    input_size: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> Any:
    """What a recurrent layer of torch.nn returns; in one call, which fx records as it does that of a layer."""
    x, sizes, order, back = input if isinstance(input, PackedSequence) else (input, None, None, None)
    is_lstm, is_one, batch_dim = mode == "LSTM", sizes is None and x.dim() == 2, 0 if batch_first else 1
    states = [] if hx is None else list(hx) if is_lstm else [hx]
    features = [proj_size or hidden_size, hidden_size][: 1 + is_lstm]
    of_all = num_layers * (1 + bidirectional)
    n = 1 if is_one else int(sizes[0]) if sizes is not None else x.shape[batch_dim] if x.dim() == 3 else -1
    shapes = [(of_all, m) if is_one else (of_all, n, m) for m in features]
    fits = x.dim() == (2 if sizes is not None or is_one else 3) and x.shape[-1] == input_size
    fits = fits and all(tuple(state.shape) == shape for state, shape in zip(states, shapes, strict=bool(states)))
    if not fits or (x.dtype != weights[0].dtype and not is_autocast_enabled()):
        of_torchs = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        return _torch_says(mode, (input, hx), of_torchs, proj_size, weights[0].dtype)
    if is_one:
        x, states = x.unsqueeze(batch_dim), [state.unsqueeze(1) for state in states]
    if hx is None:
        states = [x.new_zeros(of_all, n, m) for m in features]
    elif order is not None:
        states = [state.index_select(1, order) for state in states]
    function: Any = {"LSTM": lstm, "GRU": gru, "RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu}[mode]
    given = [x, tuple(states) if is_lstm else states[0], weights, bias, num_layers, dropout, training, bidirectional]
    if sizes is None:
        output, *last = function(*given, batch_first)
    else:
        output, *last = function(x, sizes, *given[1:])
    if is_one:
        output, last = output.squeeze(batch_dim), [state.squeeze(1) for state in last]
    if back is not None:
        last = [state.index_select(1, back) for state in last]
    hidden = tuple(last) if is_lstm else last[0]
    return (output if sizes is None else PackedSequence(output, sizes, order, back)), hidden


@overridable
def recurrent_cell(
    input: Tensor, hx: Any, name: str, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> Any:
    """What a recurrent cell of torch.nn returns, of one sample or of several."""
    is_lstm, is_one = name == "lstm_cell", input.dim() == 1
    states = [] if hx is None else list(hx) if is_lstm else [hx]
    if input.dim() not in (1, 2) or any(state.dim() != input.dim() for state in states):
        return _torch_says(name, (input, hx), (w_ih.shape[1], w_hh.shape[1]), 0, w_ih.dtype)
    x, states = (input.unsqueeze(0), [state.unsqueeze(0) for state in states]) if is_one else (input, states)
    states = states or [x.new_zeros(len(x), w_hh.shape[1])] * (1 + is_lstm)
    function: Any = {c.__name__: c for c in (lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell)}[name]
    made = function(x, tuple(states) if is_lstm else states[0], w_ih, w_hh, b_ih, b_hh)
    if not is_one:
        return made
    return tuple(state.squeeze(0) for state in made) if is_lstm else made.squeeze(0)


def _torch_says(mode: str, args: tuple[Any, ...], sizes: tuple[Any, ...], proj_size: int, dtype: torch.dtype) -> Any:
    """Have torch's own layer of these sizes say what is wrong with its arguments."""
    kinds: dict[str, Any] = {
        "LSTM": torch.nn.LSTM,
        "GRU": torch.nn.GRU,
        "RNN_TANH": torch.nn.RNN,
        "RNN_RELU": torch.nn.RNN,
    }
    kinds |= {"lstm_cell": torch.nn.LSTMCell, "gru_cell": torch.nn.GRUCell}
    about = {"proj_size": proj_size} if proj_size else {}
    if "RNN" in mode:
        sizes = *sizes[:3], "tanh", *sizes[3:]
    theirs = kinds.get(mode, torch.nn.RNNCell)(*sizes, **about, dtype=dtype, device=torch.device("meta"))
    return theirs(*pytree.tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) and t.dim() > 1 else t, args))


def _layers(function: Callable[..., Any], layer: Layer, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The layers one after the other, with torch's dropout between them, and of each the directions side by side."""
    is_packed = len(args) > 3 and isinstance(args[3], list | tuple)
    if is_packed:
        x, batch_sizes, hx, params, has_biases, num_layers, dropout, train, bidirectional = args
        sizes, batch_first = tuple(batch_sizes.tolist()), False
    else:
        x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first = args
        x = x.transpose(0, 1) if batch_first else x
        length, samples, features = x.shape
        sizes, x = (samples,) * length, x.reshape(length * samples, features)
    if not sizes:
        return tuple(function(*args))  # says what is wrong
    directions = 2 if bidirectional else 1
    states = [state.unbind(0) for state in ([hx] if isinstance(hx, Tensor) else hx)]
    of_each = len(params) // (num_layers * directions)
    last = []
    for n in range(num_layers):
        outputs = []
        for k in range(n * directions, (n + 1) * directions):
            weights = params[k * of_each : (k + 1) * of_each]
            output, *ends = layer(x, [state[k] for state in states], weights, has_biases, sizes, k % directions == 1)
            outputs.append(output)
            last.append(ends)
        x = torch.cat(outputs, 1) if bidirectional else outputs[0]
        if dropout and train and n < num_layers - 1:
            x = torch.dropout(x, dropout, train)
    if not is_packed:
        x = x.reshape(length, samples, x.shape[1])
        x = x.transpose(0, 1) if batch_first else x
    return x, *(torch.stack(ends) for ends in zip(*last, strict=True))


def _lstm(
    x: Tensor, states: Sequence[Tensor], weights: Parameters, has_biases: bool, sizes: Sizes, reverse: bool
) -> tuple[Tensor, ...]:
    W, U, *others = weights
    bias = others[0] + others[1] if has_biases else None
    V = others[-1] if len(others) % 2 else None
    args = x, *states, W, U, bias, V, sizes, reverse
    if V is None and sizes[0] != sizes[-1]:  # what torch has no kernel of the CPU for keeps the precision of the cells
        output: tuple[Tensor, ...] = in_precision_of(states[1], rules.LSTM, *args)
        return output
    h, h_n, c_n = in_low_precision(rules.LSTM, *args)
    return h, h_n, c_n if V is None else c_n.to(states[1].dtype)


def _gru(
    x: Tensor, states: Sequence[Tensor], weights: Parameters, has_biases: bool, sizes: Sizes, reverse: bool
) -> tuple[Tensor, ...]:
    W, U, b, beta = weights if has_biases else (*weights, None, None)
    output: tuple[Tensor, ...] = in_precision_of(states[0], rules.GRU, x, *states, W, U, b, beta, sizes, reverse)
    return output


def _rnn_tanh(
    x: Tensor, states: Sequence[Tensor], weights: Parameters, has_biases: bool, sizes: Sizes, reverse: bool
) -> tuple[Tensor, ...]:
    W, U, *biases = weights
    bias = biases[0] + biases[1] if has_biases else None
    output: tuple[Tensor, ...] = in_low_precision(rules.RNN, x, *states, W, U, bias, sizes, reverse)
    return output


def _rnn_relu(
    x: Tensor, states: Sequence[Tensor], weights: Parameters, has_biases: bool, sizes: Sizes, reverse: bool
) -> tuple[Tensor, ...]:
    W, U, *biases = weights
    bias = biases[0] + biases[1] if has_biases else None
    output: tuple[Tensor, ...] = in_low_precision(rules.RNNReLU, x, *states, W, U, bias, sizes, reverse)
    return output


def _sum(b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
    return b_ih if b_hh is None else b_hh if b_ih is None else b_ih + b_hh


def _fits(input: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> bool:
    """Whether the shapes are those of a cell."""
    if input.dim() != 2 or w_ih.dim() != 2 or w_hh.dim() != 2 or w_ih.shape[0] != w_hh.shape[0]:
        return False
    shape = input.shape[0], w_hh.shape[1]
    return (
        input.shape[1] == w_ih.shape[1]
        and all(tuple(h.shape) == shape for h in hx)
        and all(b is None or tuple(b.shape) == (w_ih.shape[0],) for b in biases)
    )
