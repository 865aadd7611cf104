"""A pass as plain data for the drawing of a small network: lists of numbers, a row for each sample."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._text import visible
from torch_manualbp.insight.network import Layer, layers_of
from torch_manualbp.insight.page.autograd import Step
from torch_manualbp.insight.page.cost import cost_data
from torch_manualbp.insight.page.numbers import for_script
from torch_manualbp.insight.trace import Quantity, Trace
from torch_manualbp.rules import AlphaDropout, Diagonal, Dropout, RReLU

__all__ = ["MOST_UNITS", "NotDrawableError", "network_data"]

MOST_UNITS = 200
"""Neurons, inputs included, above which a drawing shows nothing any more."""


RANDOM = {AlphaDropout: "AlphaDropout", Dropout: "Dropout", RReLU: "RReLU"}

# Where not all rows are given, "size" and "sizeb" are what the gradients would be if no term had a sign: by these it is
# judged whether two of them are the same up to rounding.
OF_WEIGHT = ("W", "dW", "autoW", "Wnext")
OF_BIAS = ("b", "db", "autob", "bnext")
"""A parameter, its gradient by the rules and by autograd, and what it is after the update."""


class NotDrawableError(Exception):
    """Why a network cannot be drawn neuron by neuron; the page then has its layers only."""


def network_data(trace: Trace, step: Step, *, cost: str, samples: int) -> dict[str, Any]:
    """The neurons and weights of a chain of layers.

    Args:
        cost: the name of the loss.
        samples: so many rows are given one by one; the gradients are those of all rows.

    Raises:
        NotDrawableError: it is no chain of layers on rows of samples, or too large.
    """
    layers = layers_of(trace)
    _check(trace, layers)
    x = layers[0].source
    rows = _rows(x.tensor)[:samples]
    columns: list[dict[str, Any]] = [{"n": rows.shape[1], "a": plain(rows), "da": _of_rows(x.gradient, samples)}]
    columns += [_column(layer, step, samples) for layer in layers]
    count = _rows(x.tensor).shape[0]
    dtype = layers[0].weight.tensor.dtype
    return {
        "columns": columns,
        "samples": len(rows),
        "batch": count,
        "dtype": str(dtype).removeprefix("torch."),
        "eps": torch.finfo(dtype).eps,
        "cost": {
            "name": cost,
            "value": plain(trace.C.tensor.reshape(())),
            "after": plain(torch.tensor(step.cost_after, dtype=torch.float64)),
            "y": _target(trace, count, samples),
            **cost_data(trace, samples),
        },
        "optimizer": {"name": step.optimizer, "kind": step.kind, "plain": step.is_plain},
    }


def _check(trace: Trace, layers: tuple[Layer, ...]) -> None:
    if not layers or layers[0].number is None:
        raise NotDrawableError("Its layers do not form a chain, each used once, so it is not drawn neuron by neuron.")
    drawing = next((RANDOM[stage.rule] for stage in trace.stages if stage.rule in RANDOM), None)
    if drawing is not None:
        raise NotDrawableError(
            f"{drawing} draws random numbers, so it is not drawn neuron by neuron: model.eval() switches that off."
        )
    halving = next((layer for layer in layers if layer.a.tensor.shape != layer.z.tensor.shape), None)
    if halving is not None and halving.activation is not None:
        name = halving.activation.rule.__name__
        raise NotDrawableError(f"{name} has fewer outputs than inputs, so it is not drawn neuron by neuron.")
    if any(layer.z.tensor.dim() > 2 or layer.z.tensor.is_complex() for layer in layers):
        raise NotDrawableError("Its data are not rows of real numbers, so it is not drawn neuron by neuron.")
    if any(_rows(layer.z.tensor).shape[0] == 0 for layer in layers):
        raise NotDrawableError("The batch is empty, so there are no numbers to draw.")
    units = layers[0].weight.tensor.shape[1] + sum(layer.weight.tensor.shape[0] for layer in layers)
    if units > MOST_UNITS:
        raise NotDrawableError(f"Its {units} neurons are too many to be drawn one by one: up to {MOST_UNITS} are.")


def _column(layer: Layer, step: Step, samples: int) -> dict[str, Any]:
    column: dict[str, Any] = {
        "n": layer.weight.tensor.shape[0],
        "path": visible(layer.name),
        "z": _of_rows(layer.z.tensor, samples),
        "delta": _of_rows(_gradient(layer.z), samples),
        "da": _of_rows(_gradient(layer.a), samples),
        **_parameter(layer.weight, step, OF_WEIGHT),
        **dict.fromkeys(("f", "formula", "a", "slope", *OF_BIAS)),
    }
    delta, a = _rows(_gradient(layer.z)), _rows(layer.source.tensor)
    if len(delta) > samples:
        column["size"] = plain(delta.abs().T @ a.abs(), digits=3)
        column["sizeb"] = plain(delta.abs().sum(0), digits=3)
    if layer.bias is not None:
        column |= _parameter(layer.bias, step, OF_BIAS)
    if layer.activation is not None:
        column |= {"f": layer.activation.rule.__name__, "a": _of_rows(layer.a.tensor, samples)}
        column["elementwise"] = isinstance(layer.activation.rule.jacobian, Diagonal)
        if column["elementwise"]:
            column["formula"] = _formula(layer.activation.rule.__doc__ or "")
            slope = layer.activation.backward(torch.ones_like(layer.a.tensor))
            column["slope"] = _of_rows(slope.get(layer.z, torch.zeros_like(layer.z.tensor)), samples)
    return column


def _parameter(parameter: Quantity, step: Step, names: tuple[str, ...]) -> dict[str, Any]:
    """What it is, ∂C/∂(it) by the rules and by autograd, and what it is after the update."""
    tensors = (
        parameter.tensor,
        parameter.gradient,
        step.gradients.get(parameter.name),
        step.after.get(parameter.name),
    )
    return {name: None if t is None else plain(t) for name, t in zip(names, tensors, strict=True)}


def _gradient(quantity: Quantity) -> Tensor:
    """∂C/∂(it), 0 where C does not depend on it."""
    return torch.zeros_like(quantity.tensor) if quantity.gradient is None else quantity.gradient


def _formula(docstring: str) -> str:
    """f'(z), or else δ, as the rule's docstring has it."""
    found = re.search(r"f'\(z\) = .*", docstring) or re.search(r"δ = .*", docstring)
    return " ".join(found[0].split()) if found else "f'(z)"


def _target(trace: Trace, count: int, samples: int) -> list[Any] | None:
    """The target of each row, where it has rows."""
    found = [q for q in trace.quantities() if q.kind == "target"]
    if len(found) != 1 or found[0].tensor.dim() == 0 or found[0].tensor.shape[0] != count:
        return None
    return list(plain(found[0].tensor.reshape(count, -1)[:samples].double()))


def _rows(t: Tensor) -> Tensor:
    """A row for each sample; a sample alone is one row."""
    return t.unsqueeze(0) if t.dim() == 1 else t


def _of_rows(t: Tensor | None, samples: int) -> Any:
    return None if t is None else plain(_rows(t)[:samples])


def plain(t: Tensor, digits: int | None = None) -> Any:
    """Lists of numbers, or one; infinities and NaN, which JSON has not, are words that JavaScript's Number takes."""
    digits = digits or (17 if t.dtype == torch.float64 else 12)
    return _written(t.detach().double().cpu().tolist(), digits)


def _written(values: Any, digits: int) -> Any:
    if isinstance(values, list):
        return [_written(value, digits) for value in values]
    return for_script(float(f"{values:.{digits}g}"))


def shapes(data: Mapping[str, Any]) -> str:
    """4 → 2 → 2 → 1"""
    return " → ".join(str(column["n"]) for column in data["columns"])
