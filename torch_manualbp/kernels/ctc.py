"""The two recursions of connectionist temporal classification, each time written into its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.kernels.dispatch import for_large
from torch_manualbp.rules.loss.ctc import NOTHING, along_paths, back_along_paths

__all__: list[str] = []


@for_large(along_paths)
def along_paths_in_place(said: Tensor, may_skip: Tensor) -> Any:
    times, samples, n = said.shape
    if not times:
        return NotImplemented
    log_alpha = said.new_full((times, samples, n + 2), NOTHING)  # two steps before the first
    log_alpha[0, :, 2:4] = said[0, :, :2]
    far, near, here = (log_alpha[:, :, k : k + n].unbind(0) for k in range(3))
    nothing, two = said.new_full((), NOTHING), torch.empty_like(said[0])
    for t, of_time in enumerate(said.unbind(0)[1:]):
        torch.where(may_skip, far[t], nothing, out=two)
        torch.logaddexp(two, near[t], out=two)
        torch.logaddexp(two, here[t], out=two)
        torch.add(two, of_time, out=here[t + 1])
    return log_alpha[:, :, 2:].contiguous()


@for_large(back_along_paths)
def back_along_paths_in_place(added: Tensor, stay: Tensor, go: Tensor, skip: Tensor) -> Tensor:
    times, samples, n = added.shape
    gamma = added.new_zeros(times, samples, n + 2)  # two steps after the last
    gamma[:, :, :n] = added
    here, near, far = (gamma[:, :, k : k + n].unbind(0) for k in range(3))
    ways = [way.unbind(0) for way in (stay, go, skip)]
    for t in range(times - 2, -1, -1):
        for way, came in zip(ways, (here, near, far), strict=True):
            here[t].addcmul_(came[t + 1], way[t])
    return gamma[:, :, :n].contiguous()
