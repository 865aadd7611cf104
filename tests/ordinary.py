"""Which cases of a long list an ordinary run takes: one of each kind. The rest stand under ``slow``.

A list says what kinds its cases are of, such as a rule, a rule with a value of one of its options, a database's entry;
the first case of a kind is its sample.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import pytest
from torch import Tensor

from torch_manualbp.catalogue import Make, Operation

T = TypeVar("T")
PARAM: Any = type(pytest.param())

is_without_slow = False
"""Whether the run leaves out all that is slow, as conftest finds it told."""


def are_first(cases: Iterable[T], kinds: Callable[[T], Iterable[Hashable]]) -> Iterator[tuple[T, bool]]:
    """Each case, and whether it is of a kind of which no case was before, so that an ordinary run takes it."""
    seen: set[Hashable] = set()
    for case in cases:
        of = set(kinds(case))
        yield case, not of <= seen
        seen |= of


def one_of_each(cases: Iterable[Any], kinds: Callable[..., Iterable[Hashable]]) -> list[Any]:
    """All cases for ``pytest.mark.parametrize``, those that an ordinary run does not take under ``slow``. ``kinds``
    takes what the test takes of a case: several arguments where a case is a tuple. An ordinary run is not shown the
    others: each would cost its 0.2 ms of collection in every worker."""
    params = [c if isinstance(c, PARAM) else pytest.param(*(c if isinstance(c, tuple) else (c,))) for c in cases]
    return [
        pytest.param(*param.values, id=param.id, marks=param.marks if is_first else (*param.marks, pytest.mark.slow))
        for param, is_first in are_first(params, lambda param: kinds(*param.values))
        if is_first or not is_without_slow
    ]


def kinds_of_samples(entry: Operation) -> dict[str, set[Hashable]]:
    """What a rule's samples are of, by name: each value of each option, and the dtype of each tensor. Shapes make no
    kind: the contract's checks go through ranks, empty batches and strides themselves."""
    return {
        sample.name: {
            (entry.name, i, str(a.dtype) if isinstance(a, Tensor) else _option(a)) for i, a in enumerate(sample.args)
        }
        for sample in entry.samples(Make())
    }


def _option(a: Any) -> str:
    """The option as it is written; of an index, whose tensors are printed at length, what it consists of."""
    if isinstance(a, tuple | list):
        return str([str(b.dtype) if isinstance(b, Tensor) else b for b in a])
    return str(a)
