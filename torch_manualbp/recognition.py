"""Layers of other libraries that are one of ours under another name, recognised by what their forward computes.

A class of somebody's own is no name that could be looked up. So a copy of the layer, with random weights, and what it
may be are computed on the same numbers, in both modes: outputs and gradients have to be the same to rounding. A layer
that rounds in between, as a norm of float64 that computes in float32, is another function, and stays; so does one with
a setting of its own, which may change.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import functional as F

__all__ = ["recognised", "unrecognised"]

EPSILONS = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps")
"""What the ε of a norm is called."""


class Kind(NamedTuple):
    """What a layer may be."""

    parameters: Mapping[str, int]
    """The names of its parameters, with their numbers of dimensions."""

    forward: Callable[[Any, Tensor], Tensor]


def _epsilon(layer: Any) -> float:
    return float(next(getattr(layer, name) for name in EPSILONS if hasattr(layer, name)))


def _rms_norm(layer: Any, x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, list(w.shape), w, _epsilon(layer))


KINDS: dict[str, Kind] = {
    "silu": Kind({}, lambda _, x: F.silu(x)),
    "gelu": Kind({}, lambda _, x: F.gelu(x)),
    "gelu by tanh": Kind({}, lambda _, x: F.gelu(x, approximate="tanh")),
    "relu": Kind({}, lambda _, x: F.relu(x)),
    "tanh": Kind({}, lambda _, x: F.tanh(x)),
    "sigmoid": Kind({}, lambda _, x: F.sigmoid(x)),
    "mish": Kind({}, lambda _, x: F.mish(x)),
    "hardswish": Kind({}, lambda _, x: F.hardswish(x)),
    "softplus": Kind({}, lambda _, x: F.softplus(x)),
    "rms_norm": Kind({"weight": 1}, lambda layer, x: _rms_norm(layer, x, layer.weight)),
    "rms_norm by 1 + w": Kind({"weight": 1}, lambda layer, x: _rms_norm(layer, x, 1 + layer.weight)),
    "layer_norm": Kind(
        {"weight": 1, "bias": 1},
        lambda layer, x: F.layer_norm(x, list(layer.weight.shape), layer.weight, layer.bias, _epsilon(layer)),
    ),
    "linear by Wᵀ": Kind({"weight": 2, "bias": 1}, lambda layer, x: F.linear(x, layer.weight.t(), layer.bias)),
}
"""By name; the first that fits is taken."""

TOLERANCES = {torch.float64: (1e-12, 1e-14), torch.float32: (2e-5, 2e-6)}


def recognised(layer: Module) -> type[Module] | None:
    """The class that makes ``layer`` compute by our rules, and is a subclass of its own; None where it is none of
    ours."""
    cls: Any = type(layer)
    if cls.__module__.startswith(("torch.", "torch_manualbp.")) or "forward" in vars(layer) or _is_recognised(cls):
        return None
    if layer._modules or layer._buffers or not _takes_one(cls) or _has_settings(layer):
        return None
    parameters = {name: p.dim() for name, p in layer._parameters.items() if p is not None}
    dtype = next((p.dtype for p in layer.parameters()), torch.float64)
    for name, kind in KINDS.items():
        if kind.parameters == parameters and _is_one(layer, kind, dtype if dtype in TOLERANCES else torch.float32):
            return _by_rules(cls, name)
    return None


def unrecognised(cls: type[Module]) -> type[Module] | None:
    """The class that a recognised layer had before."""
    return cls.__bases__[0] if _is_recognised(cls) else None


def _is_recognised(cls: type) -> bool:
    return "recognised_as" in vars(cls)


def _has_settings(layer: Module) -> bool:
    """Whether its code reads what may have another value one day: all but parameters, an ε, which ours reads at each
    call, too, the sizes of parameters, and functions."""
    bases = type(layer).__mro__[: type(layer).__mro__.index(Module)]
    functions = [inspect.unwrap(f) for base in bases for f in vars(base).values() if inspect.isfunction(f)]
    named = {name for function in functions for name in function.__code__.co_names}
    held = {name: value for at in (*reversed(bases), layer) for name, value in vars(at).items() if name in named}
    sizes = {n for p in layer.parameters() for n in p.shape}
    settings = [value for name, value in held.items() if name not in (*EPSILONS, *vars(Module()))]
    return not all(callable(value) or (type(value) is int and value in sizes) for value in settings)


def _takes_one(cls: type[Module]) -> bool:
    _, *parameters = inspect.signature(cls.forward).parameters.values()
    return len(parameters) == 1 and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _is_one(layer: Module, kind: Kind, dtype: torch.dtype) -> bool:
    """Whether the layer and what it may be compute the same, and have the same gradients."""
    rtol, atol = TOLERANCES[dtype]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            probe = copy.deepcopy(layer).to(device="cpu", dtype=dtype)
            probe._forward_hooks.clear()
            probe._forward_pre_hooks.clear()
            for p in probe.parameters():
                p.requires_grad_()
                p.data.uniform_(0.5, 1.5)
            features = next((p.shape[0] for p in probe.parameters()), 5)
            for x in _inputs(features, dtype):
                for training in (True, False):
                    probe.train(training)
                    theirs, ours = (_results(f, probe, x) for f in (type(layer).forward, kind.forward))
                    for a, b in zip(theirs, ours, strict=True):
                        torch.testing.assert_close(a, b, rtol=rtol, atol=atol * max(1.0, b.abs().max().item()))
    except Exception:  # whatever somebody's code says to numbers that it was not made for
        return False
    return True


def _inputs(features: int, dtype: torch.dtype) -> Iterator[Tensor]:
    for shape, scale in (((7, features), 1.0), ((2, 3, features), 1e-3), ((64, features), 4.0), ((9, features), 300.0)):
        yield torch.randn(shape, dtype=dtype).mul_(scale).requires_grad_()


def _results(forward: Callable[..., Any], layer: Module, x: Tensor) -> list[Tensor]:
    output = forward(layer, x)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return [output, *torch.autograd.grad(output, [x, *layer.parameters()], upstream)]


@functools.cache
def _by_rules(cls: Any, name: str) -> type[Module]:
    """A subclass of ``cls`` whose forward is ours; with more arguments than one it is the one of before."""
    compute = KINDS[name].forward

    @functools.wraps(cls.forward)
    def forward(self: Module, *args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        return compute(self, given[0]) if len(given) == 1 else cls.forward(self, *args, **kwargs)

    def reduce(self: Module, protocol: Any) -> Any:
        _, (_, *rest), *state = super(made, self).__reduce_ex__(protocol)
        return _new, (cls, name, *rest), *state

    members = {"forward": forward, "__reduce_ex__": reduce, "recognised_as": name, "__module__": cls.__module__}
    made: Any = type(cls.__name__, (cls,), {**members, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__})
    result: type[Module] = made
    return result


def _new(cls: Any, name: str, *args: Any) -> Module:
    """A recognised layer, as pickle and copy make it."""
    made = _by_rules(cls, name)
    return made.__new__(made, *args)
