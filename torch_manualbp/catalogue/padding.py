"""The borders, their torch twins and sample inputs."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from torch_manualbp.catalogue.operation import Make, Operation, Sample
from torch_manualbp.rules.padding import Border, Pad

__all__ = ["PADDINGS"]


def _pad(z: Tensor, pads: tuple[int, ...], value: float) -> Tensor:
    return F.pad(z, pads, "constant", value)


def _pad_samples(make: Make) -> Iterator[Sample]:
    yield Sample("images", (make(2, 3, 4, 3), (1, 2, 0, 1), 0.0))
    yield Sample("cut off", (make(5, 4), (-1, 2), 1.5))
    yield Sample("nothing", (make(5, 4), (0, 0), 0.0))
    yield Sample("empty batch", (make(0, 4), (1, 1), 0.0))


def _border(z: Tensor, pads: tuple[int, ...], mode: str) -> Tensor:
    return F.pad(z, pads, mode)


def _border_samples(make: Make) -> Iterator[Sample]:
    for mode in ("reflect", "replicate", "circular"):
        yield Sample(mode, (make(2, 3, 4, 3), (1, 2, 0, 1), mode))
        yield Sample(f"{mode}, sequences", (make(2, 3, 4), (3, 0), mode))
    yield Sample("replicate, one volume", (make(2, 2, 3, 2), (1, 0, 0, 2, 1, 1), "replicate"))
    yield Sample("reflect, cut off", (make(2, 3, 4, 3), (-1, 2, 1, -2), "reflect"))
    yield Sample("circular, empty batch", (make(0, 3, 4), (1, 1), "circular"))


_LAYERS = {kind: " ".join(f"{kind}Pad{n}d" for n in (1, 2, 3)) for kind in ("Circular", "Constant", "Reflection")}
_LAYERS |= {kind: " ".join(f"{kind}Pad{n}d" for n in (1, 2, 3)) for kind in ("Replication", "Zero")}

PADDINGS: tuple[Operation, ...] = (
    Operation(
        Pad, _pad, _pad_samples, functions="pad", layers=f"{_LAYERS['Constant']} {_LAYERS['Zero']}", complex=True
    ),
    Operation(
        Border,
        _border,
        _border_samples,
        functions="pad",
        layers=f"{_LAYERS['Circular']} {_LAYERS['Reflection']} {_LAYERS['Replication']}",
        complex=True,
        cancels=True,
    ),
)
