"""Which dimensions of a quantity count samples and positions, and which its entries.

All but the last count samples and positions, in the order in which the input has them; of images, which a convolution
takes or makes, the first counts samples, and an entry is named by its channel and its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import Convolved, Permute, Reshape, Transpose, TransposedConvolution

__all__ = ["Axes", "Place", "unravelled"]

Place = tuple[int, ...]
"""The sample, and the position in a sequence, of an entry."""


def unravelled(flat: int, shape: Sequence[int]) -> Place:
    """The indices of an entry."""
    index = []
    for n in reversed(shape):
        flat, i = divmod(flat, n)
        index.append(i)
    return tuple(reversed(index))


class Axes:
    """Those of the quantities of one trace."""

    def __init__(self, trace: Trace) -> None:
        self._samples: dict[Quantity, int] = {}
        """How many dimensions of images count samples: 1 or, of a single image, 0."""

        self._order: dict[Quantity, tuple[int, ...]] = {}
        """Where dimensions have changed places: which of the input's each is."""

        for stage in trace.stages:
            first = stage.args[0] if stage.args and isinstance(stage.args[0], Quantity) else None
            if first is not None:
                self._follow(stage, first)

    def is_image(self, quantity: Quantity) -> bool:
        return quantity in self._samples

    def split(self, quantity: Quantity, flat: int) -> tuple[Place, Place]:
        """The place of an entry, and its index there."""
        index = unravelled(flat, quantity.tensor.shape)
        if (samples := self._samples.get(quantity)) is not None:
            return index[:samples], index[samples:]
        own = index[:-1]
        if (order := self._order.get(quantity)) is not None and sorted(order[:-1]) == list(range(len(own))):
            own = tuple(own[order[:-1].index(n)] for n in range(len(own)))
        return own, index[-1:]

    def _follow(self, stage: Stage, first: Quantity) -> None:
        if isinstance(stage.rule.jacobian, Convolved) or stage.rule is TransposedConvolution:
            samples = first.tensor.dim() - (stage.args[1].tensor.dim() - 1)
            self._samples[first] = self._samples[stage.output] = samples
            return
        if stage.rule in (Transpose, Permute):
            order = self._order.get(first, tuple(range(first.tensor.dim())))
            moved = torch.empty(*([1] * len(order)), *()).expand(*range(1, len(order) + 1))
            sizes = stage.rule.forward(moved, *stage.args[1:]).shape
            self._order[stage.output] = tuple(order[size - 1] for size in sizes)
            return
        if stage.rule is Reshape:
            return
        for output in stage.outputs:
            same = output.tensor.dim() == first.tensor.dim()
            if same and first in self._samples:
                self._samples[output] = self._samples[first]
            if output.tensor.shape[:-1] == first.tensor.shape[:-1] and first in self._order:
                self._order[output] = self._order[first]
