"""GradientVerification finds a wrong gradient in a training run, and leaves a right run as it was, to the last bit."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE, batches, same, trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp.lightning import GradientVerification, ManualBackpropModule
from torch_manualbp.verify import GradientError
from torch_manualbp.verify.mistakes.activation import SigmoidWithoutFactor

pytestmark = WITHOUT_LIGHTNINGS_ADVICE


class WrongSigmoid(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        return SigmoidWithoutFactor.apply(input)


class Noise(nn.Module):
    """Draws from every generator that a training step may draw from."""

    def forward(self, input: Tensor) -> Tensor:
        random.random()
        numpy.random.rand()
        return input * (1 + 0.1 * torch.rand(()))


def module_of(*activation: nn.Module, engine: str = "autograd") -> ManualBackpropModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), *activation, nn.Linear(8, 2))
    return ManualBackpropModule(
        model, nn.MSELoss(), lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), engine=engine
    )


def fit(module: pl.LightningModule, folder: Path, *callbacks: pl.Callback, **settings: Any) -> None:
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    trainer(folder, callbacks=list(callbacks), limit_val_batches=0, **settings).fit(module, data)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("engine", ["autograd", "derived"])
def test_training_ends_with_the_same_bits(tmp_path: Path, engine: str, accumulate: int) -> None:
    ends = []
    for callbacks in ([], [GradientVerification(every_n_steps=1)]):
        activation = [nn.Dropout(0.3), nn.Sigmoid()]
        if engine == "autograd":
            activation += [torch.nn.BatchNorm1d(8), Noise()]
        module = module_of(*activation, engine=engine)
        fit(module, tmp_path, *callbacks, accumulate_grad_batches=accumulate)
        next_numbers = torch.rand(()).item(), random.random(), float(numpy.random.rand())
        ends.append((module.state_dict(), next_numbers))
    (state, numbers), (state_too, numbers_too) = ends
    assert same(state, state_too)
    assert numbers == numbers_too
    (callback,) = callbacks
    assert callback.report is not None
    assert callback.report.ok, callback.report
    assert callback.reports == []


def test_a_layer_that_works_in_place_does_not_reach_the_batch(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [GradientVerification(every_n_steps=1)]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
        module = ManualBackpropModule(model, nn.MSELoss(), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        seen = Seen()
        fit(module, tmp_path, *callbacks, seen)
        assert any(bool((batch < 0).any()) for batch in seen.batches)
        ends.append(module.state_dict())
    assert same(*ends)


def test_logs_the_worst_error(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", "")
    fit(module_of(nn.Sigmoid()), tmp_path, GradientVerification(2), logger=logger, log_every_n_steps=1)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gradient_error_ulps"]]
    assert [int(row["step"]) for row in rows] == [0, 2, 4]
    assert all(0 <= float(row["gradient_error_ulps"]) < 100 for row in rows)


def test_warns_and_goes_on(tmp_path: Path) -> None:
    callback = GradientVerification(every_n_steps=3)
    with pytest.warns(UserWarning, match="gradients are wrong at global step [03]:\n"):
        fit(module_of(WrongSigmoid()), tmp_path, callback)
    assert [step for step, _ in callback.reports] == [0, 3]
    wrong = [row for row in callback.reports[0][1].failures if not row.check.startswith("whole model")]
    assert {row.name.split(".")[0] for row in wrong} == {"1"}


def test_stops_before_a_parameter_has_moved(tmp_path: Path) -> None:
    module = module_of(WrongSigmoid())
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with pytest.raises(GradientError, match="1"):
        fit(module, tmp_path, GradientVerification(on_failure="stop"))
    assert same(before, module.state_dict())


def test_verifies_the_layers_that_are_asked_for(tmp_path: Path) -> None:
    callback = GradientVerification(layers=["0", "2*"])
    fit(module_of(WrongSigmoid()), tmp_path, callback)  # which is layer 1
    assert callback.report is not None
    assert callback.report.ok
    assert {row.name.split(".")[0] for row in callback.report.rows} == {"0", "2"}


class Seen(pl.Callback):
    """The inputs as training gets them: it stands behind the callback that verifies."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch[0].clone())


class Plain(pl.LightningModule):
    """Without the attributes of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return torch.nn.functional.mse_loss(self.network(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_any_lightning_module_by_its_parts(tmp_path: Path) -> None:
    def parts(module: Any, batch: Any) -> Any:
        return module.network, batch[0], batch[1], torch.nn.functional.mse_loss

    callback = GradientVerification(parts=parts)
    fit(Plain(), tmp_path, callback)
    assert callback.report is not None
    assert callback.report.ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0: it takes 1, for every step, or more"),
        ({"on_failure": "cry"}, "on_failure is 'cry': it takes 'warn' or 'stop'"),
    ],
)
def test_refuses_other_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientVerification(**settings)


def test_says_which_layers_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no layer is called 'encoder.\*'; the layers are 0, 1, 2"):
        fit(module_of(nn.Sigmoid()), tmp_path, GradientVerification(layers="encoder.*"))


def test_says_what_a_module_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Plain has no model and loss; give GradientVerification parts="):
        fit(Plain(), tmp_path, GradientVerification())
