"""Every parameter's gradient in one model against the same network in another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["GradientComparison", "GradientRow", "compare_gradients"]

# Two right ways to compute a gradient differ in the order of their sums and in where they round: by 16 ε at most on 192
# networks of 1 to 6 linear layers of 10 to 512 units, batches of 1 to 1,024, in each of float64, float32 and bfloat16.
TOLERANCE_IN_EPS = 32


@dataclass(frozen=True)
class GradientRow:
    """One parameter: the largest absolute difference of its gradients, next to the largest absolute gradient."""

    name: str
    shape: tuple[int, ...]
    difference: float
    largest: float
    tolerance: float
    verdict: str
    """"ok", "differs", "no gradient" (in both, which is ok), "no gradient in the model" or "… in the reference"."""

    @property
    def ok(self) -> bool:
        """Whether the gradients agree."""
        return self.verdict in ("ok", "no gradient")


@dataclass(frozen=True)
class GradientComparison:
    """What :func:`compare_gradients` found."""

    rows: tuple[GradientRow, ...]
    loss: float
    loss_difference: float
    loss_ok: bool

    @property
    def ok(self) -> bool:
        """Whether the losses and every gradient agree."""
        return self.loss_ok and all(row.ok for row in self.rows)


def compare_gradients(
    model: Module,
    reference: Module,
    inputs: Tensor,
    target: Tensor,
    loss: Callable[[Any, Any], Tensor],
    reference_loss: Callable[[Any, Any], Tensor] | None = None,
) -> GradientComparison:
    """Run ``loss(model(inputs), target)`` forward and backward, and the same with ``reference``, and compare.

    Both run as copies, the reference with the model's parameters, buffers, dtype, device and training mode, and on the
    same random numbers; neither's gradients nor buffers change. Gradients agree if they differ nowhere by more than
    32 ε of the dtype times the largest absolute gradient of the parameter; NaN agrees with nothing.

    Args:
        reference: a network with the same parameter names and shapes.
        reference_loss: the loss to go with the reference; by default the same.

    Raises:
        ValueError: the parameters of the two differ in name or shape.
    """
    reference = _twin(reference, model)
    value, gradients = _loss_and_gradients(copy.deepcopy(model), inputs, target, loss)
    reference_value, reference_gradients = _loss_and_gradients(reference, inputs, target, reference_loss or loss)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    rows = tuple(_row(name, shapes[name], gradients[name], reference_gradients[name]) for name in shapes)
    difference = (value - reference_value).abs().item()
    loss_ok = difference <= _tolerance(reference_value)
    return GradientComparison(rows, value.item(), difference, loss_ok)


def _twin(reference: Module, model: Module) -> Module:
    """A copy of ``reference`` with everything of ``model``."""
    ours = {name: tuple(p.shape) for name, p in model.named_parameters()}
    theirs = {name: tuple(p.shape) for name, p in reference.named_parameters()}
    for one, other, side in ((ours, theirs, "reference"), (theirs, ours, "model")):
        missing = [name for name in one if name not in other]
        if missing:
            raise ValueError(f"the {side} has no parameter {missing[0]!r}: the two must have the same parameter names")
    for name, shape in ours.items():
        if shape != theirs[name]:
            raise ValueError(f"parameter {name!r} has shape {shape} in the model and {theirs[name]} in the reference")
    twin = copy.deepcopy(reference)
    like = next(model.parameters(), None)
    if like is not None:
        twin = twin.to(like.device, like.dtype)
    twin.load_state_dict(model.state_dict(), strict=False)  # the reference may keep other buffers
    for name, parameter in model.named_parameters():
        twin.get_parameter(name).requires_grad_(parameter.requires_grad)
    return twin.train(model.training)


def _loss_and_gradients(
    model: Module, inputs: Tensor, target: Tensor, loss: Callable[[Any, Any], Tensor]
) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad(set_to_none=True)
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        value = copy.deepcopy(loss)(model(inputs.detach()), target.detach())
        value.backward()
    return value.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def _row(name: str, shape: tuple[int, ...], gradient: Tensor | None, reference: Tensor | None) -> GradientRow:
    if gradient is None and reference is None:
        return GradientRow(name, shape, 0.0, 0.0, 0.0, "no gradient")
    if gradient is None or reference is None:
        side = "model" if gradient is None else "reference"
        return GradientRow(name, shape, float("nan"), float("nan"), 0.0, f"no gradient in the {side}")
    # Subtracted in float64, where the difference itself is not rounded away.
    difference = _largest(gradient.double() - reference.double())
    tolerance = _tolerance(reference)
    verdict = "ok" if difference <= tolerance else "differs"  # a comparison with NaN is False
    return GradientRow(name, shape, difference, _largest(reference), tolerance, verdict)


def _tolerance(reference: Tensor) -> float:
    return TOLERANCE_IN_EPS * torch.finfo(reference.dtype).eps * _largest(reference)


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0
