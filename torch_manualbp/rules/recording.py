"""Who records the rules that a thread applies, in autograd's place: the tape of a step that is being derived."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, Protocol

__all__ = ["Recorder", "recorded_by", "recorder"]


class Recorder(Protocol):
    """What runs rules, and writes down the torch calls that they make, to make the same calls of other numbers."""

    how: Literal["lean", "rows", "pure"]
    """``"lean"``: by the fastest kernels, which may lay numbers out in another order than torch; ``"rows"``: by kernels
    that lay them out as torch does; ``"pure"``: by the formulas as they stand."""

    def apply(self, rule: Any, args: tuple[Any, ...]) -> Any:
        """What ``rule.apply(*args)`` comes to."""


_recorder: ContextVar[Recorder | None] = ContextVar("recorder", default=None)

recorder: Callable[[], Recorder | None] = _recorder.get
"""The recorder of this thread, or None: a new thread begins without one."""


@contextlib.contextmanager
def recorded_by(by: Recorder | None) -> Iterator[None]:
    """Have the rules that this thread applies recorded by ``by``, or with None by nobody."""
    token = _recorder.set(by)
    try:
        yield
    finally:
        _recorder.reset(token)
