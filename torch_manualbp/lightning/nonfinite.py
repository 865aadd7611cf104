"""Where a loss that is NaN or infinite comes from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["NonFiniteLossError", "cause_of_nonfinite_loss", "is_finite"]


class NonFiniteLossError(FloatingPointError):
    """The training loss is NaN or infinite.

    Raised before the backward pass, so that the parameters are still those that gave the loss.
    """


def is_finite(value: Any) -> bool:
    """Whether every floating-point number in ``value``, a tensor or containers of tensors, is finite."""
    return all(bool(torch.isfinite(t).all()) for t in _tensors(value) if t.is_floating_point() or t.is_complex())


def cause_of_nonfinite_loss(
    model: Module, loss: Any, inputs: Any, target: Any, rng_state: Tensor, path: str = "model"
) -> str:
    """What was not finite first when ``loss(model(inputs), target)`` was not: the batch, a parameter, a layer's output.

    Runs a copy of the model on the batch, so that ``model``, its buffers and the random numbers stay as they are.

    Args:
        rng_state: torch's CPU random state before the forward pass, so that dropout drops the same again.
        path: what the message calls ``model``.
    """
    for name, tensors in (("inputs", inputs), ("target", target)):
        if not is_finite(tensors):
            return f"the batch's {name} already hold NaN or infinity; look at the data"
    for name, parameter in model.named_parameters(prefix=path):
        if not is_finite(parameter):
            return f"the parameter {name} holds NaN or infinity; lower the learning rate that brought it there"
    try:
        layer = _first_nonfinite_layer(model, inputs, rng_state, path)
    except Exception as error:  # a model that cannot be copied must not hide what was found
        return f"its layer was not found, as running a copy of {path} raised {type(error).__name__}: {error}"
    if layer is not None:
        return f"the first layer whose output is not finite is {layer}"
    name = type(loss).__qualname__ if isinstance(loss, Module) else getattr(loss, "__name__", repr(loss))
    return f"{path}'s output is finite, and {name} of it is not"


def _first_nonfinite_layer(model: Module, inputs: Any, rng_state: Tensor, path: str) -> str | None:
    found: list[str] = []

    def hook_of(layer: str) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append(f"{layer} ({type(module).__module__}.{type(module).__qualname__})")

        return hook

    double = copy.deepcopy(model)
    for name, module in double.named_modules(prefix=path):
        module.register_forward_hook(hook_of(name))
    devices = {t.device for t in _tensors(inputs) if t.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.set_rng_state(rng_state)
        double(inputs)
    return found[0] if found else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
