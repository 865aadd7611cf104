"""Several sequences, one time after the other, as :class:`torch.nn.utils.rnn.PackedSequence` has them.

``sizes[t]`` sequences have a time t, the longest first, so that the sizes never grow. Rows are those of all times: of
each time the rows of the sequences that have it. A state is one row a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["before", "final", "in_order", "resized"]

Sizes = tuple[int, ...]


def in_order(sizes: Sizes, reverse: bool) -> range:
    """The times, from the first to the last, or in reverse."""
    return range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))


def resized(state: Tensor, n: int, first: Tensor) -> Tensor:
    """The state of n sequences: of those that go on what it is, of those that begin here ``first``."""
    m = state.shape[0]
    return state if m == n else state[:n] if m > n else torch.cat([state, first[m:n]])


def final(states: Sequence[Tensor], sizes: Sizes, reverse: bool) -> Tensor:
    """The state of each sequence at its last time, or in reverse at the first, out of those of each time."""
    if reverse or sizes[0] == sizes[-1]:
        return states[0 if reverse else -1]
    ending = [state[n:] for state, n in zip(states, (*sizes[1:], 0), strict=True)]
    return torch.cat([state for state in reversed(ending) if state.shape[0]])


def before(first: Tensor, states: Tensor, sizes: Sizes, reverse: bool) -> Tensor:
    """The rows of the states that each time starts from: those of the time before it, and ``first`` where a sequence
    begins."""
    if sizes[0] == sizes[-1]:
        rest = states.shape[0] - sizes[0]
        return torch.cat([states[sizes[0] :], first] if reverse else [first, states[:rest]])
    of_time = states.split(sizes)
    if reverse:
        following = zip((*of_time[1:], first[:0]), sizes, strict=True)
        return torch.cat([part for state, n in following for part in (state, first[state.shape[0] : n])])
    return torch.cat([first, *(state[:n] for state, n in zip(of_time, sizes[1:], strict=False))])
