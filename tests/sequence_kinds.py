"""The kinds of change between two steps: each is a function of one side of the training, the same for both."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import os
import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from sequence_models import (
    ACTIVATIONS,
    CONTEXT,
    GLOBALS,
    LOCAL,
    LOSSES,
    OPTIMIZERS,
    SIZE,
    Base,
    HalfLinear,
    Mode,
    Net,
    Scaler,
    Settings,
    Side,
    activation,
    data,
    fixed,
    linear,
    namespace,
    other_forward,
    scaled_by,
    times,
    with_default,
)
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim.optimizer import register_optimizer_step_pre_hook

T = TypeVar("T")
Undo = Callable[[], Any] | None
Change = Callable[[Side, random.Random], Undo]


class Inapplicable(Exception):
    """There is nothing here that the change could change."""


@dataclass(frozen=True)
class Kind:
    """A kind of change."""

    name: str
    change: Change
    features: frozenset[str]
    """What the model has to have for it."""

    options: tuple[tuple[str, Any], ...]
    is_sequential: bool
    is_rare: bool
    """Whether it mostly ends a sequence: every step after it is refused, or stock raises."""


KINDS: dict[str, Kind] = {}


def kind(
    name: str, *features: str, sequential: bool = False, rare: bool = False, **options: Any
) -> Callable[[Change], Change]:
    """Register a kind of change."""

    def register(change: Change) -> Change:
        assert name not in KINDS, name
        KINDS[name] = Kind(name, change, frozenset(features), tuple(options.items()), sequential, rare)
        return change

    return register


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of them."""
    if not items:
        raise Inapplicable
    return items[rng.randrange(len(items))]


def need(condition: Any) -> None:
    """Go on only if it holds."""
    if not condition:
        raise Inapplicable


def numbers(rng: random.Random, *shape: int) -> Tensor:
    """Random numbers that are the same for both sides."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)), dtype=torch.float64)


def modules(side: Side, of: Any, root: Any = None) -> list[Any]:
    """The modules of a class."""
    return [m for m in (side.model if root is None else root).modules() if isinstance(m, of)]


def body(side: Side) -> torch.nn.Sequential:
    """The layers that may be exchanged."""
    model = side.model
    return model if isinstance(model, torch.nn.Sequential) else model.body


def learning(side: Side) -> list[Parameter]:
    """The parameters that learn."""
    return [p for p in side.parameters() if p.requires_grad]


def held(side: Side) -> list[Tensor]:
    """The parameters of the optimizer, in order."""
    return [p for group in side.groups for p in group["params"]]


def weights(side: Side) -> list[tuple[Any, str]]:
    """Modules, and the name of a parameter of theirs."""
    return [
        (m, name) for root in side.roots() for m in root.modules() for name, p in m._parameters.items() if p is not None
    ]


def exchange(side: Side, old: Tensor, new: Tensor) -> None:
    """Have the optimizer hold another parameter, with the state of the old one."""
    for group in side.groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    if old in side.optimizer.state:
        side.optimizer.state[new] = side.optimizer.state.pop(old)


def follow(side: Side) -> None:
    """Have the optimizer hold what learns now: what is new goes into the first group, what is gone goes."""
    there = side.parameters()
    for group in side.groups:
        group["params"] = [p for p in group["params"] if any(p is q for q in there)]
    for p in [p for p in side.optimizer.state if not any(p is q for q in there)]:
        del side.optimizer.state[p]
    known = set(map(id, held(side)))
    side.groups[0]["params"] += [p for p in there if id(p) not in known]


# ---------------------------------------------------------------------------------------------------- what learns


@kind("a parameter is frozen")
def _(side: Side, rng: random.Random) -> Undo:
    need(len(learning(side)) > 1)
    p = pick(rng, learning(side)).requires_grad_(False)
    return lambda: p.requires_grad_(True)


@kind("a parameter is frozen or unfrozen, its gradient dropped")
def _(side: Side, rng: random.Random) -> Undo:
    need(len(learning(side)) > 1)
    p = pick(rng, side.parameters())
    p.requires_grad_(not p.requires_grad)
    p.grad = None
    return lambda: p.requires_grad_(not p.requires_grad)


@kind("all is unfrozen")
def _(side: Side, rng: random.Random) -> Undo:
    for p in side.parameters():
        p.requires_grad_(True)
    return None


@kind("a layer is frozen")
def _(side: Side, rng: random.Random) -> Undo:
    layer = pick(rng, modules(side, torch.nn.Linear))
    need(any(not any(p is q for q in layer.parameters()) for p in learning(side)))
    layer.requires_grad_(False)
    return None


@kind("everything is frozen", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    frozen = [p.requires_grad_(False) for p in learning(side)]
    return lambda: [p.requires_grad_(True) for p in frozen]


@kind("all but one parameter are frozen")
def _(side: Side, rng: random.Random) -> Undo:
    one = pick(rng, learning(side))
    for p in learning(side):
        p.requires_grad_(p is one)
    return None


@kind("a buffer requires a gradient", "buffer", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    buffer = side.model.scale.requires_grad_(True)
    return lambda: buffer.requires_grad_(False)


@kind("a parameter that the optimizer has not", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    need(not isinstance(side.model, torch.nn.Sequential))
    new = linear(rng, side.is_ours).double()
    old = side.model.head
    side.model.head = new
    return lambda: setattr(side.model, "head", old)


# ---------------------------------------------------------------------------------------------------- groups


@kind("a group is split")
def _(side: Side, rng: random.Random) -> Undo:
    group = pick(rng, [g for g in side.groups if len(g["params"]) > 1])
    half = rng.randrange(1, len(group["params"]))
    moved, group["params"] = group["params"][half:], group["params"][:half]
    settings = {name: value for name, value in group.items() if name != "params"}
    side.optimizer.add_param_group({"params": moved, **settings, "lr": group["lr"] * 2})
    return None


@kind("two groups become one")
def _(side: Side, rng: random.Random) -> Undo:
    need(len(side.groups) > 1)
    last = side.groups.pop()
    side.groups[0]["params"] += last["params"]
    return None


@kind("two groups exchange parameters")
def _(side: Side, rng: random.Random) -> Undo:
    need(len([g for g in side.groups if g["params"]]) > 1)
    one, other = [g["params"] for g in side.groups if g["params"]][:2]
    i, j = rng.randrange(len(one)), rng.randrange(len(other))
    one[i], other[j] = other[j], one[i]
    return None


@kind("a parameter moves to another group")
def _(side: Side, rng: random.Random) -> Undo:
    need(len(side.groups) > 1)
    one = pick(rng, [g["params"] for g in side.groups if g["params"]])
    other = pick(rng, [g["params"] for g in side.groups if g["params"] is not one])
    other.append(one.pop())
    return None


@kind("a parameter leaves the optimizer, frozen")
def _(side: Side, rng: random.Random) -> Undo:
    group = pick(rng, [g for g in side.groups if len(g["params"]) > 1])
    i = rng.randrange(len(group["params"]))
    need(any(p is not group["params"][i] for p in learning(side)))
    group["params"].pop(i).requires_grad_(False)
    return None


@kind("a parameter leaves the optimizer and learns", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    params = pick(rng, [g for g in side.groups if len(g["params"]) > 1])["params"]
    i = rng.randrange(len(params))
    p = params.pop(i)
    return lambda: params.insert(i, p)


@kind("a frozen parameter joins in a group of its own")
def _(side: Side, rng: random.Random) -> Undo:
    known = set(map(id, held(side)))
    p = pick(rng, [p for p in side.parameters() if id(p) not in known])
    side.optimizer.add_param_group({"params": [p.requires_grad_(True)]})
    return None


@kind("the groups and their parameters in another order")
def _(side: Side, rng: random.Random) -> Undo:
    side.groups.reverse()
    for group in side.groups:
        group["params"].reverse()
    return None


@kind("an empty group is added")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.add_param_group({"params": []})
    return None


@kind("the groups are other dictionaries")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.param_groups = [{**g, "params": list(g["params"])} for g in side.groups]
    return None


# ---------------------------------------------------------------------------------------------------- hyperparameters


def setting(rng: random.Random, side: Side, *names: str) -> tuple[dict[str, Any], str]:
    """A group, and one of these names that it has."""
    group = pick(rng, side.groups)
    return group, pick(rng, [name for name in names if name in group])


def sets(name: str, values: Sequence[Any], *of: str) -> None:
    """A kind that sets a hyperparameter of a group, or of all of them, to one of these values."""

    @kind(name)
    def _(side: Side, rng: random.Random) -> Undo:
        group, key = setting(rng, side, *of)
        value = pick(rng, values)
        before = [(g, g[key]) for g in (side.groups if rng.random() < 0.5 else [group])]
        for g, _ in before:
            g[key] = value(g[key]) if callable(value) else value
        return lambda: [g.update({key: x}) for g, x in before]


def rate(group: dict[str, Any]) -> float:
    """The learning rate as a number."""
    return float(group["lr"])


sets("another learning rate", [0.01, 0.02, 0.03, lambda lr: float(lr) * 0.5], "lr")
sets("a learning rate of 0", [0.0], "lr")
sets("a learning rate that is an integer of NumPy or Python", [0, np.float64(0.02), np.float32(0.01)], "lr")
sets("a learning rate that is a tensor", [lambda lr: torch.tensor(float(lr)), lambda lr: torch.tensor(0.02)], "lr")
sets("weight decay from and to 0", [0.0, 0.1, 0, 0.01], "weight_decay")
sets("momentum from and to 0", [0.0, 0.5, 0.9, 0], "momentum")
sets("dampening from and to 0", [0.0, 0.3, 0.9, 1.0], "dampening")
sets("maximize", [True, False], "maximize")
sets("foreach", [True, False, None], "foreach")
sets("fused", [True, False, None], "fused")
sets("differentiable", [True, False], "differentiable")
sets("other betas", [(0.5, 0.7), (0.9, 0.99), (0.0, 0.9), [0.8, 0.95]], "betas")
sets("another eps", [1e-3, 1e-5, 1e-1], "eps")
sets("decoupled weight decay", [True, False], "decoupled_weight_decay")
sets("amsgrad", [True, False], "amsgrad")
sets("other decays", [0.5, 0.9, 0.95], "alpha", "rho", "momentum_decay")


@kind("a learning rate that is no number", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    group = side.groups[-1]
    need(any(p.requires_grad for p in group["params"]))
    before, group["lr"] = group["lr"], rng.choice([None, "fast"])
    return lambda: group.update(lr=before)


@kind("Nesterov's momentum")
def _(side: Side, rng: random.Random) -> Undo:
    group, _ = setting(rng, side, "nesterov")
    group["nesterov"] = not group["nesterov"]
    if group["nesterov"]:
        group.update(momentum=group["momentum"] or 0.6, dampening=0.0)
    return None


@kind("a learning rate that is a tensor, changed in place")
def _(side: Side, rng: random.Random) -> Undo:
    group = pick(rng, side.groups)
    if not isinstance(group["lr"], Tensor):
        group["lr"] = torch.tensor(rate(group))
    group["lr"].mul_(0.5)
    return None


@kind("a scheduler is attached")
def _(side: Side, rng: random.Random) -> Undo:
    need(side.scheduler is None)
    scheduler = rng.choice(["StepLR", "LambdaLR", "OneCycleLR", "Exponential"])
    schedules = torch.optim.lr_scheduler
    if scheduler == "OneCycleLR":
        need("momentum" in side.groups[0] or "betas" in side.groups[0])
        need(all(g.get("momentum", 1) for g in side.groups))
        side.scheduler = schedules.OneCycleLR(side.optimizer, max_lr=0.05, total_steps=100)
    elif scheduler == "StepLR":
        side.scheduler = schedules.StepLR(side.optimizer, 2, 0.5)
    elif scheduler == "LambdaLR":
        side.scheduler = schedules.LambdaLR(side.optimizer, lambda i: 1 / (1 + i))
    else:
        side.scheduler = schedules.ExponentialLR(side.optimizer, 0.8)
    return None


# ---------------------------------------------------------------------------------------------------- optimizer state


def with_state(side: Side) -> list[Tensor]:
    """The parameters that the optimizer has state of, in its order."""
    return [p for p in held(side) if any(isinstance(t, Tensor) for t in side.optimizer.state.get(p, {}).values())]


def moments(side: Side, p: Tensor) -> list[str]:
    """The names of the tensors in the state of a parameter that have its shape."""
    state = side.optimizer.state[p]
    return [name for name, t in state.items() if isinstance(t, Tensor) and t.shape == p.shape and name != "step"]


@kind("state is cleared")
def _(side: Side, rng: random.Random) -> Undo:
    need(with_state(side))
    side.optimizer.state.clear()
    return None


@kind("state of one parameter is dropped")
def _(side: Side, rng: random.Random) -> Undo:
    del side.optimizer.state[pick(rng, with_state(side))]
    return None


@kind("state is its own copy, loaded")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))
    return None


@kind("state is loaded as it is")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.load_state_dict(side.optimizer.state_dict())
    return None


@kind("state and parameters of before are loaded")
def _(side: Side, rng: random.Random) -> Undo:
    sizes = [len(g["params"]) for g in side.saved["optimizer"]["param_groups"]]
    need(sizes == [len(g["params"]) for g in side.groups])
    shapes = {name: t.shape for name, t in side.saved["model"].items()}
    need(shapes == {name: t.shape for name, t in side.model.state_dict().items()})
    side.optimizer.load_state_dict(side.saved["optimizer"])
    side.model.load_state_dict(side.saved["model"])
    return None


@kind("state is kept aside")
def _(side: Side, rng: random.Random) -> Undo:
    side.saved["optimizer"] = copy.deepcopy(side.optimizer.state_dict())
    side.saved["model"] = copy.deepcopy(side.model.state_dict())
    return None


@kind("state is scaled in place")
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, with_state(side))
    for name in moments(side, p):
        side.optimizer.state[p][name].mul_(0.5)
    return None


@kind("state is replaced by clones")
def _(side: Side, rng: random.Random) -> Undo:
    for p in with_state(side):
        state = side.optimizer.state[p]
        state.update({name: t.clone() * 0.9 for name, t in state.items() if isinstance(t, Tensor) and t.dim()})
    return None


@kind("state of other strides")
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, [p for p in with_state(side) if p.dim() == 2])
    for name in moments(side, p):
        t = side.optimizer.state[p][name]
        side.optimizer.state[p][name] = t.t().contiguous().t()
    return None


@kind("state that shares memory with a larger tensor")
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, with_state(side))
    for name in moments(side, p):
        t = side.optimizer.state[p][name]
        side.optimizer.state[p][name] = torch.stack([t, t], -1)[..., 0]
    return None


@kind("state of another dtype", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, with_state(side))
    state = side.optimizer.state[p]
    before = dict(state)
    state.update({name: state[name].float() for name in moments(side, p)})
    return lambda: state.update(before)


@kind("state of a wrong shape", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    p = with_state(side)[-1] if with_state(side) else pick(rng, [])
    state, before = side.optimizer.state[p], dict(side.optimizer.state[p])
    state.update({name: torch.zeros(7, dtype=p.dtype) for name in moments(side, p)})
    return lambda: state.update(before)


@kind("state has an entry of the user's")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.state[pick(rng, with_state(side))]["mine"] = torch.ones(3)
    return None


@kind("the momentum buffer is None")
def _(side: Side, rng: random.Random) -> Undo:
    having = [p for p in with_state(side) if "momentum_buffer" in side.optimizer.state[p]]
    side.optimizer.state[pick(rng, having)]["momentum_buffer"] = None
    return None


@kind("the count of steps is set")
def _(side: Side, rng: random.Random) -> Undo:
    having = [p for p in with_state(side) if isinstance(side.optimizer.state[p].get("step"), Tensor)]
    need(having)
    if rng.random() < 0.5:
        for p in having:
            side.optimizer.state[p]["step"].fill_(10)
    else:
        p = pick(rng, having)
        side.optimizer.state[p]["step"] = side.optimizer.state[p]["step"] + 5
    return None


@kind("counts of steps are one tensor for all")
def _(side: Side, rng: random.Random) -> Undo:
    having = [p for p in with_state(side) if isinstance(side.optimizer.state[p].get("step"), Tensor)]
    need(len(having) > 1)
    one = side.optimizer.state[having[0]]["step"]
    for p in having:
        side.optimizer.state[p]["step"] = one
    return None


@kind("state is another dictionary")
def _(side: Side, rng: random.Random) -> Undo:
    state = defaultdict(dict, {p: dict(of_p) for p, of_p in side.optimizer.state.items()})
    side.optimizer.state = state
    return None


# ---------------------------------------------------------------------------------------------------- modules


@kind("a layer is replaced, the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    layers: Any = body(side)
    i = pick(rng, [i for i, m in enumerate(layers) if isinstance(m, torch.nn.Linear)])
    layers[i] = linear(rng, side.is_ours, layers[i].in_features, layers[i].out_features).double()
    with torch.no_grad():
        for p in layers[i].parameters():
            p.copy_(numbers(rng, *p.shape) / 2)
    follow(side)
    return None


@kind("an activation is replaced")
def _(side: Side, rng: random.Random) -> Undo:
    layers = body(side)
    i = pick(rng, [i for i, m in enumerate(layers) if type(m).__name__ in ACTIVATIONS])
    layers[i] = activation(rng, side.is_ours)
    return None


@kind("a layer is appended, the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    layer = linear(rng, side.is_ours).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(numbers(rng, *p.shape) / 2)
    body(side).append(layer)
    side.optimizer.add_param_group({"params": list(layer.parameters())})
    return None


@kind("an activation is inserted")
def _(side: Side, rng: random.Random) -> Undo:
    body(side).insert(rng.randrange(len(body(side))), activation(rng, side.is_ours))
    return None


@kind("a layer is removed, the optimizer keeps it")
def _(side: Side, rng: random.Random) -> Undo:
    layers = body(side)
    square = [i for i, m in enumerate(layers) if not isinstance(m, torch.nn.Linear) or m.in_features == m.out_features]
    need(len(layers) > 2)
    del layers[pick(rng, square)]
    return None


@kind("two layers change places")
def _(side: Side, rng: random.Random) -> Undo:
    layers = body(side)
    square = [i for i, m in enumerate(layers) if not isinstance(m, torch.nn.Linear) or m.in_features == m.out_features]
    need(len(square) > 1)
    i, j = rng.sample(square, 2)
    layers[i], layers[j] = layers[j], layers[i]
    return None


@kind("a layer is used twice")
def _(side: Side, rng: random.Random) -> Undo:
    layers = body(side)
    layers.append(pick(rng, [m for m in layers if isinstance(m, torch.nn.Linear) and m.in_features == m.out_features]))
    return None


@kind("a layer becomes a block of layers")
def _(side: Side, rng: random.Random) -> Undo:
    layers = body(side)
    i = rng.randrange(len(layers))
    layers[i] = torch.nn.Sequential(layers[i], activation(rng, side.is_ours))
    return None


@kind("a module's class is another")
def _(side: Side, rng: random.Random) -> Undo:
    layer = pick(rng, [m for m in modules(side, Module) if type(m).__name__ in ("Tanh", "Sigmoid", "SiLU", "ReLU")])
    before = type(layer)
    layer.__class__ = type(activation(random.Random(rng.randrange(1 << 30)), side.is_ours))
    for name, value in {"inplace": False, "negative_slope": 0.1, "alpha": 1.0, "approximate": "none"}.items():
        layer.__dict__.setdefault(name, value)
    layer.__dict__.update(beta=1.0, threshold=20.0)
    return lambda: setattr(layer, "__class__", before)


@kind("a linear layer's class is a subclass")
def _(side: Side, rng: random.Random) -> Undo:
    layer = pick(rng, modules(side, torch.nn.Linear))
    before = layer.__class__
    layer.__class__ = HalfLinear
    return lambda: setattr(layer, "__class__", before)


@kind("the model's class has another forward", "namespace")
def _(side: Side, rng: random.Random) -> Undo:
    need(isinstance(side.model, Net))
    before = Net.forward
    Net.forward = other_forward  # type: ignore[method-assign]
    return lambda: setattr(Net, "forward", before)


@kind("one module has a forward of its own")
def _(side: Side, rng: random.Random) -> Undo:
    layer = pick(rng, modules(side, torch.nn.Linear))
    layer.forward = lambda x, layer=layer: torch.nn.functional.linear(x, layer.weight) * 2
    return lambda: vars(layer).pop("forward", None)


@kind("the bias is taken away")
def _(side: Side, rng: random.Random) -> Undo:
    layer = pick(rng, [m for m in modules(side, torch.nn.Linear) if m.bias is not None])
    layer.bias = None
    return None


@kind("the model is wrapped")
def _(side: Side, rng: random.Random) -> Undo:
    before = side.model
    side.step.model = torch.nn.Sequential(before, activation(rng, side.is_ours))
    return lambda: setattr(side.step, "model", before)


@kind("the model is another, with another optimizer")
def _(side: Side, rng: random.Random) -> Undo:
    side.step.model = copy.deepcopy(side.model)
    replace_optimizer(side, rng, side.spec.optimizer)
    return None


def replace_optimizer(side: Side, rng: random.Random, name: str) -> None:
    """A new optimizer of all parameters."""
    side.step.optimizer = OPTIMIZERS[name](side.parameters())
    side.scheduler = None


@kind("another optimizer")
def _(side: Side, rng: random.Random) -> Undo:
    replace_optimizer(side, rng, rng.choice(list(OPTIMIZERS)))
    return None


@kind("a new optimizer of the same kind")
def _(side: Side, rng: random.Random) -> Undo:
    replace_optimizer(side, rng, side.spec.optimizer)
    return None


class Halved(torch.optim.SGD):
    """What an optimizer's class may become."""

    def step(self, closure: Any = None) -> Any:
        """Half a step."""
        for group in self.param_groups:
            group["lr"] *= 0.5
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2
        return result


@kind("the optimizer's class is a subclass")
def _(side: Side, rng: random.Random) -> Undo:
    need(type(side.optimizer) is torch.optim.SGD)
    side.optimizer.__class__ = Halved
    return None


@kind("another loss")
def _(side: Side, rng: random.Random) -> Undo:
    torch.manual_seed(rng.randrange(1 << 30))
    side.step.loss = LOSSES[rng.choice([name for name in LOSSES if name != "Uncertain"])](namespace(rng, side.is_ours))
    if isinstance(side.step.loss, Module):
        side.step.loss.double()
    return None


@kind("a loss that is a function with a number in it")
def _(side: Side, rng: random.Random) -> Undo:
    factor = rng.choice([0.5, 2.0, 3.0])
    side.step.loss = lambda output, target: ((output - target) ** 2).mean() * factor
    return None


@kind("another reduction")
def _(side: Side, rng: random.Random) -> Undo:
    loss = side.step.loss
    need(hasattr(loss, "reduction"))
    loss.reduction = "sum" if loss.reduction == "mean" else "mean"
    return None


@kind("a loss that is no number", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    loss = side.step.loss
    need(hasattr(loss, "reduction"))
    before = loss.reduction
    loss.reduction = "none"
    return lambda: setattr(loss, "reduction", before)


@kind("a loss without a gradient", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    before = side.step.loss
    side.step.loss = lambda output, target: ((output.detach() - target) ** 2).mean()
    return lambda: setattr(side.step, "loss", before)


@kind("settings of the loss")
def _(side: Side, rng: random.Random) -> Undo:
    loss = side.step.loss
    name = pick(rng, [name for name in ("label_smoothing", "beta", "delta", "options") if hasattr(loss, name)])
    if name == "options":
        loss.options["scale"] = rng.choice([0.5, 2.0])
    else:
        setattr(loss, name, rng.choice([0.1, 0.3, 0.7]))
    return None


@kind("the weight of the loss")
def _(side: Side, rng: random.Random) -> Undo:
    loss = side.step.loss
    need(getattr(loss, "weight", None) is not None)
    if rng.random() < 0.5:
        loss.weight.mul_(0.5)
    else:
        loss.weight = loss.weight * 2
    return None


# ---------------------------------------------------------------------------------------------------- options


@kind("skip_nonfinite", skip_nonfinite=True)
def _(side: Side, rng: random.Random) -> Undo:
    side.step.skip_nonfinite = not side.step.skip_nonfinite
    return None


@kind("a NaN in the batch, skipped", skip_nonfinite=True)
def _(side: Side, rng: random.Random) -> Undo:
    side.step.skip_nonfinite = True
    side.once["nan"] = True
    return None


@kind("a NaN in the batch", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    need(not side.step.skip_nonfinite)
    side.once["nan"] = True
    return None


@kind("accumulate")
def _(side: Side, rng: random.Random) -> Undo:
    need(side.saved["done"] == 0)
    side.step.accumulate = rng.choice([1, 2, 3])
    return None


@kind("accumulation is cut short", accumulate=4)
def _(side: Side, rng: random.Random) -> Undo:
    need(side.saved["done"] > 0)
    side.step.update()
    return None


@kind("clip_norm", clip_norm=0.5)
def _(side: Side, rng: random.Random) -> Undo:
    side.step.clip_norm = rng.choice([None, 0.1, 10.0])
    return None


@kind("keep_grad_norm")
def _(side: Side, rng: random.Random) -> Undo:
    side.step.keep_grad_norm = rng.random() < 0.7
    return None


@kind("clip_value", clip_value=0.05)
def _(side: Side, rng: random.Random) -> Undo:
    side.step.clip_value = rng.choice([None, 0.01, 10.0])
    return None


@kind("what is kept")
def _(side: Side, rng: random.Random) -> Undo:
    for name in ("keep_deltas", "keep_layers", "keep_output"):
        if name not in dict(side.spec.options):
            setattr(side.step, name, rng.random() < 0.5)
    return None


@kind("reset")
def _(side: Side, rng: random.Random) -> Undo:
    need(side.saved["done"] == 0)
    side.step.reset()
    return None


@kind("gradients added by hand, then the update")
def _(side: Side, rng: random.Random) -> Undo:
    need(side.saved["done"] == 0)
    side.optimizer.zero_grad()
    for i in range(2):
        torch.manual_seed(i)
        side.step.backward(*data(side, rng.randrange(1 << 20)), 0.5)
    side.step.update()
    return None


@kind("the source is read, a step is derived and not made")
def _(side: Side, rng: random.Random) -> Undo:
    side.step.derive(*data(side, rng.randrange(1 << 20)))
    return None


# ---------------------------------------------------------------------------------------------------- memory of tensors


def changes_memory(name: str, change: Callable[[Tensor, random.Random], Any], rare: bool = False) -> None:
    """A kind that does something with one parameter."""

    @kind(name, rare=rare)
    def _(side: Side, rng: random.Random) -> Undo:
        p = pick(rng, side.parameters())
        with torch.no_grad():
            change(p, rng)
        return None


def _square(p: Tensor) -> Tensor:
    need(p.dim() == 2 and p.shape[0] == p.shape[1])
    return p


def _set_data(p: Tensor, new: Tensor) -> None:
    p.data = new


def _set(p: Any, new: Tensor) -> None:
    p.set_(new)


def _shared(p: Tensor, rng: random.Random) -> None:
    p.data.share_memory_()


changes_memory("other memory", lambda p, rng: _set_data(p, p.data.clone()))
changes_memory("other memory and other numbers", lambda p, rng: _set_data(p, p.data * 0.9))
changes_memory("other strides", lambda p, rng: _set_data(p, p.data.t().contiguous().t()))
changes_memory("the transposed of itself", lambda p, rng: _set_data(p, _square(p).data.t()))
changes_memory("transposed in place", lambda p, rng: _square(p).t_())
changes_memory("copy_ in place", lambda p, rng: p.copy_(numbers(rng, *p.shape) / 2))
changes_memory("mul_ in place", lambda p, rng: p.mul_(0.9))
changes_memory("data.mul_ in place", lambda p, rng: p.data.mul_(0.9))
changes_memory(
    "every other number of larger memory", lambda p, rng: _set_data(p, torch.stack([p.data, p.data], -1)[..., 0])
)
changes_memory(
    "a part of larger memory", lambda p, rng: _set_data(p, torch.cat([p.data.flatten()] * 2)[p.numel() :].view(p.shape))
)
changes_memory("set_ in place", lambda p, rng: _set(p, p.data * 0.9))
changes_memory("shared memory", _shared)
changes_memory("memory of NumPy", lambda p, rng: _set_data(p, torch.from_numpy(p.data.numpy().copy())))
changes_memory("expanded, one row for all", lambda p, rng: _set_data(p, p.data[:1].expand_as(p)), rare=True)
changes_memory("a NaN in a parameter", lambda p, rng: p.view(-1)[:1].fill_(float("nan")), rare=True)


@kind("a parameter of the same data, the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    module, name = pick(rng, weights(side))
    old = getattr(module, name)
    need(sum(getattr(m, n) is old for m, n in weights(side)) == 1)
    new = Parameter(old.data, requires_grad=old.requires_grad)
    set_parameter(module, name, new)
    exchange(side, old, new)
    return None


def set_parameter(module: Any, name: str, new: Any) -> None:
    """Put a parameter in the place of another; a ParameterDict takes items."""
    module._parameters[name] = new


@kind("a new parameter, the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    module, name = pick(rng, weights(side))
    old = getattr(module, name)
    need(sum(getattr(m, n) is old for m, n in weights(side)) == 1)
    new = Parameter(numbers(rng, *old.shape) / 2)
    set_parameter(module, name, new)
    if rng.random() < 0.5:
        exchange(side, old, new)
    else:
        follow(side)
    return None


@kind("a parameter of the same data, the optimizer keeps the old one", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    module, name = pick(rng, weights(side))
    old = getattr(module, name)
    set_parameter(module, name, Parameter(old.data))
    return lambda: set_parameter(module, name, old)


@kind("load_state_dict")
def _(side: Side, rng: random.Random) -> Undo:
    shapes = {name: t.shape for name, t in side.saved["model"].items()}
    need(shapes == {name: t.shape for name, t in side.model.state_dict().items()})
    side.model.load_state_dict(side.saved["model"])
    return None


@kind("load_state_dict(assign=True), the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    before = [(m, name, getattr(m, name)) for m, name in weights(side)]
    state = {name: t.clone() * 0.9 for name, t in side.model.state_dict().items()}
    side.model.load_state_dict(state, assign=True)
    for module, name, old in before:
        if getattr(module, name) is not old:
            exchange(side, old, getattr(module, name))
    return None


def _square_layers(side: Side) -> list[Any]:
    return [m for m in modules(side, torch.nn.Linear) if m.in_features == m.out_features == SIZE]


def _two(side: Side, rng: random.Random) -> tuple[Any, Any]:
    layers = _square_layers(side)
    need(len(layers) > 1)
    one, other = rng.sample(layers, 2)
    need(one.weight is not other.weight)
    return one, other


@kind("two weights are tied, the optimizer follows")
def _(side: Side, rng: random.Random) -> Undo:
    one, other = _two(side, rng)
    other.weight = one.weight
    follow(side)
    return None


@kind("a tied weight is untied, the optimizer follows", sequential=True)
def _(side: Side, rng: random.Random) -> Undo:
    one = pick(rng, [m for m in _square_layers(side) if sum(m.weight is o.weight for o in _square_layers(side)) > 1])
    one.weight = Parameter(one.weight.detach().clone())
    follow(side)
    return None


@kind("two parameters on one memory", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    one, other = _two(side, rng)
    before = other.weight.data
    other.weight.data = one.weight.data
    return lambda: setattr(other.weight, "data", before)


@kind("two parameters exchange their memory")
def _(side: Side, rng: random.Random) -> Undo:
    one, other = _two(side, rng)
    one.weight.data, other.weight.data = other.weight.data, one.weight.data
    return None


@kind("two layers exchange their parameters")
def _(side: Side, rng: random.Random) -> Undo:
    one, other = _two(side, rng)
    one.weight, other.weight = other.weight, one.weight
    return None


@kind("a layer is pruned by slices")
def _(side: Side, rng: random.Random) -> Undo:
    linears = [m for m in body(side) if isinstance(m, torch.nn.Linear)]
    pairs = [(a, b) for a, b in itertools.pairwise(linears) if a.out_features == b.in_features > 1]
    pairs = [(a, b) for a, b in pairs if linears.count(a) == linears.count(b) == 1 and a.weight is not b.weight]
    need(not isinstance(side.model, Net) or "residual" not in side.model.features)
    a, b = pick(rng, pairs)
    k = a.out_features - 1
    a.weight.data, b.weight.data = a.weight.data[:k], b.weight.data[:, :k]
    if a.bias is not None:
        a.bias.data = a.bias.data[:k]
    a.out_features = b.in_features = k
    for p in (a.weight, a.bias, b.weight):
        if p is not None:
            p.grad = None
            side.optimizer.state.pop(p, None)
    return None


@kind("the model in float32", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    for root in side.roots():
        root.float()
    side.is_rounded = True
    return None


@kind("the model in float32 and back")
def _(side: Side, rng: random.Random) -> Undo:
    for root in side.roots():
        root.float().double()
    return None


@kind("the buffer in place", "buffer")
def _(side: Side, rng: random.Random) -> Undo:
    side.model.scale.mul_(0.8)
    return None


@kind("another buffer", "buffer")
def _(side: Side, rng: random.Random) -> Undo:
    before = side.model.scale
    if rng.random() < 0.5:
        side.model.scale = before * 0.8
    else:
        side.model.scale = torch.tensor(0.7, dtype=before.dtype)
    return None


@kind("parameters in a vector and back")
def _(side: Side, rng: random.Random) -> Undo:
    vector = torch.nn.utils.parameters_to_vector(side.parameters())
    torch.nn.utils.vector_to_parameters(vector * 0.9, side.parameters())
    return None


# ---------------------------------------------------------------------------------------------------- copies


@kind("a deep copy of the step goes on")
def _(side: Side, rng: random.Random) -> Undo:
    leave(side)
    side.step, side.scheduler = copy.deepcopy((side.step, side.scheduler))
    return None


@kind("a pickled copy of the step goes on")
def _(side: Side, rng: random.Random) -> Undo:
    try:
        pickle.dumps((side.model, side.step.loss, side.optimizer))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise Inapplicable from error
    leave(side)
    side.scheduler = None
    side.step = pickle.loads(pickle.dumps(side.step))
    return None


@kind("a copy is made and left")
def _(side: Side, rng: random.Random) -> Undo:
    leave(side, copy.deepcopy(side.step))
    return None


@kind("a copy is made, trained and left")
def _(side: Side, rng: random.Random) -> Undo:
    need(not any("forward" in vars(m) for m in modules(side, Module)))  # whose copies compute with the layer copied
    other = copy.deepcopy(side.step)
    with torch.random.fork_rng(devices=[]), contextlib.suppress(RuntimeError, ValueError):
        other(*data(side, 7))
    leave(side, other)
    return None


def leave(side: Side, step: Any = None) -> None:
    """Remember what the tensors are of a step that no one calls any more."""
    left = Side(side.step if step is None else step, side.is_ours, side.spec)
    tensors = [*left.named().values()]
    tensors += [t for of_p in left.optimizer.state.values() for t in of_p.values() if isinstance(t, Tensor)]
    side.left_behind += [(t, t.detach().clone()) for t in tensors]


# ---------------------------------------------------------------------------------------------------- gradients


@kind("zero_grad")
def _(side: Side, rng: random.Random) -> Undo:
    side.optimizer.zero_grad(set_to_none=rng.random() < 0.5)
    return None


@kind("zero_grad of the model", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    side.model.zero_grad(set_to_none=rng.random() < 0.5)
    return None


@kind("a gradient set by hand", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, learning(side))
    p.grad = numbers(rng, *p.shape).to(p.dtype)
    return None


@kind("a gradient is None", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    pick(rng, learning(side)).grad = None
    return None


@kind("gradients scaled in place", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    for p in side.parameters():
        if p.grad is not None:
            p.grad.mul_(0.5)
    return None


@kind("a gradient of other strides", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    p = pick(rng, [p for p in learning(side) if p.dim() == 2])
    p.grad = numbers(rng, p.shape[1], p.shape[0]).to(p.dtype).t()
    return None


@kind("one gradient for two parameters", accumulate=3)
def _(side: Side, rng: random.Random) -> Undo:
    one, other = _two(side, rng)
    one.weight.grad = other.weight.grad
    return None


# ---------------------------------------------------------------------------------------------------- modes


@kind("eval", "dropout")
def _(side: Side, rng: random.Random) -> Undo:
    side.model.eval()
    return None


@kind("train", "dropout")
def _(side: Side, rng: random.Random) -> Undo:
    side.model.train()
    return None


@kind("the mode of one module", "dropout")
def _(side: Side, rng: random.Random) -> Undo:
    module = pick(rng, modules(side, torch.nn.Dropout))
    module.training = not module.training
    return None


@kind("the probability of a dropout", "dropout")
def _(side: Side, rng: random.Random) -> Undo:
    pick(rng, modules(side, torch.nn.Dropout)).p = rng.choice([0.0, 0.5, 0.2, 0, 1.0])
    return None


@kind("inplace", sequential=True)
def _(side: Side, rng: random.Random) -> Undo:
    module = pick(rng, [m for m in modules(side, Module) if hasattr(m, "inplace")])
    module.inplace = not module.inplace
    return lambda: setattr(module, "inplace", not module.inplace)


@kind("the setting of an activation")
def _(side: Side, rng: random.Random) -> Undo:
    names: dict[str, list[Any]] = {
        "negative_slope": [0.1, 0.5, 0, 1],
        "alpha": [0.5, 1.0, 2],
        "approximate": ["none", "tanh"],
        "beta": [1, 2.0],
    }
    having = [(m, name) for m in modules(side, Module) for name in names if hasattr(m, name)]
    module, name = pick(rng, having)
    setattr(module, name, rng.choice(names[name]))
    return None


# ---------------------------------------------------------------------------------------------------- Python


def sets_python(name: str, feature: str, change: Callable[[Any, random.Random], Any], rare: bool = False) -> None:
    """A kind that changes what forward reads from Python."""
    others = {"number of a buffer": ["buffer"], "number of a parameter": ["gain"]}.get(feature, [])

    @kind(name, feature, *others, rare=rare)
    def _(side: Side, rng: random.Random) -> Undo:
        need(isinstance(side.model, Net))
        change(side.model, rng)
        return None


def _half_or_two(rng: random.Random) -> float:
    return rng.choice([0.5, 2.0, 1.5, 0.75])


def _fresh(model: Net, rng: random.Random) -> None:
    model.cfg = copy.copy(model.cfg)
    model.cfg.scale = _half_or_two(rng)


def _deleted(model: Any, rng: random.Random) -> None:
    if hasattr(model, "bonus"):
        del model.bonus
        model.malus = 1.0
    else:
        model.__dict__.pop("malus", None)
        model.bonus = _half_or_two(rng)


def _toggle(name: str, one: Any, other: Any) -> Callable[[Any, random.Random], None]:
    def change(model: Net, rng: random.Random) -> None:
        is_one = repr(getattr(model, name)) == repr(one)
        setattr(model, name, other if is_one else one)

    return change


def _class_attribute(model: Net, rng: random.Random) -> None:
    Net.factor = _half_or_two(rng)


def _set_member(model: Net, rng: random.Random) -> None:
    model.active ^= {"a"}


def _other_teacher(model: Net, rng: random.Random) -> None:
    teacher = torch.nn.Linear(SIZE, SIZE, bias=False).double().requires_grad_(False)
    teacher.weight.copy_(numbers(rng, SIZE, SIZE))
    model.teachers[0] = teacher


def _item(name: str, key: Any) -> Callable[[Any, random.Random], None]:
    return lambda model, rng: getattr(model, name).__setitem__(key, _half_or_two(rng))


sets_python("a namespace", "namespace", lambda m, rng: setattr(m.cfg, "scale", _half_or_two(rng)))
sets_python("another namespace", "namespace", _fresh)
sets_python("what a property reads", "property", lambda m, rng: setattr(m.cfg, "scale", _half_or_two(rng)))
sets_python("a dictionary in place", "dict", _item("options", "scale"))
sets_python("another dictionary", "dict", lambda m, rng: setattr(m, "options", {"scale": _half_or_two(rng)}))
sets_python("a list in place", "list", _item("factors", 0))
sets_python("a list that grows", "list", lambda m, rng: m.factors.append(1.0))
sets_python("what is deep inside", "nested", lambda m, rng: m.tree.layers[0].update(scale=_half_or_two(rng)))
sets_python("a class attribute", "class attribute", _class_attribute)
sets_python("a global", "global", lambda m, rng: setattr(GLOBALS, "scale", _half_or_two(rng)))
sets_python(
    "a global function",
    "global function",
    lambda m, rng: setattr(GLOBALS, "function", rng.choice([torch.tanh, torch.sigmoid, torch.relu])),
)
sets_python("a plain tensor in place", "plain tensor", lambda m, rng: m.t.mul_(0.5))
sets_python("another plain tensor", "plain tensor", lambda m, rng: setattr(m, "t", m.t * 0.5))
sets_python("the data of a plain tensor", "plain tensor", lambda m, rng: setattr(m.t, "data", m.t.data * 0.5))
sets_python("a tensor in a list in place", "list of tensors", lambda m, rng: m.table[0].mul_(0.5))
sets_python("another tensor in a list", "list of tensors", lambda m, rng: m.table.__setitem__(0, m.table[0] * 0.5))
sets_python("an array in place", "array", lambda m, rng: m.array.__setitem__(0, _half_or_two(rng)))
sets_python("another array", "array", lambda m, rng: setattr(m, "array", m.array * 0.5))
sets_python("2 becomes 2.0", "int or float", _toggle("number", 2, 2.0))
sets_python("1 becomes True", "true or one", _toggle("flag", 1, True))
sets_python("0.0 becomes -0.0", "signed zero", _toggle("zero", 0.0, -0.0))
sets_python("a text", "text", _toggle("mode", "sine", "cosine"))
sets_python("an enumeration", "enum", _toggle("kind", Mode.SINE, Mode.COSINE))
sets_python("an attribute deleted, another made", "bonus", _deleted)
sets_python("a set in place", "set", _set_member)
sets_python("a data class in place", "data class", lambda m, rng: setattr(m.settings, "scale", _half_or_two(rng)))
sets_python("another data class", "data class", lambda m, rng: setattr(m, "settings", Settings(_half_or_two(rng), 2)))
sets_python("a size", "size", lambda m, rng: setattr(m, "size", rng.choice([1, 2, 3])))
sets_python(
    "a function that holds a number", "closure", lambda m, rng: setattr(m, "function", scaled_by(_half_or_two(rng)))
)
sets_python(
    "weights of a module that is not registered",
    "unregistered module",
    lambda m, rng: m.teachers[0].weight.data.mul_(0.5),
)
sets_python("another module that is not registered", "unregistered module", _other_teacher)
sets_python(
    "an attribute that nobody reads", "gain", lambda m, rng: setattr(m, f"note_{rng.randrange(3)}", rng.random())
)


def _vars(model: Any, rng: random.Random) -> None:
    vars(model)["of_vars"] = _half_or_two(rng)


def _default(model: Any, rng: random.Random) -> None:
    with_default.__defaults__ = (_half_or_two(rng),)


def _static(model: Any, rng: random.Random) -> None:
    Scaler.fixed = staticmethod(fixed)  # type: ignore[method-assign]


def _order(model: Any, rng: random.Random) -> None:
    model.options[next(iter(model.options))] = model.options.pop(next(iter(model.options)))


def _scalar(name: str, of: str = "scale") -> Callable[[Any, random.Random], None]:
    return lambda model, rng: setattr(getattr(model, name), of, _half_or_two(rng))


sets_python(
    "an attribute with a name in parts", "name in parts", lambda m, rng: setattr(m, "named_in_parts", _half_or_two(rng))
)
sets_python("an item of vars", "vars", _vars)
sets_python("an object with slots", "slots", _scalar("slots"))
sets_python(
    "the arguments of a partial function", "partial", lambda m, rng: m.partial.keywords.update(scale=_half_or_two(rng))
)
sets_python(
    "another partial function",
    "partial",
    lambda m, rng: setattr(m, "partial", functools.partial(times, scale=_half_or_two(rng))),
)
sets_python("a deque in place", "deque", lambda m, rng: m.queue.rotate(1))
sets_python("the key of a cache", "cache", lambda m, rng: setattr(m, "key", _half_or_two(rng)))
sets_python(
    "the environment",
    "environment",
    lambda m, rng: os.environ.update(SEQUENCES_SCALE=str(_half_or_two(rng))),
    rare=True,
)
sets_python("a context variable", "context variable", lambda m, rng: CONTEXT.set(_half_or_two(rng)), rare=True)
sets_python(
    "an attribute of the base class", "base class", lambda m, rng: setattr(Base, "inherited", _half_or_two(rng))
)
sets_python("an attribute over the class's", "base class", lambda m, rng: setattr(m, "inherited", _half_or_two(rng)))
sets_python("what a called object holds", "callable object", _scalar("scaler"))
sets_python("a default argument", "default argument", _default)
sets_python("the array of a view", "view of an array", lambda m, rng: m.whole.__setitem__((0, 0), _half_or_two(rng)))
sets_python(
    "an array that becomes a tensor", "array as a tensor", lambda m, rng: m.array.__setitem__(0, _half_or_two(rng))
)
sets_python("a tensor whose number is read", "number of a tensor", lambda m, rng: m.level.mul_(0.5), rare=True)
sets_python("a tensor that decides", "decision on a tensor", lambda m, rng: m.level.mul_(0.5), rare=True)
sets_python("a buffer whose number is read", "number of a buffer", lambda m, rng: m.scale.mul_(0.5), rare=True)
sets_python("a parameter whose number is read", "number of a parameter", lambda m, rng: None, rare=True)
sets_python("a tensor of indices in place", "indices", lambda m, rng: m.permutation.copy_(m.permutation.flip(0)))
sets_python("a mask in place", "mask", lambda m, rng: m.chosen.logical_not_())
sets_python("a list in a tuple", "named tuple", lambda m, rng: m.pair.list.__setitem__(0, _half_or_two(rng)))
sets_python("another tuple", "named tuple", lambda m, rng: setattr(m, "pair", m.pair._replace(scale=_half_or_two(rng))))
sets_python(
    "what a method of another object reads",
    "method of another object",
    lambda m, rng: m.scaler.inner.update(scale=_half_or_two(rng)),
)
sets_python("a thread's own", "thread local", lambda m, rng: setattr(LOCAL, "scale", _half_or_two(rng)), rare=True)
sets_python("the order of a dictionary", "order of a dictionary", _order)
sets_python("what is referred to weakly", "weak reference", _scalar("scaler"))
sets_python("the shape of a tensor", "shape", lambda m, rng: setattr(m, "spare", torch.zeros(rng.choice([1, 3, 4]))))
sets_python("a generator that forward draws from", "generator", lambda m, rng: None, rare=True)
sets_python("a counter that forward counts up", "counter", lambda m, rng: None, rare=True)
sets_python("a static method", "static method", _static)


@kind("a number in the closure of the function", "closure")
def _(side: Side, rng: random.Random) -> Undo:
    need(isinstance(side.model, Net))
    side.model.function.__closure__[0].cell_contents = _half_or_two(rng)
    return None


@kind("what a number in the loss is")
def _(side: Side, rng: random.Random) -> Undo:
    GLOBALS.scale = _half_or_two(rng)
    return None


# ---------------------------------------------------------------------------------------------------- data


def gives(name: str, once: bool = False, rare: bool = False, **how: Sequence[Any]) -> None:
    """A kind after which the data are of another kind, for good or once."""

    @kind(name, rare=rare)
    def _(side: Side, rng: random.Random) -> Undo:
        before = dict(side.batch)
        (side.once if once else side.batch).update({key: rng.choice(list(values)) for key, values in how.items()})

        def undo() -> None:
            side.once.clear()
            side.batch.clear()
            side.batch.update(before)

        return undo


gives("another size of the batch", size=[1, 3, 6, 9])
gives("an empty batch", once=True, rare=True, size=[0])
gives("more dimensions", extra=[(2,), (), (3, 2)])
gives("another layout of the batch", layout=["transposed", "sliced", "expanded", None])
gives("inputs that require a gradient", requires_grad=[True, False])
gives("inputs of another dtype", once=True, rare=True, dtype=[torch.float32])
gives("a shape that does not fit", once=True, wrong=[True])
gives("inputs in a tuple or a dictionary", form=["tuple", "dict", None])


def _weight_as_input(side: Side, x: Tensor) -> Tensor:
    found = [p.detach() for p in side.parameters() if p.shape == (SIZE, SIZE)]
    return found[-1] if found else x


def _gradient_as_input(side: Side, x: Tensor) -> Tensor:
    found = [p.grad for p in side.parameters() if p.shape == (SIZE, SIZE) and p.grad is not None]
    return found[-1] if found else x


def _output_as_input(side: Side, x: Tensor) -> Tensor:
    output = side.step.output
    return output if isinstance(output, Tensor) and output.shape[-1] == SIZE else x


gives("a weight as the input", once=True, source=[_weight_as_input])


@kind("a gradient as the input", clip_norm=10.0)
def _(side: Side, rng: random.Random) -> Undo:
    need(not side.saved["folds"] and side.saved["done"] == 0)  # in a window stock adds to it in place, and raises
    side.once["source"] = _gradient_as_input
    return None


@kind("the output as the input", keep_output=True)
def _(side: Side, rng: random.Random) -> Undo:
    side.step.keep_output = True
    side.once["source"] = _output_as_input
    return None


# ---------------------------------------------------------------------------------------------------- hooks


@contextlib.contextmanager
def removing(handle: Any) -> Iterator[None]:
    """A hook that is there for one step of one side."""
    try:
        yield
    finally:
        handle.remove()


def hooks(name: str, register: Callable[[Side, random.Random, Callable[[str], None]], Any]) -> None:
    """A kind that registers a hook, which changes something and counts its calls."""

    @kind(name, rare=True)
    def _(side: Side, rng: random.Random) -> Undo:
        handle = register(side, rng, lambda key: side.calls.update([key]))
        return lambda: handle.remove()


def _doubled(call: Callable[[str], None], key: str) -> Callable[..., Any]:
    def hook(*args: Any) -> Any:
        call(key)
        return (
            args[-1] * 2
            if isinstance(args[-1], Tensor)
            else tuple(a * 2 if isinstance(a, Tensor) else a for a in args[-1])
        )

    return hook


def _silent(call: Callable[[str], None], key: str) -> Callable[..., Any]:
    def hook(*args: Any, **kwargs: Any) -> None:
        call(key)

    return hook


def _a_layer(side: Side, rng: random.Random) -> Any:
    return pick(rng, modules(side, torch.nn.Linear))


hooks("a forward hook", lambda s, rng, call: _a_layer(s, rng).register_forward_hook(_doubled(call, "forward")))
hooks(
    "a forward hook that only looks",
    lambda s, rng, call: _a_layer(s, rng).register_forward_hook(_silent(call, "looks")),
)
hooks("a forward pre-hook", lambda s, rng, call: _a_layer(s, rng).register_forward_pre_hook(_doubled(call, "pre")))
hooks("a backward hook", lambda s, rng, call: _a_layer(s, rng).register_full_backward_hook(_silent(call, "backward")))
hooks(
    "a backward pre-hook",
    lambda s, rng, call: _a_layer(s, rng).register_full_backward_pre_hook(_doubled(call, "backward pre")),
)
hooks("a hook of a parameter", lambda s, rng, call: pick(rng, learning(s)).register_hook(_doubled(call, "parameter")))
hooks(
    "a hook after a gradient",
    lambda s, rng, call: pick(rng, learning(s)).register_post_accumulate_grad_hook(_silent(call, "after")),
)
hooks(
    "a hook before the optimizer's step",
    lambda s, rng, call: s.optimizer.register_step_pre_hook(_silent(call, "step pre")),
)
hooks(
    "a hook after the optimizer's step",
    lambda s, rng, call: s.optimizer.register_step_post_hook(_silent(call, "step post")),
)


def everywhere(name: str, register: Callable[[Callable[[str], None]], Any]) -> None:
    """A kind that registers a hook of all modules or optimizers, during this side's steps."""

    @kind(name, rare=True)
    def _(side: Side, rng: random.Random) -> Undo:
        def around() -> Any:
            return removing(register(lambda key: side.calls.update([key])))

        side.around.append(around)
        return lambda: side.around.remove(around)


_module = torch.nn.modules.module
everywhere("a hook of all modules", lambda call: _module.register_module_forward_hook(_silent(call, "all")))
everywhere(
    "a backward hook of all modules", lambda call: _module.register_module_full_backward_hook(_silent(call, "all back"))
)
everywhere(
    "a hook of all optimizers",
    lambda call: register_optimizer_step_pre_hook(_silent(call, "optimizers")),
)


@kind("a hook, removed again")
def _(side: Side, rng: random.Random) -> Undo:
    _a_layer(side, rng).register_forward_hook(lambda m, x, y: y * 2).remove()
    pick(rng, learning(side)).register_hook(lambda g: g * 2).remove()
    return None


@kind("the optimizer's step is wrapped")
def _(side: Side, rng: random.Random) -> Undo:
    optimizer: Any = side.optimizer
    step = optimizer.step

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        side.calls.update(["wrapped"])
        return step(*args, **kwargs)

    optimizer.step = wrapped
    return None


@kind("a weight is pruned", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    from torch.nn.utils import prune

    layer = _a_layer(side, rng)
    need("weight" in layer._parameters and sum(m.weight is layer.weight for m in modules(side, torch.nn.Linear)) == 1)
    prune.l1_unstructured(layer, "weight", 0.5)
    return None


# ---------------------------------------------------------------------------------------------------- beside the steps


@kind("a stock step between")
def _(side: Side, rng: random.Random) -> Undo:
    need(side.saved["done"] == 0)
    x, y = data(side, rng.randrange(1 << 20))
    torch.manual_seed(3)
    side.optimizer.zero_grad()
    side.step.loss(
        side.model(**x) if isinstance(x, dict) else side.model(*x) if isinstance(x, tuple) else side.model(x), y
    ).backward()
    side.optimizer.step()
    side.optimizer.zero_grad()
    return None


@kind("an evaluation between")
def _(side: Side, rng: random.Random) -> Undo:
    x, _ = data(side, rng.randrange(1 << 20))
    torch.manual_seed(3)
    with torch.no_grad():
        side.model(**x) if isinstance(x, dict) else side.model(*x) if isinstance(x, tuple) else side.model(x)
    return None


@kind("garbage is collected")
def _(side: Side, rng: random.Random) -> Undo:
    gc.collect()
    return None


@kind("another default dtype")
def _(side: Side, rng: random.Random) -> Undo:
    torch.set_default_dtype(rng.choice([torch.float64, torch.float32]))
    return None


@kind("without gradients recorded", rare=True)
def _(side: Side, rng: random.Random) -> Undo:
    if side.is_ours:  # which records none; stock would only raise
        side.around.append(torch.no_grad)
    return None
