"""The loops that people write: several losses and optimizers, a loss inside of the model, evaluation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from step_cases import CLASSES, FEATURES, data, mlp
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.utils import _pytree as pytree

from torch_manualbp import TrainStep, nn


class Networks(Module):
    """A generator and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = mlp(sizes=(FEATURES, 8, FEATURES)), mlp(nn.LeakyReLU, (FEATURES, 8, 1))

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.d(self.g(z))
        return out


class Discriminating(Module):
    """What is made, and what is real."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            made = self.networks.g(z)
        return self.networks.d(made), self.networks.d(x)


def fooled(score: Tensor, y: Any = None) -> Tensor:
    return F.softplus(-score).mean()


def found(scores: tuple[Tensor, Tensor], y: Any = None) -> Tensor:
    made, real = scores
    return F.softplus(made).mean() + F.softplus(-real).mean()


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_generator_and_a_discriminator(optimizer: Any) -> None:
    torch.manual_seed(0)
    ours = Networks().double()
    stock = copy.deepcopy(ours)
    generate = TrainStep(ours, fooled, optimizer(ours.g.parameters(), lr=0.05), freeze_others=True)
    discriminate = TrainStep(Discriminating(ours), found, optimizer(ours.d.parameters(), lr=0.05))
    of_g, of_d = optimizer(stock.g.parameters(), lr=0.05), optimizer(stock.d.parameters(), lr=0.05)
    for i in range(4):
        z, x = data(i)[0], data(i + 10)[0]
        of_d.zero_grad()
        C = found((stock.d(stock.g(z).detach()), stock.d(x)))
        C.backward()
        of_d.step()
        torch.testing.assert_close(discriminate((z, x), None), C.detach(), rtol=1e-11, atol=1e-12)
        of_g.zero_grad()
        C = fooled(stock(z))
        C.backward()
        of_g.step()
        torch.testing.assert_close(generate(z, None), C.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-11, atol=1e-12)
    assert len(generate._programs) == len(discriminate._programs) == 1
    assert "dW_d" not in generate.source


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


pytree.register_dataclass(Output)


class WithLoss(Module):
    """A model that takes labels, and returns its loss."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.fc, self.kind = nn.Linear(FEATURES, CLASSES), kind

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.fc(x)
        return self.kind(loss=F.cross_entropy(logits, labels), logits=logits)


@pytest.mark.parametrize("kind", [dict, Output])
def test_a_loss_inside_of_the_model(kind: Any) -> None:
    ours = WithLoss(kind).double()
    stock = copy.deepcopy(ours)

    def own(output: Any, target: None) -> Tensor:
        loss: Tensor = output["loss"] if kind is dict else output.loss
        return loss

    step = TrainStep(ours, own, SGD(ours.parameters(), lr=0.1), keep_output=True)
    optimizer = SGD(stock.parameters(), lr=0.1)
    for i in range(3):
        x, y = data(i)
        optimizer.zero_grad()
        output = stock(x, y)
        own(output, None).backward()
        optimizer.step()
        step({"x": x, "labels": y}, None)
        assert type(step.output) is kind
        torch.testing.assert_close(pytree.tree_leaves(step.output), [t.detach() for t in pytree.tree_leaves(output)])
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-11, atol=1e-12)


def test_backward_and_update_stand_apart() -> None:
    ours = mlp().double()
    stock = copy.deepcopy(ours)
    step = TrainStep(ours, nn.CrossEntropyLoss(), SGD(ours.parameters(), lr=0.1, momentum=0.9))
    optimizer = SGD(stock.parameters(), lr=0.1, momentum=0.9)
    for i in range(3):
        optimizer.zero_grad()
        step.optimizer.zero_grad()
        for j in range(2):  # of two losses
            F.cross_entropy(stock(data(2 * i + j)[0]), data(2 * i + j)[1]).backward()
            step.backward(*data(2 * i + j))
        for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-11, atol=1e-12)
        optimizer.step()
        step.update()
        torch.testing.assert_close(ours.state_dict(), stock.state_dict(), rtol=1e-11, atol=1e-12)


def test_evaluation_changes_nothing() -> None:
    model = torch.nn.Sequential(mlp(), torch.nn.Dropout(0.5)).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1), keep_output=True)
    step(*data(0))
    before = copy.deepcopy(model.state_dict())
    model.eval()
    for i in range(3):
        x, y = data(i)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(step.evaluate(x, y), F.cross_entropy(expected, y), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(step.output, expected, rtol=1e-12, atol=1e-12)
    assert "backward" not in step.source
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    model.train()
    step(*data(1))
    assert len(step._programs) == 2


def test_evaluation_takes_a_model_of_which_nothing_learns() -> None:
    model = mlp().double().requires_grad_(False)
    x, y = data(0)
    step = TrainStep(model, nn.CrossEntropyLoss(), SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    torch.testing.assert_close(step.evaluate(x, y), F.cross_entropy(model(x), y), rtol=1e-12, atol=1e-12)
