"""The LightningModule."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from torch_manualbp.derive import TrainStep
from torch_manualbp.lightning.checkpoints import (
    CheckpointError,
    contents,
    hyper_parameters,
    prepare,
    random_states,
    read,
)
from torch_manualbp.lightning.config import instantiate, plain_copy, refuse_too_large
from torch_manualbp.lightning.derived import DerivedEngine, refuse_what_needs_autograd
from torch_manualbp.lightning.metrics import EpochMetrics
from torch_manualbp.lightning.nonfinite import NonFiniteLossError, cause_of_nonfinite_loss
from torch_manualbp.lightning.root import pl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ManualBackpropModule"]

Config = Mapping[str, Any]
ADAM: Config = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}

KINDS: dict[str, Any] = {"loss": Module, "optimizer": Optimizer, "scheduler": (LRScheduler, ReduceLROnPlateau)}
"""What a configuration describes, where a function would do as well."""

STEP_LOSS = "train_loss_step"
_RNG_STATES = "torch_manualbp.rng_states"
_GIVEN_AS_OBJECT = "given_as_object"


class ManualBackpropModule(pl.LightningModule):
    """Trains ``model`` on batches ``(inputs, target)`` with ``loss(model(inputs), target)``.

    Each argument is a configuration (see :mod:`torch_manualbp.lightning.config`) or an object. What was given by
    configuration is saved in the checkpoint: given everything so, ``ManualBackpropModule.load_from_checkpoint(path)``
    needs no more. What was given as an object is then passed again: ``load_from_checkpoint(path, model=...)``.
    Checkpoints are written whole or not at all.

    Logged at each step: ``train_loss_step``, into the progress bar, and at the trainer's ``log_every_n_steps``.
    Logged over each epoch, on all samples of all processes: ``train_loss``, ``val_loss``, ``test_loss``, and under
    ``train_<name>``, ``val_<name>``, ``test_<name>`` the metrics.

    The checkpoint carries the state of torch's CPU random numbers, and ``Trainer.fit(..., ckpt_path=...)`` goes on with
    it: resumed from a checkpoint of an epoch's end, a run ends with the parameters, to the last bit, that it would have
    ended with uninterrupted, also where the model draws random numbers. The data loader must not draw from the same
    stream: give it a ``generator`` of its own, and an order that follows from the epoch.

    Args:
        model: the network.
        loss: a function or module of (output, target) that returns one number, for epochs the mean over the samples.
        optimizer: a configuration without the parameters, or a function of them.
        scheduler: of learning rates; a configuration without the optimizer, or a function of it. The configuration
            takes Lightning's ``interval`` ("epoch"), ``frequency`` (1) and ``monitor`` besides; ``ReduceLROnPlateau``
            monitors "val_loss" unless told otherwise.
        metrics: names and what to measure: ``torchmetrics.Metric`` of (output, target), or configurations of them.
        engine: what trains: "autograd", the rules as nodes of autograd's graph, with every strategy; or "derived",
            :class:`~torch_manualbp.TrainStep`, without a graph, on a single device or by "ddp". Only the speed differs,
            and what ``.grad`` holds when training is over: with "derived" nothing where no callback and no method of a
            subclass could look at it before. A callback that does not says so by ``needs_gradients = False``.
        groups: parameter groups by name: a pattern of parameter names, as ``fnmatch`` has it, and the options that the
            optimizer takes for the parameters it fits first, such as ``{"*.bias": {"weight_decay": 0.0}}``. Those that
            fit none have the optimizer's own options.
        unpack: a function that makes (inputs, target) of a batch, for batches of another form.
        step: further arguments of :class:`~torch_manualbp.TrainStep` for ``engine="derived"``.
        allow: packages, modules or classes that configurations may name, besides those of torch, torchmetrics and this
            package, such as ``("my_package",)``. It is not saved: whoever loads a checkpoint allows anew.

    Raises:
        ValueError: a configuration cannot be followed; the message names the place in it.
        TypeError: an argument is neither a configuration nor an object of its kind; a batch is not (inputs, target).
        NotDerivableError: the engine is "derived", and the first training step cannot be derived.
        NonFiniteLossError: the training loss is NaN or infinite; the message names the first layer whose output is.
    """

    def __init__(
        self,
        model: Module | Config,
        loss: Callable[[Any, Any], Tensor] | Config,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] | Config = ADAM,
        scheduler: Callable[[Optimizer], Any] | Config | None = None,
        metrics: Mapping[str, Metric | Config] | None = None,
        engine: str = "autograd",
        groups: Mapping[str, Config] | None = None,
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        step: Config | None = None,
        allow: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"model": model, "loss": loss, "optimizer": optimizer, "scheduler": scheduler}
        given |= {"metrics": metrics, "engine": engine, "groups": groups, "unpack": unpack, "step": step}
        _refuse_missing(given)
        if engine not in ("autograd", "derived"):
            raise ValueError(f"engine is {engine!r}: it takes 'autograd' or 'derived'")
        self.save_hyperparameters({name: _hyperparameter(name, value) for name, value in given.items()})
        self.model: Module = _built("model", model, Module, "a torch.nn.Module", allow)
        self.loss = _built("loss", loss, Callable, "a function of (output, target)", allow)
        measured = _built_metrics(metrics, allow)
        self.train_metrics = EpochMetrics("train", measured)
        self.val_metrics = EpochMetrics("val", measured)
        self.test_metrics = EpochMetrics("test", measured)
        self._allow = allow
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._rng_states: list[Tensor] | None = None
        if unpack is not None and not callable(unpack):
            raise TypeError(f"unpack is {unpack!r}: it takes a function of a batch")
        if step is not None and engine != "derived":
            raise ValueError(f"step is {step!r}, which takes engine='derived'")
        self._groups = {pattern: dict(options) for pattern, options in (groups or {}).items()}
        self._unpack = unpack
        self._engine = DerivedEngine(step or {}) if engine == "derived" else None

    @property
    def derived_step(self) -> TrainStep | None:
        """What ran the last training step of ``engine="derived"``; ``derived_step.source`` are its formulas."""
        return None if self._engine is None else self._engine.step

    @property
    def derived_engine(self) -> DerivedEngine | None:
        """What runs the training steps of ``engine="derived"``."""
        return self._engine

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        allow: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """The module of a checkpoint, as Lightning loads it, of an author who need not be trusted.

        Args:
            weights_only: False for a checkpoint of a trusted author that holds more than tensors and plain data.
            allow: packages, modules or classes whose objects the checkpoint may ask for, besides those of torch,
                torchmetrics and this package.
            kwargs: what the checkpoint does not hold, or what is to take its place, such as ``model``.

        Raises:
            CheckpointError: the file cannot be read, or is no checkpoint of this module.
            TypeError: an object is missing that the checkpoint does not hold.
            OSError: there is no such file.
        """
        name = "the checkpoint" if hasattr(checkpoint_path, "read") else str(checkpoint_path)
        data = read(checkpoint_path)
        held = contents(data, name, weights_only is not False)
        given = {**hyper_parameters(held), **kwargs}
        _refuse_missing(given)
        safely = {} if weights_only is None else {"weights_only": weights_only}
        try:
            if not allow and hparams_file is None:
                _refuse_another_size(given.get("model"), held["state_dict"], strict is not False)
            return super().load_from_checkpoint(
                # What LightningCLI leaves in a checkpoint has Lightning make objects of any class.
                io.BytesIO(data),
                map_location,
                hparams_file,
                strict,
                allow=allow,
                _instantiator=None,
                **safely,
                **kwargs,
            )
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{name} is no checkpoint of {cls.__name__}: {message}") from error

    def forward(self, inputs: Any) -> Any:
        """The model's output."""
        return self.model(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of the batch, checked to be finite."""
        inputs, target = self._inputs_and_target(batch, "training_step")
        rng_state = torch.get_rng_state()
        trainer = self._trainer
        is_training = trainer is not None and trainer.training
        if self._engine is not None and is_training and torch.is_grad_enabled():
            loss, output = self._engine.training_step(self, inputs, target)
        else:  # such as for a validation_step that asks for the loss of training
            output = self.model(inputs)
            loss = self.loss(output, target)
        size = _batch_size(inputs, target)
        value = self.train_metrics.update(loss, output, target, size)
        if not math.isfinite(value):
            cause = cause_of_nonfinite_loss(self.model, self.loss, inputs, target, rng_state)
            raise NonFiniteLossError(f"the loss is {value} at global step {self.global_step}: {cause}")
        if is_training:
            self._show(trainer, loss.detach(), size)
        return loss

    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined] # asked for at each step

    def _show(self, trainer: Any, loss: Tensor, size: int) -> None:
        """Log the loss of this step where a bar or a logger takes it. Lightning's ``log`` takes as long as a small
        step, and so is asked the first time alone; then its number is written where it keeps it."""
        if trainer.progress_bar_callback is None:
            is_logged = (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps == 0
            if not (is_logged and trainer.loggers):
                return
        kept = (trainer._results or {}).get(f"training_step.{STEP_LOSS}")
        if kept is None:
            self.log(STEP_LOSS, loss, prog_bar=True, batch_size=size)
        else:
            kept.forward(loss, size)
            kept.has_reset = False

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's course of ``zero_grad``, ``backward`` and ``step``, but where the engine's training step is all
        of it."""
        if self._engine is None or not self._engine.steps(self, optimizer_closure):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    # Lightning warns of accumulation where a user's own hook is not called at each batch, and this is none.
    optimizer_step.__wrapped__ = pl.LightningModule.optimizer_step  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # which Lightning sets forty times a step, and torch's own takes 3 µs for
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Put the gradients into ``.grad``, unless ``engine="derived"`` has made the update with them."""
        if self._engine is None or not self._engine.folded:
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the batch."""
        self._evaluate(batch, "validation_step", self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the batch."""
        self._evaluate(batch, "test_step", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The model's output for inputs with or without a target: ``inputs``, ``(inputs,)`` or ``(inputs, target)``."""
        if isinstance(batch, list | tuple) and len(batch) == 1:
            return self.model(batch[0])
        return self.model(batch if isinstance(batch, Tensor) else self._inputs_and_target(batch, "predict_step")[0])

    def setup(self, stage: str) -> None:
        """Refuse a trainer that the engine cannot train by, or whose checkpoints cannot be written.

        Raises:
            OSError: a folder of checkpoints cannot be written to.
        """
        prepare(self.trainer)
        if self._engine is not None and stage == pl.trainer.states.TrainerFn.FITTING:
            refuse_what_needs_autograd(self.trainer, by_ddp=True)

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's samples."""
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's samples."""
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the last epoch's samples."""
        self.test_metrics.reset()

    def on_train_epoch_end(self) -> None:
        """Log the epoch."""
        self._log(self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch."""
        self._log(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the epoch."""
        self._log(self.test_metrics)

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters, and the scheduler with Lightning's settings for it."""
        optimizer = _built(
            "optimizer", self._optimizer, Callable, "a function of the parameters", self._allow, self._grouped()
        )
        if self._scheduler is None:
            return optimizer
        scheduler, settings = self._scheduler, {}
        if isinstance(scheduler, Mapping):
            settings = {k: v for k, v in scheduler.items() if k in ("interval", "frequency", "monitor")}
            scheduler = {k: v for k, v in scheduler.items() if k not in settings}
        built = _built("scheduler", scheduler, Callable, "a function of the optimizer", self._allow, optimizer)
        if isinstance(built, ReduceLROnPlateau):
            settings.setdefault("monitor", "val_loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": built, **settings}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the random state of every process into the checkpoint, which only one of them writes."""
        states = cast(Tensor, self.all_gather(torch.get_rng_state().to(self.device)))
        # Cloned one by one: torch.set_rng_state crashes on a view with an offset into its storage (torch 2.13).
        checkpoint[_RNG_STATES] = [state.clone() for state in states.cpu().reshape(-1, states.shape[-1])]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the random state out of the checkpoint, if it is to go on training from."""
        resumed = self._trainer is not None and self.trainer.state.fn == pl.trainer.states.TrainerFn.FITTING
        self._rng_states = random_states(checkpoint.get(_RNG_STATES)) if resumed else None

    def on_train_start(self) -> None:
        """Go on with the checkpoint's random numbers, now that the loaders and the callbacks have drawn theirs."""
        states, self._rng_states = self._rng_states, None
        if states is not None and self.global_rank < len(states):
            torch.set_rng_state(states[self.global_rank])

    def _grouped(self) -> Any:
        """The parameters, in groups if there are any."""
        if not self._groups:
            return self.parameters()
        groups: dict[str | None, dict[str, Any]] = {None: {}}
        groups.update(self._groups)
        members: dict[str | None, list[Parameter]] = {pattern: [] for pattern in groups}
        for name, parameter in self.named_parameters():
            members[next((g for g in self._groups if fnmatchcase(name, g)), None)].append(parameter)
        for pattern in self._groups:
            if not members[pattern]:
                raise ValueError(f"groups has {pattern!r}, which fits none of the parameters that those before it left")
        return [{"params": members[pattern], **groups[pattern]} for pattern in groups if members[pattern]]

    def _inputs_and_target(self, batch: Any, step: str) -> tuple[Any, Any]:
        if self._unpack is not None:
            batch = self._unpack(batch)
        if isinstance(batch, list | tuple) and len(batch) == 2:
            return batch[0], batch[1]
        form = type(batch).__name__ + (f" of length {len(batch)}" if hasattr(batch, "__len__") else "")
        raise TypeError(
            f"{step} takes batches (inputs, target), not a {form}; have the data loader make them so, or unpack="
        )

    def _evaluate(self, batch: Any, step: str, metrics: EpochMetrics) -> None:
        inputs, target = self._inputs_and_target(batch, step)
        output = self.model(inputs)
        metrics.update(self.loss(output, target), output, target, _batch_size(inputs, target))

    def _log(self, metrics: EpochMetrics) -> None:
        # The values are those of all processes already; without sync_dist Lightning warns that they might not be.
        self.log_dict(metrics.compute(), prog_bar=True, sync_dist=True)


def _batch_size(inputs: Any, target: Any) -> int:
    sizes = (t.shape[0] for t in (target, inputs) if isinstance(t, Tensor) and t.dim() > 0)
    return next(sizes, 1)


def _built(name: str, given: Any, kind: Any, accepted: str, allow: str | Sequence[str], *args: Any) -> Any:
    """What the argument ``name`` stands for; ``args`` are what a configuration or a function of them lacks."""
    if isinstance(given, Mapping):
        return instantiate(given, *args, path=name, allow=allow, kind=KINDS.get(name, kind))
    if not isinstance(given, kind) or (inspect.isclass(given) and not args):
        raise TypeError(f"{name} is {given!r}: it takes {accepted}, or {{'class_path': ..., 'init_args': ...}}")
    return given(*args) if args else given


def _built_metrics(given: Any, allow: str | Sequence[str]) -> dict[str, Metric]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or "class_path" in given:
        raise TypeError(f"metrics is {given!r}: it takes names and metrics, such as {{'accuracy': ...}}")
    if "loss" in given:
        raise ValueError("metrics has the name 'loss', which is the loss's own; call the metric otherwise")
    return {
        name: _built(f"metrics[{name!r}]", metric, Metric, "a torchmetrics.Metric", allow)
        for name, metric in given.items()
    }


def _hyperparameter(name: str, given: Any) -> Any:
    """The argument as plain data if it is, or else what class it was of."""
    refuse_too_large(given, name)
    try:
        return plain_copy(given)
    except TypeError:
        configured = _given_by_command_line().get(name)
        if configured is not None:
            return plain_copy(configured)
        cls = given if inspect.isclass(given) or inspect.isfunction(given) else type(given)
        return {_GIVEN_AS_OBJECT: f"{cls.__module__}.{cls.__qualname__}"}


def _given_by_command_line() -> Mapping[str, Any]:
    """The configurations of the arguments, where LightningCLI has made objects of them."""
    given = pl.core.mixins.hparams_mixin._given_hyperparameters.get()
    return given if isinstance(given, Mapping) else {}


def _refuse_another_size(model: Any, state: Mapping[str, Any], strict: bool) -> None:
    """Say that a model given by configuration is not the one whose state is there, before memory is taken for it."""
    if not isinstance(model, Mapping):
        return
    with torch.device("meta"):
        expected = {f"model.{name}": t for name, t in instantiate(model, path="model").state_dict().items()}
    for name, t in expected.items():
        if not isinstance(t, Tensor) or isinstance(t, UninitializedTensorMixin):
            continue
        if name not in state and strict:
            raise ValueError(f"it lacks {name} of the model")
        if name in state and t.shape != state[name].shape:
            raise ValueError(f"{name} is of shape {tuple(state[name].shape)}, and the model's of {tuple(t.shape)}")


def _refuse_missing(given: dict[str, Any]) -> None:
    """Say what to pass to ``load_from_checkpoint`` for what the checkpoint holds by name only."""
    missing = [name for name, value in given.items() if isinstance(value, Mapping) and _GIVEN_AS_OBJECT in value]
    if missing:
        call = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"the checkpoint does not hold {' and '.join(missing)}, given as object: load_from_checkpoint(path, {call})"
        )
