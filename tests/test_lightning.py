"""ManualBackpropModule trains, measures, saves and resumes."""

from __future__ import annotations

import csv
import inspect
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
    by_configuration,
    by_objects,
    same,
    trainer,
    trainer_keeping_last,
    whole,
)
from ordinary import one_of_each
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from torch_manualbp import nn
from torch_manualbp.lightning import DigitsDataModule, GradientFlow, ManualBackpropModule

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

both_forms = pytest.mark.parametrize("form", [by_configuration, by_objects])


@both_forms
def test_training_lowers_the_loss(form: Callable[[], ManualBackpropModule], tmp_path: Path) -> None:
    module, data, run = form(), DigitsDataModule(), trainer(tmp_path, 3)
    (before,) = run.validate(module, data, verbose=False)
    run.fit(module, data)
    after = run.callback_metrics
    assert after["val_loss"] < before["val_loss"] / 2
    assert before["val_accuracy"] < 0.3
    assert after["val_accuracy"] > 0.9


def test_configuration_and_objects_train_the_same(tmp_path: Path) -> None:
    trained = []
    for form in (by_configuration, by_objects):
        module = form()
        torch.manual_seed(1)  # what dropout draws from
        trainer(tmp_path).fit(module, DigitsDataModule())
        trained.append(module.state_dict())
    assert same(trained[0], trained[1])


# --- measuring ------------------------------------------------------------------------------------------------------


def test_epoch_values_are_those_of_all_samples(tmp_path: Path) -> None:
    """Not means over batches, of which the last is smaller, and whose accuracies, means over classes, have no mean."""
    model = nn.Linear(64, 10)
    still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    module = ManualBackpropModule(model, nn.CrossEntropyLoss(), still, metrics={"accuracy": ACCURACY})
    data, run = DigitsDataModule(batch_size=100), trainer(tmp_path)
    run.fit(module, data)
    values: dict[str, Any] = {**run.callback_metrics}
    values.update(run.test(module, data, verbose=False)[0])
    expected: dict[str, float] = {}
    for stage, images in (("train", data.train_set), ("val", data.val_set), ("test", data.test_set)):
        inputs, target = whole(images)
        assert len(target) % 100 != 0
        output = F.linear(inputs, model.weight, model.bias)
        expected[f"{stage}_loss"] = F.cross_entropy(output, target).item()
        expected[f"{stage}_accuracy"] = multiclass_accuracy(output, target, num_classes=10).item()
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected, rel=1e-5)


def test_validation_goes_on_with_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    module = ManualBackpropModule(nn.Linear(3, 2), nn.MSELoss())
    run = trainer(tmp_path)
    run.fit(
        module, batches(torch.ones(8, 3), torch.ones(8, 2)), batches(torch.full((8, 3), torch.nan), torch.ones(8, 2))
    )
    assert run.callback_metrics["val_loss"].isnan()
    assert run.callback_metrics["train_loss"].isfinite()


@pytest.mark.parametrize("loader", [batches(torch.ones(8, 3)), batches(torch.ones(8, 3), torch.ones(8), torch.ones(8))])
def test_a_batch_of_another_form_is_refused(loader: Any, tmp_path: Path) -> None:
    module, run = ManualBackpropModule(nn.Linear(3, 2), nn.MSELoss()), trainer(tmp_path, num_sanity_val_steps=0)
    takes = r"_step takes batches \(inputs, target\), not a list of length [13]"
    refused = f"{takes}; have the data loader make them so, or unpack=$"
    with pytest.raises(TypeError, match="^training" + refused):
        run.fit(module, loader, loader)
    with pytest.raises(TypeError, match="^validation" + refused):
        run.validate(module, loader)
    with pytest.raises(TypeError, match="^test" + refused):
        run.test(module, loader)


def test_predicts_with_or_without_target(tmp_path: Path) -> None:
    inputs, target = torch.randn(16, 3), torch.randn(16, 2)
    module = ManualBackpropModule(nn.Linear(3, 2), nn.MSELoss())
    for loader in (batches(inputs, target), batches(inputs), torch.utils.data.DataLoader(inputs, 8)):  # type: ignore[arg-type]
        outputs = trainer(tmp_path).predict(module, loader)
        torch.testing.assert_close(torch.cat(outputs), module.model(inputs).detach())  # type: ignore[arg-type]


# --- schedulers -----------------------------------------------------------------------------------------------------


def test_plateau_scheduler_monitors_the_validation_loss(tmp_path: Path) -> None:
    plateau = {
        "class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "init_args": {"patience": 0, "threshold": 9.0},
    }
    module, run = ManualBackpropModule(MODEL, LOSS, SGD, plateau), trainer(tmp_path, 3)
    run.fit(module, DigitsDataModule())
    assert run.lr_scheduler_configs[0].monitor == "val_loss"
    assert run.optimizers[0].param_groups[0]["lr"] < 0.1  # no epoch is ten times as good as the best


def test_scheduler_takes_lightnings_settings(tmp_path: Path) -> None:
    module, run = (
        ManualBackpropModule(MODEL, LOSS, SGD, {**STEP_LR, "interval": "step", "frequency": 2}),
        trainer(tmp_path),
    )
    run.fit(module, DigitsDataModule())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.9 ** (run.global_step // 2))


# --- checkpoints ----------------------------------------------------------------------------------------------------

# Lightning 2.4 has no such argument.
SAFELY: dict[str, Any] = {"weights_only": True}
if "weights_only" not in inspect.signature(pl.LightningModule.load_from_checkpoint).parameters:
    SAFELY = {}


def test_a_checkpoint_of_configuration_is_complete(tmp_path: Path) -> None:
    module, data = by_configuration(), DigitsDataModule()
    run = trainer_keeping_last(tmp_path, 1, GradientFlow())
    run.fit(module, data)
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt", **SAFELY)
    assert same(loaded.state_dict(), module.state_dict())
    (values,) = trainer(tmp_path).validate(loaded, data, verbose=False)
    assert values["val_accuracy"] == run.callback_metrics["val_accuracy"]
    optimizer = loaded.configure_optimizers()["optimizer"]
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["momentum"] == 0.9


def test_a_checkpoint_without_the_objects_says_what_to_pass(tmp_path: Path) -> None:
    module = ManualBackpropModule(nn.Linear(64, 10), LOSS, SGD, metrics={"accuracy": ACCURACY})
    trainer_keeping_last(tmp_path, 1).fit(module, DigitsDataModule())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["model"] == {"given_as_object": "torch_manualbp.nn.linear.Linear"}
    with pytest.raises(
        TypeError, match=r"^the checkpoint does not hold model.*load_from_checkpoint\(path, model=...\)$"
    ):
        ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt", **SAFELY)
    loaded = ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt", model=nn.Linear(64, 10), **SAFELY)
    assert same(loaded.state_dict(), module.state_dict())


def test_loading_a_checkpoint_leaves_the_random_numbers_of_another_training_alone(tmp_path: Path) -> None:
    trainer_keeping_last(tmp_path, 1).fit(by_configuration(), DigitsDataModule())
    trained = []
    for seed in (1, 2):
        loaded = ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt", **SAFELY)
        torch.manual_seed(seed)
        trainer(tmp_path).fit(loaded, DigitsDataModule())
        trained.append(loaded.state_dict())
    assert not same(trained[0], trained[1])


# --- resuming -------------------------------------------------------------------------------------------------------


class Interrupt(pl.Callback):
    """Presses Ctrl-C after the given batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (self.epoch, self.batch):
            raise KeyboardInterrupt


def run_of_four_epochs(folder: Path, interrupted: str | None = None, workers: int = 0) -> tuple[Any, Any]:
    """The parameters, and the history of gradient norms, after four epochs with dropout."""

    def fit(epochs: int, *callbacks: pl.Callback, **kwargs: Any) -> tuple[Any, Any]:
        module, flow = by_configuration(), GradientFlow()
        run = trainer_keeping_last(folder, epochs, flow, *callbacks, log_every_n_steps=1)
        run.fit(module, DigitsDataModule(batch_size=200, num_workers=workers), **kwargs)
        return module.state_dict(), flow.history

    if interrupted is None:
        return fit(4)
    if interrupted == "between epochs":
        fit(2)
    else:
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit):  # which Lightning makes of Ctrl-C
            fit(4, Interrupt(epoch=2, batch=3))
        signal.signal(signal.SIGINT, handler)  # for Lightning leaves it ignored
    torch.manual_seed(99)
    return fit(4, ckpt_path=folder / "last.ckpt")


@pytest.mark.parametrize(
    ("interrupted", "workers"),
    one_of_each(
        itertools.product(["in an epoch", "between epochs"], [2, 0]), lambda interrupted, workers: [interrupted]
    ),
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(interrupted: str, workers: int, tmp_path: Path) -> None:
    parameters, history = run_of_four_epochs(tmp_path / "whole")
    resumed, resumed_history = run_of_four_epochs(tmp_path / "interrupted", interrupted, workers)
    assert same(resumed, parameters)
    assert resumed_history == history


def test_resuming_needs_the_random_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the test above fails, so that the test can."""
    parameters, _ = run_of_four_epochs(tmp_path / "whole")
    monkeypatch.setattr(ManualBackpropModule, "on_train_start", lambda self: None)
    resumed, _ = run_of_four_epochs(tmp_path / "interrupted", "between epochs")
    assert not same(resumed, parameters)


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[("autograd", "yes"), ("derived", "yes"), ("derived", "no")], ids="-".join)
def one_and_two_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[list[dict[str, Any]]]:
    """The results of each process, for one process with batches of 64 and two with batches of 32; by an engine, with
    layers measured or not."""
    worker = Path(__file__).with_name("ddp_worker.py")
    loopback = {
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "OMP_NUM_THREADS": "1",
    }
    path = os.pathsep.join([str(worker.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    results = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        command = [sys.executable, str(worker), str(processes), str(64 // processes), str(folder), *request.param]
        done = subprocess.run(
            command, env=os.environ | loopback | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        results.append([torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(processes)])
        with (folder / "two" / "logs" / "metrics.csv").open() as file:
            results[-1][0]["logged"] = list(csv.DictReader(file))
        if request.param[1] == "yes":
            assert (folder / "two" / "flow.png").stat().st_size > 0
    return results


@pytest.mark.slow
def test_gradient_flow_logs_each_figure_once(one_and_two_processes: Any) -> None:
    """By the first of two processes; ∂C/∂W is that of both, as one process has it on the joined batches."""
    (one,), (first, second) = one_and_two_processes
    if not one["history"]:
        return  # no layers were measured, so that the update is a part of the program
    assert second["history"] == []
    assert [entry["step"] for entry in first["history"]] == list(range(8))
    for entry, expected in zip(first["history"], one["history"], strict=True):
        for layer, numbers in expected["layers"].items():
            for name in ("grad_norm", "grad_q50", "update_ratio"):
                assert entry["layers"][layer][name] == pytest.approx(numbers[name], rel=1e-9)
    rows = [row for row in first["logged"] if row["gradient_flow/model.0/grad_norm"]]
    assert [int(row["step"]) for row in rows] == list(range(8))


@pytest.mark.slow
def test_two_processes_train_like_one_on_the_joined_batches(one_and_two_processes: Any) -> None:
    (one,), (first, second) = one_and_two_processes
    assert same(first["parameters"], second["parameters"])
    for name, parameter in one["parameters"].items():
        assert parameter.dtype == torch.float64
        torch.testing.assert_close(first["parameters"][name], parameter, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_two_processes_measure_every_sample_once(one_and_two_processes: Any) -> None:
    (one,), both = one_and_two_processes
    assert one["values"].keys() == {
        f"{stage}_{name}" for stage in ("train", "val", "test") for name in ("loss", "accuracy")
    }
    for process in both:
        for name, value in one["values"].items():
            torch.testing.assert_close(process["values"][name], value, msg=f"{name} differs")


@pytest.mark.slow
def test_two_processes_resume_each_with_its_own_random_state(one_and_two_processes: Any) -> None:
    _, (first, second) = one_and_two_processes
    assert not torch.equal(first["resumed"][0], second["resumed"][0])
    for process in (first, second):
        assert torch.equal(process["resumed"][0], process["states"][1])
