"""The rule of the loss of labels without times, its torch twin and sample inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.loss.ctc import ConnectionistTemporalClassification
from torch_manualbp.rules.loss.reduction import reduced

__all__ = ["CTC"]


def _ctc(s: Tensor, y: Tensor, T: Any, S: Any, blank: int, reduction: str, zero_infinity: bool) -> Tensor:
    """Its own gradient: torch's is that of log-probabilities from a log_softmax, of which the exponentials sum to 1."""
    of_classes = s.log_softmax(2)
    C = F.ctc_loss(of_classes, y, T, S, blank, "none", zero_infinity)
    has_path = F.ctc_loss(of_classes.detach(), y, T, S, blank, "none").isfinite()
    counted = torch.arange(len(s), device=s.device).unsqueeze(1) < T
    C = C - torch.where(counted & has_path, s.logsumexp(2), 0).sum(0)
    return reduced(C / S.clamp(min=1) if reduction == "mean" else C, reduction)


def _ctc_by_paths(s: Tensor, y: Any, T: Any, S: Any, blank: int, reduction: str, zero_infinity: bool) -> Tensor:
    """Of every path that there is."""
    costs = []
    for n in range(s.shape[1]):
        wanted = y[n, : S[n]].tolist()
        paths = [
            sum((s[t, n, k] for t, k in enumerate(path)), start=s.new_zeros(()))
            for path in itertools.product(range(s.shape[2]), repeat=int(T[n]))
            if [k for k, _ in itertools.groupby(path) if k != blank] == wanted
        ]
        costs.append(-torch.stack(paths).logsumexp(0) if paths else s.new_full((), 0 if zero_infinity else torch.inf))
    C = torch.stack(costs)
    return reduced(C / S.clamp(min=1) if reduction == "mean" else C, reduction)


def _ctc_samples(make: Make) -> Iterator[Sample]:
    def integers(*numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=make.device)

    yield Sample("mean", (make(4, 2, 3), integers([1, 2], [2, 1]), integers(4, 3), integers(2, 1), 0, "mean", False))
    yield Sample("sum, a label twice", (make(4, 1, 2), integers([1, 1]), integers(4), integers(2), 0, "sum", False))
    labels = integers([0, 1], [1, 1], [1, 0]), integers(3, 2, 2), integers(2, 1, 2)
    yield Sample("each, blank 2", (make(3, 3, 3), *labels, 2, "none", True))
    yield Sample("no labels", (make(3, 2, 3), integers([1], [2]), integers(3, 2), integers(0, 1), 0, "sum", False))
    yield Sample("no path", (make(3, 2, 3), integers([1, 2], [2, 2]), integers(3, 2), integers(2, 2), 0, "mean", True))


SPREADS = "the twin's log_softmax spreads what is no number to all classes"
KEEPS_LENGTHS = "torch keeps lengths as integers; ours keeps the tensors: to change them before backward is an error"

CTC: tuple[Operation, ...] = (
    Operation(
        ConnectionistTemporalClassification,
        _ctc,
        _ctc_samples,
        functions="ctc_loss",
        layers="CTCLoss",
        twin_for_second=_ctc_by_paths,
        cancels=True,
        exempt={
            "NaN": SPREADS,
            "infinities": SPREADS,
            "changes in place, argument 2": KEEPS_LENGTHS,
            "changes in place, argument 3": KEEPS_LENGTHS,
        },
    ),
)
