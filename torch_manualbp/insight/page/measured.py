"""The statistics of the one pass that the page is of, where it is given no history of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_manualbp.insight.network import layers_of
from torch_manualbp.insight.page.autograd import Step
from torch_manualbp.insight.trace import Trace

__all__ = ["history_of_one_step"]


def history_of_one_step(trace: Trace, step: Step) -> list[dict[str, Any]]:
    """A history with one entry, in the form that :func:`~torch_manualbp.insight.report` takes."""
    layers: dict[str, dict[str, float | None]] = {}
    for layer in layers_of(trace):
        name = layer.name if layer.uses == 1 else f"{layer.name}#{layer.use + 1}"
        found = layers[name or "model"] = {}
        if layer.z.gradient is not None:
            found |= _norm_and_quantiles("delta", "norm", layer.z.gradient)
        if layer.weight.gradient is not None:
            found |= _norm_and_quantiles("grad", "norm", layer.weight.gradient)
        if layer.weight.name in step.after:
            before, after = step.before[layer.weight.name], step.after[layer.weight.name]
            update = _norm_and_quantiles("update", "ratio", (after - before) / before)
            update["update_ratio"] = float((after - before).norm() / before.norm())
            found |= update
        if layer.activation is not None:
            slope = layer.activation.backward(torch.ones_like(layer.a.tensor)).get(layer.z)
            if slope is not None:
                found["dead"] = float((slope.reshape(-1, slope.shape[-1]) == 0).all(0).double().mean())
    return [{"step": 0, "layers": layers, "loss": float(trace.C.tensor), "noise_scale": None}]


def _norm_and_quantiles(name: str, norm: str, t: Tensor) -> dict[str, float | None]:
    sizes = t.detach().abs().double().flatten()
    if not sizes.numel():
        return {}
    ordered = sizes.sort().values  # torch.quantile takes no more than 16 million entries
    at = {f"{name}_q{p:02d}": float(ordered[round(p / 100 * (len(ordered) - 1))]) for p in (5, 50, 95)}
    return {f"{name}_{norm}": float(sizes.norm()), **at}
