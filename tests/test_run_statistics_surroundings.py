"""RunStatistics on layers, activations and loops that other people write."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from torch_manualbp import TrainStep, nn
from torch_manualbp.insight import RunStatistics

Numbers = dict[str, dict[str, float]]


def measured(model: Module, step: Callable[[], Any]) -> dict[str, Any]:
    statistics = RunStatistics(model, every=1)
    with statistics.step():
        step()
    (entry,) = statistics.history
    return entry


def of_sum(model: Module, *args: Tensor) -> Numbers:
    layers: Numbers = measured(model, lambda: model(*args).sum().backward())["layers"]
    return layers


def parts_of_noise(model: Module, x: Tensor, y: Tensor) -> dict[str, tuple[float, float]]:
    """tr Σ and |G|² of every layer, from the gradients of one sample after another."""
    gradients: dict[str, list[Tensor]] = {}
    for i in range(len(x)):
        model.zero_grad()
        F.mse_loss(model(x[i : i + 1]), y[i : i + 1]).backward()
        own: dict[str, list[Tensor]] = {}
        for name, p in model.named_parameters():
            if p.grad is not None:
                own.setdefault(name.rpartition(".")[0], []).append(p.grad.flatten())
        for layer, parts in own.items():
            gradients.setdefault(layer, []).append(torch.cat(parts))
    model.zero_grad()
    traces = {layer: torch.stack(g).var(0).sum().item() for layer, g in gradients.items()}
    means = {layer: torch.stack(g).mean(0).square().sum().item() for layer, g in gradients.items()}
    return {layer: (traces[layer], means[layer] - traces[layer] / len(x)) for layer in gradients}


def noise_of_samples(model: Module, x: Tensor, y: Tensor) -> tuple[dict[str, float], float]:
    """tr Σ / |G|² of every layer, and of all."""
    parts = parts_of_noise(model, x, y)
    traces, squares = zip(*parts.values(), strict=True)
    return {layer: trace / square for layer, (trace, square) in parts.items()}, sum(traces) / sum(squares)


class Pooled(Module):
    """A layer of many rows a sample, and one of a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.one = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(torch.tanh(self.rows(x)).mean(1))


def regression(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(shape[0], 3, dtype=torch.float64) + 1


def test_layers_with_other_samples_left_out_are_of_one_scale() -> None:
    """Of 256 rows a sample 16 samples are looked at, and of a single row all 64: here the 16 stand for all."""
    model = Pooled().double()
    x, y = (t.repeat_interleave(4, 0) for t in regression(16, 1, 4))
    x = x.expand(-1, 256, -1).contiguous()
    statistics = RunStatistics(model, every=1)
    with statistics.step():
        F.mse_loss(model(x), y).backward()
    for layer, (trace, _) in parts_of_noise(model, x, y).items():
        assert statistics.noise.means[layer][0] == pytest.approx(trace, rel=0.06)  # 64 · 15 / (63 · 16) = 0.95


def test_batches_that_are_accumulated_are_more_samples() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = regression(32, 4)

    def step() -> None:
        for part, target in zip(x.split(8), y.split(8), strict=True):
            (F.mse_loss(model(part), target) / 4).backward()

    entry = measured(model, step)
    of_layers, of_all = noise_of_samples(model, x, y)
    assert {name: layer["noise_scale"] for name, layer in entry["layers"].items()} == pytest.approx(of_layers)
    assert entry["noise_scale"] == pytest.approx(of_all)


def test_a_loss_that_is_scaled() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    statistics = RunStatistics(model, every=1)
    x = torch.randn(2, 3)
    with statistics.step(scale=scaler.get_scale()):
        scaler.scale(model(x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    numbers = statistics.history[0]["layers"]["0"]
    assert numbers["delta_norm"] == pytest.approx(6**0.5)
    assert numbers["grad_norm"] == pytest.approx(3**0.5 * x.sum(0).norm().item())


def test_what_is_frozen_has_no_noise() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 3)).double()
    model[2].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    x, y = regression(32, 4)
    entry = measured(model, lambda: F.mse_loss(model(x), y).backward())
    of_layers, of_all = noise_of_samples(model, x, y)
    found = {name: layer["noise_scale"] for name, layer in entry["layers"].items() if "noise_scale" in layer}
    assert found == pytest.approx(of_layers)
    assert entry["noise_scale"] == pytest.approx(of_all)


def test_rows_that_cancel_out_have_a_norm() -> None:
    torch.manual_seed(0)
    model = nn.Linear(512, 512)

    def step() -> None:
        of_outputs = torch.randn(8, 512)
        (model(torch.full((8, 512), 3.3)) * (of_outputs - of_outputs.mean(0))).sum().backward()
        model.zero_grad()

    for _ in range(20):
        assert measured(model, step)["layers"][""]["grad_norm"] == pytest.approx(0, abs=10)


# Activations of somebody's own


class Sum(Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Residual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.sum = nn.Linear(3, 3), Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.fc(x), x)


class Rectified(Module):
    """An activation with a factor for each channel, that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: Tensor
        self.calls: Tensor
        self.register_buffer("factors", torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(z * self.factors)


class Whole(Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, z: Tensor) -> Tensor:
        return self.f(z)


def test_a_sum_of_two_is_no_activation() -> None:
    assert "dead" not in of_sum(Residual(), torch.randn(5, 3))["fc"]


@pytest.mark.parametrize(
    "f", [lambda z: z.softmax(-1), F.dropout, lambda z: z - z.mean(), lambda z: z.flip(-1), lambda z: z.cumsum(0)]
)
def test_what_mixes_entries_or_draws_numbers_has_no_dead_units(f: Callable[[Tensor], Tensor]) -> None:
    random = []
    for every in (1, 2):
        torch.manual_seed(0)
        statistics = RunStatistics(model := nn.Sequential(nn.Linear(3, 3), Whole(f)), every)
        with statistics.step():
            model(torch.randn(5, 3)).square().sum().backward()
        assert all("dead" not in entry["layers"]["0"] for entry in statistics.history)
        random.append(torch.get_rng_state())
    assert torch.equal(*random)


def test_an_activation_of_channels_is_left_as_it_is() -> None:
    act = Rectified()
    model = nn.Sequential(torch.nn.Conv2d(1, 3, 2), act, torch.nn.Conv2d(3, 3, 2), act)
    numbers = of_sum(model, torch.randn(4, 1, 5, 7))
    assert numbers["0"]["dead"] == numbers["2"]["dead"] == pytest.approx(1 / 3)
    assert act.calls == 2


def test_a_model_that_is_gone_is_not_kept() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), Whole(torch.tanh))
    of_sum(model, torch.randn(5, 3))
    act = weakref.ref(model[1])
    del model
    gc.collect()
    assert act() is None


# Layers


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([torch.nn.Conv2d(2, 4, 1)], (2, 5, 5)),
        ([torch.nn.Conv1d(2, 4, 1)], (3, 2, 5)),
        ([torch.nn.Conv2d(2, 4, 1), torch.nn.InstanceNorm2d(4, affine=True)], (3, 2, 5, 5)),
        ([torch.nn.Conv2d(2, 4, 1), torch.nn.BatchNorm2d(4)], (3, 2, 5, 5)),
    ],
    ids=["unbatched", "1d", "InstanceNorm", "BatchNorm"],
)
def test_units_are_channels(layers: list[Any], shape: tuple[int, ...]) -> None:
    model = nn.Sequential(*layers, nn.ReLU())
    with torch.no_grad():
        layers[-1].bias.fill_(100)
        layers[-1].bias[0] = -100
    assert of_sum(model, torch.randn(shape))[str(len(layers) - 1)]["dead"] == pytest.approx(1 / 4)


def test_units_that_are_not_known() -> None:
    class Convolution(Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.randn(3, 1, 2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel)

    class Pyramid(Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = Convolution()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x)).mean() + F.relu(self.conv(x[..., ::2])).mean()

    numbers = of_sum(Pyramid(), torch.randn(2, 1, 8, 8))["conv"]
    assert "dead" not in numbers
    assert 0 < numbers["saturated"] < 1


def test_parametrized_weights() -> None:
    first: Any
    second: Any
    first, second = weight_norm(nn.Linear(4, 5)), spectral_norm(nn.Linear(5, 3, bias=False))
    model: Any = nn.Sequential(first, nn.Tanh(), second)
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    originals = [first.parametrizations.weight.original1, second.parametrizations.weight.original]
    before = [W.detach().clone() for W in originals]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    numbers = measured(model, step)["layers"]
    for name, W, was in zip(("0", "2"), originals, before, strict=True):
        assert numbers[name]["grad_norm"] == pytest.approx(W.grad.norm().item())
        assert numbers[name]["update_ratio"] == pytest.approx(((W - was).norm() / was.norm()).item())


def test_lazy_layers_in_the_first_step() -> None:
    model = nn.Sequential(torch.nn.LazyLinear(3), nn.Tanh(), torch.nn.LazyLinear(2))
    numbers = of_sum(model, torch.randn(5, 4))
    assert "grad_norm" in numbers["0"]
    assert "update_ratio" not in numbers["0"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_of_complex_numbers_and_of_no_units() -> None:
    model = nn.Sequential(torch.nn.Linear(3, 3, dtype=torch.complex64), torch.nn.Tanh())
    numbers = measured(model, lambda: model(torch.randn(4, 3, dtype=torch.complex64)).abs().sum().backward())["layers"]
    assert set(numbers["0"]) >= {"delta_norm", "grad_norm"}
    assert "noise_scale" not in numbers["0"]
    assert "2" in of_sum(nn.Sequential(torch.nn.Linear(3, 0), nn.ReLU(), torch.nn.Linear(0, 2)), torch.randn(4, 3))


def test_weights_that_stay_zero() -> None:
    embedding = torch.nn.Embedding(8, 4, padding_idx=0)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)

    def step() -> None:
        embedding(torch.arange(8)).sum().backward()
        optimizer.step()

    numbers = measured(embedding, step)["layers"][""]
    assert all(math.isfinite(number) for name, number in numbers.items() if name.startswith("update"))


class Tied(Module):
    """The weights of a layer, applied by the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.fc(x)), self.fc.weight.t())


class Learnt(Module):
    """A loss with a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        return (self.fc(s) - self.fc(y)).square().mean()


def test_layers_of_derived_steps_that_have_no_weights_of_their_own() -> None:
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    cases: list[tuple[Module, Module, str]] = [
        (Tied(), nn.MSELoss(), "fc"),
        (nn.Sequential(nn.Linear(5, 5)), Learnt(), "0"),
    ]
    for model, loss, layer in cases:
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        advance = TrainStep(model, loss, optimizer)
        statistics = RunStatistics(model, every=1)
        with statistics.step(advance):
            advance(x, y)
        assert list(statistics.history[0]["layers"]) == [layer]


@pytest.fixture
def one_process() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_tensors_that_are_spread_over_processes() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    model = nn.Sequential(torch.nn.LayerNorm(4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(5, 3, 4)
    expected = of_sum(model, x)
    model.zero_grad()
    plan: Any = {"0": SequenceParallel(), "1": ColwiseParallel(), "3": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (1,)), plan)
    found = of_sum(model, x)
    for layer in ("1", "3"):
        for name in found[layer]:
            assert found[layer][name] == pytest.approx(expected[layer][name], rel=1e-4)
    assert found["0"]["delta_norm"] == pytest.approx(expected["0"]["delta_norm"], rel=1e-4)


def test_derived_steps_of_a_part_of_the_model_of_another_and_none() -> None:
    model, x, y = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4), torch.randn(5, 3)
    advance = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), keep_layers=True)
    statistics = RunStatistics(nn.Sequential(model), every=1)
    with statistics.step(advance):
        advance(x, y)
    with statistics.step(advance):
        pass
    assert [(entry["step"], list(entry["layers"])) for entry in statistics.history] == [(1, ["0.0"])]
    assert advance.keep_layers  # as it was
    with (
        pytest.raises(ValueError, match=r"a Sequential that is no part of the Linear .* give RunStatistics the model"),
        RunStatistics(nn.Linear(4, 3), every=1).step(advance),
    ):
        pass
