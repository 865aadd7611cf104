"""What becomes of every layer over training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from torch_manualbp.insight.figures import draw, refuse_path
from torch_manualbp.insight.refusals import ONE_PIECE, refuse_compiled
from torch_manualbp.insight.run import Measurement, NoiseScales
from torch_manualbp.lightning.custom import DerivedTraining
from torch_manualbp.lightning.module import ManualBackpropModule
from torch_manualbp.lightning.root import pl

__all__ = ["GradientFlow"]

PREFIX = "gradient_flow"
ITSELF = "module"
"""What the LightningModule is called in logs, if it has parameters of its own."""


class GradientFlow(pl.Callback):
    """Logs the statistics of every layer as ``gradient_flow/<layer>/<name>``, and draws them when training ends.

    A layer is a module with weights, by its path in the LightningModule; the names are those of
    :data:`torch_manualbp.insight.STATISTICS`: norm and quantiles of δ, of ∂C/∂W before clipping and of the update
    relative to the weight, shares of dead and saturated units, the gradient noise scale; that of all layers together
    is ``gradient_flow/noise_scale``. They go to all loggers, and not to the progress bar. Works with both engines of
    :class:`ManualBackpropModule`, with any other LightningModule, and with manual optimization, where each layer is
    measured at the first step of its optimizer in the batch. Where batches are accumulated, δ is that of the last.
    With several processes the first measures its own share of the batch (and ∂C/∂W, which is that of all).

    ``history`` holds what was measured, ``{"step": step of the logs, "layers": {layer: {name: number}}, "noise_scale":
    number}``; it is saved in checkpoints, and a resumed run goes on with it. ``RunStatistics`` of
    :mod:`torch_manualbp.insight` has the same for training loops of one's own.

    Args:
        path: where to save the figure when training ends; the suffix says the format, as for matplotlib.
        every_n_steps: how often to measure (default: ``Trainer.log_every_n_steps``).

    Raises:
        ValueError: ``every_n_steps`` is less than 1; the path has the suffix of no figure; or, when training starts,
            the model is compiled.
        ImportError: there is a path and no matplotlib; the message gives the command that installs it.
        OSError: no file can be written at the path.
    """

    def __init__(self, path: str | Path | None = None, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: it takes a number of at least 1, or None")
        self.path = None if path is None else Path(path)
        self.every_n_steps = every_n_steps
        self.history: list[dict[str, Any]] = []
        self._noise = NoiseScales()
        self._due = self._step = 0
        self._measurement: Measurement | None = None
        if path is not None:
            refuse_path(path)  # now rather than after training

    measures_layers = True
    """Whether it shows gradients layer by layer."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what has no layers to look at."""
        if getattr(pl_module, "_compiler_ctx", None) is not None:  # Lightning has unwrapped it by now
            raise ValueError(f"the LightningModule is compiled, {ONE_PIECE}: fit the module that it is of")
        if isinstance(pl_module, DerivedTraining):
            raise ValueError("GradientFlow looks at layers that autograd runs, or at a ManualBackpropModule's")
        refuse_compiled(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure from here on."""
        self._due = self._next(trainer, _step_of(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to measure, if this batch may be that of a step to be measured."""
        self._step = _step_of(trainer)
        if trainer.is_global_zero and self._step + 1 >= self._due > 0:
            engine = pl_module.derived_engine if isinstance(pl_module, ManualBackpropModule) else None
            model = pl_module if engine is None else pl_module.get_submodule("model")
            self._measurement = Measurement(model, engine, pl_module)
            self._measurement.__enter__()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure δ and ∂C/∂W; an AMP scaler has unscaled the gradients by now."""
        if self._measurement is not None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else scaler.get_scale()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._measurement.take_gradients(scale, parameters)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the update, and log."""
        measurement = self._closed()
        if measurement is None:
            return
        layers = measurement.layers()
        if not layers:  # no optimizer has made a step
            return
        step = self._step
        self._due = self._next(trainer, step + 1)
        entry = {"step": step, "layers": layers, "noise_scale": self._noise.update(layers)}
        self.history.append(entry)
        numbers = dict(_flat(entry))
        if self.every_n_steps is None:
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, rank_zero_only=True)
        else:  # at steps at which Lightning would log nothing
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave nothing hooked."""
        self._closed()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave nothing hooked where the module's ``on_train_batch_start`` has skipped the rest of the epoch."""
        self._closed()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the figure."""
        if self.path is not None and trainer.is_global_zero:
            self.figure(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The history and the means of the noise, as plain data."""
        return {"history": list(self.history), "noise": dict(self._noise.means)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.history = list(state_dict["history"])
        self._noise.means = dict(state_dict["noise"])

    def figure(self, path: str | Path | None = None) -> Any:
        """The history as a ``matplotlib.figure.Figure``, see :func:`torch_manualbp.insight.draw`; saved to ``path`` if
        given.

        Raises:
            ImportError: matplotlib is missing; the message gives the command that installs it.
        """
        return draw(self.history, path)

    def _closed(self) -> Measurement | None:
        """What was being measured, which is so no longer."""
        measurement, self._measurement = self._measurement, None
        if measurement is not None:
            measurement.__exit__(None, None, None)
        return measurement

    def _next(self, trainer: pl.Trainer, steps: int) -> int:
        """How many steps there are to be when the next is measured; 0 if none is to be."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # which the Trainer's connectors set
        every = every if self.every_n_steps is None else self.every_n_steps
        return (steps // every + 1) * every if every else 0


def _step_of(trainer: pl.Trainer) -> int:
    """The step that Lightning logs at and counts its interval by: batches that optimizers have taken a step after, and
    not, as ``global_step``, the steps of all optimizers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _flat(entry: Mapping[str, Any]) -> Any:
    for layer, numbers in entry["layers"].items():
        for name, number in numbers.items():
            yield f"{PREFIX}/{layer or ITSELF}/{name}", number
    if entry["noise_scale"] is not None:
        yield f"{PREFIX}/noise_scale", entry["noise_scale"]
