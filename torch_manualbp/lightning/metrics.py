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

    def update(self, total: Tensor, samples: int) -> None:
        """Count in ``samples`` samples whose losses add up to ``total``."""
        # Not in place, which would keep float32: the sum is of the loss's dtype, and no less than float32.
        self.total = self.total + total
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
        self.measures = bool(copies)
        """Whether there are metrics beside the loss."""

        self._waiting: list[Any] = [0.0, 0, None]
        """The sum of the losses of batches, their samples, and the loss's dtype and device, which ``loss`` has not
        counted yet: a call of it takes as long as a layer's step."""

    def update(self, loss: Tensor, output: Any, target: Any, samples: int) -> float:
        """Count a batch in. Returns its loss.

        Raises:
            ValueError: the loss is not one number.
        """
        if loss.numel() != 1:
            raise ValueError(f"the loss is a tensor of shape {tuple(loss.shape)}: it is to return one number")
        value: float = loss.item()
        waiting = self._waiting
        waiting[0] += value * samples
        waiting[1] += samples
        waiting[2] = loss.dtype, loss.device
        if self.measures:
            self.metrics.update(output.detach() if isinstance(output, Tensor) else output, target)
        return value

    def compute(self) -> dict[str, Any]:
        """Every value over the samples since the reset, by the name to log it under."""
        total, samples, where = self._waiting
        if samples:
            dtype, device = where
            dtype = torch.promote_types(dtype, torch.float32)
            self.loss.update(torch.tensor(total, dtype=dtype, device=device), samples)
            self._waiting[:] = [0.0, 0, None]
        return {f"{self.stage}_loss": self.loss.compute(), **(self.metrics.compute() if self.measures else {})}

    def reset(self) -> None:
        """Start over."""
        self.loss.reset()
        self.metrics.reset()
        self._waiting[:] = [0.0, 0, None]
