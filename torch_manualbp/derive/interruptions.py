"""Signals that wait while a parameter update is under way, so that it is made wholly or not at all."""

from __future__ import annotations

import signal

# signal.signal looks its constants up in an enumeration at each call, which takes 3 µs where the call takes 0.3.
from _signal import getsignal  # type: ignore[import-not-found]
from _signal import signal as set_handler
from threading import get_ident, main_thread
from time import monotonic
from types import FrameType
from typing import Any

__all__ = ["Uninterrupted"]

_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGBREAK")
SIGNALS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
"""The signals whose handlers programs write in Python; SIGINT's raises KeyboardInterrupt."""


PATIENCE = 5.0
"""Seconds after which another signal is handled at once, for a block that does not end."""


class Uninterrupted:
    """A block whose signals are handled at its end, or where it looks for them.

    Python runs handlers between two instructions of the main thread. An exception of theirs, such as KeyboardInterrupt,
    would come between two lines of an update, between the update and its bookkeeping, or before what a block has begun
    can be put back. Other threads run no handlers.
    """

    __slots__ = ("_came", "_handlers", "_since")

    def __enter__(self) -> Uninterrupted:
        self._came: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Any] = {}
        if get_ident() == main_thread().ident:
            try:
                for number, handler in zip(SIGNALS, list(map(getsignal, SIGNALS)), strict=True):
                    if callable(handler):
                        self._handlers[number] = handler
                        set_handler(number, self._wait)
            except BaseException:  # of a handler that is still its own
                _restore({**self._handlers})
                raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for number, handler in self._handlers.items():
                set_handler(number, handler)
        except BaseException:  # of a handler that is its own again
            _restore({**self._handlers})
            raise
        finally:
            for number, frame in self._came:
                self._handlers[number](number, frame)

    def look(self) -> None:
        """Handle what has come, here where an exception does no harm."""
        while self._came:
            number, frame = self._came.pop(0)
            self._handlers[number](number, frame)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if not self._came:
            self._since = monotonic()
        self._came.append((number, frame))
        if monotonic() - self._since > PATIENCE:
            self.look()


def _restore(handlers: dict[int, Any]) -> None:
    """Set the handlers of signals, whatever these raise meanwhile."""
    came: BaseException | None = None
    try:
        while handlers:
            try:
                number, handler = next(iter(handlers.items()))
                set_handler(number, handler)
                del handlers[number]
            except BaseException as error:  # noqa: PERF203
                came = error
    finally:
        if handlers:
            _restore(handlers)
    if came is not None:
        raise came
