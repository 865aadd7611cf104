"""The gradients of a training run, verified while it runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import pytree
from torch_manualbp.lightning.root import pl
from torch_manualbp.verify import Report, verify_model

__all__ = ["GradientVerification"]

Parts = tuple[Module, Any, Any, Callable[[Any, Any], Tensor]]
"""The model, its inputs, the target, and the loss of (output, target)."""


class GradientVerification(pl.Callback):
    """Verifies every layer's gradients on the live batch at every n-th step, and logs the worst error.

    The layers are verified by :func:`~torch_manualbp.verify.verify_model`, in a copy of the model, with its parameters
    and buffers of that step, before the step. Training does not notice: parameters, gradients, buffers, and the random
    numbers of torch, NumPy and Python are, bit for bit, those of a run without this callback.

    Logged, as ``gradient_error_ulps``: the largest error of all layers, in units in the last place.
    ``reports`` holds ``(global step, report)`` of the steps at which a gradient was wrong, and ``report`` the last one.

    Args:
        every_n_steps: 1 verifies at every step; the first step is always verified.
        layers: paths in the model of the layers to verify, or patterns such as ``"encoder.*"``; by default all.
        on_failure: "warn" goes on; "stop" raises, before the wrong gradient has changed a parameter.
        parts: a function of ``(module, batch)`` that returns ``(model, inputs, target, loss)``; by default those of a
            :class:`ManualBackpropModule`, ``module.model``, ``module.loss`` and a batch ``(inputs, target)``.
        options: what else ``verify_model`` takes, such as ``checks`` or ``budget_s``.

    Raises:
        ValueError: an argument is none of these, or no layer has such a path.
        GradientError: a gradient is wrong, with ``on_failure="stop"``; the message is the report.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        layers: str | Sequence[str] | None = None,
        on_failure: str = "warn",
        parts: Callable[[Any, Any], Parts] | None = None,
        **options: Any,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it takes 1, for every step, or more")
        if on_failure not in ("warn", "stop"):
            raise ValueError(f"on_failure is {on_failure!r}: it takes 'warn' or 'stop'")
        self.every_n_steps = every_n_steps
        self.layers = [layers] if isinstance(layers, str) else layers
        self.on_failure = on_failure
        self.parts = _parts if parts is None else parts
        self.options = options
        self.report: Report | None = None
        self.reports: list[tuple[int, Report]] = []
        self._step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No step of this run has been verified."""
        self._step = -1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Verify, if it is time to."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._step:  # which batches that are accumulated have in common
            return
        self._step = step
        model, inputs, target, loss = self.parts(pl_module, batch)
        # The batch is copied for layers that work in place; verify_model copies the model and the loss.
        inputs, target = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (inputs, target))
        with pl.utilities.seed.isolate_rng(), torch.enable_grad():
            self.report = verify_model(model, inputs, target, loss, **self._options(model))
        # Not by pl_module.log, which would write the number again at every step until the next.
        for logger in trainer.loggers:
            logger.log_metrics({"gradient_error_ulps": _worst(self.report)}, step=step)
        if not self.report.values_ok and self.report.failures:
            self.reports.append((step, self.report))
            if self.on_failure == "stop":
                self.report.raise_for_status()
            warnings.warn(f"gradients are wrong at global step {step}:\n{self.report}", stacklevel=2)

    def _options(self, model: Module) -> dict[str, Any]:
        return self.options if self.layers is None else {**self.options, "layers": _chosen(model, self.layers)}


def _parts(module: Any, batch: Any) -> Parts:
    model, loss = getattr(module, "model", None), getattr(module, "loss", None)
    way_out = (
        "give GradientVerification parts=, a function of (module, batch) that returns (model, inputs, target, loss)"
    )
    if not isinstance(model, Module) or not callable(loss):
        raise ValueError(f"{type(module).__name__} has no model and loss; {way_out}")
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ValueError(f"the batch is {type(batch).__name__}, and not (inputs, target); {way_out}")
    inputs, target = batch
    return model, inputs, target, loss


def _chosen(model: Module, patterns: Sequence[str]) -> list[str]:
    """The paths of the layers that match."""
    paths = [path for path, module in model.named_modules() if next(module.children(), None) is None]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(f"no layer is called {pattern!r}; the layers are {', '.join(paths)}")
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def _worst(report: Report) -> float:
    """The largest error in ulps; of NaN, ∞."""
    errors = [row.error_ulps for row in report.rows if row.error_ulps is not None]
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)
