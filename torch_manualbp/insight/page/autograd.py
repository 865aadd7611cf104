"""The same pass by PyTorch alone, and the optimizer's step, on copies: nothing that the user holds is changed."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import SGD, Optimizer

from torch_manualbp.convert import restore
from torch_manualbp.derive.derived import called, path_of_loss
from torch_manualbp.insight.run import RunStatistics

__all__ = ["MakesOptimizer", "Step", "drawing_again", "step_of"]

MakesOptimizer = Optimizer | Callable[[Iterable[Tensor]], Optimizer]
"""An optimizer of the model's parameters, or what makes one of them, such as ``partial(SGD, lr=0.1)``."""


@dataclass(frozen=True)
class Step:
    """One training step."""

    gradients: Mapping[str, Tensor]
    """∂C/∂(each parameter) as ``C.backward()`` has it through the layers of torch.nn."""

    after: Mapping[str, Tensor]
    """The parameters after the optimizer's step."""

    history: list[dict[str, Any]]
    """The statistics of the layers: that of :class:`~torch_manualbp.insight.RunStatistics`, with the cost."""

    cost_after: float
    optimizer: str
    """Such as ``SGD(lr=0.1)``."""

    kind: str
    is_plain: bool
    """Whether it is w := w − ε ∂C/∂w and nothing more."""


def step_of(
    model: Module, loss: Callable[..., Tensor], inputs: Any, target: Any, optimizer: MakesOptimizer | None, lr: float
) -> Step:
    """Backpropagate by autograd and let the optimizer make its step, all on copies.

    Raises:
        ValueError: the optimizer holds none of the model's parameters, or nothing is to be learnt.
    """
    if isinstance(optimizer, Optimizer):
        ids = {id(p) for root in (model, loss) if isinstance(root, Module) for p in root.parameters()}
        if not any(id(p) in ids for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer: it holds none of the parameters of the model")
        model, loss, optimizer = _copied(model, loss, optimizer)
    else:
        model, loss = copy.deepcopy((model, loss))
    prefix = path_of_loss(model)
    named = dict(model.named_parameters())
    if isinstance(loss, Module):
        named |= dict(loss.named_parameters(prefix=prefix))
    for root in (model, loss):
        if isinstance(root, Module):
            restore(root)
    learning = [p for p in named.values() if p.requires_grad]
    if not learning:
        raise ValueError("the model has no parameter that asks for a gradient, so there is no backpropagation to show")
    if not isinstance(optimizer, Optimizer):
        optimizer = SGD(learning, lr=lr) if optimizer is None else optimizer(learning)

    def closure() -> float:
        with torch.enable_grad(), drawing_again(model):
            for p in learning:
                p.grad = None
            C = loss(called(model, inputs), target)
            if C.numel() != 1:
                shape = tuple(C.shape)
                raise ValueError(
                    f"the loss returns a tensor of shape {shape}: it is to be one number, such as the mean"
                )
            C.backward()
        return C.item()

    statistics = RunStatistics(model, every=1)
    with statistics.step():
        cost = closure()
        gradients = {name: p.grad.detach().clone() for name, p in named.items() if p.grad is not None}
        asks_again = inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty
        optimizer.step(closure if asks_again else None)  # LBFGS asks for the cost again
    history = [{**entry, "loss": cost} for entry in statistics.history]
    with torch.no_grad(), drawing_again(model):
        cost_after = float(loss(called(model, inputs), target))
    after = {name: p.detach().clone() for name, p in named.items()}
    kind = type(optimizer).__name__
    return Step(gradients, after, history, cost_after, _described(optimizer), kind, _is_plain(optimizer))


def drawing_again(model: Module) -> AbstractContextManager[None]:
    """Every pass within draws the random numbers of the first, and none of the user's own."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    return torch.random.fork_rng(devices=sorted(i for i in devices if i is not None))


def _copied(
    model: Module, loss: Callable[..., Tensor], optimizer: Optimizer
) -> tuple[Module, Callable[..., Tensor], Optimizer]:
    """Copies that belong together. An optimizer says to copy no more of it than its groups and state; LBFGS has more. A
    step that a scheduler has put over its own stays away: it is that of the original."""
    memo: dict[int, Any] = {}
    new_model, new_loss, new_optimizer = copy.deepcopy((model, loss, optimizer), memo)
    for name, value in vars(optimizer).items():
        if name not in vars(new_optimizer) and not callable(value):
            setattr(new_optimizer, name, copy.deepcopy(value, memo))
    return new_model, new_loss, new_optimizer


def _described(optimizer: Optimizer) -> str:
    """The class with what is not its default: ``SGD(lr=0.1, momentum=0.9)``."""
    group = optimizer.param_groups[0]
    usual = inspect.signature(type(optimizer)).parameters
    named = itertools.chain(["lr"], (name for name in usual if name not in ("params", "lr")))
    settings = [
        f"{name}={group[name]:g}" if isinstance(group[name], float) else f"{name}={group[name]}"
        for name in named
        if name in group and (name == "lr" or group[name] != usual[name].default)
    ]
    return f"{type(optimizer).__name__}({', '.join(settings)})"


def _is_plain(optimizer: Optimizer) -> bool:
    group = optimizer.param_groups[0]
    is_sgd = type(optimizer) is SGD and len(optimizer.param_groups) == 1
    return is_sgd and not (group["momentum"] or group["weight_decay"] or group["maximize"])
