"""What people do with a layer as an object: copy it, store it, print it, parametrize it, call it with other weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrizations

from torch_manualbp.verify.check import DoesNotApply
from torch_manualbp.verify.surroundings.layers import Layer, compare, of_torch, results

__all__ = [
    "calls_with_other_weights",
    "copies",
    "is_torchs_twin",
    "normalizes_spectrum",
    "normalizes_weights",
    "pickles",
]


def is_torchs_twin(layer: Layer) -> None:
    """repr, ``state_dict`` and attributes are torch's, each loads the other's state, and ``isinstance`` holds."""
    ours, theirs = layer.pair()
    assert repr(ours) == repr(theirs), f"repr is {ours!r}, torch's {theirs!r}"
    assert isinstance(ours, type(theirs)), f"no instance of {type(theirs).__name__}"
    compare(dict(ours.state_dict()), dict(theirs.state_dict()), tolerance=0)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert vars(ours).keys() == vars(theirs).keys(), f"attributes differ: {vars(ours).keys() ^ vars(theirs).keys()}"


def copies(layer: Layer) -> None:
    """A deep copy is of our class, computes the same to the bit, and shares no parameter or buffer."""
    ours, _ = layer.pair()
    twin = copy.deepcopy(ours)
    _is_the_same_layer(layer, twin, ours)
    mine, copied = ([*m.parameters(), *m.buffers()] for m in (ours, twin))
    for a, b in zip(mine, copied, strict=True):
        assert a.data_ptr() != b.data_ptr(), "the copy shares memory with the layer"


def pickles(layer: Layer) -> None:
    """A layer that went through ``pickle`` and ``torch.save`` is of our class and computes the same to the bit."""
    ours, _ = layer.pair()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
        _is_the_same_layer(layer, twin, ours)


def _is_the_same_layer(layer: Layer, twin: Module, ours: Module) -> None:
    assert type(twin) is type(ours), f"came back as {type(twin)}"
    compare(results(twin, layer.inputs()), results(ours, layer.inputs()), tolerance=0)


def normalizes_weights(layer: Layer) -> None:
    """Under weight normalization output and gradients of magnitude and direction are torch's."""
    _parametrizes(layer, parametrizations.weight_norm)


def normalizes_spectrum(layer: Layer) -> None:
    """Under spectral normalization, in training, output and gradients are torch's."""
    _parametrizes(layer, parametrizations.spectral_norm)


def _parametrizes(layer: Layer, parametrization: Callable[[Module], Module]) -> None:
    ours, theirs = layer.pair()
    if "weight" not in dict(ours.named_parameters()):
        raise DoesNotApply("the layer has no weight")
    expected = of_torch(_parametrized, layer, theirs, parametrization)
    compare(_parametrized(layer, ours, parametrization), expected, tolerance=layer.tolerance)


def _parametrized(layer: Layer, module: Module, parametrization: Callable[[Module], Module]) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # where power iteration starts
        module = parametrization(module)
    return results(module, layer.inputs())


def calls_with_other_weights(layer: Layer) -> None:
    """``vmap(grad)`` of a ``functional_call``: each sample's gradients of parameters and input are torch's."""
    ours, theirs = layer.pair()
    expected = of_torch(_per_sample, layer, theirs)
    compare(_per_sample(layer, ours), expected, tolerance=layer.tolerance)


def _per_sample(layer: Layer, module: Module) -> dict[str, Tensor]:
    inputs = [t.detach() for t in layer.inputs()]
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def cost(parameters: dict[str, Tensor], *sample: Any) -> Tensor:
        batch = tuple(t.unsqueeze(0) for t in sample)
        output: Tensor = torch.func.functional_call(module, parameters, batch)
        return (output * output).sum()

    per_sample = torch.func.grad(cost, argnums=(0, 1))
    mapped = torch.func.vmap(per_sample, in_dims=(None, *(0 for _ in inputs)), randomness="different")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        of_parameters, of_input = mapped(parameters, *inputs)
    return {**of_parameters, "input": of_input}
