"""Train an LSTM that reads images of handwritten digits line by line, its backward pass by formulas."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from torch_manualbp import nn
from torch_manualbp.lightning import DigitsDataModule, ManualBackpropModule


class Reader(torch.nn.Module):
    """Scores of ten digits, by the hidden state after the last of eight lines of eight pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden, _ = self.lstm(images.unflatten(1, (8, 8)))
        out: Tensor = self.head(hidden[:, -1])
        return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and test. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--engine", choices=("autograd", "derived"), default="derived", help="what makes the steps")
    for name, default in (("width", 64), ("epochs", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    for advice in ("The '.*' does not have many workers", "`isinstance\\(treespec, LeafSpec\\)` is deprecated"):
        warnings.filterwarnings("ignore", advice)  # the images are in memory; to Lightning itself
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    pl.seed_everything(0, verbose=False)
    module = ManualBackpropModule(
        Reader(options.width),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.05),
        {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": options.epochs}},
        {"accuracy": MulticlassAccuracy(10, average="micro")},
        engine=options.engine,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=options.epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule()
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    print(f"test accuracy {result['test_accuracy']:.2%} on {len(data.test_set)} images, engine {options.engine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
