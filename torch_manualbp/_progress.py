"""How far something that takes long has got, for somebody who waits at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["INTERRUPTED", "Counted", "Progress"]

T = TypeVar("T")

INTERRUPTED = 130
"""The exit status of a command whose loop has been interrupted."""

AFTER_S = 1.0
EVERY_S = 0.1
CLEARED = "\r\x1b[K"


class Progress:
    """A line on stderr that is written over, and gone at the end; none where stderr is no terminal."""

    def __init__(self, about: str) -> None:
        self._about = about
        self.part = ""
        """Of what."""

        self._next = time.monotonic() + AFTER_S
        self._is_written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._is_written:
            self._is_written = False
            self._write(CLEARED)

    def after(self, seconds: float) -> None:
        """Be silent for so long."""
        self._next = time.monotonic() + seconds

    def at(self, doing: str) -> None:
        """Say what is being done, if it is time to."""
        now = time.monotonic()
        if now >= self._next and sys.stderr is not None and sys.stderr.isatty():
            self._next = now + EVERY_S
            self._is_written = True
            self._write(CLEARED + ", ".join(filter(None, (self._about, self.part, doing))))

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody is there any more
            self._next = float("inf")


class Counted(Generic[T]):
    """A loop that takes long, over items of which there is a number.

    ::

        with Counted(rules, "matrix", lambda rule: rule.name) as todo:
            for rule in todo:
                rows += outcomes(rule)
        publish(rows)
        return INTERRUPTED if todo.interrupted else 0

    A line on stderr says at once where it is and, from the second item on, how long the others may take, if they are
    like those before; it is gone at the end, and not there at all where stderr is no terminal. Ctrl-C ends the loop
    once an item is done, so that what there is can be printed; before that it is raised.
    """

    def __init__(self, items: Sequence[T], about: str, name: Callable[[T], Any] = str) -> None:
        self._items, self._about, self._name = items, about, name
        self._line = Progress(about)
        self._line.after(0)
        self.done = 0
        self.interrupted = False

    def __enter__(self) -> Counted[T]:
        self._start = time.monotonic()
        return self

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self._line.after(0)
            self._line.at(self._where(item))
            yield item
            self.done += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        self._line.clear()
        self.interrupted = kind is KeyboardInterrupt and self.done > 0
        if self.interrupted:
            print(f"{self._about}: interrupted after {self.done} of {len(self._items)}", file=sys.stderr)
        return self.interrupted

    def say(self, *text: str) -> None:
        """Print a line of what has been found to stderr."""
        self._line.clear()
        print(*text, sep="  ", file=sys.stderr, flush=True)

    def _where(self, item: T) -> str:
        at = f"{self.done + 1} of {len(self._items)}, {self._name(item)}"
        if not self.done:
            return at
        left = (time.monotonic() - self._start) / self.done * (len(self._items) - self.done)
        return f"{at}, about {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
