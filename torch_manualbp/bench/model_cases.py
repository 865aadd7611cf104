"""The rows of the panel of whole models, and the ways to make their steps that are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from torch_manualbp.bench import models
from torch_manualbp.bench.explicit import ExplicitGPT
from torch_manualbp.bench.products import products_of
from torch_manualbp.bench.variants import Running
from torch_manualbp.derive import TrainStep

__all__ = ["MODELS", "MODEL_VARIANTS", "ModelCase", "starts"]

BATCHES = 4
"""How many batches are taken in turn."""

Batch = tuple[Any, Any]


@dataclass(frozen=True)
class ModelCase:
    """A model, its data and how it is trained."""

    name: str
    about: str
    build: Callable[[], Module]
    batch: Callable[[torch.Generator], Batch]
    """Inputs and target."""

    loss: Callable[..., Tensor] = F.cross_entropy
    momentum: bool = False
    """SGD with momentum; otherwise AdamW."""

    recurrent: int = 0
    """Time steps, if one layer is an LSTM, whose products stock makes in one call."""

    bounds: tuple[tuple[str, str, float], ...] = ()
    """The largest ratio of the times of two variants that is good; ``stock`` is the fastest of stock's."""

    memory: float | None = None
    """The share of stock's peak over parameters, gradients and state, at most."""

    def __str__(self) -> str:
        return self.name

    def model(self) -> Module:
        """It, with the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def new_optimizer(self, model: Module) -> Optimizer:
        """With torch's fused kernel."""
        if self.momentum:
            return SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        return AdamW(model.parameters(), lr=1e-5, fused=True)

    def batches(self) -> list[Batch]:
        """The same each time."""
        generator = torch.Generator().manual_seed(1)
        return [self.batch(generator) for _ in range(BATCHES)]


def _tokens(vocabulary: int, batch: int, context: int) -> Callable[[torch.Generator], Batch]:
    def of(g: torch.Generator) -> Batch:
        x, y = (torch.randint(vocabulary, (batch, context), generator=g) for _ in range(2))
        return x, y.flatten()

    return of


def _images(batch: int, *shape: int) -> Callable[[torch.Generator], Batch]:
    return lambda g: (torch.randn(batch, *shape, generator=g), torch.randint(10, (batch,), generator=g))


def _sequences(g: torch.Generator) -> Batch:
    return torch.randint(1000, (32, 100), generator=g), torch.randint(2, (32,), generator=g)


def _rows(g: torch.Generator) -> Batch:
    categories, numbers = torch.randint(20, (64, 6), generator=g), torch.randn(64, 10, generator=g)
    return (categories, numbers), torch.randn(64, 1, generator=g)


def _experience(g: torch.Generator) -> Batch:
    x, action = torch.randn(64, 8, generator=g), torch.randint(4, (64,), generator=g)
    old, advantage, returns = (torch.randn(64, generator=g) for _ in range(3))
    return x, (action, old - 1.4, advantage, returns)


def _gpt(name: str, about: str, sizes: Sequence[int], batch: int, **others: Any) -> ModelCase:
    vocabulary, context, n, heads, blocks = sizes
    bias = name == "gpt2"
    build = lambda: models.GPT(vocabulary, context, n, heads, blocks, bias)  # noqa: E731
    return ModelCase(name, about, build, _tokens(vocabulary, batch, context), **others)


def _mlp(name: str, widths: tuple[int, ...], activation: type[Module], batch: int) -> ModelCase:
    about = f"{'-'.join(map(str, widths))}, {activation.__name__}, batch {batch}, momentum"
    bounds = (("derived", "products", 1.35), ("derived", "stock", 1.0))
    return ModelCase(
        name, about, lambda: models.stack(widths, activation), _images(batch, widths[0]), momentum=True, bounds=bounds
    )


_FASTER = (("derived", "stock", 1.0),)

MODELS = [
    _gpt(
        *("micro-gpt", "GPT: 1 block, width 16, 4 heads, context 8, batch 1", (27, 8, 16, 4, 1), 1),
        bounds=(("derived", "stock", 1 / 3), ("derived", "numpy", 1.0)),
    ),
    _gpt(
        *("nanogpt", "GPT: 4 blocks, width 128, 4 heads, context 64, batch 12", (65, 64, 128, 4, 4), 12),
        bounds=(("derived", "products", 1.10), *_FASTER),
    ),
    _gpt(
        *("gpt-384", "GPT: 6 blocks, width 384, 6 heads, context 256, batch 4", (65, 256, 384, 6, 6), 4),
        bounds=(("derived", "products", 1.05), *_FASTER),
        memory=0.6,
    ),
    _gpt(
        *("gpt2", "GPT-2 124M: 12 blocks, width 768, 12 heads, context 64, batch 4", (50257, 64, 768, 12, 12), 4),
        bounds=(("derived", "products", 1.08), *_FASTER),
        memory=0.7,
    ),
    ModelCase(
        *("llama", "Llama: 4 blocks, width 256, 8 heads, context 128, batch 4"),
        lambda: models.Llama(512, 128, 256, 8, 4),
        _tokens(512, 4, 128),
        bounds=(("derived", "products", 1.12), *_FASTER),
    ),
    ModelCase(*("lenet", "LeNet, batch 32", models.LeNet, _images(32, 1, 28, 28)), bounds=(("derived", "stock", 0.8),)),
    ModelCase("resnet18", "ResNet-18 for CIFAR, batch 32", models.ResNet18, _images(32, 3, 32, 32), bounds=_FASTER),
    ModelCase(
        *("lstm", "LSTM classifier: width 256, length 100, batch 32"),
        lambda: models.LSTMClassifier(1000, 256),
        _sequences,
        recurrent=100,
        bounds=(("derived", "products", 1.10), *_FASTER),
    ),
    ModelCase(
        *("tabular", "6 embeddings, 10 numbers, batch norms, 200-100, batch 64"),
        lambda: models.Tabular(6, 20, 10),
        _rows,
        F.mse_loss,
        bounds=(("derived", "stock", 0.4),),
    ),
    ModelCase(
        *("ppo", "policy and value: 8-64-64, batch 64"),
        lambda: models.ActorCritic(8, 4),
        _experience,
        models.policy_loss,
        bounds=(("derived", "stock", 0.4), ("derived", "products", 2.5)),
    ),
    _mlp("mlp-tanh", (256, 256, 256, 256, 10), nn.Tanh, 256),
    _mlp("mlp-elu", (256, 256, 256, 256, 10), nn.ELU, 512),
    _mlp("mlp-silu", (400, 300, 200, 10), nn.SiLU, 256),
]


def _stock(case: ModelCase, compile: bool) -> Running:
    model, batches = case.model(), case.batches()
    optimizer, turn = case.new_optimizer(model), cycle(batches)

    def evaluate(x: Any, y: Any) -> Tensor:
        return case.loss(model(*x) if isinstance(x, tuple) else model(x), y)

    forward: Callable[[Any, Any], Tensor] = torch.compile(evaluate) if compile else evaluate

    def step() -> Tensor:
        optimizer.zero_grad()
        C = forward(*next(turn))
        C.backward()
        optimizer.step()
        return C

    return Running(step, [*model.parameters()], _tensors(batches))


def _derived(case: ModelCase, **options: Any) -> Running:
    model, batches = case.model(), case.batches()
    turn = cycle(batches)
    train = TrainStep(model, case.loss, case.new_optimizer(model), **options)
    return Running(lambda: train(*next(turn)), [*model.parameters()], _tensors(batches))


def _numpy(case: ModelCase) -> Running:
    model = case.model()
    assert isinstance(model, models.GPT)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    first = next(iter(model.blocks))
    explicit = ExplicitGPT(weights, first.attention.heads, 1e-5)  # type: ignore[union-attr, arg-type]
    batches = case.batches()
    turn = cycle([(x[0].numpy(), y.numpy()) for x, y in batches])
    return Running(lambda: torch.tensor(explicit.step(*next(turn))), [*model.parameters()], _tensors(batches))


def _products(case: ModelCase, best: bool) -> Running:
    """What a stock step multiplies, and nothing else; of each product the faster kernel, if ``best``."""
    model, (x, y) = case.model(), case.batches()[0]

    def once() -> None:
        case.loss(model(*x) if isinstance(x, tuple) else model(x), y).backward()

    multiply = products_of(once, case.recurrent, best)
    nothing = torch.zeros(())

    def step() -> Tensor:
        for product in multiply:
            product()
        return nothing

    return Running(step, [p.detach() for p in model.parameters()], [])


def _tensors(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [t for part in tree for t in _tensors(part)]


PLAIN = {"fuse": False}
"""Nothing is compiled meanwhile."""

MODEL_VARIANTS: dict[str, tuple[str, Callable[[ModelCase], Running]]] = {
    "eager": ("stock", lambda case: _stock(case, compile=False)),
    "compile": ("stock, compiled", lambda case: _stock(case, compile=True)),
    "derived": ("derived", lambda case: _derived(case, **PLAIN)),
    "fused": ("derived, fused", lambda case: _derived(case, fuse=True)),
    "numpy": ("NumPy", _numpy),
    "products": ("products", lambda case: _products(case, best=False)),
    "products-best": ("products, best kernels", lambda case: _products(case, best=True)),
}
"""What they are called in tables, and what starts them on a case."""


def starts(case: ModelCase, variants: Sequence[str]) -> list[str]:
    """Those of the variants that there are of a case: one network is written in NumPy."""
    return [v for v in variants if v in MODEL_VARIANTS and (v != "numpy" or case.name == "micro-gpt")]
