"""The statistics of a run, at every so many steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp.catalogue import CATALOGUE
from torch_manualbp.derive import TrainStep
from torch_manualbp.derive.derived import KeptLayer
from torch_manualbp.insight.local import Watch, own_parameters
from torch_manualbp.insight.record import Call
from torch_manualbp.insight.refusals import refuse_compiled
from torch_manualbp.insight.statistics import Weights, as_numbers, layer_statistics, weight_of
from torch_manualbp.insight.units import dead_and_saturated, unit_dim
from torch_manualbp.rules import Product

__all__ = ["Measurement", "RunStatistics"]

PRODUCTS = tuple(
    getattr(torch.nn, layer)
    for operation in CATALOGUE
    if isinstance(operation.rule.jacobian, Product)
    for layer in operation.layers.split()
)
"""The layers whose ∂C/∂W is δᵀ x."""

DECAY = 0.9
"""The decay of tr Σ and |G|² between measurements; one alone is mostly noise itself, McCandlish et al., A.1."""

Statistics = dict[str, dict[str, float]]
"""By layer and name."""


class RunStatistics:
    """Measures every so many steps what becomes of each layer, and is idle in between.

    ::

        statistics = RunStatistics(model, every=10)
        for x, y in batches:
            with statistics.step():                       # or step(train_step), around train_step(x, y)
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
        statistics.history[-1]["layers"]["fc1"]["update_ratio"]

    ``history`` is plain data: ``{"step": 10, "layers": {layer: {name: number}}, "noise_scale": number or None}``, with
    the names of :data:`~torch_manualbp.insight.STATISTICS`. A layer is a module with weights that a gradient came back
    to. ∂C/∂W is what ``.grad`` holds when the block ends; where it holds nothing, that of δ and x. For the noise the
    samples of a batch lie along the first dimension of what goes into a layer.

    Args:
        model: what is trained, not compiled.
        every: steps from one measurement to the next, the first being the ``every``-th.

    Raises:
        ValueError: the model is compiled, or ``every`` is less than 1; or, in a step, that is one of another model.
    """

    def __init__(self, model: Module, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every is {every}: it takes a number of steps of at least 1")
        refuse_compiled(model)
        self.model = model
        self.every = every
        self.history: list[dict[str, Any]] = []
        self.noise = NoiseScales()
        self._steps = 0

    @contextmanager
    def step(self, train_step: TrainStep | None = None, *, scale: float = 1.0) -> Iterator[None]:
        """The block is one step: forward, backward and update, by autograd or by ``train_step``. One that raises does
        not count.

        Args:
            train_step: what makes the step, if autograd does not; of the model, or of a module in it.
            scale: what the loss is multiplied by before its backward pass, and ``.grad`` divided by before the block
                ends: with a ``GradScaler`` its ``get_scale()``.
        """
        if (self._steps + 1) % self.every:
            yield
        else:
            with self._measurement(train_step) as measurement:
                yield
            measurement.take_gradients(scale)
            layers = measurement.layers()
            if layers:
                noise_scale = self.noise.update(layers)
                self.history.append({"step": self._steps + 1, "layers": layers, "noise_scale": noise_scale})
        self._steps += 1

    def _measurement(self, train_step: TrainStep | None) -> Measurement:
        if train_step is None:
            return Measurement(self.model)
        if not any(module is train_step.model for module in self.model.modules()):
            raise ValueError(
                f"the step trains a {type(train_step.model).__name__} that is no part of the "
                f"{type(self.model).__name__} whose statistics these are: give RunStatistics the model of the step"
            )
        return Measurement(train_step.model, train_step, self.model)


class NoiseScales:
    """The running means of tr Σ and |G|² of every layer."""

    def __init__(self) -> None:
        self.means: dict[str, tuple[float, float]] = {}

    def update(self, layers: Statistics) -> float | None:
        """Put ``noise_scale`` in the place of its parts in every layer, and return that of all layers together."""
        for name, numbers in layers.items():
            now = numbers.pop("noise_trace", math.nan), numbers.pop("noise_square", math.nan)
            if all(map(math.isfinite, now)):
                before = self.means.get(name, now)
                trace, square = (DECAY * b + (1 - DECAY) * n for b, n in zip(before, now, strict=True))
                self.means[name] = trace, square
                numbers["noise_scale"] = _ratio(*self.means[name])
        if not self.means:
            return None
        traces, squares = zip(*self.means.values(), strict=True)
        return _ratio(sum(traces), sum(squares))


def _ratio(trace: float, square: float) -> float:
    """tr Σ / |G|². The estimate of |G|² may be below 0: then there is more noise than can be told."""
    return trace / square if square > 0 else math.inf


class KeepsLayers(Protocol):
    """What a step without autograd is asked for."""

    keep_layers: bool

    @property
    def layers(self) -> Sequence[KeptLayer]:
        """Those of the last step, if it was to keep them."""


class Measurement:
    """One step that is measured: the block that it is entered for is to run forward, backward and update.

    Args:
        model: whose layers it is about.
        train_step: what makes the step, if autograd does not.
        root: the module that layers are named from (default: the model).
    """

    def __init__(self, model: Module, train_step: KeepsLayers | None = None, root: Module | None = None) -> None:
        self.model = model
        self.train_step = train_step
        names = {module: name for name, module in (root or model).named_modules()}
        own = {m: tuple(own_parameters(m).values()) for m in model.modules()}
        self._modules = {names[m]: m for m, parameters in own.items() if parameters}
        self._parameters = {name: own[m] for name, m in self._modules.items()}
        self._of_path = {path: names[m] for path, m in model.named_modules()}
        self._watch = Watch(model) if train_step is None else None
        self._numbers: dict[str, dict[str, Tensor]] = {}

    def __enter__(self) -> Measurement:
        self._weights = Weights(self._modules)
        if self._watch is not None:
            self._watch.__enter__()
        elif self.train_step is not None:
            self._before = self.train_step.keep_layers, self.train_step.layers
            self.train_step.keep_layers = True
        self._is_open = True
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._watch is not None:
            self._watch.__exit__(*error)
        elif self.train_step is not None:
            self.train_step.keep_layers = self._before[0]

    def take_gradients(self, scale: float = 1.0, parameters: Iterable[Tensor] | None = None) -> None:
        """Measure δ and ∂C/∂W of what was not measured yet, when the backward pass is done.

        Args:
            scale: what the loss was multiplied by, and ``.grad`` divided by again.
            parameters: of the layers to measure (default: all).
        """
        ids = None if parameters is None else set(map(id, parameters))
        layers = {name: calls for name, calls in self._calls().items() if self._is_due(name, ids)}
        unit_dims = {name: unit_dim(self._modules[name]) for name in layers}
        with torch.no_grad():
            for name, calls in layers.items():
                module = self._modules[name]
                W = weight_of(module)
                is_linear, learns = isinstance(module, PRODUCTS), W is None or W.requires_grad
                bias = getattr(module, "bias", None)
                has_bias = isinstance(bias, Tensor) and bias.requires_grad
                gradient = None if W is None else W.grad
                self._numbers[name] = dict(layer_statistics(calls, gradient, has_bias, is_linear, learns, scale))
            as_called = {n: calls for n, calls in layers.items() if not any(call.is_transformed for call in calls)}
            for name, kind, share in dead_and_saturated(as_called, unit_dims):
                self._numbers[name][kind] = share

    def _is_due(self, name: str, ids: set[int] | None) -> bool:
        own = self._parameters[name]
        return name not in self._numbers and (ids is None or any(id(p) in ids for p in own))

    def layers(self) -> Statistics:
        """The statistics of the layers that a gradient came back to, once the update is done."""
        with torch.no_grad():
            for name, numbers in self._numbers.items():
                if name in self._weights.of_layers:
                    numbers.update(self._weights.updates(name))
        return as_numbers(self._numbers)

    def _calls(self) -> dict[str, list[Call]]:
        """By layer, those that a gradient came back to."""
        calls: dict[str, list[Call]] = {}
        if self._watch is not None:
            inside = {call.layer for call in self._watch.record.calls() if call.is_transformed}
            for call in self._watch.record.calls():
                name = self._of_path[call.layer]
                if call.is_reached and name in self._modules:
                    call.is_differentiated |= call.layer in inside
                    calls.setdefault(name, []).append(call)
        elif self.train_step is not None and self.train_step.layers is not self._before[1]:  # it has been called
            for layer in self.train_step.layers:
                name = self._of_path.get(layer.path, layer.path)  # of the loss its layers have none
                if name in self._modules:  # and not a module that applies the weights of another
                    call = Call(layer.path, layer.x, layer.z, layer.a, layer.f, _delta=layer.delta, _da=layer.da)
                    calls.setdefault(name, []).append(call)
        return calls
