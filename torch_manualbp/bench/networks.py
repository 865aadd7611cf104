"""The networks of the panel and how they are trained: of stock layers or of ours, from the same weights on the same
data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter, Sequential
from torch.optim import SGD, AdamW, Optimizer

__all__ = ["ACTIVATIONS", "NETWORKS", "OPTIMIZERS", "PRECISIONS", "Case", "Network", "Residual", "panel"]


class Residual(Module):
    """a = x + layers(x)"""

    def __init__(self, layers: Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@dataclass(frozen=True)
class Network:
    """Linear layers of these widths with activations between them, after ``blocks`` residual blocks of the first width,
    each of two linear layers."""

    name: str
    widths: tuple[int, ...]
    batch: int
    blocks: int = 0

    @property
    def at(self) -> str:
        """The name with the batch."""
        return f"{self.name}:{self.batch}"

    def build(self, nn: Any, activation: str) -> Module:
        """It, of the layers of this ``nn``."""
        n, act = self.widths[0], getattr(nn, activation)
        blocks = [Residual(Sequential(nn.Linear(n, n), act(), nn.Linear(n, n))) for _ in range(self.blocks)]
        layers: list[Module] = []
        for n_in, n_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            layers += [nn.Linear(n_in, n_out), act()]
        return Sequential(*blocks, *layers[:-1])


NETWORKS = [
    Network("4-2-2-1", (4, 2, 2, 1), 32),
    Network("64-128-64-10", (64, 128, 64, 10), 64),
    Network("784-256-128-10", (784, 256, 128, 10), 64),
    Network("784-512-512-10", (784, 512, 512, 10), 256),
    Network("1024-4096-1024", (1024, 4096, 1024), 64),
    Network("1024-4096-1024", (1024, 4096, 1024), 512),
    Network("residual", (512, 10), 128, blocks=4),
]

ACTIVATIONS = ("ReLU", "GELU", "Tanh")
PRECISIONS = ("float32", "bfloat16")
"""The dtype of the products: bfloat16 is under autocast."""

OPTIMIZERS: dict[str, tuple[str, Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": ("SGD", SGD, {"lr": 1e-3}),
    "momentum": ("SGD, momentum, weight decay", SGD, {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}),
    "adamw": ("AdamW", AdamW, {"lr": 1e-5}),
}
"""What they are called, and with what they are made: with learning rates that keep the loss an ordinary number over the
thousands of steps of a measurement."""

BATCHES = 4
"""How many batches are taken in turn."""


@dataclass(frozen=True)
class Case:
    """A network and how it is trained."""

    network: Network
    activation: str
    optimizer: str
    precision: str

    def __str__(self) -> str:
        return f"{self.network.at} {self.activation} {self.optimizer} {self.precision}"

    def model(self, nn: Any) -> Module:
        """The network of the layers of this ``nn``, with the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.network.build(nn, self.activation)

    def loss(self, nn: Any) -> Module:
        """Mean squared error for an output of one number, cross-entropy for scores of classes."""
        loss: Module = nn.MSELoss() if self.network.widths[-1] == 1 else nn.CrossEntropyLoss()
        return loss

    def new_optimizer(self, parameters: Iterable[Parameter]) -> Optimizer:
        """With torch's fused kernel."""
        _, kind, arguments = OPTIMIZERS[self.optimizer]
        return kind(parameters, **arguments, fused=True)

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The same each time."""
        generator = torch.Generator().manual_seed(1)
        n, first, last = self.network.batch, self.network.widths[0], self.network.widths[-1]
        batches = []
        for _ in range(BATCHES):
            x = torch.randn(n, first, generator=generator)
            is_class = last > 1
            y = torch.randint(last, (n,), generator=generator) if is_class else torch.randn(n, 1, generator=generator)
            batches.append((x, y))
        return batches

    def autocast(self) -> torch.autocast:
        """The context of the forward."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


def panel(
    networks: Iterable[Network], activations: Iterable[str], optimizers: Iterable[str], precisions: Iterable[str]
) -> Iterator[Case]:
    """All that they make together."""
    for precision in precisions:
        for network in networks:
            for activation in activations:
                for optimizer in optimizers:
                    yield Case(network, activation, optimizer, precision)
