"""A network that a configuration can describe without a class of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.nn import Module

from torch_manualbp import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multilayer perceptron: linear layers with an activation between them.

    ::

        MLP([64, 32, 10], activation="GELU")      # 64 → Linear → GELU → Linear → 10

    Args:
        sizes: the number of features of the input, of each hidden layer, and of the output.
        activation: the name of a class of :mod:`torch_manualbp.nn` that needs no arguments.
        dropout: the probability of :class:`torch_manualbp.nn.Dropout` after each activation, if it is not 0.
        flatten: whether all dimensions but the first are one: for images.

    Raises:
        ValueError: there are fewer than two sizes, or there is no such activation.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str = "ReLU", dropout: float = 0.0, flatten: bool = False
    ) -> None:
        if len(sizes) < 2:
            raise ValueError(f"sizes is {list(sizes)}: it takes at least that of the input and that of the output")
        kind = getattr(nn, activation, None)
        if not (isinstance(kind, type) and issubclass(kind, Module)):
            raise ValueError(f"activation is {activation!r}: it takes the name of a class of torch_manualbp.nn")

        def layers() -> Iterator[Module]:
            if flatten:
                yield torch.nn.Flatten()
            for i, (n, m) in enumerate(itertools.pairwise(sizes)):
                if i > 0:
                    yield kind()
                    if dropout:
                        yield nn.Dropout(dropout)
                yield nn.Linear(n, m)

        super().__init__(*layers())
