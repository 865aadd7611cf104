"""Run by test_lightning.py under as many processes as it is told: train, and write down what came of it.

python ddp_worker.py <processes> <batch size of each> <folder for the results> [<engine> <whether layers are measured>]
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from torch_manualbp import nn
from torch_manualbp.lightning import DigitsDataModule, GradientFlow, ManualBackpropModule

ACCURACY = {"class_path": "torchmetrics.classification.MulticlassAccuracy", "init_args": {"num_classes": 10}}


class RandomNumbersOfEachProcess(pl.Callback):
    """Gives every process a random state of its own, and notes the one that each epoch begins with."""

    needs_gradients = False

    def __init__(self) -> None:
        self.at_epoch_start: list[torch.Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(100 + trainer.global_rank)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.rand(1)
        self.at_epoch_start.append(torch.get_rng_state())


def fit(
    processes: int, batch_size: int, folder: Path, epochs: int, engine: str, measures: bool, **kwargs: Any
) -> tuple[pl.Trainer, list[Any], list[Any]]:
    """Train ``epochs`` epochs of 4 steps, in float64."""
    torch.manual_seed(0)
    module = ManualBackpropModule(
        nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        metrics={"accuracy": ACCURACY},
        engine=engine,
    )
    random = RandomNumbersOfEachProcess()
    flow = GradientFlow(folder / "flow.png", every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision="64-true",
        max_epochs=epochs,
        limit_train_batches=4,
        callbacks=[
            ModelCheckpoint(folder, "last", enable_version_counter=False),
            random,
            *([flow] if measures else []),
        ],
        logger=CSVLogger(folder, "logs", ""),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule(batch_size, val_fraction=0.251, test_fraction=0.2005)
    trainer.fit(module, data, **kwargs)
    if engine == "derived":
        assert module.derived_engine is not None
        assert module.derived_engine.folded is not (measures and processes > 1)
    assert (len(data.val_set), len(data.test_set)) == (451, 361)  # odd: two processes have unequal shares
    return trainer, random.at_epoch_start, flow.history


def main(processes: int, batch_size: int, folder: Path, engine: str = "autograd", measures: str = "yes") -> None:
    """Two epochs, and the second again, resumed after the first."""
    how = engine, measures == "yes"
    trainer, states, history = fit(processes, batch_size, folder / "two", 2, *how)
    module = trainer.lightning_module
    values = dict(trainer.callback_metrics)
    trainer.test(module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    values |= dict(trainer.callback_metrics)
    result = {"parameters": module.state_dict(), "values": values, "states": states, "history": history}

    fit(processes, batch_size, folder / "one", 1, *how)
    _, resumed, _ = fit(processes, batch_size, folder / "one", 2, *how, ckpt_path=folder / "one" / "last.ckpt")
    torch.save(result | {"resumed": resumed}, folder / f"result{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
