"""The models, and the stock training, that a derived step is held against."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

import torch_manualbp
from torch_manualbp import TrainStep, nn

CLASSES, FEATURES, BATCH = 5, 6, 9


def mlp(activation: Callable[[], Module] = nn.Tanh, sizes: tuple[int, ...] = (FEATURES, 8, 7, CLASSES)) -> Module:
    """Linear layers fc1, fc2, … with activations act1, act2, … between them."""
    layers: OrderedDict[str, Module] = OrderedDict()
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(n_in, n_out)
        layers[f"act{i}"] = activation()
    layers.popitem()
    return nn.Sequential(layers)


class Residual(Module):
    """Two blocks x + f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(mlp(nn.GELU, (FEATURES, 10, FEATURES)) for _ in range(2))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x)
        return out


class Tied(Module):
    """One weight in two layers, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.relu(self.first(torch.sigmoid(self.first(x)))))))
        return out


class Structured(Module):
    """Chunks, products, quotients, concatenation, transposition, indices, means, dropout, and a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 8), nn.Linear(12, CLASSES)
        self.gain = torch.nn.Parameter(torch.linspace(0.5, 2, 4))
        self.register_buffer("scale", torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        u, v = (self.first(x) * self.scale).chunk(2, 1)
        mixed = (u - v).reshape(-1, 2, 2).transpose(1, 2).flatten(1)
        q = torch.cat([u * self.gain, v / (1 + u * u), mixed], 1)
        q = q + q[:, [1]].expand(-1, 12) * 0.5 - q.mean(1, keepdim=True)
        q = F.dropout(q, 0.3, self.training)
        out: Tensor = self.head(q * (x[:, :1] > 0).to(q.dtype))
        return out


class Attention(Module):
    """A self-attention of two heads over three copies of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x * 2, x - 1], 1)
        parts = self.qkv(x).split(FEATURES, -1)
        q, k, v = (t.view(*t.shape[:2], 2, FEATURES // 2).permute(0, 2, 1, 3) for t in parts)
        a = torch.softmax(q @ k.transpose(-2, -1) / (FEATURES // 2) ** 0.5, -1)
        out: Tensor = self.head((a @ v).transpose(1, 2).reshape(x.shape)).sum(1)
        return out


class InPlace(Module):
    """Stock layers, some of them in place, and numbers added to what nobody else holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = torch.nn.Linear(FEATURES, 8), torch.nn.ReLU(inplace=True)
        self.dropout, self.head = torch.nn.Dropout(0.2), torch.nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x)).clone()
        h += 1
        h.mul_(2)
        out: Tensor = self.head(self.dropout(h).view(len(x), -1))
        return out


class Frozen(Module):
    """A frozen layer, a frozen bias, and a value that nothing is learnt from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)
        self.second.requires_grad_(False)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = self.first(x).sum()
        out: Tensor = self.head(F.silu(self.second(F.elu(self.first(x))))) + shift.detach()
        return out


MODELS: tuple[Callable[[], Module], ...] = (mlp, Residual, Tied, Structured, Attention, InPlace, Frozen)


def data(seed: int, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Inputs and class indices."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(CLASSES, (batch,), generator=generator)


def stock_of(model: Module) -> Module:
    """The same model of torch's own layers."""
    stock = copy.deepcopy(model)
    torch_manualbp.restore(stock)
    return stock


class Pair:
    """A derived and a stock training of one model from the same parameters."""

    def __init__(
        self,
        model: Module,
        loss: Any = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, lr=0.05),
        **options: Any,
    ) -> None:
        self.ours, self.stock = model.double(), stock_of(model)
        loss = nn.CrossEntropyLoss() if loss is None else loss
        holder = torch.nn.Sequential(copy.deepcopy(loss))
        torch_manualbp.restore(holder)
        self.stock_loss = holder[0]
        self.optimizer = optimizer([p for p in self.ours.parameters() if p.requires_grad])
        self.stock_optimizer = optimizer([p for p in self.stock.parameters() if p.requires_grad])
        self.step = TrainStep(self.ours, loss, self.optimizer, **options)
        self.options = options
        self.calls = 0

    def advance(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step of each, on the same random numbers. Returns both losses."""
        n = self.options.get("accumulate", 1)
        if self.calls % n == 0:
            self.stock_optimizer.zero_grad()
        torch.manual_seed(self.calls)
        expected = self.stock_loss(self.stock(x), y)
        (expected / n).backward()
        self.calls += 1
        if self.calls % n == 0:
            parameters = [p for p in self.stock.parameters() if p.grad is not None]
            if self.options.get("clip_norm"):
                torch.nn.utils.clip_grad_norm_(parameters, self.options["clip_norm"])
            if self.options.get("clip_value"):
                torch.nn.utils.clip_grad_value_(parameters, self.options["clip_value"])
            self.stock_optimizer.step()
        torch.manual_seed(self.calls - 1)
        return self.step(x, y), expected.detach()

    def check(self) -> None:
        """Assert that the parameters are the same to rounding."""
        for (name, p), q in zip(self.ours.named_parameters(), self.stock.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12, msg=f"{name} is {p}, where stock has {q}")
