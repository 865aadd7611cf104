"""Train a small residual network on images of handwritten digits, its backward pass by formulas, under Lightning."""

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


class Residual(torch.nn.Module):
    """relu(x + two convolutions of it), each normalized over the batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.norm2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm1(self.conv1(x)))
        out: Tensor = self.relu(x + self.norm2(self.conv2(h)))
        return out


def network(width: int, blocks: int) -> torch.nn.Sequential:
    """Scores of ten digits of images, 8 × 8 pixels in a row."""
    return torch.nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(Residual(width) for _ in range(blocks)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and test. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--engine", choices=("autograd", "derived"), default="derived", help="what makes the steps")
    for name, default in (("width", 16), ("blocks", 2), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    for advice in ("The '.*' does not have many workers", "`isinstance\\(treespec, LeafSpec\\)` is deprecated"):
        warnings.filterwarnings("ignore", advice)  # the images are in memory; to Lightning itself
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    pl.seed_everything(0, verbose=False)
    module = ManualBackpropModule(
        network(options.width, options.blocks),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.AdamW(parameters, 3e-3, weight_decay=0.05),
        {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": options.epochs}},
        {"accuracy": MulticlassAccuracy(10, average="micro")},
        engine=options.engine,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=options.epochs,
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
