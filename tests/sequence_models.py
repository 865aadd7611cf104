"""Random models, losses and optimizers of a training in which something changes between steps, and the stock step."""

from __future__ import annotations

import collections
import contextvars
import copy
import enum
import functools
import math
import os
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import Optimizer

from torch_manualbp import TrainStep, nn

SIZE = 4
"""Features of inputs and outputs, and of most hidden layers: any two of them fit together."""

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, dampening=0.5),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7, nesterov=True),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5, weight_decay=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-6),
    "Adam with decay": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-6, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-6),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-6, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-6),
    "RMSprop with momentum": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-6, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-6),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01, eps=1e-6),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, eps=1e-6),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, eps=1e-6),
}
FOLDED = ("SGD", "momentum", "dampened", "nesterov", "maximize", "Adam", "Adam with decay", "AdamW", "amsgrad")

ACTIVATIONS = ("Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Softplus", "Hardswish", "Identity")

FEATURES = (
    "namespace", "dict", "list", "nested", "class attribute", "global", "plain tensor", "array", "int or float",
    "true or one", "signed zero", "text", "enum", "bonus", "set", "data class", "global function", "list of tensors",
    "ParameterList", "ParameterDict", "gain", "buffer", "used twice", "residual", "dropout", "unregistered module",
    "property", "size", "closure", "name in parts", "vars", "slots", "partial", "deque", "cache", "environment",
    "context variable", "base class", "callable object", "default argument", "view of an array", "array as a tensor",
    "number of a tensor", "decision on a tensor", "number of a buffer", "number of a parameter", "indices", "mask",
    "named tuple", "method of another object", "thread local", "order of a dictionary", "weak reference", "shape",
    "generator", "counter", "static method",
)  # fmt: skip
"""What a :class:`Net` may do beside its layers."""

GLOBALS = SimpleNamespace(scale=1.0, function=torch.tanh)


class Mode(enum.Enum):
    """What an attribute may be."""

    SINE, COSINE = 1, 2


@dataclass
class Settings:
    """A configuration as users write it."""

    scale: float = 1.0
    power: int = 1


class Base(Module):
    """What the model's class inherits."""

    inherited = 1.0


class Slots:
    """An object without a dictionary."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 1.0


class Scaler:
    """An object that is called, whose methods read what it holds."""

    def __init__(self) -> None:
        self.scale, self.inner = 1.0, {"scale": 1.0}

    def __call__(self, h: Tensor) -> Tensor:
        """A multiple."""
        return h * self.scale

    def factor(self) -> float:
        """A number."""
        return self.inner["scale"]

    @staticmethod
    def fixed() -> float:
        """A number of the class's."""
        return 1.0


class Pair(NamedTuple):
    """A tuple with names."""

    scale: float
    list: list[float]


CONTEXT: contextvars.ContextVar[float] = contextvars.ContextVar("scale", default=1.0)
LOCAL = threading.local()
LOCAL.scale = 1.0


@functools.lru_cache
def cached(key: float) -> float:
    """A number that is computed once."""
    return key * 2


def times(h: Tensor, scale: float) -> Tensor:
    """A product."""
    return h * scale


def with_default(h: Tensor, scale: float = 1.0) -> Tensor:
    """A product with what is a default."""
    return h * scale


def fixed() -> float:
    """What a static method may be replaced by."""
    return 0.5


class Net(Base):
    """Linear layers, and what else a forward may read from Python, each if it is among ``features``."""

    factor = 1.0
    scale: Tensor

    def __init__(self, rng: random.Random, features: frozenset[str], is_ours: bool) -> None:
        super().__init__()
        self.features = features
        self.first = linear(rng, is_ours)
        self.body = body(rng, is_ours, "dropout" in features)
        self.head = linear(rng, is_ours)
        if "gain" in features:
            self.gain = torch.nn.Parameter(torch.rand(SIZE) + 0.5)
        if "buffer" in features:
            self.register_buffer("scale", torch.rand(SIZE) + 0.5)
        if "ParameterList" in features:
            self.shifts = torch.nn.ParameterList([torch.nn.Parameter(torch.rand(SIZE)) for _ in range(2)])
        if "ParameterDict" in features:
            self.named = torch.nn.ParameterDict({"up": torch.rand(SIZE) + 0.5, "down": torch.rand(SIZE)})
        if "unregistered module" in features:
            self.teachers = [linear(rng, is_ours).double().requires_grad_(False)]
        self.cfg, self.options, self.factors = SimpleNamespace(scale=1.0, other="x"), {"scale": 1.0, 3: "y"}, [1.0, 2.0]
        self.tree = SimpleNamespace(layers=[{"scale": 1.0, "sizes": (1, 2)}, {"scale": 0.5}])
        self.t, self.array = torch.tensor(0.5, dtype=torch.float64), np.array([1.0, 0.5])
        self.table = [torch.tensor(0.5, dtype=torch.float64)]
        self.number: Any = 2
        self.flag: Any = 1
        self.zero, self.mode, self.kind = 0.0, "sine", Mode.SINE
        self.active, self.settings, self.size = {"a", "b"}, Settings(), 2
        self.function = scaled_by(1.0)
        self.slots, self.scaler, self.key = Slots(), Scaler(), 1.0
        self.partial, self.queue = functools.partial(times, scale=1.0), collections.deque([1.0, 2.0])
        self.whole = np.array([[1.0, 2.0], [3.0, 4.0]])
        self.part = self.whole[0]
        self.level, self.permutation = torch.tensor(0.5, dtype=torch.float64), torch.tensor([1, 0, 2, 3])
        self.chosen = torch.tensor([True, False, True, True])
        self.pair, self.weak = Pair(1.0, [1.0]), weakref.ref(self.scaler)
        self.rng, self.state = np.random.default_rng(0), SimpleNamespace(n=0)
        self.spare = torch.zeros(2)

    def __getstate__(self) -> dict[str, Any]:
        """All but the weak reference, which no copy can have."""
        return {name: value for name, value in vars(self).items() if name != "weak"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weak = weakref.ref(self.scaler)

    @property
    def reach(self) -> float:
        """What is computed from an attribute."""
        return float(self.cfg.scale) * 0.5

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        features = self.features
        h = self.first(x)
        h = h + self.body(h) if "residual" in features else self.body(h)
        if "used twice" in features:
            h = self.first(torch.tanh(h))
        if "ParameterList" in features:
            h = h * self.shifts[0] + self.shifts[1]
        if "ParameterDict" in features:
            h = h * self.named["up"] - self.named["down"]
        if "gain" in features:
            h = h * self.gain
        if "buffer" in features:
            h = h * self.scale
        if "unregistered module" in features:
            h = h + torch.tanh(self.teachers[0](x))
        h = h * self._from_python()
        if "plain tensor" in features:
            h = h * (1 - self.t)
        if "list of tensors" in features:
            h = h * (1 + self.table[0])
        if "text" in features:
            h = torch.tanh(h) if self.mode == "sine" else torch.sigmoid(h)
        if "enum" in features:
            h = torch.tanh(h) if self.kind is Mode.SINE else torch.sigmoid(h)
        if "bonus" in features:
            h = h + getattr(self, "bonus", 0.0)
        if "global function" in features:
            h = GLOBALS.function(h)
        if "closure" in features:
            h = self.function(h)
        h = self._from_tensors(h)
        if "partial" in features:
            h = self.partial(h)
        if "callable object" in features:
            h = self.scaler(h)
        if "default argument" in features:
            h = with_default(h)
        if "size" in features:
            h = torch.cat([h[..., : self.size], h[..., self.size :] * 2], -1)
        out: Tensor = self.head(h)
        return out

    def _counted(self) -> float:
        self.state.n += 1
        return 1 / self.state.n

    def _from_tensors(self, h: Tensor) -> Tensor:
        """What tensors and arrays decide about that are no buffers."""
        features = self.features
        if "array as a tensor" in features:
            h = h * torch.from_numpy(self.array).sum()
        if "number of a tensor" in features:
            h = h * float(self.level)
        if "decision on a tensor" in features:
            h = torch.tanh(h) if self.level > 0.3 else torch.sigmoid(h)
        if "number of a buffer" in features and hasattr(self, "scale"):
            h = h * self.scale.flatten()[0].item()
        if "number of a parameter" in features and hasattr(self, "gain"):
            h = h * (1 + self.gain.detach().abs().max().item())
        if "indices" in features:
            h = h[..., self.permutation]
        if "mask" in features:
            h = h * self.chosen + 0.5
        if "shape" in features:
            h = h * (self.spare.shape[0] / 2)
        return h

    def _from_python(self) -> float:
        """The product of all numbers that come from Python alone."""
        numbers: dict[str, Callable[[], Any]] = {
            "namespace": lambda: self.cfg.scale,
            "dict": lambda: self.options["scale"],
            "list": lambda: self.factors[0] * len(self.factors) / 2,
            "nested": lambda: self.tree.layers[0]["scale"],
            "class attribute": lambda: type(self).factor,
            "global": lambda: GLOBALS.scale,
            "array": lambda: float(self.array[0]),
            "int or float": lambda: 1.0 if isinstance(self.number, int) else 0.5,
            "true or one": lambda: 0.5 if self.flag is True else 1.0,
            "signed zero": lambda: math.copysign(1.0, self.zero),
            "set": lambda: 1.0 if "a" in self.active else 0.5,
            "data class": lambda: self.settings.scale**self.settings.power,
            "property": lambda: self.reach,
            "name in parts": lambda: getattr(self, "_".join(["named", "in", "parts"]), 1.0),
            "vars": lambda: vars(self).get("of_vars", 1.0),
            "slots": lambda: self.slots.scale,
            "deque": lambda: self.queue[0],
            "cache": lambda: cached(self.key),
            "environment": lambda: float(os.environ.get("SEQUENCES_SCALE", "1")),
            "context variable": lambda: CONTEXT.get(),
            "base class": lambda: self.inherited,
            "view of an array": lambda: float(self.part[0]),
            "named tuple": lambda: self.pair.scale * self.pair.list[0],
            "method of another object": lambda: self.scaler.factor(),
            "thread local": lambda: LOCAL.scale,
            "order of a dictionary": lambda: 1.0 if next(iter(self.options)) == "scale" else 0.5,
            "weak reference": lambda: getattr(self.weak(), "scale", 1.0),
            "generator": lambda: 0.5 + float(self.rng.random()),
            "counter": self._counted,
            "static method": lambda: self.scaler.fixed(),
        }
        return math.prod(number() for name, number in numbers.items() if name in self.features)


def restore_globals() -> None:
    """Everything that is not a model's own as it was."""
    Net.factor, Net.forward = 1.0, NET_FORWARD  # type: ignore[method-assign]
    Base.inherited, Scaler.fixed = 1.0, staticmethod(SCALER_FIXED)  # type: ignore[method-assign]
    GLOBALS.scale, GLOBALS.function = 1.0, torch.tanh
    LOCAL.scale = 1.0
    CONTEXT.set(1.0)
    with_default.__defaults__ = (1.0,)
    os.environ.pop("SEQUENCES_SCALE", None)


def scaled_by(scale: float) -> Callable[[Tensor], Tensor]:
    """A function that holds a number."""
    return lambda h: h * scale


def other_forward(self: Net, x: Tensor) -> Tensor:
    """What ``Net.forward`` may be replaced by."""
    out: Tensor = self.head(torch.tanh(self.first(x)))
    return out


NET_FORWARD, SCALER_FIXED = Net.forward, Scaler.fixed


class HalfLinear(torch.nn.Linear):
    """What a layer's class may become."""

    def forward(self, input: Tensor) -> Tensor:
        """Half of what it was."""
        return super().forward(input) * 0.5


class Uncertain(Module):
    """A loss that learns how much it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return F.mse_loss(output, target) * (1 + self.weight * self.weight) - torch.tanh(self.weight)


class Weighted(Module):
    """A loss with attributes, a buffer, and a dictionary."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(SIZE) + 0.5)
        self.options = {"scale": 1.0}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return ((output - target) ** 2 * self.weight).mean() * self.options["scale"]


def squared(output: Tensor, target: Tensor) -> Tensor:
    """A function for a loss."""
    return ((output - target) ** 2).mean() * GLOBALS.scale


LOSSES: dict[str, Callable[[Any], Any]] = {
    "MSELoss": lambda m: m.MSELoss(),
    "sum": lambda m: m.MSELoss(reduction="sum"),
    "CrossEntropyLoss": lambda m: m.CrossEntropyLoss(),
    "weighted CrossEntropyLoss": lambda m: m.CrossEntropyLoss(weight=torch.rand(SIZE) + 0.5, label_smoothing=0.1),
    "SmoothL1Loss": lambda m: m.SmoothL1Loss(beta=0.5),
    "HuberLoss": lambda m: m.HuberLoss(),
    "BCEWithLogitsLoss": lambda m: m.BCEWithLogitsLoss(),
    "function": lambda m: squared,
    "of torch.nn.functional": lambda m: F.mse_loss,
    "Weighted": lambda m: Weighted(),
    "Uncertain": lambda m: Uncertain(),
}


def linear(rng: random.Random, is_ours: bool, n_in: int = SIZE, n_out: int = SIZE) -> Module:
    """A layer of torch.nn, or in a model of ours of torch_manualbp.nn."""
    bias = rng.random() < 0.8
    return namespace(rng, is_ours).Linear(n_in, n_out, bias=bias)


def activation(rng: random.Random, is_ours: bool) -> Module:
    """One of the activations."""
    name = rng.choice(ACTIVATIONS)
    return getattr(namespace(rng, is_ours) if name != "Identity" else torch.nn, name)()


def namespace(rng: random.Random, is_ours: bool) -> Any:
    """torch.nn, or torch_manualbp.nn; the same random numbers are drawn for the stock model."""
    return nn if rng.random() < 0.6 and is_ours else torch.nn


def body(rng: random.Random, is_ours: bool, has_dropout: bool) -> torch.nn.Sequential:
    """Layers, activations between them, and a dropout."""
    hidden = rng.choice([SIZE, SIZE, 5])
    layers = [linear(rng, is_ours, SIZE, hidden), activation(rng, is_ours)]
    if has_dropout:
        layers.append(torch.nn.Dropout(0.3))
    layers += [linear(rng, is_ours, hidden, SIZE), activation(rng, is_ours)]
    return torch.nn.Sequential(*layers)


class StockStep:
    """What a :class:`TrainStep` stands for, by autograd."""

    def __init__(self, model: Module, loss: Any, optimizer: Optimizer, **options: Any) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.accumulate, self.skip_nonfinite, self.skipped, self.done = 1, False, 0, 0
        self.clip_norm: float | None = None
        self.clip_value: float | None = None
        self.keep_grad_norm = False
        self.grad_norm: Tensor | None = None
        self.output: Any = None
        self.keep_deltas = self.keep_output = self.keep_layers = False
        vars(self).update(options)

    def __getstate__(self) -> dict[str, Any]:
        """With the gradients of a window, which copies of parameters leave behind."""
        return {**vars(self), "gradients": [(p, p.grad) for p in self.learnt()]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for p, gradient in state.pop("gradients"):
            p.grad = gradient
        vars(self).update(state)

    def __call__(self, inputs: Any, target: Any) -> Tensor:
        """zero_grad, forward, loss, backward, update."""
        if self.done == 0:
            self.optimizer.zero_grad()
        done, self.done = self.done + 1, 0
        held = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in self.learnt()]
        C = self.backward(inputs, target, 1 / self.accumulate)
        if self.skip_nonfinite and not torch.isfinite(C):
            self.skipped += 1
            for p, gradient, numbers in held:
                p.grad = gradient
                if gradient is not None and numbers is not None:
                    gradient.copy_(numbers)
            self.done = done - 1
        elif done >= self.accumulate:
            self.update()
        else:
            self.done = done
        return C

    def learnt(self) -> list[Tensor]:
        """What the optimizer has."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, inputs: Any, target: Any, share: float = 1.0) -> Tensor:
        """Add the gradients to what is in ``.grad``."""
        args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
        if isinstance(inputs, dict):
            args, kwargs = (), inputs
        output = self.model(*args, **kwargs)
        C: Tensor = self.loss(output, target)
        (C if share == 1 else C * share).backward()
        self.output = output.detach().clone() if self.keep_output else self.output
        return C.detach()

    def update(self) -> None:
        """Clip, and the optimizer's step."""
        learnt = [p for p in self.learnt() if p.grad is not None]
        if self.clip_norm is not None or self.keep_grad_norm:
            bound = float("inf") if self.clip_norm is None else self.clip_norm
            self.grad_norm = torch.nn.utils.clip_grad_norm_(learnt, bound)
        else:
            self.grad_norm = None
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(learnt, self.clip_value)
        for p in (p for group in self.optimizer.param_groups if group.get("fused") for p in group["params"]):
            if p.grad is not None and p.grad.stride() != p.stride():  # torch's kernels read it in the order of memory
                p.grad = torch.empty_like(p, requires_grad=False).copy_(p.grad)
        self.optimizer.step()
        self.done = 0

    def reset(self) -> None:
        """Nothing is kept that could be forgotten, but the count of a window."""
        self.done = 0

    def derive(self, inputs: Any, target: Any) -> str:
        """Stock derives nothing."""
        return ""


@dataclass(frozen=True)
class Spec:
    """Which training it is."""

    seed: int
    optimizer: str = "SGD"
    loss: str = "MSELoss"
    features: frozenset[str] = frozenset()
    is_sequential: bool = False
    groups: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        model = "Sequential" if self.is_sequential else f"Net({', '.join(sorted(self.features))})"
        options = "".join(f", {name}={value}" for name, value in self.options)
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{model}, {self.loss}, {self.optimizer}{groups}{options} (seed {self.seed})"


@dataclass
class Side:
    """One of the two trainings, with what changes need to find again."""

    step: Any
    is_ours: bool
    spec: Spec
    scheduler: Any = None
    around: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)
    """What every step of this side runs within."""

    batch: dict[str, Any] = field(default_factory=dict)
    """What the data are like from now on, and ``once`` at the next step alone."""

    once: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    left_behind: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Tensors that no step may touch any more, with their numbers."""

    is_rounded: bool = False
    """Whether steps were made in float32, by whose rounding the two sides may differ from then on."""

    folds: bool = False
    """Whether the update is part of the program of the last step."""

    @property
    def model(self) -> Any:
        """The model."""
        return self.step.model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self.step.optimizer

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer."""
        return self.optimizer.param_groups

    def roots(self) -> list[Module]:
        """The model, and the loss if it is a module."""
        return [self.model, *([self.step.loss] if isinstance(self.step.loss, Module) else [])]

    def named(self) -> dict[str, Tensor]:
        """Parameters and buffers, by name."""
        named: dict[str, Tensor] = {}
        for prefix, root in zip(("", "loss"), self.roots(), strict=False):
            named |= dict(root.named_parameters(prefix=prefix))
            named |= dict(root.named_buffers(prefix=prefix))
        return named

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters, each once."""
        return list(dict.fromkeys(p for root in self.roots() for p in root.parameters()))

    def advance(self, x: Any, y: Tensor) -> Tensor:
        """One step."""
        with ExitStack() as stack:
            for context in self.around:
                stack.enter_context(context())
            self.folds = getattr(self.step, "folds", False)
            C: Tensor = self.step(x, y)
        return C


def build(spec: Spec, is_ours: bool) -> Side:
    """A training at its beginning; ours and stock have the same numbers."""
    torch.manual_seed(spec.seed)
    rng = random.Random(spec.seed)
    model: Module
    if spec.is_sequential:
        model = torch.nn.Sequential(linear(rng, is_ours), *body(rng, is_ours, "dropout" in spec.features))
        model.append(linear(rng, is_ours))
    else:
        model = Net(rng, spec.features, is_ours)
    loss = LOSSES[spec.loss](namespace(rng, is_ours))
    if isinstance(loss, Module):
        loss.double()
    model = model.double()
    learnt = [*model.parameters(), *(loss.parameters() if isinstance(loss, Module) else [])]
    groups = [{"params": learnt[i :: spec.groups]} for i in range(spec.groups)]
    optimizer = OPTIMIZERS[spec.optimizer]([group for group in groups if group["params"]])
    for i, group in enumerate(optimizer.param_groups):
        group["lr"] *= 1 + i / 2
    kind: Any = TrainStep if is_ours else StockStep
    side = Side(kind(model, loss, optimizer, **dict(spec.options)), is_ours, spec)
    side.saved["optimizer"] = copy.deepcopy(optimizer.state_dict())
    side.saved["model"] = copy.deepcopy(model.state_dict())
    return side


def data(side: Side, seed: int) -> tuple[Any, Tensor]:
    """A batch, for the loss that there is, as the changes want it."""
    how = {**side.batch, **side.once}
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in side.parameters()), torch.float64)
    x = torch.randn(how.get("size", 6), *how.get("extra", ()), SIZE, generator=generator, dtype=torch.float64)
    if how.get("source"):
        x = how["source"](side, x)
    y = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    loss = side.step.loss
    if isinstance(loss, torch.nn.CrossEntropyLoss):
        n = loss.weight.numel() if loss.weight is not None else x.shape[1]
        y = torch.randint(min(n, x.shape[1]), (x.shape[0], *x.shape[2:]), generator=generator)
    elif isinstance(loss, torch.nn.BCEWithLogitsLoss):
        y = y.sigmoid()
    if how.get("nan"):
        x = x.clone()
        x[0] = math.nan
    if how.get("wrong"):
        x = x[..., :-1]
    x = x.to(how.get("dtype", dtype))
    y = y.to(dtype) if y.is_floating_point() else y
    layout = how.get("layout")
    if layout == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    elif layout == "expanded":
        x = x[:1].expand_as(x)
    elif layout == "sliced":
        x = torch.cat([x, x], -1)[..., ::2]
    if how.get("requires_grad"):
        x = x.detach().clone().requires_grad_()
    form = how.get("form")
    return ((x,) if form == "tuple" else {_argument(side): x} if form == "dict" else x), y


def _argument(side: Side) -> str:
    return "input" if isinstance(side.model, torch.nn.Sequential) else "x"
