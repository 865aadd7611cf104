"""``engine="derived"``: the training steps of a LightningModule without an autograd graph of the model.

The loss that ``training_step`` returns is a node of autograd's graph whose gradients the program has computed already.
What Lightning, the module and callbacks do with it is as ever: return it, scale it, add to it, drop it, clip or
accumulate ``.grad``, make the optimizer's step.

The update is part of the program where only code of Lightning's and of this package runs between two training steps,
there is no accumulation and no manual optimization, and the optimizer's update can be written out; the Trainer's
clipping is part of it, then.
``.grad`` is None then, so that the optimizer's own step has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torch_manualbp._torch import foreach_mul, pytree
from torch_manualbp.derive import TrainStep
from torch_manualbp.derive.derived import KeptLayer
from torch_manualbp.derive.processes import Processes
from torch_manualbp.lightning.root import pl

__all__ = ["DerivedEngine", "refuse_what_needs_autograd", "take_clipping"]

OTHERS = ("backward", "optimizer_zero_grad", "configure_gradient_clipping", "clip_gradients", "manual_backward", "log")
HOOKS = tuple(
    name
    for name in sorted({*dir(pl.Callback), *dir(pl.LightningModule)} - {"global_step", "on_gpu"})
    if (name in OTHERS or name.startswith("on_") or name.endswith("_step"))
    and not name.startswith(("on_test", "on_predict", "test_", "predict_"))
)
"""What Lightning calls of callbacks and of the module in a fit: where code of the user's may look at ``.grad``."""

_HOOKS = frozenset(HOOKS)
PASSED_BY = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""What Lightning calls of callbacks between a training step and the end of its update."""

OWN_PACKAGES = ("pytorch_lightning", "lightning", "torch_manualbp")

AUTOGRAD = 'engine="autograd" takes it'


class DerivedEngine:
    """Runs the training steps of a module by :class:`~torch_manualbp.TrainStep`."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        """Arguments of :class:`~torch_manualbp.TrainStep`."""

        self.step: TrainStep | None = None
        """The step of the optimizer of the running fit, or of the last one."""

        self.layers: list[KeptLayer] = []
        """What :class:`~torch_manualbp.TrainStep` has of its layers, of the training steps since ``keep_layers`` was
        set, as far as their gradients were asked for."""

        self._keep_layers = False
        self.folded = False
        """Whether the last training step has made its update."""

        self._folding: TrainStep | None = None
        """What makes the training step that runs, where its update is part of it."""

        self._defining: dict[tuple[type, Any], bool] = {}
        """Which classes define what, in this fit; see :meth:`is_defined_by`."""

    def __reduce__(self) -> Any:
        """A copy of the module has parameters of its own, and derives programs of its own."""
        return type(self), (self.options,)

    @property
    def keep_layers(self) -> bool:
        """Whether training steps leave ``layers``."""
        return self._keep_layers

    @keep_layers.setter
    def keep_layers(self, value: bool) -> None:
        self._keep_layers = value
        if value:
            self.layers = []

    def training_step(self, module: Any, inputs: Any, target: Any) -> tuple[Tensor, Any]:
        """The loss of the batch, and the model's output if the module has metrics. A loss that is not finite has
        changed nothing."""
        tensors: tuple[Any, ...] = (inputs, target)
        if not type(inputs) is type(target) is Tensor:  # whose leaves take 5 µs to find
            tensors = tuple(leaf for leaf in pytree.tree_leaves(tensors) if isinstance(leaf, Tensor))
        if any(tensor.requires_grad for tensor in tensors):
            raise ValueError(
                f'engine="derived" has the gradients of parameters alone, and the batch asks for its own; {AUTOGRAD}'
            )
        step = self._folding or self._step_of(module)
        # TrainStep takes a tuple or a mapping for several arguments of the model; the module's model has one.
        inputs = inputs if isinstance(inputs, Tensor) else (inputs,)
        self.layers = self.layers if self.keep_layers else []
        self.folded = self._folding is not None or self._is_folding(step, module)
        if self.folded:
            take_clipping(step, module.trainer)
            loss = step(inputs, target)
            self.layers = [*self.layers, *step.layers]
        else:
            loss = self.with_gradients(step, inputs, target)
        return loss, step.output

    def steps(self, module: Any, closure: Any) -> bool:
        """Make the training step of Lightning's ``closure``, if the update is part of it and nobody has anything to do
        between the two."""
        trainer = module.trainer
        if not self.passes_by(trainer, closure):
            return False
        step = self._step_of(module)
        if not self._is_folding(step, module):
            return False
        self.count_zeroing(trainer)
        self._folding = step
        try:
            with torch.enable_grad():
                closure._result = _result_of(module, trainer, closure._step_fn)
        finally:
            self._folding = None
        return True

    def passes_by(self, trainer: Any, closure: Any) -> bool:
        """Whether nobody has anything to do between a training step and the end of its update but make it."""
        kind = pl.loops.optimization.automatic.Closure
        return (
            type(closure) is kind
            and type(trainer.profiler) is pl.profilers.PassThroughProfiler
            and not any(self.is_defined_by(type(callback), _passed_by) for callback in trainer.callbacks)
        )

    def count_zeroing(self, trainer: Any) -> None:
        """Count, as Lightning does, that gradients have been zeroed."""
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        progress.increment_started()
        progress.increment_completed()

    def forget(self) -> None:
        """Look at the classes of callbacks anew, as another fit begins."""
        self._defining = {}

    def _is_folding(self, step: TrainStep, module: Any) -> bool:
        """Whether the update can be part of the program."""
        trainer = module.trainer
        is_plain = trainer.accumulate_grad_batches == 1
        if trainer.world_size > 1 and any(getattr(one, "measures_layers", False) for one in trainer.callbacks):
            return False  # of layers they show the gradients of all processes, which ``.grad`` has
        return bool(is_plain and module.automatic_optimization and step.folds and not self._is_watched(module))

    def _is_watched(self, module: Any) -> bool:
        """Whether code that is neither Lightning's nor this package's may look at ``.grad``, or keep the update from
        being made: a method of a subclass, of a callback, or one that is set on an instance."""
        return self._is_watching(module) or self.is_watched(module.trainer.callbacks)

    def is_watched(self, callbacks: Sequence[Any]) -> bool:
        """Whether a callback may do so."""
        return any(self._is_watching(one) for one in callbacks if getattr(one, "needs_gradients", True))

    def _is_watching(self, one: Any) -> bool:
        return self.is_defined_by(type(one), _is_foreign) or (not _HOOKS.isdisjoint(vars(one)) and _is_foreign(one))

    def is_defined_by(self, cls: type, what: Callable[[Any], bool]) -> bool:
        """What ``what`` says of the class, looked at once a fit, since it takes as long as a layer's step."""
        key = cls, what
        if key not in self._defining:
            self._defining[key] = what(cls)
        return self._defining[key]

    def with_gradients(self, step: TrainStep, inputs: Any, target: Any) -> Tensor:
        """The loss, whose backward pass adds what the program computed to ``.grad``."""
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        before = [p.grad for p in parameters]
        computed: list[Tensor | None] = []
        try:
            for p in parameters:
                p.grad = None
            loss = step.backward(inputs, target)
            computed = [p.grad for p in parameters]
        finally:
            for p, gradient in zip(parameters, before, strict=True):
                p.grad = gradient
        learnt = [(p, gradient) for p, gradient in zip(parameters, computed, strict=True) if gradient is not None]
        kept = [_copied(layer) for layer in step.layers]

        def on_backward(upstream: Tensor) -> None:
            self.layers = [*self.layers, *(_scaled(layer, upstream) for layer in kept)]

        with torch.enable_grad():
            apply: Any = _Computed.apply
            out: Tensor = apply(loss, [g for _, g in learnt], on_backward, *(p for p, _ in learnt))
        return out

    def _step_of(self, module: Any) -> TrainStep:
        optimizers = module.trainer.optimizers
        if len(optimizers) != 1:
            raise ValueError(f'engine="derived" trains by one optimizer, and here are {len(optimizers)}; {AUTOGRAD}')
        step = self.step
        if step is None or step.optimizer is not optimizers[0]:
            refuse_what_needs_autograd(module.trainer, by_ddp=True)
            self.forget()
            options = {"skip_nonfinite": True, "process_group": self._processes(module), **self.options}
            step = self.step = TrainStep(module.model, module.loss, optimizers[0], **options)
        step.model, step.loss, step.keep_layers = module.model, module.loss, self.keep_layers
        step.keep_output = module.train_metrics.measures
        return step

    def _processes(self, module: Any) -> Processes | None:
        """The processes that train together. Of what the program does not update itself, the gradients reach ``.grad``
        by way of autograd's nodes, where DistributedDataParallel reduces them."""
        ddp: Any = module.trainer.strategy.model
        if not isinstance(ddp, DistributedDataParallel):
            return None
        return Processes(
            ddp.process_group,
            broadcasts=False,  # which DistributedDataParallel does before this forward
            reduces=lambda: self.folded and ddp.require_backward_grad_sync,
            device=str(module.device),
        )


def _result_of(module: Any, trainer: Any, step_fn: Any) -> Any:
    """What Lightning's ``step_fn`` returns of a training step of this package. Lightning passes it through the strategy
    and the precision; where neither has anything to add, that takes as long as two layers, and is left out."""
    automatic = pl.loops.optimization.automatic
    if (
        type(trainer.strategy) is not pl.strategies.SingleDeviceStrategy
        or type(trainer.precision_plugin) is not pl.plugins.precision.Precision
        or getattr(getattr(step_fn, "func", None), "__func__", None) is not _TRAINING_STEP
        or automatic._AutomaticOptimization.output_result_cls is not automatic.ClosureResult
    ):
        return step_fn()
    before = module._current_fx_name
    module._current_fx_name = "training_step"  # which log() asks for
    loss = module.training_step(*step_fn.args[0].values())
    module._current_fx_name = before
    return automatic.ClosureResult(loss)


_TRAINING_STEP = pl.loops.optimization.automatic._AutomaticOptimization._training_step


class _Computed(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], on_backward: Any, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.on_backward = gradients, on_backward
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(f'engine="derived" has no gradients of gradients; {AUTOGRAD}')
        ctx.on_backward(upstream)
        return None, None, None, *foreach_mul(ctx.gradients, upstream)


def _copied(layer: KeptLayer) -> KeptLayer:
    """The same with memory of its own, which the next step does not write over."""
    return layer.of_step(t.clone() for t in layer.numbers())


def _scaled(layer: KeptLayer, upstream: Tensor) -> KeptLayer:
    """The same of a loss that is multiplied by ``upstream``."""
    delta, da = (None if t is None else t * upstream for t in (layer.delta, layer.da))
    return replace(layer, delta=delta, da=da)


def take_clipping(step: TrainStep, trainer: pl.Trainer) -> None:
    """Have a step that makes its update clip gradients as the trainer does."""
    bound = trainer.gradient_clip_val or None
    by_value = trainer.gradient_clip_algorithm == "value"
    wanted = (None, bound) if by_value else (bound, None)
    if (step.clip_norm, step.clip_value) != wanted:
        step.clip_norm, step.clip_value = wanted


def refuse_what_needs_autograd(trainer: pl.Trainer, by_ddp: bool = False) -> None:
    """Refuse what works by hooks on autograd's graph, or on the loss before its backward pass.

    Args:
        by_ddp: whether several processes may train, by DDPStrategy.

    Raises:
        ValueError: the strategy, the precision or a flag of the trainer is such.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    problem = None
    if by_ddp and type(strategy) is pl.strategies.DDPStrategy:
        problem = _problem_of(strategy)
    elif type(strategy) is not pl.strategies.SingleDeviceStrategy:
        where = "on a single device or by DDPStrategy" if by_ddp else "on a single device"
        problem = f"trains {where}, and not by {type(strategy).__name__}"
    if problem is not None:
        pass
    elif getattr(precision, "scaler", None) is not None:
        problem = f"scales no loss, as the GradScaler of precision {precision.precision!r} has it"
    elif type(precision) not in (
        pl.plugins.precision.Precision,
        pl.plugins.precision.DoublePrecision,
        pl.plugins.precision.HalfPrecision,
        pl.plugins.precision.MixedPrecision,
    ):
        problem = f"does not know the precision plugin {type(precision).__name__}"
    elif torch.is_anomaly_enabled():
        problem = "has no graph for detect_anomaly to look at"
    if problem is not None:
        raise ValueError(f'engine="derived" {problem}; {AUTOGRAD}')


def _is_foreign(one: Any) -> bool:
    """Whether a module, a callback, or a class of them has a hook that is neither Lightning's nor this package's."""
    methods = (getattr(one, name, None) for name in HOOKS)
    return any(m.__module__.partition(".")[0] not in OWN_PACKAGES for m in methods if m is not None)


def _problem_of(strategy: Any) -> str | None:
    """What of a DDPStrategy has no program."""
    options = [name for name in ("find_unused_parameters", "static_graph") if strategy._ddp_kwargs.get(name)]
    options += [name for name in ("ddp_comm_hook", "model_averaging_period") if getattr(strategy, f"_{name}")]
    return f"takes no {', '.join(options)} of DDPStrategy" if options else None


def _passed_by(cls: Any) -> bool:
    """Whether a class of callbacks has something to do between a training step and the end of its update."""
    return any(getattr(cls, name) is not getattr(pl.Callback, name) for name in PASSED_BY)
