"""Mistakes planted in the recurrent rules."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from torch_manualbp.rules import GRU, LSTM, RNN, RNNReLU
from torch_manualbp.rules.recurrent import gru, lstm, rnn, times
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("three times", "first derivatives", "gradcheck")
class ForgetGateWithoutSlope(LSTM):
    """δ_f without σ'."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        def wrong(gates: Tensor, c: Tensor, c_before: Tensor) -> tuple[Tensor, ...]:
            through_z, *others = right(gates, c, c_before)
            by_i, _, by_g, by_o = through_z.chunk(4, 1)
            return torch.cat([by_i, c_before, by_g, by_o], 1), *others

        right = lstm.jacobian_of_time
        with mock.patch.object(lstm, "jacobian_of_time", wrong):
            return LSTM.backward(ctx, *upstream)


@breaks("of different lengths", "first derivatives", "gradcheck")
class RecurrentWeightOneTimeLate(LSTM):
    """∂C/∂U of h_t for h_t−1."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        with mock.patch.object(lstm, "_hidden_before", lambda h0, m, V, sizes, reverse: m):
            return LSTM.backward(ctx, *upstream)


@breaks("of different lengths, in reverse", "first derivatives", "gradcheck")
class CellOfTheWrongSide(LSTM):
    """c_t+1 for c_t−1 where time runs in reverse."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        right = times.before
        with mock.patch.object(
            lstm, "before", lambda first, states, sizes, reverse: right(first, states, sizes, False)
        ):
            return LSTM.backward(ctx, *upstream)


@breaks("three times", "second derivatives", "Hessians")
class GatesTakenForConstants(LSTM):
    """The second derivative has nothing of what the gates are made of."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        dh, dh_n, dc_n, dc, _ = upstream
        return LSTM.backward(ctx, dh, dh_n, dc_n, dc)


@breaks("three times", "first derivatives", "gradcheck")
class ResetGateForgotten(GRU):
    """ε_n is δ_n, and not δ_n ⊙ r."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        def wrong(gates: Tensor, h_before: Tensor) -> tuple[Tensor, Tensor]:
            through_y, through_n = right(gates, h_before)
            by_r, by_u, _ = through_y.chunk(3, 1)
            return torch.cat([by_r, by_u, through_n], 1), through_n

        right = gru.jacobian_of_time
        with mock.patch.object(gru, "jacobian_of_time", wrong):
            return GRU.backward(ctx, *upstream)


@breaks("three times", "first derivatives", "gradcheck")
class TruncatedInTime(RNN):
    """δ of each time is that from above alone."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        with mock.patch.object(rnn, "resized", lambda state, n, first: first[:n]):
            return RNN.backward(ctx, *upstream)


@breaks("three times", "first derivatives", "gradcheck")
class SlopeOfAnotherUnit(RNNReLU):
    """tanh' for that of rectified units."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return RNN.backward(ctx, *upstream)
