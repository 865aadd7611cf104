"""Linear + cross-entropy in blocks of classes and samples, whose scores are in memory one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, plain
from torch_manualbp.rules.loss.projected import linear_cross_entropy_gradients, linear_cross_entropy_of_samples
from torch_manualbp.rules.rule import widened

__all__ = ["BLOCK_SCORES", "FEW_SCORES"]

FEW_SCORES = 1 << 21
"""Up to so many scores all are made at once."""

BLOCK_SCORES = 1 << 20
"""Scores of one block: four megabytes in float32."""

BLOCK_SAMPLES = 2048
"""Rows of one block, so that a block of many samples has enough classes for a product of matrices."""


class _Scores:
    """The scores of x, W and b, a block of classes at a time, and of each the samples in blocks."""

    def __init__(self, W: Tensor, x: Tensor, b: Tensor | None, y: Tensor) -> None:
        self.W, self.x, self.b, self.y = W, widened(x), b, y
        self.rows = min(x.shape[0], BLOCK_SAMPLES)
        self.columns = max(BLOCK_SCORES // self.rows, 16)
        self.made = self.x.new_empty(self.rows * self.columns)

    def classes(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Some classes, their W and b."""
        for k in range(0, self.W.shape[0], self.columns):
            classes = slice(k, min(k + self.columns, self.W.shape[0]))
            yield classes, widened(self.W[classes]), None if self.b is None else widened(self.b[classes])

    def samples(self, W: Tensor, b: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
        """Some samples, and their scores of the classes of W, which the next ones overwrite."""
        for i in range(0, self.x.shape[0], self.rows):
            samples = slice(i, min(i + self.rows, self.x.shape[0]))
            s = self.made[: (samples.stop - i) * W.shape[0]].view(samples.stop - i, W.shape[0])
            torch.mm(self.x[samples], W.t(), out=s)
            yield samples, s if b is None else s.add_(b)

    def of_true_class(self, classes: slice, samples: slice) -> tuple[Tensor, Tensor]:
        """Which of these samples have their class among these classes, and which of these it is, as a column."""
        y = self.y[samples] - classes.start
        inside = (y >= 0) & (y < classes.stop - classes.start)
        return inside, torch.where(inside, y, 0).unsqueeze(1)


@for_large(linear_cross_entropy_of_samples)
def of_samples_in_blocks(
    W: Tensor, x: Tensor, b: Tensor | None, y: Tensor, w: Tensor | None, ignore_index: int, epsilon: float
) -> Any:
    N, K, is_index = x.shape[0], W.shape[0], not y.is_floating_point()
    if N * K <= FEW_SCORES:
        return plain(linear_cross_entropy_of_samples)(W, x, b, y, w, ignore_index, epsilon)
    counted = (y != ignore_index) if is_index else torch.ones_like(y[:, 0], dtype=torch.bool)
    if is_index and not ((y >= 0) & (y < K) | ~counted).all():
        return NotImplemented  # the formula says what is wrong
    made = _Scores(W, x, b, y)
    wide = made.x.dtype
    largest = torch.full((N,), -torch.inf, dtype=wide)
    total, of_y, of_all = torch.zeros_like(largest), torch.zeros_like(largest), torch.zeros_like(largest)
    sum_q, sum_w, done_y = torch.zeros_like(largest), 0.0, torch.zeros_like(largest, dtype=torch.bool)
    for classes, W_k, b_k in made.classes():
        w_k = None if w is None else widened(w[classes])
        for samples, s in made.samples(W_k, b_k):
            before = largest[samples]
            now = torch.maximum(before, s.amax(1))
            shift = torch.where(now == -torch.inf, 0, now)
            moved = torch.where(before == -torch.inf, 0, before - shift)
            s.sub_(shift.unsqueeze(1))
            if is_index:
                inside, k = made.of_true_class(classes, samples)
                s_y = s.gather(1, k).squeeze(1)
                of_y[samples] = torch.where(inside, s_y, of_y[samples] + torch.where(done_y[samples], moved, 0))
                done_y[samples] |= inside
            else:
                q = widened(y[samples, classes]) if w_k is None else widened(y[samples, classes]) * w_k
                of_y[samples] += torch.linalg.vecdot(q, s) + moved * sum_q[samples]
                sum_q[samples] += q.sum(1)
            if epsilon:
                of_all[samples] += (s.sum(1) if w_k is None else s.mv(w_k)) + moved * sum_w
            total[samples] = total[samples] * (before - shift).exp() + s.exp_().sum(1)
            largest[samples] = now
        sum_w += len(W_k) if w_k is None else float(w_k.sum())
    log_of_sum = torch.where(largest == -torch.inf, torch.nan, total.log())
    if is_index:
        C = log_of_sum - of_y if w is None else (log_of_sum - of_y) * widened(w)[torch.where(counted, y, 0)]
    else:
        C = sum_q * log_of_sum - of_y
    if epsilon:
        C = (1 - epsilon) * C + epsilon / K * (log_of_sum * sum_w - of_all)
    lse = largest + log_of_sum
    return torch.where(counted, C, 0), lse, (largest - lse) + log_of_sum


@for_large(linear_cross_entropy_gradients)
def gradients_in_blocks(
    W: Tensor,
    x: Tensor,
    b: Tensor | None,
    y: Tensor,
    w: Tensor | None,
    lse: Tensor,
    rest: Tensor,
    by_p: Tensor,
    of_y: Tensor,
    of_all: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> Any:
    N, K, is_index = x.shape[0], W.shape[0], not y.is_floating_point()
    if N * K <= FEW_SCORES:
        return plain(linear_cross_entropy_gradients)(W, x, b, y, w, lse, rest, by_p, of_y, of_all, needs)
    needs_dx, needs_dW, needs_db = needs
    made = _Scores(W, x, b, y)
    dx = torch.zeros_like(made.x) if needs_dx else None
    dW = torch.empty_like(W) if needs_dW else None
    db = torch.empty_like(b) if needs_db and b is not None else None
    is_narrow = W.dtype != made.x.dtype
    for classes, W_k, b_k in made.classes():
        w_k = None if w is None else widened(w[classes])
        dW_k = None if dW is None else torch.empty_like(W_k) if is_narrow else dW[classes]
        db_k = None if db is None else W_k.new_zeros(len(W_k))
        for samples, s in made.samples(W_k, b_k):
            delta = (
                s.sub_(lse[samples].unsqueeze(1))
                .sub_(rest[samples].unsqueeze(1))
                .exp_()
                .mul_(by_p[samples].unsqueeze(1))
            )
            if is_index:
                inside, k = made.of_true_class(classes, samples)
                delta.scatter_add_(1, k, torch.where(inside, -of_y[samples], 0).unsqueeze(1))
            else:
                q = widened(y[samples, classes]) * of_y[samples].unsqueeze(1)
                delta.sub_(q if w_k is None else q.mul_(w_k))
            if of_all is not None:
                share = of_all[samples].unsqueeze(1)
                delta.sub_(share) if w_k is None else delta.addcmul_(share, w_k.unsqueeze(0), value=-1)
            if dx is not None:
                dx[samples].addmm_(delta, W_k)
            if dW_k is not None:
                dW_k.addmm_(delta.t(), made.x[samples], beta=0 if samples.start == 0 else 1)
            if db_k is not None:
                db_k += delta.sum(0)
        if dW is not None and dW_k is not None and is_narrow:
            dW[classes] = dW_k
        if db is not None and db_k is not None:
            db[classes] = db_k
    return None if dx is None else dx.to(x.dtype), dW, db
