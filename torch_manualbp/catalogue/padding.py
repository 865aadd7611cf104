"""The borders, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.padding import Pad

__all__ = ["PADDINGS"]


def _pad(z: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
    return F.pad(z, pads, "constant", value)


def _pad_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 3), (1, 2, 0, 1), 0.0))
    yield Sample("cut off", (make(5, 4), (-1, 2), 1.5))
    yield Sample("nothing", (make(5, 4), (0, 0), 0.0))
    yield Sample("empty batch", (make(0, 4), (1, 1), 0.0))


PADDINGS: tuple[Operation, ...] = (Operation(Pad, _pad, _pad_samples, complex=True),)
