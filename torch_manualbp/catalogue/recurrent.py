"""The rules of the recurrent layers, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.recurrent import GRU, LSTM, RNN, RNNReLU

__all__ = ["RECURRENT"]

LONG, SHORT, ONE = (2, 2, 2), (3, 2, 2, 1), (3,)
"""How many sequences have each time: two of three times, some of different lengths, three of one time."""


def _layer(function: Callable[..., Any], x: Tensor, hx: Any, params: list[Tensor], sizes: Any, reverse: bool) -> Any:
    """torch's function of a whole layer; that in reverse is one of reversed sequences."""
    order = _reversed_rows(sizes, x.device)
    has_biases = len(params) > 2 and params[2].dim() == 1
    given = (
        (x[: sum(sizes)].index_select(0, order) if reverse else x),
        torch.tensor(sizes),
        hx,
        params,
        has_biases,
        1,
        0.0,
        False,
        False,
    )
    output, *last = function(*given)
    return (output[order] if reverse else output), *[state[0] for state in last]


def _reversed_rows(sizes: tuple[int, ...], device: Any) -> Tensor:
    """For each row that of the same sequence counted from its end."""
    begins = [sum(sizes[:t]) for t in range(len(sizes))]
    lengths = [sum(n > k for n in sizes) for k in range(sizes[0])]
    rows = [begins[lengths[k] - 1 - t] + k for t, n in enumerate(sizes) for k in range(n)]
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _lstm(x: Any, h: Any, c: Any, W: Any, U: Any, b: Any, V: Any, sizes: Any, reverse: bool) -> Any:
    weights = [W, U, *([] if b is None else [b, torch.zeros_like(b)]), *([] if V is None else [V])]
    return _layer(torch.lstm, x, (h[None], c[None]), weights, sizes, reverse)


def _lstm_samples(make: Make) -> Iterator[Sample]:
    def sample(name: str, sizes: tuple[int, ...], reverse: bool, bias: bool = True, out: int | None = None) -> Sample:
        n, rows, hidden = sizes[0], sum(sizes), 2 if out is None else 4
        state = make(n, out or hidden), make(n, hidden)
        weights = make(4 * hidden, 3), make(4 * hidden, out or hidden), make(4 * hidden) if bias else None
        return Sample(name, (make(rows, 3), *state, *weights, make(out, hidden) if out else None, sizes, reverse))

    yield sample("three times", LONG, False)
    yield sample("in reverse, without bias", LONG, True, bias=False)
    yield sample("of different lengths", SHORT, False)
    yield sample("of different lengths, in reverse", SHORT, True)
    yield sample("projected", LONG, False, out=2)
    yield sample("one time", ONE, False)


def _gru(x: Any, h: Any, W: Any, U: Any, b: Any, beta: Any, sizes: Any, reverse: bool) -> Any:
    zeros = x.new_zeros(W.shape[0])
    return _layer(torch.gru, x, h[None], [W, U, *(zeros if t is None else t for t in (b, beta))], sizes, reverse)


def _gru_samples(make: Make) -> Iterator[Sample]:
    def sample(name: str, sizes: tuple[int, ...], reverse: bool, *biases: Tensor | None) -> Sample:
        return Sample(name, (make(sum(sizes), 3), make(sizes[0], 2), make(6, 3), make(6, 2), *biases, sizes, reverse))

    yield sample("three times", LONG, False, make(6), make(6))
    yield sample("in reverse, without bias", LONG, True, None, None)
    yield sample("of different lengths", SHORT, False, make(6), make(6))
    yield sample("of different lengths, in reverse", SHORT, True, make(6), make(6))
    yield sample("one time", ONE, False, make(6), make(6))


def _rnn(function: Callable[..., Any]) -> Callable[..., Any]:
    def twin(x: Any, h: Any, W: Any, U: Any, b: Any, sizes: Any, reverse: bool) -> Any:
        weights = [W, U, *([] if b is None else [b, torch.zeros_like(b)])]
        return _layer(function, x, h[None], weights, sizes, reverse)

    return twin


def _rnn_samples(make: Make) -> Iterator[Sample]:
    def sample(name: str, sizes: tuple[int, ...], reverse: bool, bias: Tensor | None) -> Sample:
        return Sample(name, (make(sum(sizes), 3), make(sizes[0], 2), make(2, 3), make(2, 2), bias, sizes, reverse))

    yield sample("three times", LONG, False, make(2))
    yield sample("in reverse, without bias", LONG, True, None)
    yield sample("of different lengths", SHORT, False, make(2))
    yield sample("of different lengths, in reverse", SHORT, True, make(2))
    yield sample("one time", ONE, False, make(2))


ITS_REVERSE = {"changes in place, argument 0": "the twin in reverse keeps a reversed copy of x"}

RECURRENT: tuple[Operation, ...] = (
    Operation(
        LSTM,
        _lstm,
        _lstm_samples,
        functions="lstm lstm_cell",
        layers="LSTM LSTMCell",
        cancels=True,
        exempt=ITS_REVERSE,
    ),
    Operation(
        GRU,
        _gru,
        _gru_samples,
        functions="gru gru_cell",
        layers="GRU GRUCell",
        cancels=True,
        exempt=ITS_REVERSE,
    ),
    Operation(
        RNN,
        _rnn(torch.rnn_tanh),
        _rnn_samples,
        functions="rnn_tanh rnn_tanh_cell",
        layers="RNN RNNCell",
        cancels=True,
        exempt=ITS_REVERSE,
    ),
    Operation(
        RNNReLU,
        _rnn(torch.rnn_relu),
        _rnn_samples,
        functions="rnn_relu rnn_relu_cell",
        layers="RNN RNNCell",
        cancels=True,
        exempt=ITS_REVERSE,
    ),
)
