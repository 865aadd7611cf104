"""Kernels of the gradient of a table: the sum is written into its zeros, which otherwise are copied first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large, for_steps
from torch_manualbp.rules.embedding import embedding_gradient, largest_gradient, part_of_each

__all__: list[str] = []


@for_large(embedding_gradient)
@for_steps(embedding_gradient)
def embedding_gradient_in_place(
    delta: Tensor, i: Tensor, rows: int, padding: int = -1, by_frequency: bool = False
) -> Tensor:
    dW = delta.new_zeros(rows, delta.shape[1])
    return dW.index_add_(0, i, part_of_each(delta, i, rows, padding, by_frequency))


@for_large(largest_gradient)
@for_steps(largest_gradient)
def largest_gradient_in_place(delta: Tensor, k: Tensor, shape: Sequence[int]) -> Tensor:
    return delta.new_zeros(shape).scatter_add_(0, k.clamp(min=0), torch.where(k < 0, 0, delta))
