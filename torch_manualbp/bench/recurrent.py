"""The recurrent layers, dropouts and CTCLoss of the panel of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["rows"]

Row = tuple[str, str, tuple[Any, ...], dict[str, Any], Callable[[], tuple[Any, ...]]]


def rows(learns: Callable[..., Tensor], dtype: torch.dtype) -> Iterator[Row]:
    """Each layer: its class, the size, the arguments of the class, and the inputs."""
    of_dtype = {"dtype": dtype}
    for name in ("LSTM", "GRU", "RNN"):
        yield name, "100×32×256", (256, 256), of_dtype, partial(_one, learns, (100, 32, 256))
    for name in ("LSTMCell", "GRUCell", "RNNCell"):
        yield name, "32×256", (256, 256), of_dtype, partial(_one, learns, (32, 256))
    shapes = {
        "Dropout": (512, 4096),
        "AlphaDropout": (512, 4096),
        "Dropout1d": (32, 64, 784),
        "Dropout2d": (32, 64, 28, 28),
        "Dropout3d": (32, 64, 4, 14, 14),
        "FeatureAlphaDropout": (32, 64, 28, 28),
    }
    for name, shape in shapes.items():
        yield name, "×".join(map(str, shape)), (0.3,), {}, partial(_one, learns, shape)
    labels, times, of_each = torch.randint(1, 32, (16, 20)), (100,) * 16, (20,) * 16
    yield (
        "CTCLoss",
        "100×16×32",
        (),
        {},
        lambda: (learns(100, 16, 32).detach().log_softmax(2).requires_grad_(), labels, times, of_each),
    )


def _one(learns: Callable[..., Tensor], shape: tuple[int, ...]) -> tuple[Tensor]:
    return (learns(*shape),)
