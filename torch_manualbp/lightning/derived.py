"""``engine="derived"``: the training steps of a LightningModule without an autograd graph.

Lightning's automatic optimization stays as it is, and asks for the same things in the same order::

    training_step         runs the derived program: forward, loss, backward, and the update if it is part of it
    zero_grad, backward   .grad becomes what the program computed
    clip, step            Lightning's and the optimizer's own

The update is part of the program where nobody needs ``.grad``: there is no clipping and no accumulation, no hook is to
run between ``training_step`` and the update, and the optimizer's update can be written out. ``.grad`` is None then, so
that the optimizer's own step has nothing to do.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

from torch_manualbp.derive import TrainStep
from torch_manualbp.derive.derived import KeptLayer

__all__ = ["DerivedEngine", "refuse_what_needs_autograd"]

HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls between ``training_step`` and the update, of callbacks and of the module."""

METHODS = ("backward", "optimizer_zero_grad", "configure_gradient_clipping", "optimizer_step")
"""And of the module alone."""

AUTOGRAD = 'engine="autograd" takes it'


class DerivedEngine:
    """Runs the training steps of a module by :class:`~torch_manualbp.TrainStep`.

    Args:
        base: the class of the module whose own methods are no reason to leave the update out of the program.
    """

    def __init__(self, base: type[pl.LightningModule]) -> None:
        self.base = base
        self.step: TrainStep | None = None
        """Of the optimizer of the running fit, or of the last one."""

        self.keep_layers = False
        """Whether the next training step is to leave what :class:`~torch_manualbp.TrainStep` has of its layers."""

        self._is_watched = False
        self._loss: Tensor | None = None
        self._gradients: list[tuple[Tensor, Tensor | None]] = []

    @property
    def layers(self) -> list[KeptLayer]:
        """Those that the last training step kept."""
        return [] if self.step is None else self.step.layers

    def __reduce__(self) -> Any:
        """A copy of the module has parameters of its own, and derives programs of its own."""
        return type(self), (self.base,)

    def training_step(self, module: Any, inputs: Any, target: Any, batch_idx: int) -> tuple[Tensor, Any]:
        """The loss of the batch, and the model's output if the module has metrics. A loss that is not finite has
        changed nothing."""
        step = self._step_of(module)
        step.keep_layers = self.keep_layers
        # TrainStep takes a tuple or a mapping for several arguments of the model; the module's model has one.
        inputs = inputs if isinstance(inputs, Tensor) else (inputs,)
        if self._folds(step, module.trainer):
            self._loss, self._gradients = step(inputs, target), []
            return self._loss, step.output
        n = module.trainer.accumulate_grad_batches
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        if batch_idx % n == 0:
            for p in parameters:
                p.grad = None  # as Lightning will have it, but only after this
        loss = step.backward(inputs, target, 1 / n)
        # Lightning zeroes .grad now, if this is the first batch of those to accumulate.
        self._gradients = [(p, p.grad) for p in parameters]
        for p in parameters:
            p.grad = None
        self._loss = loss / n
        return loss, step.output

    def backward(self, loss: Tensor) -> None:
        """Put the gradients that the program computed into ``.grad``."""
        if self._loss is None or loss.requires_grad or not torch.equal(loss, self._loss):
            raise RuntimeError(
                'engine="derived" has the gradients of loss(model(inputs), target) alone, and the training_step of the '
                f"subclass returns {'what asks for a gradient' if loss.requires_grad else 'another number'}; {AUTOGRAD}"
            )
        for p, gradient in self._gradients:
            p.grad = gradient
        self._loss, self._gradients = None, []

    def _folds(self, step: TrainStep, trainer: Any) -> bool:
        """Whether the update can be part of the program."""
        needs_gradients = trainer.accumulate_grad_batches != 1 or trainer.gradient_clip_val or self._is_watched
        return not needs_gradients and step.folds

    def _step_of(self, module: Any) -> TrainStep:
        optimizer = module.trainer.optimizers[0]
        if self.step is None or self.step.optimizer is not optimizer:
            refuse_what_needs_autograd(module.trainer)
            keep_output = len(module.train_metrics.metrics) > 0
            self.step = TrainStep(module.model, module.loss, optimizer, skip_nonfinite=True, keep_output=keep_output)
            self._is_watched = _is_watched(module, self.base)
        return self.step


def refuse_what_needs_autograd(trainer: pl.Trainer) -> None:
    """Refuse what works by hooks on autograd's graph, or on the loss before its backward pass.

    Raises:
        ValueError: the strategy, the precision or a flag of the trainer is such.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    problem = None
    if type(strategy) is not SingleDeviceStrategy:
        problem = f"trains on a single device, and not by {type(strategy).__name__}"
    elif getattr(precision, "scaler", None) is not None:
        problem = f"scales no loss, as the GradScaler of precision {precision.precision!r} has it"
    elif type(precision) not in (Precision, DoublePrecision, HalfPrecision, MixedPrecision):
        problem = f"does not know the precision plugin {type(precision).__name__}"
    elif torch.is_anomaly_enabled():
        problem = "has no graph for detect_anomaly to look at"
    if problem is not None:
        raise ValueError(f'engine="derived" {problem}; {AUTOGRAD}')


def _is_watched(module: Any, base: type[pl.LightningModule]) -> bool:
    """Whether something is to run between ``training_step`` and the update."""
    by_module = any(_is_overridden(module, base, name) for name in (*HOOKS, *METHODS))
    callbacks = [c for c in module.trainer.callbacks if getattr(c, "needs_gradients", True)]
    return by_module or any(_is_overridden(callback, pl.Callback, name) for callback in callbacks for name in HOOKS)


def _is_overridden(instance: object, base: type, name: str) -> bool:
    # An attribute of the instance, such as LambdaCallback sets, has no __func__.
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)
