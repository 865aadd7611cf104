"""What one stage (train, val or test) measures over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

__all__ = ["EpochMetrics", "MeanLoss"]


class MeanLoss(Metric):
    """The mean over samples of batch losses that are means over their samples.

    Lightning's own mean over an epoch, ``self.log(..., sync_dist=True)``, divides the number of samples by the number
    of processes in integers, and is off where that leaves a rest.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Count a batch of ``samples`` samples in."""
        # Not in place, which would keep float32: the sum is of the loss's dtype, and no less than float32.
        self.total = self.total + loss.detach().to(torch.promote_types(loss.dtype, torch.float32)) * samples
        self.samples = self.samples + samples

    def compute(self) -> Tensor:
        """The mean over all samples since the reset."""
        return self.total / self.samples


class EpochMetrics(torch.nn.Module):
    """The mean loss and the metrics of one stage: ``<stage>_loss`` and ``<stage>_<name>``.

    They count samples, so that a smaller last batch counts for less; under several processes, those of all processes.
    """

    def __init__(self, stage: str, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.stage = stage
        self.loss = MeanLoss()
        copies: dict[str, Any] = {name: metric.clone() for name, metric in metrics.items()}
        self.metrics = MetricCollection(copies, prefix=f"{stage}_")

    def update(self, loss: Tensor, output: Any, target: Any, samples: int) -> None:
        """Count a batch in."""
        self.loss.update(loss, samples)
        if len(self.metrics):
            self.metrics.update(output.detach() if isinstance(output, Tensor) else output, target)

    def compute(self) -> dict[str, Any]:
        """Every value over the samples since the reset, by the name to log it under."""
        return {f"{self.stage}_loss": self.loss.compute(), **(self.metrics.compute() if len(self.metrics) else {})}

    def reset(self) -> None:
        """Start over."""
        self.loss.reset()
        self.metrics.reset()
