"""The softmax of classes in clusters, the rare ones by way of smaller projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp import functional as F
from torch_manualbp._torch import AdaptiveOutput

__all__ = ["AdaptiveLogSoftmaxWithLoss"]


class AdaptiveLogSoftmaxWithLoss(torch.nn.AdaptiveLogSoftmaxWithLoss):
    """``torch.nn.AdaptiveLogSoftmaxWithLoss`` by :class:`torch_manualbp.rules.Linear` and
    :class:`torch_manualbp.rules.CrossEntropy`.

    o = s_y − ℓ of the head, where y is in the shortlist, else that of its cluster's entry plus s'_y − ℓ' of the
    cluster, s' = B A x; C = −Σ o / N ⇒ ∂C/∂s = (p − [k = y]) / N, and of a cluster's samples alone ∂C/∂s'. Kept: those
    of Linear and CrossEntropy.
    """

    def forward(self, input_: Tensor, target_: Tensor) -> Any:
        is_usual = target_.dim() <= 1 and input_.dim() == target_.dim() + 1 and input_.shape[:-1] == target_.shape
        if not is_usual or ((target_ < 0) | (target_ >= self.n_classes)).any():
            return super().forward(input_, target_)  # which says what is wrong
        x, y = (input_, target_) if target_.dim() else (input_.unsqueeze(0), target_.unsqueeze(0))
        of_head, output = y, x.new_zeros(len(y))
        for i, (low, high) in enumerate(zip(self.cutoffs, self.cutoffs[1:], strict=False)):
            rows = ((y >= low) & (y < high)).nonzero().squeeze(1)
            if not rows.numel():
                continue
            of_head = of_head.index_fill(0, rows, self.shortlist_size + i)
            C = F.cross_entropy(self._cluster(i, x.index_select(0, rows)), y[rows] - low, reduction="none")
            output = output.index_add(0, rows, -C.to(output.dtype))
        output = output - F.cross_entropy(self._head(x), of_head, reduction="none").to(output.dtype)
        loss = (-output).mean()
        return _named(output if target_.dim() else output.squeeze(0), loss)

    def log_prob(self, input: Tensor) -> Tensor:
        of_head = F.log_softmax(self._head(input), dim=1)
        parts = [of_head[:, : self.shortlist_size]]
        for i in range(self.n_clusters):
            of_cluster = F.log_softmax(self._cluster(i, input), dim=1)
            parts.append(of_cluster + of_head[:, self.shortlist_size + i].unsqueeze(1))
        return torch.cat(parts, 1)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.head.weight, self.head.bias)

    def _cluster(self, i: int, x: Tensor) -> Tensor:
        projection: Any = self.tail[i]
        return F.linear(F.linear(x, projection[0].weight), projection[1].weight)


def _named(output: Tensor, loss: Tensor) -> Any:
    return AdaptiveOutput(output, loss)
