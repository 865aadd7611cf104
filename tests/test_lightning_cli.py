"""LightningCLI in a process of its own, and what configurations say of parameter groups, batches and the step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE

from torch_manualbp import nn
from torch_manualbp.lightning import MLP, ManualBackpropModule

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

CONFIG = """
seed_everything: 1
trainer: {max_epochs: 1, logger: false, enable_progress_bar: false, default_root_dir: out}
model:
  model: {class_path: torch_manualbp.lightning.MLP, init_args: {sizes: [64, 16, 10], activation: GELU}}
  loss: {class_path: torch_manualbp.nn.CrossEntropyLoss}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
  groups: {"*.bias": {weight_decay: 0.0}}
  engine: derived
"""
CLI = """
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from torch_manualbp.lightning import DigitsDataModule, ManualBackpropModule

cli = LightningCLI(ManualBackpropModule, DigitsDataModule, save_config_kwargs={"overwrite": True},
                   trainer_defaults={"callbacks": ModelCheckpoint(".", "last", enable_version_counter=False)})
print("steps", cli.trainer.global_step)
"""
OTHER_ROOT = """
import lightning.pytorch as pl
import torch
from torch_manualbp.lightning import MLP, DigitsDataModule, ManualBackpropModule

module = ManualBackpropModule(MLP([64, 10]), torch.nn.CrossEntropyLoss(), engine="derived")
assert isinstance(module, pl.LightningModule)
trainer = pl.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
trainer.fit(module, DigitsDataModule())
print("steps", trainer.global_step)
"""


def run(script: str, folder: Path, *args: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_a_run_of_the_command_line_is_tested_predicted_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert "steps 20" in run(CLI, tmp_path, "fit", "--config", "config.yaml")
    with_checkpoint = ("--config", "config.yaml", "--ckpt_path", "last.ckpt")
    assert "val_loss" in run(CLI, tmp_path, "validate", *with_checkpoint)
    assert "test_loss" in run(CLI, tmp_path, "test", *with_checkpoint)
    run(CLI, tmp_path, "predict", *with_checkpoint)
    module = ManualBackpropModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(module.model, MLP)
    assert "steps 60" in run(CLI, tmp_path, "fit", *with_checkpoint, "--trainer.max_epochs", "3")


@pytest.mark.slow
def test_a_script_of_lightning_pytorch_has_a_module_of_it(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    assert "steps 20" in run(OTHER_ROOT, tmp_path)


def test_groups_are_found_by_name() -> None:
    groups = {"*.bias": {"weight_decay": 0.0}, "model.2.*": {"lr": 1.0}}
    module = ManualBackpropModule(MLP([4, 3, 2]), nn.MSELoss(), lambda p: torch.optim.AdamW(p, lr=0.1), groups=groups)
    found = module.configure_optimizers().param_groups
    names = {p: name for name, p in module.named_parameters()}
    assert [[names[p] for p in group["params"]] for group in found] == [
        ["model.0.weight"],
        ["model.0.bias", "model.2.bias"],
        ["model.2.weight"],
    ]
    assert [(group["lr"], group["weight_decay"]) for group in found] == [(0.1, 0.01), (0.1, 0.0), (1.0, 0.01)]
    module = ManualBackpropModule(MLP([4, 3, 2]), nn.MSELoss(), groups={"*norm*": {"weight_decay": 0.0}})
    with pytest.raises(ValueError, match=r"groups has '\*norm\*', which fits none"):
        module.configure_optimizers()


@pytest.mark.parametrize("engine", ["autograd", "derived"])
def test_batches_of_another_form_are_unpacked(engine: str, tmp_path: Path) -> None:
    def unpack(batch: Any) -> tuple[Any, Any]:
        return batch["x"], batch["y"]

    trained = []
    for form in (False, True):
        torch.manual_seed(0)
        module = ManualBackpropModule(
            MLP([64, 10]), nn.CrossEntropyLoss(), engine=engine, unpack=unpack if form else None
        )
        pairs = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(3)]
        data: Any = [{"x": x, "y": y} for x, y in pairs] if form else pairs
        fit(module, data, tmp_path)
        trained.append(next(module.parameters()))
    assert torch.equal(*trained)


def test_arguments_of_the_step_are_given_through_the_module(tmp_path: Path) -> None:
    module = ManualBackpropModule(MLP([64, 10]), nn.CrossEntropyLoss(), engine="derived", step={"check": False})
    fit(module, [(torch.randn(8, 64), torch.randint(10, (8,)))], tmp_path)
    assert module.derived_step is not None
    assert module.derived_step.check is False
    with pytest.raises(ValueError, match="takes engine='derived'"):
        ManualBackpropModule(MLP([64, 10]), nn.CrossEntropyLoss(), step={"check": False})


def test_the_loss_of_each_step_is_logged(tmp_path: Path) -> None:
    module = ManualBackpropModule(MLP([64, 10]), nn.CrossEntropyLoss())
    run = fit(module, [(torch.randn(8, 64), torch.randint(10, (8,)))], tmp_path, enable_progress_bar=True)
    assert run.progress_bar_metrics["train_loss_step"] == pytest.approx(run.callback_metrics["train_loss"].item())


def test_mistakes_of_an_mlp_are_named() -> None:
    with pytest.raises(ValueError, match=r"sizes is \[3\]"):
        MLP([3])
    with pytest.raises(ValueError, match="activation is 'functional'"):
        MLP([3, 2], "functional")


def fit(module: ManualBackpropModule, data: Any, folder: Path, **options: Any) -> pl.Trainer:
    settings = {"enable_progress_bar": False, "logger": False, "enable_model_summary": False, **options}
    run = pl.Trainer(max_epochs=1, default_root_dir=folder, enable_checkpointing=False, **settings)
    run.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return run
