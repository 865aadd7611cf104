"""Derived steps in a LightningModule of one's own.

::

    class Classifier(DerivedTraining, pytorch_lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = self.derived_step(self.net, self.criterion, x, y)
            self.log("train_loss", loss)
            return loss
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp.derive import TrainStep
from torch_manualbp.derive.update import structure_of
from torch_manualbp.lightning.derived import (
    HOOKS,
    OWN_PACKAGES,
    DerivedEngine,
    refuse_what_needs_autograd,
    take_clipping,
)
from torch_manualbp.lightning.root import pl

__all__ = ["DerivedTraining"]

MOST_STEPS = 32
"""Steps of one fit that have programs of their own: more come of functions that are made anew at each batch."""

_ACCUMULATES = ("accumulate", "clip_norm", "clip_value")

_FREE = ("training_step", "validation_step", "log", "on_fit_start", "on_train_start", "on_train_epoch_start")
"""Methods of a module that have no gradients to look at, or ask for derived steps themselves."""

_OTHER_LOSS = (
    "derived_step has made the update, and training_step returns {}: return the loss of derived_step as it is, or take "
    "derived_loss, whose gradients Lightning scales, adds up, clips and steps with as ever"
)


class DerivedTraining:
    """Gives a LightningModule, which it comes before among the bases, training steps without an autograd graph.

    ``derived_step`` is the whole step: it zeroes the gradients, runs forward, loss and backward, and updates. Under
    manual optimization it does so when it is called, and counts in ``global_step`` as ``optimizer.step()`` does. Under
    automatic optimization ``training_step`` returns its loss. The update is part of the program where nobody may look
    at ``.grad`` in between: no accumulation of the Trainer, no hook of yours, in the module or a callback, that
    Lightning calls around the update; the Trainer's clipping is part of it, too. (A module or callback whose hooks do
    not look at ``.grad`` says so by ``needs_gradients = False``.) Otherwise Lightning goes its own course with the same
    gradients.

    ``derived_loss`` is the loss, whose ``backward`` adds the gradients to ``.grad``: for what is scaled, added to
    another loss, or stepped with by hand.

    What would train otherwise than it says is refused: another loss than that of ``derived_step`` returned, two of them
    in one automatic ``training_step``, a :class:`~torch_manualbp.TrainStep`'s own ``backward`` there.
    """

    needs_gradients = True

    def derived_step(
        self, model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, optimizer: int = 0, **options: Any
    ) -> Tensor:
        """The whole training step on a batch, for the parameters of one optimizer.

        Args:
            model: a network of the module, of what :class:`~torch_manualbp.TrainStep` takes.
            loss: a function or module of (output, target), the same object at each step.
            inputs: a tensor, a tuple of the model's arguments, or a mapping of them by name.
            target: what the loss takes besides the output.
            optimizer: the place of the optimizer in what ``configure_optimizers`` returns.
            options: of :class:`~torch_manualbp.TrainStep`. With several optimizers ``freeze_others`` is True unless
                said otherwise: parameters of other optimizers are constants.

        Returns:
            The loss before the update. ``derived(...)`` has the model's output with ``keep_output=True``.
        """
        given = [name for name in _ACCUMULATES if name in options]
        if given:
            raise ValueError(f"derived_step takes no {given[0]}: the Trainer accumulates and clips, or you do by hand")
        module: Any = self
        state = self._state()
        step = self.derived(model, loss, optimizer, **options)
        trainer = module.trainer
        if module.automatic_optimization:
            if state.returned is not None:
                raise RuntimeError(
                    "a second derived_step in one automatic training_step, whose first has made its update: take "
                    "derived_loss for each and return their sum, or optimize manually"
                )
            if not state.may_fold or not step.folds:
                return state.engine.with_gradients(step, inputs, target)
            skipped = step.skipped
            take_clipping(step, trainer)
            C = TrainStep.__call__(step, inputs, target)
            state.returned = C.detach().requires_grad_()
            state.is_skipped = step.skipped > skipped
            return state.returned
        theirs = trainer.strategy._lightning_optimizers[optimizer]
        if step.folds and not state.is_watched(module):
            theirs._on_before_step()
            C = TrainStep.__call__(step, inputs, target)
            theirs._on_after_step()
            return C
        theirs.zero_grad()
        C = state.engine.with_gradients(step, inputs, target)
        module.manual_backward(C)
        theirs.step()
        return C.detach()

    def derived_loss(
        self, model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, optimizer: int = 0, **options: Any
    ) -> Tensor:
        """The loss on a batch, whose ``backward`` adds the gradients that the program computed to ``.grad``.

        The arguments are those of ``derived_step``.
        """
        step = self.derived(model, loss, optimizer, **options)
        return self._state().engine.with_gradients(step, inputs, target)

    def derived(self, model: Module, loss: Callable[..., Tensor], optimizer: int = 0, **options: Any) -> TrainStep:
        """What runs the steps of a model and a loss: ``source``, ``output`` and ``deltas`` are there to read.

        Raises:
            ValueError: there is no fit under way, or the trainer is of a kind that needs autograd.
        """
        module: Any = self
        trainer = module._trainer
        if trainer is None or not trainer.training:
            raise ValueError("derived steps are of a training_step: take the model itself to validate and to predict")
        state = self._state()
        if state.optimizers is not trainer.optimizers:
            refuse_what_needs_autograd(trainer)
            state.begin(trainer.optimizers)
        if not 0 <= optimizer < len(trainer.optimizers):
            raise ValueError(f"optimizer is {optimizer}: configure_optimizers returns {len(trainer.optimizers)}")
        key = model, loss, optimizer, tuple(sorted(options.items()))
        step = state.steps.get(key)
        if step is None:
            if len(state.steps) >= MOST_STEPS:
                raise ValueError(
                    f"{MOST_STEPS} steps have been derived for different models, losses and options: the last loss is "
                    f"{loss!r}; give a method or a module, and not a function that is made anew at each batch"
                )
            options = {"freeze_others": len(trainer.optimizers) > 1, **options}
            step = state.steps[key] = _ModuleStep(model, loss, trainer.optimizers[optimizer], **options)
        return step

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's course of ``zero_grad``, ``backward`` and ``step``, but where a derived step is all of it."""
        module: Any = self
        state = self._state()
        if not state.takes_closure(module, optimizer_closure):
            self._lightning_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        state.returned, state.may_fold = None, True
        try:
            with torch.enable_grad():
                result = optimizer_closure._step_fn()
            made: Tensor | None = state.returned
            is_skipped = state.is_skipped
        finally:
            state.close()
        if made is None:
            optimizer_closure._step_fn = lambda: result
            self._lightning_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif result.closure_loss is None and not is_skipped:
            raise RuntimeError(_OTHER_LOSS.format("None"))
        elif result.closure_loss is not None and not _is_that(result.closure_loss, made):
            raise RuntimeError(_OTHER_LOSS.format("another loss"))
        else:
            result.closure_loss = None if result.closure_loss is None else result.closure_loss.detach()
            optimizer_closure._result = result
            state.engine.count_zeroing(module.trainer)

    # Lightning warns of accumulation where a user's own hook is not called at each batch, and this is none.
    optimizer_step.__wrapped__ = pl.LightningModule.optimizer_step  # type: ignore[attr-defined]

    def _lightning_step(self, *args: Any) -> None:
        super().optimizer_step(*args)  # type: ignore[misc]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's, which says what is wrong where there is nothing to go back through."""
        if not loss.requires_grad:
            raise RuntimeError(
                "training_step returns a loss without gradients, such as that of TrainStep's own call or backward: "
                "return the loss of self.derived_step, or set self.automatic_optimization = False"
            )
        super().backward(loss, *args, **kwargs)  # type: ignore[misc]

    def _state(self) -> _State:
        state: _State = vars(self).setdefault("_derived_state", _State())
        return state


class _ModuleStep(TrainStep):
    """A step that a LightningModule has, whose own call would be made beside Lightning's count of steps."""

    def __call__(self, inputs: Any, target: Any) -> Tensor:
        raise RuntimeError("call derived_step of the LightningModule, which counts the step in global_step")

    def update(self) -> None:
        raise RuntimeError("call step() of self.optimizers(), which counts the step in global_step")


class _State:
    """What a module's derived steps have in a fit."""

    def __init__(self) -> None:
        self.engine = DerivedEngine()
        self.optimizers: Any = None
        self.steps: dict[Any, TrainStep] = {}
        self.may_fold = False
        """Whether the update may be made in the automatic ``training_step`` that is under way."""

        self.returned: Tensor | None = None
        """The loss of the derived step that was made in it."""

        self.is_skipped = False
        """Whether that step updated nothing, since its loss is not finite."""

    def __reduce__(self) -> Any:
        """A copy of the module has parameters of its own, and derives programs of its own."""
        return _State, ()

    def begin(self, optimizers: Any) -> None:
        """Forget the last fit."""
        self.optimizers = optimizers
        self.steps = {}
        self.engine.forget()

    def close(self) -> None:
        """Forget the training step that was under way."""
        self.returned, self.may_fold = None, False

    def takes_closure(self, module: Any, closure: Any) -> bool:
        """Whether a training step may make its update."""
        trainer = module.trainer
        is_plain = trainer.accumulate_grad_batches == 1
        # Of other optimizers some call the closure again, and then the training step is to be made again.
        is_plain = is_plain and structure_of(trainer.optimizers[0]) is not None
        return is_plain and self.engine.passes_by(trainer, closure) and not self.is_watched(module)

    def is_watched(self, module: Any) -> bool:
        """Whether a hook of the user's may look at ``.grad`` around the update."""
        watches = module.needs_gradients and (
            self.engine.is_defined_by(type(module), _has_hooks) or _has_hooks_of_its_own(module)
        )
        return watches or self.engine.is_watched(module.trainer.callbacks)


_WATCHING = tuple(name for name in HOOKS if name not in _FREE and not name.startswith("on_validation"))


def _has_hooks(cls: Any) -> bool:
    methods = (getattr(cls, name, None) for name in _WATCHING)
    return any(m.__module__.partition(".")[0] not in OWN_PACKAGES for m in methods if m is not None)


def _has_hooks_of_its_own(module: Any) -> bool:
    return not set(_WATCHING).isdisjoint(vars(module))


def _is_that(returned: Tensor, made: Tensor) -> bool:
    """Whether what Lightning has of a ``training_step`` is the loss itself, which it divides by one."""
    node = returned.grad_fn
    if node is None or node.name() != "DivBackward0":
        return False
    parts = [part for part, _ in node.next_functions if part is not None]
    return len(parts) == 1 and getattr(parts[0], "variable", None) is made
