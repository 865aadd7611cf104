"""RunStatistics: what becomes of every layer in a run; the noise scale from per-sample gradient norms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import Module
from torch.nn import functional as F

import torch_manualbp.insight.units
from torch_manualbp import TrainStep, nn
from torch_manualbp.insight import STATISTICS, RunStatistics, summary
from torch_manualbp.insight.noise import noise, per_sample_norms, product_norm
from torch_manualbp.kernels import use_onednn

ENGINES = ("autograd", "derived")


class Sequences(Module):
    """Rows of several steps a sample, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x).tanh()
        h = self.fc2(self.fc2(h).relu())
        return self.fc3(h).mean(1)


def mlp(activation: Callable[[], Module] = nn.Tanh) -> Any:
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 3)).double()


def data(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, 4, dtype=torch.float64), torch.randint(3, shape[:1])


def measured(model: Module, x: Tensor, y: Tensor, engine: str = "autograd", **options: Any) -> dict[str, Any]:
    """The statistics of one step, under SGD of which ∂C/∂W can be told from the update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    statistics = RunStatistics(model, every=1)
    advance = TrainStep(model, nn.CrossEntropyLoss(), optimizer) if engine == "derived" else None
    with statistics.step(advance):
        if advance is not None:
            advance(x, y)
        else:
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(x), y).backward()
            optimizer.step()
    (entry,) = statistics.history
    assert entry["step"] == 1
    return entry


def quantiles(t: Tensor) -> list[float]:
    ordered = sorted(t.abs().flatten().tolist())
    return [ordered[round(q * (len(ordered) - 1))] for q in (0.05, 0.5, 0.95)]


@pytest.mark.parametrize("engine", ENGINES)
def test_against_autograd_and_sorted_numbers(engine: str) -> None:
    model = mlp()
    x, y = data(7)
    before = copy.deepcopy(model)
    z = before[0](x)
    z.retain_grad()
    F.cross_entropy(before[1:](z), y).backward()
    numbers = measured(model, x, y, engine)["layers"]["0"]
    assert z.grad is not None
    dW = before[0].weight.grad
    change = (model[0].weight - before[0].weight).detach()
    expected = {
        "delta_norm": z.grad.norm().item(),
        "grad_norm": dW.norm().item(),
        "update_ratio": (change.norm() / before[0].weight.norm()).item(),
    }
    for name, values in {"delta": z.grad, "grad": dW, "update": change / before[0].weight.detach()}.items():
        expected |= dict(zip((f"{name}_q05", f"{name}_q50", f"{name}_q95"), quantiles(values), strict=True))
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-10), name
    torch.testing.assert_close(change, -0.1 * dW)
    assert list(measured(mlp(), x, y, engine)["layers"]) == ["0", "2", "4"]
    assert set(numbers) <= set(STATISTICS)


@pytest.mark.parametrize("shape", [(6,), (6, 4)], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_noise_is_that_of_per_sample_gradients(shape: tuple[int, ...], engine: str) -> None:
    """Against vmap(grad) of the loss of one sample."""
    model = (mlp() if len(shape) == 1 else Sequences()).double()
    x, y = data(*shape)
    y.zero_()  # one class, so that the gradient stands out of the noise

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    layers: dict[str, Tensor] = {}
    for name, g in each.items():
        layer = name.rpartition(".")[0]
        layers[layer] = torch.cat([layers.get(layer, g.new_empty(len(y), 0)), g.flatten(1)], 1)

    def expected(g: Tensor) -> float:
        trace = g.var(0).sum()  # which divides by n − 1
        return (trace / (g.mean(0).square().sum() - trace / len(g))).item()

    entry = measured(copy.deepcopy(model), x, y, engine)
    scales = {layer: expected(g) for layer, g in layers.items()}
    for layer, scale in scales.items():
        found = entry["layers"][layer]["noise_scale"]
        assert found == (pytest.approx(scale, rel=1e-8) if scale > 0 else math.inf), layer
    assert any(math.isfinite(entry["layers"][layer]["noise_scale"]) for layer in layers)
    everything = expected(torch.cat(list(layers.values()), 1))
    assert entry["noise_scale"] == (pytest.approx(everything, rel=1e-8) if everything > 0 else math.inf)


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 1, 4), (5, 300, 4), (600, 40), (6, 4)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_per_sample_norms(shape: tuple[int, ...], has_bias: bool) -> None:
    """By rows or by the product, whichever is less work: the same."""
    delta, x = torch.randn(*shape[:-1], 30, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    n = shape[0]
    rows = zip(delta.reshape(n, -1, 30), x.reshape(n, -1, shape[-1]), strict=True)
    products = torch.stack([torch.cat([(d.T @ a).flatten(), d.sum(0) * has_bias]) for d, a in rows])
    torch.testing.assert_close(per_sample_norms(delta, x, has_bias), products.square().sum(1))
    weights = products.sum(0)[: 30 * shape[-1]]
    torch.testing.assert_close(product_norm(delta, x), weights.square().sum())
    trace, square, of_weight = noise(delta, x, has_bias)
    g = n * products
    torch.testing.assert_close(of_weight, weights.square().sum())
    torch.testing.assert_close(trace, g.var(0).sum())
    torch.testing.assert_close(square, g.mean(0).square().sum() - g.var(0).sum() / n)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("shape", [(600, 700), (200, 700)], ids=["by the product", "by rows"])
def test_products_of_either_kernel(shape: tuple[int, int], onednn: bool) -> None:
    rows, width = shape
    delta, x = torch.randn(rows, width), torch.randn(rows, width)
    expected = (delta.double().T @ x.double()).square().sum()
    use_onednn(onednn and torch.backends.mkldnn.is_available())
    try:
        torch.testing.assert_close(product_norm(delta, x).double(), expected, rtol=1e-5, atol=0)
    finally:
        use_onednn(None)


def test_the_noise_scale_is_without_bias() -> None:
    """δ of one unit is m + noise of variance s², and x is 1: B = s² / m², whatever the batch."""
    m, s = 0.5, 2.0
    parts = torch.zeros(2, dtype=torch.float64)
    for _ in range(4000):
        delta = (m + s * torch.randn(8, 1, dtype=torch.float64)) / 8
        trace, square, _ = noise(delta, torch.ones(8, 1, dtype=torch.float64), False)
        parts += torch.stack([trace, square])
    assert parts[0] / 4000 == pytest.approx(s**2, rel=0.05)
    assert parts[1] / 4000 == pytest.approx(m**2, rel=0.25)
    # The plain estimate, which the formula corrects, would be m² + s² / 8 = 0.75.


@pytest.mark.parametrize("engine", ENGINES)
def test_dead_and_saturated_units(engine: str) -> None:
    model = mlp(nn.ReLU)
    with torch.no_grad():
        model[0].bias[:2] = -1000.0  # of six units two never let anything through
        model[2].bias[0] = -1000.0
    x, y = data(300)
    layers = measured(copy.deepcopy(model), x, y, engine)["layers"]
    assert layers["0"]["dead"] == pytest.approx(2 / 6)
    assert layers["2"]["dead"] == pytest.approx(1 / 5)
    zeros = (model[0](x) <= 0).double().mean().item()
    assert layers["0"]["saturated"] == pytest.approx(zeros)
    assert "dead" not in layers["4"]  # which no activation follows

    model = mlp(nn.Sigmoid)
    with torch.no_grad():
        model[0].bias[0] = 30.0
        model[0].bias[1:] = 0.0
        model[0].weight[1:] = 0.0
    layers = measured(model, *data(7), engine)["layers"]
    assert layers["0"]["dead"] == 0  # f' is small, and not 0
    assert layers["0"]["saturated"] == pytest.approx(1 / 6)


def test_a_unit_that_learns_from_a_single_sample_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_manualbp.insight.units, "SLOPES", 1)  # so that 16 samples are looked at first
    model: Any = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    x, y = data(301)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[0].weight[0, 0] = 1.0
        x[:, 0] = -1.0
        x[200, 0] = 1.0  # which is not among them
    assert measured(model, x, y)["layers"]["0"]["dead"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("activation", [nn.PReLU, lambda: nn.LeakyReLU(2.0), nn.RReLU, nn.GLU, lambda: nn.Softmax(-1)])
def test_activations_of_other_kinds(activation: Callable[[], Module]) -> None:
    out = activation()
    width = 3 if isinstance(out, nn.GLU) else 6
    model = nn.Sequential(nn.Linear(4, 6), out, nn.Linear(width, 3)).double()
    numbers = measured(model, *data(7))["layers"]["0"]
    of_entries = isinstance(out, nn.PReLU | nn.LeakyReLU)
    assert ("dead" in numbers) == of_entries
    if isinstance(out, nn.LeakyReLU):
        assert numbers["saturated"] == 0  # its greatest slope is the one below 0


@pytest.mark.parametrize("engine", ENGINES)
def test_training_is_the_same_to_the_last_bit(engine: str) -> None:
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), torch.nn.Dropout(0.3), nn.Linear(6, 3))
    watched = copy.deepcopy(plain)
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(9)]
    for model, statistics in ((plain, None), (watched, RunStatistics(watched, every=3))):
        torch.manual_seed(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        advance = TrainStep(model, nn.CrossEntropyLoss(), optimizer) if engine == "derived" else None
        for x, y in batches:
            if statistics is None:
                train(model, optimizer, advance, x, y)
            else:
                with statistics.step(advance):
                    train(model, optimizer, advance, x, y)
    assert statistics is not None
    assert [entry["step"] for entry in statistics.history] == [3, 6, 9]
    assert all(map(torch.equal, plain.parameters(), watched.parameters()))


def train(model: Module, optimizer: torch.optim.Optimizer, advance: TrainStep | None, x: Tensor, y: Tensor) -> None:
    if advance is not None:
        advance(x, y)
        return
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_off_it_does_nothing() -> None:
    model = mlp()
    statistics = RunStatistics(model, every=2)
    with statistics.step():
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert torch.overrides._get_current_function_mode_stack() == []
    with statistics.step():
        assert all(m._forward_hooks for m in model.modules() if not list(m.children()))
    assert statistics.history == []  # no gradient came back in it


def test_gradients_that_are_gone_are_worked_out_from_delta_and_x() -> None:
    model = mlp()
    x, y = data(7)
    expected = measured(copy.deepcopy(model), x, y)["layers"]
    statistics = RunStatistics(model, every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with statistics.step():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer, numbers in expected.items():
        assert statistics.history[0]["layers"][layer] == pytest.approx(numbers, rel=1e-9)


def test_layers_of_other_kinds() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(inplace=True), torch.nn.Flatten(),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(108, 3)),
    ).double()  # fmt: skip
    numbers = measured(model, torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.randint(3, (5,)))["layers"]
    assert list(numbers) == ["0", "1", "4"]
    assert {"delta_norm", "grad_norm", "update_ratio"} <= set(numbers["0"])
    assert {"dead", "saturated"} <= set(numbers["1"])
    assert "noise_scale" not in numbers["0"]
    assert "noise_scale" in numbers["4"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model = mlp().float()
    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    exact = measured(copy.deepcopy(model), x, y)["layers"]["2"]
    with torch.autocast("cpu", dtype):
        numbers = measured(model, x, y)["layers"]["2"]
    for name in ("delta_norm", "grad_norm", "update_ratio"):
        assert numbers[name] == pytest.approx(exact[name], rel=0.05)


def test_an_empty_batch_and_nan() -> None:
    model = mlp()
    statistics = RunStatistics(model, every=1)
    for x in (torch.zeros(0, 4, dtype=torch.float64), torch.full((3, 4), torch.nan, dtype=torch.float64)):
        with statistics.step():
            model(x).sum().backward()
    empty, nan = statistics.history if len(statistics.history) == 2 else ({}, statistics.history[0])
    assert math.isnan(nan["layers"]["0"]["delta_norm"])
    assert "noise_scale" not in nan["layers"]["0"]
    assert empty.get("layers", {}).get("0", {}).get("delta_norm", 0) == 0


def test_one_sample_has_no_noise() -> None:
    assert "noise_scale" not in measured(mlp(), *data(1))["layers"]["0"]
    assert measured(mlp(), *data(1))["noise_scale"] is None


def test_what_raises_does_not_count() -> None:
    model = mlp()
    statistics = RunStatistics(model, every=1)
    with pytest.raises(KeyboardInterrupt), statistics.step():
        raise KeyboardInterrupt
    assert statistics.history == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    advance = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(KeyboardInterrupt), statistics.step(advance):
        raise KeyboardInterrupt
    assert not advance.keep_layers


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="every is 0: it takes a number of steps of at least 1"):
        RunStatistics(mlp(), every=0)
    compiled: Any = torch.compile(mlp())
    with pytest.raises(ValueError, match="is compiled"):
        RunStatistics(compiled)


def test_summary() -> None:
    found = summary(torch.tensor([3.0, -4.0, 0.0, 0.0]))
    assert (found.norm, found.mean, found.zeros, found.nonfinite) == (5.0, -0.25, 0.5, 0)
    assert (found.q05, found.q50, found.q95) == (0.0, 3.0, 4.0)
    assert summary(torch.tensor([math.inf, 1.0])).nonfinite == 1
    assert math.isnan(summary(torch.empty(0)).mean)
