"""engine="derived" trains under the Trainer like engine="autograd"."""

from __future__ import annotations

import copy
import csv
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import (
    ACCURACY,
    LOSS,
    MODEL,
    SGD,
    STEP_LR,
    WITHOUT_LIGHTNINGS_ADVICE,
    batches,
    same,
    trainer,
    trainer_keeping_last,
)
from ordinary import one_of_each
from pytorch_lightning.callbacks import GradientAccumulationScheduler, LambdaCallback, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp.derive import NotDerivableError
from torch_manualbp.lightning import DigitsDataModule, GradientFlow, ManualBackpropModule, NonFiniteLossError

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

ENGINES = ("autograd", "derived")
OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.001, "momentum": 0.9},
}


def optimizer(name: str) -> dict[str, Any]:
    return {"class_path": f"torch.optim.{name.split()[0]}", "init_args": OPTIMIZERS[name]}


def built(engine: str, *arguments: Any, cls: Any = ManualBackpropModule) -> Any:
    torch.manual_seed(0)
    return cls(*(arguments or (MODEL, LOSS, SGD, STEP_LR)), metrics={"accuracy": ACCURACY}, engine=engine)


def fit(module: Any, folder: Path, epochs: int = 2, **settings: Any) -> pl.Trainer:
    """Digits in batches of 200, of which the last has 57, in float64."""
    run = trainer(folder, epochs, **{"precision": "64-true", "log_every_n_steps": 1, **settings})
    torch.manual_seed(1)  # what dropout draws from
    run.fit(module, DigitsDataModule(batch_size=200))
    return run


def logged(folder: Path) -> list[dict[str, float]]:
    with (folder / "logs" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def check_alike(
    folder: Path, *arguments: Any, cls: Any = ManualBackpropModule, callbacks: Any = (), **settings: Any
) -> Any:
    """Train with both engines, and assert that parameters, logged values and progress are the same to rounding.

    Returns the module of engine="derived".
    """
    modules, runs = [], []
    for engine in ENGINES:
        logger = CSVLogger(folder / engine, "logs", "")
        module = built(engine, *arguments, cls=cls)
        made = [make() for make in callbacks]
        runs.append(fit(module, folder / engine, logger=logger, callbacks=made, **settings))
        modules.append(module)
    autograd, derived = modules
    assert autograd.derived_step is None
    for (name, ours), theirs in zip(derived.named_parameters(), autograd.parameters(), strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=f"{name} differs")
    theirs, ours = (logged(folder / engine) for engine in ENGINES)
    assert len(ours) == len(theirs) > 1
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-12)
    for progress in ("global_step", "current_epoch"):
        assert getattr(runs[1], progress) == getattr(runs[0], progress) > 1
    of_optimizer = [run.fit_loop.epoch_loop.automatic_optimization.optim_progress.state_dict() for run in runs]
    assert of_optimizer[0] == of_optimizer[1]
    assert runs[0].optimizers[0].param_groups[0]["lr"] == runs[1].optimizers[0].param_groups[0]["lr"]
    return derived


def is_folded(module: Any) -> bool:
    """Whether the update is part of the program."""
    return "# ---- update" in module.derived_step.source


# --- as with autograd -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_as_autograd_does(name: str, tmp_path: Path) -> None:
    module = check_alike(tmp_path, MODEL, LOSS, optimizer(name), STEP_LR)
    assert is_folded(module) == (name != "RMSprop")


FLAGS: tuple[dict[str, Any], ...] = (
    {"accumulate_grad_batches": 3},  # an epoch of 7 batches has a rest
    {"gradient_clip_val": 0.1},
    {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
)


@pytest.mark.parametrize(
    ("settings", "name"),
    one_of_each(
        itertools.product(
            [*FLAGS, {"callbacks": [lambda: GradientAccumulationScheduler({0: 1, 1: 3})]}], ["SGD momentum", "AdamW"]
        ),
        lambda settings, name: [" ".join(settings), name],
    ),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_follows_the_trainers_flags(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    module = check_alike(tmp_path, MODEL, LOSS, optimizer(name), **settings)
    assert is_folded(module) == all(flag.startswith("gradient_clip") for flag in settings)


def test_the_flags_matter(tmp_path: Path) -> None:
    """Without them the parameters are others, so that the test above can fail."""
    plain = built("derived")
    fit(plain, tmp_path)
    for i, settings in enumerate(FLAGS):
        module = built("derived")
        fit(module, tmp_path / str(i), **settings)
        assert not same(module.state_dict(), plain.state_dict())


@pytest.mark.parametrize(
    "scheduler",
    [
        {**STEP_LR, "interval": "step", "frequency": 2},
        {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.2, "total_steps": 14}}
        | {"interval": "step"},
        {
            "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
            "init_args": {"patience": 0, "threshold": 9.0},
        },
    ],
    ids=lambda scheduler: scheduler["class_path"].split(".")[-1],
)
def test_schedulers_step_as_they_do(scheduler: dict[str, Any], tmp_path: Path) -> None:
    module = check_alike(tmp_path, MODEL, LOSS, SGD, scheduler, callbacks=[lambda: LearningRateMonitor("step")])
    assert is_folded(module)
    rates = {row["lr-SGD"] for row in logged(tmp_path / "derived") if "lr-SGD" in row}
    assert len(rates) > 1


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", 1e-6), ("bf16-true", 0.0), ("bf16-mixed", 4e-3)])
def test_follows_the_precision(precision: Any, dtype: float, tmp_path: Path) -> None:
    modules = [built(engine) for engine in ENGINES]
    for module in modules:
        fit(module, tmp_path, precision=precision)
    for theirs, ours in zip(*(module.parameters() for module in modules), strict=True):
        assert ours.dtype == theirs.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
        torch.testing.assert_close(ours, theirs, rtol=dtype, atol=dtype)
    assert ("bfloat16" in modules[1].derived_step.source) == precision.startswith("bf16")


def test_gradient_flow_measures_the_same(tmp_path: Path) -> None:
    flows = [GradientFlow() for _ in ENGINES]
    for engine, flow in zip(ENGINES, flows, strict=True):
        fit(built(engine), tmp_path, callbacks=[flow])
    (theirs, ours) = (flow.history for flow in flows)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs] == list(range(14))
    for entry, expected in zip(ours, theirs, strict=True):
        assert entry["noise_scale"] == pytest.approx(expected["noise_scale"], rel=1e-9)
        for layer, numbers in expected["layers"].items():
            assert entry["layers"][layer] == pytest.approx(numbers, rel=1e-9, abs=1e-12)


def test_gradient_flow_leaves_the_update_in_the_program(tmp_path: Path) -> None:
    plain, watched = built("derived"), built("derived")
    fit(plain, tmp_path)
    fit(watched, tmp_path, callbacks=[GradientFlow(every_n_steps=3)])
    assert "W_model_0" in watched.derived_step.source or "update" in watched.derived_step.source
    assert all(p.grad is None for p in watched.parameters())
    assert same(plain.state_dict(), watched.state_dict())


def test_the_model_may_take_a_tuple_or_a_mapping(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, inputs: Any) -> Tensor:
            a, b = inputs.values() if isinstance(inputs, dict) else inputs
            out: Tensor = self.first(a) + self.second(b)
            return out

    a, b, y = torch.randn(20, 3), torch.randn(20, 4), torch.randn(20, 2)
    for form in (lambda i: (a[i], b[i]), lambda i: [a[i], b[i]], lambda i: {"a": a[i], "b": b[i]}):
        data = torch.utils.data.DataLoader([(form(i), y[i]) for i in range(20)], 8)  # type: ignore[arg-type, var-annotated]
        trained = []
        for engine in ENGINES:
            torch.manual_seed(0)
            module = ManualBackpropModule(Sum(), nn.MSELoss(), SGD, engine=engine)
            trainer(tmp_path, 2, limit_val_batches=0).fit(module, data)
            trained.append(module)
        for theirs, ours in zip(*(module.parameters() for module in trained), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- hooks ----------------------------------------------------------------------------------------------------------

HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Recorder(pl.Callback):
    """Notes which hooks are called, and whether the parameters have changed by then and have gradients."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def note(self, name: str, module: Any) -> None:
        weight = module.model[0].weight
        self.calls.append((name, weight.sum().item(), 0 if weight.grad is None else weight.grad.sum().item()))

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.calls.append(("on_before_zero_grad", pl_module.model[0].weight.sum().item()))

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.calls.append(("on_before_backward", loss.item()))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.note("on_after_backward", pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.note("on_before_optimizer_step", pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.note("on_train_batch_end", pl_module)
        self.calls.append(("outputs", outputs["loss"].item()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hooks_see_what_they_see_with_autograd(accumulate: int, tmp_path: Path) -> None:
    recorders = [Recorder() for _ in ENGINES]
    for engine, recorder in zip(ENGINES, recorders, strict=True):
        fit(built(engine), tmp_path, callbacks=[recorder], accumulate_grad_batches=accumulate)
    theirs, ours = (recorder.calls for recorder in recorders)
    assert [call[0] for call in ours] == [call[0] for call in theirs]
    assert {call[0] for call in ours} >= set(HOOKS)
    for call, expected in zip(ours, theirs, strict=True):
        assert call[1:] == pytest.approx(expected[1:], rel=1e-12), call[0]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_before_the_update_finds_the_old_parameters(hook: str, tmp_path: Path) -> None:
    module = built("derived")
    before = copy.deepcopy(module.model[0].weight.detach().double())
    found: list[Tensor] = []
    callback = LambdaCallback(**{hook: lambda *args: found.append(module.model[0].weight.detach().clone())})
    fit(module, tmp_path, callbacks=[callback])
    assert torch.equal(found[0], before)
    assert not torch.equal(found[1], before)
    assert not is_folded(module)


class Noisy(ManualBackpropModule):
    """Changes its gradients, in each place that Lightning has for it."""

    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad * 0.5

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(1e-3)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class WarmingUp(ManualBackpropModule):
    """Lightning's recipe for a warm-up of the learning rate."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (self.global_step + 1) / 10) * 0.1


class Overridden(ManualBackpropModule):
    """Goes on to the update that it overrides."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + self.global_step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


@pytest.mark.parametrize(
    ("cls", "accumulate"),
    one_of_each(itertools.product([Noisy, WarmingUp, Overridden], [1, 2]), lambda cls, accumulate: [cls, accumulate]),
)
def test_subclasses_train_as_with_autograd(cls: Any, accumulate: int, tmp_path: Path) -> None:
    module = check_alike(tmp_path, MODEL, LOSS, SGD, cls=cls, accumulate_grad_batches=accumulate)
    assert not is_folded(module)


class Penalised(ManualBackpropModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.01 * sum((p * p).sum() for p in self.parameters())


class Scaled(ManualBackpropModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 2 * super().training_step(batch, batch_idx)


class Weighted(ManualBackpropModule):
    """Learns a parameter of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.exp(-self.weight) + self.weight


class AsDict(ManualBackpropModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "n": len(batch[0])}


class Halves(ManualBackpropModule):
    """Asks for two losses a batch, the first of which is of other samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        first = super().training_step((inputs[:30], target[:30]), batch_idx)
        return (first + 3 * super().training_step((inputs[30:], target[30:]), batch_idx)) / 4


class Skipping(ManualBackpropModule):
    """Has Lightning skip every third batch, before or after looking at its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 0:
            return None
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 3 == 2 else loss


class SkippingFirst(ManualBackpropModule):
    """Skips the batch with which a window of accumulated ones begins."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 == 0 else loss


class Stopping(ManualBackpropModule):
    """Ends its epochs after four batches."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 4 else None


class Manual(ManualBackpropModule):
    """Makes its own steps, of two batches each, and drops a gradient."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx != 3:
            self.manual_backward(loss / 2)
        if batch_idx % 2:
            optimizer: Any = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
        return loss


class StepwiseRate(ManualBackpropModule):
    """Lowers its rate by the gradient's norm, where it has one."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        norm = sum(p.grad.norm() for p in self.parameters() if p.grad is not None)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 0.1 / (1 + float(norm))


class Validating(ManualBackpropModule):
    """Validates by the loss of training."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("shared", self.training_step(batch, batch_idx))


SUBCLASSES = [
    *(Penalised, Scaled, Weighted, AsDict, Halves, Skipping, SkippingFirst, Stopping, StepwiseRate),
    *(Validating, Manual),
]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(
    ("cls", "accumulate"),
    one_of_each(
        [*((cls, 1) for cls in SUBCLASSES), *((cls, 3) for cls in SUBCLASSES[:7])],
        lambda cls, accumulate: [cls, accumulate],
    ),
)
def test_what_a_subclass_does_with_the_loss_counts(cls: Any, accumulate: int, tmp_path: Path) -> None:
    module = check_alike(tmp_path, MODEL, LOSS, SGD, STEP_LR, cls=cls, accumulate_grad_batches=accumulate)
    assert not is_folded(module)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_the_subclasses_matter(tmp_path: Path) -> None:
    """Their parameters are others, so that the test above can fail."""
    ends = []
    for cls in (ManualBackpropModule, *SUBCLASSES):
        fit(module := built("autograd", cls=cls), tmp_path)
        ends.append(module.model[0].weight.sum().item())
    assert len(set(ends)) == len(ends) - 2  # AsDict changes none, nor does Validating


def test_a_module_that_is_to_step_by_hand_is_not_stepped(tmp_path: Path) -> None:
    module = built("derived")
    module.automatic_optimization = False
    before = copy.deepcopy(module.model[0].weight.detach().double())
    fit(module, tmp_path)
    assert torch.equal(module.model[0].weight, before)


def norms_of(module: Any) -> list[float]:
    return [float("nan") if p.grad is None else p.grad.norm().item() for p in module.model.parameters()]


def by_callback(hook: str, found: list[Any]) -> Any:
    return type("Looks", (pl.Callback,), {hook: lambda self, trainer, module, *args: found.append(norms_of(module))})()


def by_lambda(hook: str, found: list[Any]) -> Any:
    return LambdaCallback(**{hook: lambda trainer, module, *args: found.append(norms_of(module))})


def by_callback_of_ours(hook: str, found: list[Any]) -> Any:
    def looks(self: Any, trainer: Any, module: Any, *args: Any) -> None:
        found.append(norms_of(module))
        getattr(GradientFlow, hook)(self, trainer, module, *args)  # which ends the measurement

    return type("Flow", (GradientFlow,), {hook: looks})()


LOOKS = ("on_train_batch_end", "on_train_batch_start", "on_train_epoch_end", "on_train_end")


@pytest.mark.parametrize(
    ("make", "hook"),
    [*((by_callback, hook) for hook in LOOKS), (by_lambda, LOOKS[0]), (by_callback_of_ours, LOOKS[0])],
)
def test_callbacks_find_the_gradients(make: Any, hook: str, tmp_path: Path) -> None:
    found: tuple[list[Any], list[Any]] = ([], [])
    for engine, norms in zip(ENGINES, found, strict=True):
        fit(built(engine), tmp_path, callbacks=[make(hook, norms)], limit_val_batches=0)  # which zeroes them
    theirs, ours = found
    assert len(ours) == len(theirs) > 0
    for norms, expected in zip(ours, theirs, strict=True):
        assert norms == pytest.approx(expected, rel=1e-10, nan_ok=True)
    assert max(norms[0] for norms in ours[1:] or ours) > 0


@pytest.mark.parametrize(("hook", "on_instance"), [*((hook, False) for hook in LOOKS), (LOOKS[0], True)])
def test_the_module_finds_the_gradients(hook: str, on_instance: bool, tmp_path: Path) -> None:
    found: tuple[list[Any], list[Any]] = ([], [])
    for engine, norms in zip(ENGINES, found, strict=True):

        def look(self: Any, *args: Any, norms: Any = norms) -> None:
            norms.append(norms_of(self))
            getattr(super(type(self), self), hook)(*args)

        module = built(engine, cls=type("Looks", (ManualBackpropModule,), {} if on_instance else {hook: look}))
        if on_instance:
            setattr(module, hook, look.__get__(module))
        fit(module, tmp_path, limit_val_batches=0)
    theirs, ours = found
    assert len(ours) == len(theirs) > 0
    for norms, expected in zip(ours, theirs, strict=True):
        assert norms == pytest.approx(expected, rel=1e-10, nan_ok=True)
    assert max(norms[0] for norms in ours[1:] or ours) > 0


def test_a_callback_that_needs_no_gradients_leaves_the_update_in_the_program(tmp_path: Path) -> None:
    class Counts(pl.Callback):
        needs_gradients, n = False, 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.n += 1

    module, counts = built("derived"), Counts()
    fit(module, tmp_path, callbacks=[counts])
    assert is_folded(module)
    assert counts.n == 14


class Tripled(torch.nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return 3 * torch.nn.functional.cross_entropy(output, target)


class Replacing(pl.Callback):
    """Gives the module another loss, and then its model inside of another, in the midst of an epoch."""

    def __init__(self, needs_gradients: bool) -> None:
        self.needs_gradients = needs_gradients

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            pl_module.loss = nn.CrossEntropyLoss(label_smoothing=0.5)
        if trainer.global_step == 6:
            pl_module.loss = Tripled()
        if trainer.global_step == 9:
            pl_module.model = nn.Sequential(pl_module.model, nn.Tanh())


@pytest.mark.parametrize("needs_gradients", [False, True], ids=["folded", "by gradients"])
def test_a_loss_and_a_model_that_are_replaced_in_a_fit_count(needs_gradients: bool, tmp_path: Path) -> None:
    ends = []
    for engine in ENGINES:
        module = built(engine)
        fit(module, tmp_path, callbacks=[Replacing(needs_gradients)])
        ends.append(list(module.parameters()))
    assert is_folded(module) != needs_gradients
    for theirs, ours in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_training_step_outside_of_training_trains_nothing(tmp_path: Path) -> None:
    module = built("derived").double()
    batch = torch.randn(5, 64, dtype=torch.float64), torch.randint(10, (5,))
    for _ in range(2):
        before = copy.deepcopy(module.state_dict())
        loss = module.training_step(batch, 0)
        assert loss.requires_grad
        assert same({k: v for k, v in module.state_dict().items() if "metrics" not in k}, before)
        fit(module, tmp_path)


class Adversarial(ManualBackpropModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(super().training_step((inputs, batch[1]), batch_idx), inputs)
        return super().training_step((batch[0] + 0.01 * gradient.sign(), batch[1]), batch_idx)


class SecondOrder(ManualBackpropModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        (gradient,) = torch.autograd.grad(loss, [next(self.parameters())], create_graph=True)
        return loss + gradient.square().sum()


@pytest.mark.parametrize(
    ("cls", "refused"),
    [
        (Adversarial, r"has the gradients of parameters alone, and the batch asks for its own"),
        (SecondOrder, r"has no gradients of gradients"),
    ],
)
def test_gradients_of_other_things_are_refused(cls: Any, refused: str, tmp_path: Path) -> None:
    fit(built("autograd", cls=cls), tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=rf'^engine="derived" {refused}; engine="autograd" takes it$'):
        fit(built("derived", cls=cls), tmp_path)


class ByTwo(Manual):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.model[0], self.model[3])]  # type: ignore[index]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.manual_backward(ManualBackpropModule.training_step(self, batch, batch_idx))


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    refused = r'^engine="derived" trains by one optimizer, and here are 2; engine="autograd" takes it$'
    with pytest.raises(ValueError, match=refused):
        fit(built("derived", cls=ByTwo), tmp_path)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(("cls", "accumulate"), [(Scaled, 2), (Skipping, 1), (Skipping, 2), (Halves, 2), (Manual, 1)])
def test_gradient_flow_of_subclasses_measures_the_same(cls: Any, accumulate: int, tmp_path: Path) -> None:
    flows = [GradientFlow() for _ in ENGINES]
    for engine, flow in zip(ENGINES, flows, strict=True):
        fit(built(engine, cls=cls), tmp_path, callbacks=[flow], accumulate_grad_batches=accumulate)
    (theirs, ours) = (flow.history for flow in flows)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    assert len(ours) > 3
    for entry, expected in zip(ours, theirs, strict=True):
        for layer, numbers in expected["layers"].items():
            assert entry["layers"][layer] == pytest.approx(numbers, rel=1e-9, abs=1e-12)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def interrupted(folder: Path, first: str, second: str, name: str, **settings: Any) -> dict[str, Tensor]:
    """The parameters after two epochs with one engine, and two resumed with another or the same."""
    arguments = (MODEL, LOSS, optimizer(name), STEP_LR)
    for engine, epochs, seed, path in ((first, 2, 1, None), (second, 4, 99, folder / "last.ckpt")):
        # In float64 now: Lightning loads a checkpoint before it converts the module, and would round the parameters.
        module = built(engine, *arguments).double()
        torch.manual_seed(seed)
        run = trainer_keeping_last(folder, epochs, precision="64-true", **settings)
        run.fit(module, DigitsDataModule(batch_size=200), ckpt_path=path)
    return dict(module.state_dict())


@pytest.mark.parametrize(
    ("settings", "name"),
    one_of_each(
        itertools.product([{}, {"gradient_clip_val": 0.1}], ["SGD momentum", "Adam", "RMSprop"]),
        lambda settings, name: [str(settings), name],
    ),
    ids=lambda value: value if isinstance(value, str) else "clipped" if value else "folded",
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    module = built("derived", MODEL, LOSS, optimizer(name), STEP_LR).double()
    fit(module, tmp_path, 4, **settings)
    assert same(interrupted(tmp_path, "derived", "derived", name, **settings), module.state_dict())


@pytest.mark.parametrize(
    ("first", "second", "name"),
    one_of_each(
        [(*engines, name) for name in ("SGD momentum", "AdamW", "RMSprop") for engines in (ENGINES, ENGINES[::-1])],
        lambda first, second, name: [first, name],
    ),
)
def test_a_run_may_go_on_with_the_other_engine(first: str, second: str, name: str, tmp_path: Path) -> None:
    module = built("autograd", MODEL, LOSS, optimizer(name), STEP_LR).double()
    fit(module, tmp_path, 4)
    resumed = interrupted(tmp_path, first, second, name)
    for key, expected in module.state_dict().items():
        torch.testing.assert_close(resumed[key], expected, rtol=1e-12, atol=1e-12)


def test_the_engine_is_in_the_checkpoint_and_can_be_another(tmp_path: Path) -> None:
    trainer_keeping_last(tmp_path, 1).fit(built("derived"), DigitsDataModule())
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["engine"] == "derived"
    loaded = ManualBackpropModule.load_from_checkpoint(path)
    trainer(tmp_path).fit(loaded, DigitsDataModule())
    assert loaded.derived_step is not None
    other = ManualBackpropModule.load_from_checkpoint(path, engine="autograd")
    assert other.hparams["engine"] == "autograd"


def test_copies_and_a_second_fit_derive_programs_of_their_own(tmp_path: Path) -> None:
    module = built("derived")
    fit(module, tmp_path)
    once = {name: t.clone() for name, t in module.state_dict().items()}
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.derived_step is None
        fit(other, tmp_path)
        assert same(module.state_dict(), once)
        assert not same(other.state_dict(), once)
    first = module.derived_step
    fit(module, tmp_path)
    assert module.derived_step is not first
    assert same(module.state_dict(), other.state_dict())


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 1.0}], ids=["folded", "clipped"])
def test_a_loss_that_is_not_finite_updates_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    class Overflow(pl.Callback):
        needs_gradients = False

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    pl_module.model[0].bias.fill_(20)
                    pl_module.model[3].weight.fill_(3e38)
                self.state = copy.deepcopy(trainer.optimizers[0].state_dict())
                self.parameters = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    module, overflow = built("derived"), Overflow()
    cause = "the first layer whose output is not finite is model.3 (torch_manualbp.nn.linear.Linear)"
    with pytest.raises(NonFiniteLossError) as caught:
        fit(module, tmp_path, precision="32-true", callbacks=[overflow], **settings)
    assert str(caught.value) in (f"the loss is {value} at global step 2: {cause}" for value in ("nan", "inf"))
    assert same(dict(module.named_parameters()), overflow.parameters)
    state = module.trainer.optimizers[0].state_dict()["state"]
    assert len(state) == 4
    for i, of_parameter in state.items():
        assert torch.equal(of_parameter["momentum_buffer"], overflow.state["state"][i]["momentum_buffer"])


def test_unused_parameters_of_a_strategy_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    refused = r'^engine="derived" takes no find_unused_parameters of DDPStrategy; engine="autograd" takes it$'
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    try:
        with pytest.raises(ValueError, match=refused):
            fit(built("derived"), tmp_path, strategy=strategy)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_a_scaled_loss_is_refused(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    refused = r'^engine="derived" scales no loss, as the GradScaler of precision \'16-mixed\' has it; engine="autograd"'
    with pytest.raises(ValueError, match=refused):
        fit(built("derived"), tmp_path, plugins=plugin, precision=None)


def test_a_precision_that_is_not_known_is_refused(tmp_path: Path) -> None:
    class Own(MixedPrecision):
        pass

    refused = r'^engine="derived" does not know the precision plugin Own; engine="autograd" takes it$'
    with pytest.raises(ValueError, match=refused):
        fit(built("derived"), tmp_path, plugins=Own("bf16-mixed", "cpu"), precision=None)


def test_detecting_anomalies_is_refused(tmp_path: Path) -> None:
    refused = r'^engine="derived" has no graph for detect_anomaly to look at; engine="autograd" takes it$'
    with pytest.raises(ValueError, match=refused):
        fit(built("derived"), tmp_path, detect_anomaly=True)


def test_what_is_refused_can_still_be_evaluated(tmp_path: Path) -> None:
    values = [
        trainer(tmp_path, plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))).validate(
            built(engine), DigitsDataModule(), verbose=False
        )
        for engine in ENGINES
    ]
    assert values[0] == values[1]


def test_a_model_that_cannot_be_derived_is_named(tmp_path: Path) -> None:
    class Doubled(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * z if z.sum().item() > 0.5 else z

    model = nn.Sequential(nn.Linear(3, 2), Doubled())
    module = ManualBackpropModule(model, nn.MSELoss(), SGD, engine="derived")
    with pytest.raises(
        NotDerivableError, match=r"^no step can be derived, because of one place:\n  1 \(\S+\.py:\d+\): "
    ):
        trainer(tmp_path).fit(module, batches(torch.randn(8, 3), torch.randn(8, 2)))


def test_another_engine_is_not_taken() -> None:
    with pytest.raises(ValueError, match=r"^engine is 'eager': it takes 'autograd' or 'derived'$"):
        ManualBackpropModule(MODEL, LOSS, engine="eager")


@pytest.mark.parametrize("callbacks", [[], [GradientFlow()]])
def test_passes_lightnings_own_course_by_where_nobody_is_called_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: list[pl.Callback]
) -> None:
    calls: list[Any] = []
    own = SingleDeviceStrategy.optimizer_step

    def counted(*args: Any) -> Any:
        calls.append(args)
        return own(*args)

    monkeypatch.setattr(SingleDeviceStrategy, "optimizer_step", counted)
    module = built("derived")
    run = fit(module, tmp_path, callbacks=callbacks)
    assert module.derived_engine.folded
    assert run.global_step == 14  # 7 batches in each of 2 epochs
    assert len(calls) == (14 if callbacks else 0)
    counts = run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.zero_grad.total
    assert counts.ready == counts.completed == 14
