"""A derived step is stock PyTorch's step, to rounding, for any number of steps."""

from __future__ import annotations

import copy
import gc
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from step_cases import BATCH, CLASSES, FEATURES, MODELS, Pair, data, mlp, stock_of
from torch import Tensor
from torch.nn import Module

import torch_manualbp
from torch_manualbp import TrainStep, functional, nn
from torch_manualbp.derive import step as step_module
from torch_manualbp.derive.program import Value

ACTIVATIONS: tuple[Callable[[], Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.Hardshrink,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU6,
    nn.RReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    lambda: nn.Softmax(-1),
    lambda: nn.LogSoftmax(-1),
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    lambda: nn.Threshold(0.1, 0.0),
)
# Hardsigmoid and Hardswish are not here: torch's float64 gradients of them have a constant in float32.


def _indices(generator: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (BATCH,), generator=generator)


def _numbers(generator: torch.Generator) -> Tensor:
    return torch.rand(BATCH, CLASSES, generator=generator, dtype=torch.float64)


def _signs(generator: torch.Generator) -> Tensor:
    return torch.randint(2, (BATCH, CLASSES), generator=generator) * 2.0 - 1


def _ignored(generator: torch.Generator) -> Tensor:
    y = _indices(generator)
    return y.where(y != 2, -100)


LOSSES: tuple[tuple[Module, Callable[[torch.Generator], Tensor]], ...] = (
    (nn.CrossEntropyLoss(label_smoothing=0.1), _indices),
    (nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)), _indices),
    (nn.CrossEntropyLoss(), _ignored),
    (nn.CrossEntropyLoss(ignore_index=2, reduction="sum"), _indices),
    (nn.CrossEntropyLoss(), _numbers),
    (nn.MSELoss(), _numbers),
    (nn.L1Loss(), _numbers),
    (nn.SmoothL1Loss(), _numbers),
    (nn.HuberLoss(reduction="sum"), _numbers),
    (nn.BCEWithLogitsLoss(), _numbers),
    (nn.PoissonNLLLoss(), _numbers),
    (nn.KLDivLoss(reduction="batchmean"), _numbers),
    (nn.HingeEmbeddingLoss(), _signs),
    (nn.SoftMarginLoss(), _signs),
    (nn.MultiMarginLoss(), _indices),
    (nn.MultiLabelSoftMarginLoss(), lambda generator: _numbers(generator).round()),
)

SGD_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.01, "dampening": 0.3},
    {"momentum": 0.9, "weight_decay": 0.02, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.2, "maximize": True},
    {"momentum": 0.5, "weight_decay": 0.1, "nesterov": True, "maximize": True},
)

OPTIMIZERS: tuple[tuple[type[torch.optim.Optimizer], dict[str, Any]], ...] = (
    *((torch.optim.SGD, {"lr": 0.02, **options}) for options in SGD_OPTIONS),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.AdamW, {"maximize": True, "amsgrad": True}),
    (torch.optim.RMSprop, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.Adadelta, {}),
)

_named = pytest.mark.parametrize


def _id(value: Any) -> str | None:
    if isinstance(value, type):
        return value.__name__
    return ",".join(f"{k}={v}" for k, v in value.items()) or "-" if isinstance(value, dict) else None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@_named("activation", ACTIVATIONS, ids=lambda a: repr(a()))
def test_each_activation_trains_as_stock(activation: Callable[[], Module]) -> None:
    pair = Pair(mlp(activation))
    for i in range(50):
        x, y = data(i)
        ours, expected = pair.advance(x, y)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


@_named(("loss", "target"), LOSSES, ids=lambda v: repr(v) if isinstance(v, Module) else v.__name__.strip("_<>"))
def test_each_loss_trains_as_stock(loss: Module, target: Callable[[torch.Generator], Tensor]) -> None:
    pair = Pair(mlp(), loss)
    generator = torch.Generator().manual_seed(0)
    for i in range(30):
        ours, expected = pair.advance(data(i)[0], target(generator))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


OF_SEVERAL: tuple[Callable[[Any, Tensor, Tensor], Tensor], ...] = (
    lambda F, s, y: F.cosine_embedding_loss(s[:, :2], s[:, 2:4], y[:, 0].sign(), margin=0.1),
    lambda F, s, y: F.triplet_margin_loss(s[:, :2], s[:, 2:4], y[:, :2], swap=True),
    lambda F, s, y: F.margin_ranking_loss(s[:, 0], s[:, 1], y[:, 0].sign(), margin=0.5),
    lambda F, s, y: F.gaussian_nll_loss(s[:, :2], y[:, :2], F.softplus(s[:, 2:4]), full=True),
    lambda F, s, y: F.kl_div(F.log_softmax(s, 1), F.log_softmax(y, 1), reduction="batchmean", log_target=True),
    lambda F, s, y: F.binary_cross_entropy(F.sigmoid(s), F.sigmoid(y), weight=y.abs()),
)


class OfSeveral(Module):
    """One of these losses, by our functions or by torch's."""

    def __init__(self, of: Callable[[Any, Tensor, Tensor], Tensor], is_stock: bool = False) -> None:
        super().__init__()
        self.of, self.is_stock = of, is_stock

    def forward(self, s: Tensor, y: Tensor) -> Tensor:
        return self.of(torch.nn.functional if self.is_stock else functional, s, y)


@_named("of", OF_SEVERAL, ids=lambda of: of.__code__.co_names[0])
def test_losses_of_several_parts_of_the_output_train_as_stock(of: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    pair = Pair(mlp(), OfSeveral(of))
    pair.stock_loss = OfSeveral(of, is_stock=True)
    for i in range(20):
        generator = torch.Generator().manual_seed(i)
        ours, expected = pair.advance(data(i)[0], _numbers(generator) - 0.5)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"accumulate": 3},
    {"clip_norm": 0.1},
    {"clip_value": 0.01, "accumulate": 2},
)


@_named(
    ("options", "optimizer", "settings"),
    one_of_each(
        ((options, *of) for options in OPTIONS for of in OPTIMIZERS),
        lambda options, optimizer, settings: [(optimizer, str(settings)), str(options)],
    ),
    ids=_id,
)
def test_each_optimizer_trains_as_stock(options: dict[str, Any], optimizer: Any, settings: dict[str, Any]) -> None:
    pair = Pair(mlp(), optimizer=lambda p: optimizer(p, **settings), **options)
    for i in range(36):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


@_named(
    ("settings", "make"),
    one_of_each(
        itertools.product([{}, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}], MODELS),
        lambda settings, make: [str(settings), make],
    ),
    ids=_id,
)
def test_each_model_trains_as_stock_for_200_steps(settings: dict[str, Any], make: Callable[[], Module]) -> None:
    pair = Pair(make(), optimizer=lambda p: torch.optim.SGD(p, lr=0.02, **settings))
    for i in range(200):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)
    pair.check()


BENCHMARKED = itertools.product(
    [nn.CrossEntropyLoss(), nn.MSELoss()],
    [{}, {"momentum": 0.9, "weight_decay": 1e-4}, None],
    [nn.ReLU, nn.GELU, nn.Tanh],
)


@_named(("loss", "settings", "activation"), one_of_each(BENCHMARKED, lambda *of: map(str, of)), ids=_id)
def test_what_the_benchmark_trains_is_as_stock_after_200_steps(
    loss: Module, settings: dict[str, Any] | None, activation: Callable[[], Module]
) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if settings is None:
            return torch.optim.AdamW(parameters, lr=1e-3)
        return torch.optim.SGD(parameters, lr=0.02, **settings)

    pair = Pair(mlp(activation), loss, optimizer)
    for i in range(200):
        x, y = data(i)
        target = y if isinstance(loss, nn.CrossEntropyLoss) else torch.nn.functional.one_hot(y, CLASSES).double()
        ours, expected = pair.advance(x, target)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


def test_training_and_evaluation_mode_and_another_batch_size_have_programs_of_their_own() -> None:
    pair = Pair(MODELS[3]())
    for i in range(12):
        for model in (pair.ours, pair.stock):
            model.train(i % 3 != 0)
        ours, expected = pair.advance(*data(i, batch=4 if i % 4 == 3 else 9))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()


def test_the_programs_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "PROGRAMS", 8)
    pair = Pair(mlp())
    for i in range(24):
        pair.advance(*data(i, batch=9 if i % 2 else i + 1))
    kept = len(pair.step._programs)
    often = pair.step._find(*data(0), pair.step._structure())
    pair.advance(*data(0, batch=1000))
    assert kept == len(pair.step._programs) == 8
    assert often is pair.step._find(*data(0), pair.step._structure())
    pair.check()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RMSprop])
def test_few_programs_have_memory_at_a_time(optimizer: Any) -> None:
    pair = Pair(MODELS[3](), optimizer=lambda p: optimizer(p, lr=0.01))
    for i in range(20):
        ours, expected = pair.advance(*data(i, batch=3 + (i * i) % 7))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
        bound = [entry.derived for entry in pair.step._programs if entry.derived.step is not None]
        assert sum(not derived.shares_memory for derived in bound) <= step_module.WITH_MEMORY
    assert len(pair.step._programs) == 4
    pair.check()


def test_freezing_a_layer_between_steps_is_seen() -> None:
    pair = Pair(mlp())
    for i in range(9):
        for model in (pair.ours, pair.stock):
            model.get_submodule("fc2").requires_grad_(i % 3 != 1)
        pair.stock.get_submodule("fc2").zero_grad()
        pair.advance(*data(i))
    pair.check()


def test_a_schedule_of_learning_rates_is_followed() -> None:
    pair = Pair(mlp(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.2, 30) for o in (pair.optimizer, pair.stock_optimizer)]
    for i in range(30):
        pair.advance(*data(i))
        for schedule in schedules:
            schedule.step()
    pair.check()


@_named(
    ("optimizer", "settings"),
    [(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), (torch.optim.AdamW, {"lr": 0.01})],
    ids=_id,
)
def test_state_moves_between_a_derived_and_a_stock_run(optimizer: Any, settings: dict[str, Any]) -> None:
    pair = Pair(mlp(), optimizer=lambda p: optimizer(p, **settings))
    for i in range(20):
        pair.advance(*data(i))
        if i % 5 == 4:
            theirs, ours = (copy.deepcopy(o.state_dict()) for o in (pair.stock_optimizer, pair.optimizer))
            pair.optimizer.load_state_dict(theirs)
            pair.stock_optimizer.load_state_dict(ours)
    pair.check()


def test_several_inputs_come_as_a_tuple_or_by_name() -> None:
    class Two(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(FEATURES, CLASSES), nn.Linear(3, CLASSES)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.first(a), self.second(b)

    def loss(output: tuple[Tensor, Tensor], target: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(output[0], target["y"]) + nn.functional.mse_loss(*output)

    model = Two().double()
    stock = stock_of(model)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.1)
    for i in range(10):
        a, y = data(i)
        b = a[:, :3].contiguous()
        step((a, b) if i % 2 else {"a": a, "b": b}, {"y": y})
        optimizer.zero_grad()
        u, v = stock(a, b)
        (torch.nn.functional.cross_entropy(u, y) + torch.nn.functional.mse_loss(u, v)).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_large_products_with_samples_as_columns_are_the_same() -> None:
    sizes = (64, 256, 256, 64)
    pair = Pair(mlp(nn.GELU, sizes))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(64, 64, generator=generator, dtype=torch.float64)
        ours, expected = pair.advance(x, torch.randint(64, (64,), generator=generator))
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    pair.check()
    assert "torch.empty(256, 64, dtype=torch.float64)" in pair.step.program  # (out, samples), and not (samples, out)


def values_with_numbers() -> list[Value]:
    """The tensors that a program was derived on, as far as somebody holds them."""
    return [value for value in gc.get_objects() if type(value) is Value and value.tensor.device.type != "meta"]


@_named(("optimizer", "settings"), [(torch.optim.SGD, {"lr": 0.05}), (torch.optim.AdamW, {"lr": 0.01})], ids=_id)
def test_what_was_derived_from_is_freed_at_once(optimizer: Any, settings: dict[str, Any]) -> None:
    """A reference cycle would hold the tensors that it was derived on, the gradients among them, for long."""
    pair = Pair(mlp(), optimizer=lambda p: optimizer(p, **settings))
    gc.collect()
    gc.disable()
    try:
        pair.step.derive(*data(0))
        assert not values_with_numbers()
    finally:
        gc.enable()


def test_what_is_imported_while_deriving_keeps_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch imports much on demand, and binds the apply of Functions as it does."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return 2 * z

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            return 2 * da

    taken: list[Any] = []
    monkeypatch.setattr(torch, "taken", taken, raising=False)  # where a forward may change what nobody looks at

    class Imports(nn.Tanh):
        def forward(self, z: Tensor) -> Tensor:
            torch.taken.append(Twice.apply)  # type: ignore[attr-defined]
            return super().forward(z)

    pair = Pair(mlp(Imports))
    pair.step.derive(*data(0))
    gc.collect()
    assert not values_with_numbers()
    z = torch.ones(3, requires_grad=True)
    for apply in taken:
        apply(z).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.full((3,), 2.0 * len(taken)))


def test_deltas_are_the_gradients_of_the_outputs() -> None:
    pair = Pair(mlp(), keep_deltas=True)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Module, args: Any, output: Tensor) -> None:
            output.retain_grad()
            outputs[name] = output

        return hook

    for name, module in pair.stock.named_children():
        module.register_forward_hook(keep(name))
    pair.advance(*data(0))
    assert list(pair.step.deltas) == list(outputs)
    for name, output in outputs.items():
        torch.testing.assert_close(pair.step.deltas[name], output.grad, rtol=1e-11, atol=1e-14)


@_named("activation", ACTIVATIONS, ids=_id)
def test_kept_layers_are_what_local_gradients_records(activation: Callable[[], Module]) -> None:
    """And the steps that keep them, by a program of their own, have the same numbers to the last bit."""
    pair = Pair(mlp(activation))
    plain = Pair(copy.deepcopy(pair.ours)).step
    for i in range(4):
        pair.step.keep_layers = i % 2 == 0
        torch.manual_seed(i)
        with torch_manualbp.local_gradients(model := copy.deepcopy(pair.stock)) as record:
            pair.stock_loss(model(data(i)[0]), data(i)[1]).backward()
        assert torch.equal(pair.advance(*data(i))[0], (torch.manual_seed(i), plain(*data(i)))[1])
        assert [layer.path for layer in pair.step.layers] == (["fc1", "fc2", "fc3"] if i % 2 == 0 else [])
        for layer in pair.step.layers:
            for name in ("x", "z", "a", "delta", "da"):
                torch.testing.assert_close(getattr(layer, name), getattr(record[layer.path], name))
            if layer.f is not None and activation is not nn.PReLU:  # whose slope has learnt since
                torch.testing.assert_close(layer.f(layer.z), layer.a)
    assert all(map(torch.equal, pair.ours.parameters(), plain.model.parameters()))


class Several(Module):
    """Returns what the loss takes, a view of it, what the loss does not take, an input, a parameter and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.same = nn.Linear(FEATURES, CLASSES), nn.Identity()

    def forward(self, x: Tensor) -> dict[str, Any]:
        z = self.layer(x)
        others = (z[:, :2], z.tanh(), x, self.layer.bias, 1.5)
        return {"logits": self.same(z), "others": others}


class OfLogits(Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, output: dict[str, Any], target: Tensor) -> Tensor:
        C: Tensor = self.loss(output["logits"], target)
        return C


@_named("options", [{}, {"keep_deltas": True}, {"clip_norm": 1.0}, {"compile": True}], ids=_id)
def test_the_output_is_the_models_and_stays(options: dict[str, Any]) -> None:
    pair = Pair(Several(), OfLogits(), keep_output=True, **options)
    kept = []
    for i in range(3):
        x, y = data(i)
        expected = pair.stock(x)
        pair.advance(x, y)
        # The bias is the parameter itself, and updated by now.
        (*others, bias, number) = pair.step.output.pop("others")
        torch.testing.assert_close(others, list(expected["others"][:3]), rtol=1e-11, atol=1e-12)
        assert torch.equal(bias, pair.ours.get_parameter("layer.bias"))
        assert number == 1.5
        assert not pair.step.output["logits"].requires_grad
        kept.append((pair.step.output["logits"], expected["logits"]))
    for ours, theirs in kept:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_an_output_that_may_hide_numbers_is_not_kept() -> None:
    class Box:
        def __init__(self, z: Tensor) -> None:
            self.z = z

    class Boxed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Box:
            return Box(self.layer(x))

    model = Boxed().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(box: Box, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(box.z, y)

    TrainStep(model, loss, optimizer)(*data(0))
    with pytest.raises(ValueError, match=r"^keep_output: the model returns a Box, .* have it return tensors"):
        TrainStep(model, loss, optimizer, keep_output=True)(*data(0))


COMPILED: tuple[tuple[Any, dict[str, Any]], ...] = (
    (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.01}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.2, "maximize": True}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "maximize": True, "amsgrad": True}),
)

each_compiled = _named(
    ("optimizer", "settings"),
    one_of_each(COMPILED, lambda optimizer, settings: ["compiled"]),
    ids=_id,
)
"""A step takes seconds to compile."""


@each_compiled
def test_the_compiled_step_is_the_same_in_one_graph(optimizer: Any, settings: dict[str, Any]) -> None:
    pair = Pair(mlp(nn.GELU), optimizer=lambda p: optimizer(p, **settings), compile=True)
    for i in range(6):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)
        if i == 3:
            for o in (pair.optimizer, pair.stock_optimizer):
                o.param_groups[0]["lr"] = 0.01
    for p, q in zip(pair.ours.parameters(), pair.stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@each_compiled
def test_a_compiled_step_follows_a_schedule_without_being_compiled_again(
    optimizer: Any, settings: dict[str, Any]
) -> None:
    torch._dynamo.reset()
    pair = Pair(mlp(nn.GELU), optimizer=lambda p: optimizer(p, **settings), compile=True)
    for i, lr in enumerate([0.01, 0.02, 0.0, 0.0, 0.5, 0.1, 0.003, 1.0, 0.02, 0.01, 0.04]):
        for o in (pair.optimizer, pair.stock_optimizer):
            o.param_groups[0]["lr"] = lr
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    for p, q in zip(pair.ours.parameters(), pair.stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@_named("dtype", [torch.float32, torch.bfloat16])
@_named("label_smoothing", [0.0, 0.1])
def test_autocast_is_followed(dtype: torch.dtype, label_smoothing: float) -> None:
    model = mlp(nn.GELU)
    stock = stock_of(model)
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.05))
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.05)
    for i in range(5):
        x, y = data(i, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            C = step(x, y)
            expected = torch.nn.functional.cross_entropy(stock(x), y, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        eps = torch.finfo(dtype).eps
        assert math.isclose(C.item(), expected.item(), rel_tol=8 * eps)
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=4 * torch.finfo(dtype).eps)


class InFullPrecision(Module):
    """Leaves autocast for its products."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out: Tensor = self.layers(x)
        return out


def test_a_forward_may_leave_autocast() -> None:
    model = InFullPrecision()
    stock = stock_of(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, stock)]
    step = TrainStep(model, nn.MSELoss(), optimizers[0], keep_output=True)
    x, y = torch.randn(3, BATCH, FEATURES), torch.randn(3, BATCH, CLASSES)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            C = step(x, y)
            expected = torch.nn.functional.mse_loss(stock(x), y)
        optimizers[1].zero_grad()
        expected.backward()
        optimizers[1].step()
        torch.testing.assert_close(C, expected.detach(), rtol=1e-6, atol=0)
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
