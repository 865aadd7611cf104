"""Mistakes planted in the loss of labels without times."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from torch_manualbp.rules import ConnectionistTemporalClassification
from torch_manualbp.rules.loss import ctc
from torch_manualbp.verify.mistakes.mistake import breaks


@breaks("mean", "first derivatives", "gradcheck")
class BlankForgotten(ConnectionistTemporalClassification):
    """The blank takes no gradient."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        ds, *others = ConnectionistTemporalClassification.backward(ctx, *upstream)
        return None if ds is None else ds.index_fill(2, torch.tensor([ctx.blank]), 0), *others


@breaks("sum, a label twice", "first derivatives", "gradcheck")
class PassesBetweenEqualLabels(ConnectionistTemporalClassification):
    """Backward, a path may pass over the blank between a label and the same label."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        with mock.patch.object(ctc, "skips", lambda labels, blank: labels != blank):
            return ConnectionistTemporalClassification.backward(ctx, *upstream)


@breaks("each, blank 2", "first derivatives", "gradcheck")
class EveryLengthTheLongest(ConnectionistTemporalClassification):
    """γ begins at the end of the longest sample for all."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        right = ctc._last
        with mock.patch.object(ctc, "_last", lambda log_alpha, T, S: right(log_alpha, T.max().expand(T.shape), S)):
            return ConnectionistTemporalClassification.backward(ctx, *upstream)
