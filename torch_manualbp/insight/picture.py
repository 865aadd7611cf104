"""``picture``: a small network with its numbers, for notebooks and files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._files import write_text
from torch_manualbp._text import visible
from torch_manualbp.insight.page.autograd import MakesOptimizer, drawing_again, step_of
from torch_manualbp.insight.page.data import network_data, shapes
from torch_manualbp.insight.page.numbers import shown
from torch_manualbp.insight.refusals import refuse_compiled
from torch_manualbp.insight.trace import trace

__all__ = ["Picture", "picture"]


class Picture:
    """A picture of a network, which a notebook displays."""

    def __init__(self, svg: str, about: str) -> None:
        self.svg = svg
        """SVG that stands alone, in the colours of what is around, light or dark."""

        self.about = about

    def save(self, path: str | Path) -> None:
        """Write it to a file, such as ``network.svg``."""
        write_text(path, self.svg)

    def __repr__(self) -> str:
        return f"<Picture: {self.about}>"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        from torch_manualbp import _html  # notebooks alone ask for it

        return _html.section(_html.drawing(self.svg))


@torch.inference_mode(False)
def picture(
    model: Module,
    loss: Callable[..., Tensor],
    x: Any,
    y: Any,
    *,
    sample: int = 0,
    optimizer: MakesOptimizer | None = None,
    lr: float = 0.1,
) -> Picture:
    """The network of ``loss(model(x), y)`` drawn with its numbers: z, a and δ of every neuron, and on a line, where
    there is room, the weight and below it ∂C/∂w.

    Lines are blue where ∂C/∂w is positive and orange where it is negative; thicker is larger. Numbers of neurons are
    those of one sample, gradients of weights those of all. Nothing is changed.

    Args:
        x: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
        y: what the loss takes besides the output.
        sample: whose numbers the neurons have, from 0.
        optimizer: as that of :func:`~torch_manualbp.insight.report`.
        lr: of the default optimizer, SGD.

    Raises:
        NotDrawableError: it is no chain of layers of up to 200 neurons.
        NotDerivableError: the model does what has no rule.
        IndexError: there is no such sample.
        ValueError: the model is compiled, or the loss is not one number.
    """
    refuse_compiled(model)
    with drawing_again(model):
        passed = trace(*copy.deepcopy((model, loss)), x, y)
    cost = getattr(loss, "__name__", type(loss).__name__)
    step = step_of(model, loss, x, y, optimizer, lr)
    network = network_data(passed, step, cost=cost, samples=max(sample + 1, 1))
    if not 0 <= sample < network["samples"]:
        raise IndexError(f"sample {sample}: there are {network['samples']}, counted from 0")
    about = f"{shapes(network)}, cost {visible(cost)} = {shown(network['cost']['value'], 4)}"
    from torch_manualbp.insight.svg import drawn  # it loads markupsafe

    return Picture(drawn(network, sample, about), about)
