"""The gradient norm of every layer over training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_manualbp._extras import require

__all__ = ["GradientFlow"]


class GradientFlow(pl.Callback):
    """Logs the gradient norm of every layer as ``gradient_norm/<layer>``, and draws it over training.

    A layer is a module with parameters of its own, by its path in the LightningModule; its norm is the Euclidean norm
    over all of them, before gradient clipping. Measured at every ``Trainer.log_every_n_steps``-th step.

    ``history`` holds ``(global step, {layer: norm})``; it is saved in checkpoints, and a resumed run goes on with it.

    Args:
        path: where to save the figure when training ends; the suffix says the format, as for matplotlib.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.history: list[tuple[int, dict[str, float]]] = []
        if path is not None:
            require("matplotlib", "plots")  # say so now rather than after training

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure; an AMP scaler has unscaled the gradients by now."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # which the Trainer's connectors set
        if every == 0 or (trainer.global_step + 1) % every:
            return
        norms = gradient_norms(pl_module)
        self.history.append((trainer.global_step, norms))
        pl_module.log_dict(
            {f"gradient_norm/{layer}": norm for layer, norm in norms.items()}, on_step=True, on_epoch=False
        )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the figure."""
        if self.path is not None and trainer.is_global_zero:
            self.figure(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The history, as plain data."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history."""
        self.history = list(state_dict["history"])

    def figure(self, path: str | Path | None = None) -> Any:
        """The history as a ``matplotlib.figure.Figure``, one line for each layer; saved to ``path`` if given.

        Raises:
            ImportError: matplotlib is missing; the message gives the command that installs it.
        """
        # Without pyplot, which would keep the figure in a global list and choose a backend for the whole process.
        require("matplotlib", "plots")
        figure = require("matplotlib.figure", "plots").Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        layers = dict.fromkeys(layer for _, norms in self.history for layer in norms)
        for layer in layers:
            points = [(step, norms[layer]) for step, norms in self.history if layer in norms]
            axes.plot(*zip(*points, strict=True), label=layer, linewidth=1)
        axes.set(xlabel="step", ylabel="gradient norm", yscale="log", title="Gradient flow")
        if layers:
            axes.legend(title="layer")
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150)
        return figure


def gradient_norms(module: Module) -> dict[str, float]:
    """The norm of the gradient of every module that owns parameters, over those that have a gradient, by its path."""
    norms = {}
    for layer, gradients in _gradients_by_layer(module):
        norms[layer] = torch.stack([torch.linalg.vector_norm(_in_full(g)) for g in gradients]).norm()
    if not norms:
        return {}
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))  # one transfer from the device


def _gradients_by_layer(module: Module) -> Iterator[tuple[str, list[Tensor]]]:
    for layer, owner in module.named_modules():
        gradients = [p.grad for p in owner.parameters(recurse=False) if p.grad is not None]
        if gradients:
            yield layer, gradients


def _in_full(gradient: Tensor) -> Tensor:
    """Every number that counts, in no less than float32: the square of a float16 soon overflows."""
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
