"""The layers of neurons in a pass, in the order of the forward."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch_manualbp.catalogue import FAMILIES
from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import Cast, Dropout, Elementwise, Identity, Product, Reshape

__all__ = ["Layer", "is_activation", "is_of_loss", "layers_of"]

PASSED = (Cast, Dropout, Identity, Reshape)
"""What may stand between two layers of a chain: each entry goes on alone, at most as a multiple of itself."""


ACTIVATIONS = frozenset(operation.rule for operation in FAMILIES["activations"])


@dataclass(eq=False)
class Layer:
    """Neurons with weighted inputs, and what their activation makes of these.

    ::

        z = a Wᵀ + b
        a = f(z)
    """

    linear: Stage
    source: Quantity
    """What comes in: x, or a of the layer before, of shape (*, in)."""

    weight: Quantity
    bias: Quantity | None
    z: Quantity
    """A tensor of shape (*, out). Its ``gradient`` is δ."""

    activation: Stage | None
    """The activation that alone takes z: of every entry, or a softmax and the like."""

    a: Quantity
    """The output of the activation, or z where there is none."""

    name: str
    """The path of the module, such as ``fc1``; of a functional call that of the module around it."""

    use: int
    """Which application of this module it is, from 0."""

    uses: int
    """How many there are."""

    number: int | None = None
    """k, where the network is a chain of layers, each used once: W⁽ᵏ⁾ leads from a⁽ᵏ⁾, where a⁽¹⁾ = x, to z⁽ᵏ⁺¹⁾."""

    is_last: bool = False
    """Whether it is the last of a chain: its output is the network's."""


def layers_of(trace: Trace) -> tuple[Layer, ...]:
    """The layers that a pass went through, a module that was used twice as two, those of the loss left out."""
    linear = [stage for stage in trace.stages if _is_layer(stage) and not is_of_loss(trace, stage)]
    uses = Counter(stage.path for stage in linear)
    so_far: Counter[str] = Counter()
    layers = []
    for stage in linear:
        layers.append(_layer(stage, so_far[stage.path], uses[stage.path]))
        so_far[stage.path] += 1
    if _is_chain(trace, layers):
        for k, layer in enumerate(layers, 1):
            layer.number, layer.is_last = k, k == len(layers)
    return tuple(layers)


def is_of_loss(trace: Trace, stage: Stage) -> bool:
    """Whether a stage is part of the loss."""
    return stage.path == trace.path_of_loss or stage.path.startswith(f"{trace.path_of_loss}.")


def is_activation(stage: Stage) -> bool:
    """Whether a stage is an activation, elementwise or along a dimension."""
    return stage.rule in ACTIVATIONS or issubclass(stage.rule, Elementwise)


def _is_layer(stage: Stage) -> bool:
    """Whether a stage is a product with weights, so that its outputs are weighted inputs of neurons. Those inside of a
    recurrent layer, of each time, are a part of it."""
    return isinstance(stage.rule.jacobian, Product) and stage.output.mark is None


def _layer(stage: Stage, use: int, uses: int) -> Layer:
    source, weight, bias = stage.args
    z = stage.output
    activation = z.used_by[0] if len(z.used_by) == 1 and is_activation(z.used_by[0]) else None
    a = z if activation is None else activation.output
    return Layer(stage, source, weight, bias, z, activation, a, stage.path, use, uses)


def _is_chain(trace: Trace, layers: list[Layer]) -> bool:
    """Whether x goes through these layers, one after another, and through nothing else."""
    if not layers or len({layer.weight for layer in layers}) < len(layers):
        return False
    if any(layer.weight.kind != "parameter" or layer.weight.tensor.dim() != 2 for layer in layers):
        return False
    seen: list[Stage] = []
    before: Quantity | None = None
    for layer in layers:
        start, passing = _origin(layer.source)
        if start.kind != "input" if before is None else start is not before:
            return False
        seen += [*passing, layer.linear] if layer.activation is None else [*passing, layer.linear, layer.activation]
        before = layer.a
    rest = [stage for stage in trace.stages if stage not in seen and not is_of_loss(trace, stage)]
    passing = _origin(rest[-1].output)[1] if rest else []
    return set(rest) == set(passing) and all(_is_used_once(stage.args[0]) for stage in [*seen, *passing])


def _origin(quantity: Quantity) -> tuple[Quantity, list[Stage]]:
    """What it was before it was passed on, and the stages that did so."""
    passing: list[Stage] = []
    while (stage := quantity.made_by) is not None and issubclass(stage.rule, PASSED):
        passing.append(stage)
        quantity = stage.args[0]
    return quantity, passing


def _is_used_once(quantity: Quantity) -> bool:
    return len(quantity.used_by) == 1
