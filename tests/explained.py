"""Networks whose explanations are tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp.catalogue import FAMILIES, Operation
from torch_manualbp.insight.explanation import Explanation

ARTICLE_WEIGHTS = {
    "fc1.weight": ((0.1, -0.2, 0.3, 0.4), (0.5, 0.6, -0.7, -0.8)),
    "fc1.bias": (0.1, -0.1),
    "fc2.weight": ((0.3, -0.4), (0.5, 0.6)),
    "fc2.bias": (0.05, -0.05),
    "fc3.weight": ((0.7, -0.9),),
}
ARTICLE_GRADIENTS = {  # computed outside PyTorch with 40 digits, to the 12 that are written
    "fc1.weight": (
        ("0.028830203742", "0.014415101871", "-0.028830203742", "0.0576604074839"),
        ("0.116889848358", "0.0584449241792", "-0.116889848358", "0.233779696717"),
    ),
    "fc1.bias": ("0.028830203742", "0.116889848358"),
    "fc2.weight": (("-0.272732712892", "-0.190155341132"), ("0.326364147733", "0.227548375798")),
    "fc2.bias": ("-0.42241159927", "0.505476589613"),
    "fc3.weight": (("-1.24653574876", "-1.52824571724"),),
}


class Article(nn.Module):
    """4 → 2 → 2 → 1 with sigmoids."""

    def __init__(self, layers: Any = nn) -> None:
        super().__init__()
        self.fc1, self.act1 = layers.Linear(4, 2), layers.Sigmoid()
        self.fc2, self.act2 = layers.Linear(2, 2), layers.Sigmoid()
        self.fc3 = layers.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.fc3(self.act2(self.fc2(self.act1(self.fc1(x)))))


def article(layers: Any = nn) -> tuple[nn.Module, Tensor, Tensor]:
    """The network of the known case, x and y."""
    model = Article(layers).double()
    model.load_state_dict({name: torch.tensor(w, dtype=torch.float64) for name, w in ARTICLE_WEIGHTS.items()})
    x = torch.tensor([[1, 0.5, -1, 2]], dtype=torch.float64)
    return model, x, torch.ones(1, 1, dtype=torch.float64)


class Halved(nn.Module):
    """GLU keeps half of its entries: twice as many come in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.wide(x), -1)


class Functional(nn.Module):
    """A call without a module of its own."""

    def __init__(self, function: Callable[..., Tensor], *options: Any, **named: Any) -> None:
        super().__init__()
        self.function, self.options, self.named = function, options, named

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z, *self.options, **self.named)


Build = Callable[[int], nn.Module]
WITH_OPTIONS: dict[str, tuple[Build, ...]] = {  # by rule, of a width
    "CELU": (lambda n: nn.CELU(0.5), lambda n: nn.CELU(inplace=True)),
    "ELU": (lambda n: nn.ELU(1.3), lambda n: Functional(F.elu, inplace=True)),
    "GELU": (lambda n: nn.GELU(), lambda n: Functional(F.gelu)),
    "GELUTanh": (lambda n: nn.GELU(approximate="tanh"),),
    "GLU": (Halved,),
    "Hardshrink": (lambda n: nn.Hardshrink(0.2),),
    "Hardtanh": (lambda n: nn.Hardtanh(-0.6, 0.8),),
    "LeakyReLU": (lambda n: nn.LeakyReLU(0.2), lambda n: nn.LeakyReLU(0.2, inplace=True)),
    "LogSoftmax": (lambda n: nn.LogSoftmax(-1),),
    "PReLU": (lambda n: nn.PReLU(), lambda n: nn.PReLU(n)),
    "ReLU": (lambda n: nn.ReLU(), lambda n: nn.ReLU(inplace=True), lambda n: Functional(torch.relu)),
    "Sigmoid": (lambda n: nn.Sigmoid(), lambda n: Functional(Tensor.sigmoid)),
    "Softmax": (lambda n: nn.Softmax(-1), lambda n: Functional(torch.softmax, 0)),
    "Softmin": (lambda n: nn.Softmin(-1),),
    "Softplus": (lambda n: nn.Softplus(2.0, 1.5),),
    "Softshrink": (lambda n: nn.Softshrink(0.2),),
    "Threshold": (lambda n: nn.Threshold(0.1, -0.4),),
}


def of_row(operation: Operation) -> Build:
    """The layer of a row of the catalogue as it is without options, or the call of its function."""
    for layer in operation.layers.split():
        return lambda n: getattr(nn, layer)()
    function = getattr(torch, operation.functions.split()[0])
    return lambda n: Functional(function)


ACTIVATIONS = {row.name: WITH_OPTIONS.get(row.name, (of_row(row),)) for row in FAMILIES["activations"]}


TOLERANCES = {"Hardsigmoid": 1e-7}
"""Where torch's gradient itself is not as exact as float64: it has 1/6 in float32."""


class Residual(nn.Module):
    """x + W f(V x), once or several times with the same weights."""

    def __init__(self, width: int, activation: nn.Module, times: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(width, width), activation, nn.Linear(width, width)
        self.dropout, self.times = nn.Dropout(dropout), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.second(self.dropout(self.act(self.first(x))))
        return x


def random_network(activation: Callable[[int], nn.Module], seed: int) -> tuple[nn.Module, Tensor, int]:
    """Of random width, depth and kind, in float64; some input; and the width of the output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    torch.manual_seed(seed)
    into, width, out = draw(1, 4), draw(2, 4), draw(1, 3)
    modules: list[nn.Module] = [nn.Linear(into, width), activation(width)]
    for _ in range(draw(0, 2)):
        kind = draw(0, 3)
        if kind == 0:
            modules += [nn.Linear(width, width, bias=bool(draw(0, 1))), activation(width), nn.Dropout(0.3)]
        elif kind == 1:
            modules += [Residual(width, activation(width), dropout=0.3)]
        elif kind == 2:
            modules += [Residual(width, activation(width), times=2)]
        else:
            modules += [nn.SiLU(), activation(width)]
    modules.append(nn.Linear(width, out))
    leads: list[tuple[int, ...]] = [(draw(1, 5),), (draw(1, 3), draw(1, 3)), ()]
    by_channel = isinstance(modules[1], nn.PReLU) and modules[1].num_parameters > 1
    lead = leads[0 if by_channel else draw(0, 2)]
    return nn.Sequential(*modules).double(), torch.randn(*lead, into, dtype=torch.float64), out


def check(e: Explanation, tolerance: float = 1e-12) -> None:
    """Every chain's product is its term, all terms together the gradient, and that is autograd's."""
    scale = float(e.products.abs().sum())
    assert abs(e.difference) <= tolerance * scale + 1e-300, (e.name, e.index, e.value, e.autograd)
    for sample in e.samples:
        product = math.prod(factor.value for factor in sample.factors)
        assert math.isclose(product, sample.value, rel_tol=1e-14), sample
    if e.chains:
        strongest = float(e.products[e.products.abs().argmax()])
        absolute = sum(abs(chain.value) for chain in e.chains)
        assert abs(sum(chain.value for chain in e.chains) - strongest) <= tolerance * max(absolute, scale)
    for path in e.paths:
        assert math.isclose(math.prod(factor.value for factor in path.factors), path.value, rel_tol=1e-13)
