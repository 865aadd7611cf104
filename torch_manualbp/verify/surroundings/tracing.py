"""What traces a layer without running it on numbers: compilers, exporters, the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import reset_compiler
from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.claims import transforms
from torch_manualbp.verify.report import Row
from torch_manualbp.verify.surroundings.layers import Layer, compare, of_torch, results

__all__ = [
    "compiles",
    "exports",
    "exports_strictly",
    "traces",
    "traces_symbolically",
]


def compiles(layer: Layer, backend: str = "aot_eager") -> Iterator[Row]:
    """Under ``torch.compile(fullgraph=True)`` output and gradients are torch's."""
    if layer.is_random:
        raise DoesNotApply("compiled code draws other random numbers")
    try:
        return iter(list(transforms.compiled(layer, backend)))
    except RuntimeError:
        of_torch(torch.compile(layer.pair()[1], fullgraph=True, backend=backend), *layer.inputs())
        raise


def exports(layer: Layer, strict: bool = False) -> None:
    """The program of ``torch.export`` computes what torch's layer does."""
    ours, theirs = layer.pair()
    if layer.is_random:
        raise DoesNotApply("the program draws other random numbers")
    expected = of_torch(_exported, layer, theirs, strict)
    compare(_exported(layer, ours, strict), expected, tolerance=layer.tolerance)


def exports_strictly(layer: Layer) -> None:
    """As ``exports``, by way of torch.compile's tracer."""
    exports(layer, strict=True)


def _exported(layer: Layer, module: Module, strict: bool) -> dict[str, Tensor]:
    reset_compiler()
    inputs = tuple(t.detach() for t in layer.inputs())
    program = torch.export.export(module, inputs, strict=strict)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    output = program.module()(*inputs)
    assert nodes or output is inputs[0], "the program computes nothing"
    return {"output": output.detach()}


def traces(layer: Layer) -> None:
    """``torch.jit.trace`` makes a function with torch's output and gradients."""
    ours, theirs = layer.pair()
    expected = of_torch(_traced, layer, theirs)
    compare(_traced(layer, ours), expected, tolerance=layer.tolerance)


def _traced(layer: Layer, module: Module) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and tracing warns of every size that it fixes
        traced = torch.jit.trace(module, tuple(t.detach() for t in layer.inputs()), check_trace=False)
        return results(traced, layer.inputs())


def traces_symbolically(layer: Layer) -> None:
    """What ``torch.fx.symbolic_trace`` makes of a module with the layer in it has torch's output and gradients."""
    ours, theirs = layer.pair()
    expected = of_torch(_traced_symbolically, layer, theirs)
    compare(_traced_symbolically(layer, ours), expected, tolerance=layer.tolerance)


def _traced_symbolically(layer: Layer, module: Module) -> dict[str, Tensor]:
    around = {1: _OfOne, 2: _OfTwo, 3: _OfThree}[len(layer.inputs())](module)
    return results(torch.fx.symbolic_trace(around), layer.inputs())


class _OfOne(Module):
    """Holds a layer: fx traces into layers that are not torch's own, and reads the arguments of ``forward``."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, a: Tensor) -> Tensor:
        return self.layer(a)


class _OfTwo(_OfOne):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(a, b)


class _OfThree(_OfOne):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return self.layer(a, b, c)
