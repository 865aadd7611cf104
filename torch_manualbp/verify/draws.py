"""Random numbers that were drawn in one dtype, drawn again in another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import TorchDispatchMode
from torch_manualbp.verify.check import DoesNotApply

__all__ = ["Draws"]


class Draws:
    """The random numbers of a forward, recorded in one dtype and replayed in another.

    Of the same seed every dtype has numbers of its own: a float16 dropout keeps other entries than a float64 one.
    """

    def __init__(self) -> None:
        self._numbers: list[Tensor] = []

    @property
    def any(self) -> bool:
        """Whether there were any."""
        return bool(self._numbers)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep what is drawn in here."""
        with _Recording(self._numbers):
            yield

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw again what was drawn, from the start in every forward."""
        if not self._numbers:
            yield
            return
        with _Replaying(self._numbers):
            yield


PURE = {
    *("bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
    *("uniform_", "normal", "normal_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
}
"""Operations whose result are the random numbers and nothing else."""


def _is_draw(func: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    if func.overloadpacket.__name__ not in PURE:
        raise DoesNotApply(f"{func.overloadpacket} draws random numbers of its own in every dtype")
    return True


class _Recording(TorchDispatchMode):
    def __init__(self, numbers: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_draw(func) and isinstance(result, Tensor):
            self.numbers.append(result.detach().clone())
        return result


class _Replaying(TorchDispatchMode):
    def __init__(self, numbers: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = numbers
        self.drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_draw(func) and isinstance(result, Tensor):
            numbers = self.numbers[self.drawn % len(self.numbers)]
            self.drawn += 1
            if numbers.shape == result.shape:
                result.copy_(numbers)
        return result
