"""Short training runs, for the tests of ``torch_manualbp.lightning``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from torch_manualbp import nn
from torch_manualbp.lightning import ManualBackpropModule

WITHOUT_LIGHTNINGS_ADVICE = [
    # The data is in memory: workers would slow its loading down.
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    # Lightning's own use of PyTorch's pytrees, which torch 2.13 means to change.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    # A resumed run goes on in the folder of its checkpoint.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Some only train.
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    # Lightning 2.4 does not say which, and torch 2.6 warns that its default is another now.
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`"),
]

MODEL = {
    "class_path": "torch_manualbp.nn.Sequential",
    "init_args": [
        {"class_path": "torch_manualbp.nn.Linear", "init_args": [64, 32]},
        {"class_path": "torch_manualbp.nn.ReLU"},
        {"class_path": "torch_manualbp.nn.Dropout", "init_args": {"p": 0.3}},
        {"class_path": "torch_manualbp.nn.Linear", "init_args": {"in_features": 32, "out_features": 10}},
    ],
}
LOSS = {"class_path": "torch_manualbp.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}
STEP_LR = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.9}}
ACCURACY = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 10}}


def by_configuration() -> ManualBackpropModule:
    torch.manual_seed(0)
    return ManualBackpropModule(MODEL, LOSS, SGD, STEP_LR, {"accuracy": ACCURACY})


def by_objects() -> ManualBackpropModule:
    torch.manual_seed(0)
    return ManualBackpropModule(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9),
        {"accuracy": MulticlassAccuracy(10)},
    )


def trainer(folder: Path, epochs: int = 1, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **settings},
    )


def trainer_keeping_last(folder: Path, epochs: int, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """Writes ``last.ckpt`` to ``folder`` at the end of every epoch."""
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)
    return trainer(folder, epochs, callbacks=[last, *callbacks], enable_checkpointing=True, **settings)


def batches(*tensors: Tensor, size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole(images: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """All inputs and targets of a data set."""
    inputs, target = next(iter(DataLoader(images, len(images))))  # type: ignore[arg-type]
    return inputs, target
