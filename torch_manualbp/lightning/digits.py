"""The handwritten digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from torch_manualbp._extras import require
from torch_manualbp.lightning.root import pl

__all__ = ["DigitsDataModule"]


class DigitsDataModule(pl.LightningDataModule):
    """1,797 images of 8 × 8 pixels, flattened, and their digits: inputs float32 (batch, 64), targets int64 (batch).

    Each image is in one of ``train_set``, ``val_set`` and ``test_set``, which hold the ten digits in equal proportions.
    Every pixel is standardised by its mean and standard deviation over the training images. The split follows from
    ``seed``, the order of training from ``seed`` and the epoch: a resumed run sees the batches it would have seen.
    Under several processes each trains on its share, and each image is evaluated by one of them.

    Args:
        batch_size: of each process.
        seed: of the split and the order, from 0 to 2³² − 1.
        val_fraction: share of the images to validate on.
        test_fraction: share of the images to test on.
        num_workers: processes that load batches; the images are in memory, so that 0 is fastest.

    Raises:
        ValueError: an argument is out of its range.
        ImportError: from ``setup``, without scikit-learn; the message gives the command that installs it.
    """

    features = 64
    classes = 10

    train_set: Subset[tuple[Tensor, ...]]
    val_set: Subset[tuple[Tensor, ...]]
    test_set: Subset[tuple[Tensor, ...]]

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check("batch_size", batch_size, batch_size >= 1, "a whole number of at least 1")
        _check("seed", seed, 0 <= seed < 2**32, "a whole number from 0 to 2**32 - 1")
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            _check(name, fraction, 0.01 <= fraction <= 0.9, "a share from 0.01 to 0.9")
        _check("test_fraction", test_fraction, val_fraction + test_fraction <= 0.95, "0.95 less val_fraction at most")
        _check("num_workers", num_workers, num_workers >= 0, "a whole number of at least 0")
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.seed = seed
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Split and standardise the images, once."""
        if hasattr(self, "test_set"):
            return
        split = require("sklearn.model_selection", "examples").train_test_split
        digits = require("sklearn.datasets", "examples").load_digits()
        images, target = torch.from_numpy(digits.data), torch.from_numpy(digits.target).long()

        rest, test = split(range(len(target)), test_size=self.test_fraction, stratify=target, random_state=self.seed)
        val_share = self.val_fraction / (1 - self.test_fraction)
        train, val = split(rest, test_size=val_share, stratify=target[rest], random_state=self.seed)

        mean, deviation = images[train].mean(0), images[train].std(0, correction=0)
        deviation[deviation == 0] = 1  # pixels at the border that are 0 in all of the training images
        everything = TensorDataset(((images - mean) / deviation).float(), target)
        self.train_set = Subset(everything, train)
        self.val_set = Subset(everything, val)
        self.test_set = Subset(everything, test)

    def train_dataloader(self) -> DataLoader[Any]:
        """The training images, in another order every epoch."""
        replicas, rank = self._replicas_and_rank()
        sampler: DistributedSampler[Any] = DistributedSampler(self.train_set, replicas, rank, seed=self.seed)
        # Lightning calls set_epoch before each epoch, but where it resumes only after workers have begun to load; and
        # trainer.current_epoch is one behind there.
        if self.trainer is not None:
            epochs: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images."""
        return self._loader(self.val_set, EachOnceSampler(self.val_set, *self._replicas_and_rank()))

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self._loader(self.test_set, EachOnceSampler(self.test_set, *self._replicas_and_rank()))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self.test_dataloader()

    def _replicas_and_rank(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(self, images: Dataset[Any], sampler: DistributedSampler[Any]) -> DataLoader[Any]:
        # A generator of its own: a loader without one draws a seed for its workers from torch's random numbers, and a
        # resumed run makes another number of loaders than an uninterrupted one.
        generator = torch.Generator().manual_seed(self.seed)
        # By keyword: Lightning makes a loader anew to predict, with these arguments and a batch sampler of its own.
        return DataLoader(
            images, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers, generator=generator
        )


class EachOnceSampler(DistributedSampler[Any]):
    """The share of one process, in order, and nothing twice: ``DistributedSampler`` repeats samples to make shares
    equal, which skews metrics. A subclass, because Lightning replaces any other sampler by that one."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def _check(name: str, value: object, ok: bool, accepted: str) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}: it takes {accepted}")
