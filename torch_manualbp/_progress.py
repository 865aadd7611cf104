"""How far an explanation or a derivation has got, for somebody at a terminal who has waited a second."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress"]

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
        if self._is_written:
            self._write(CLEARED)

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
