"""What commands print."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

__all__ = ["discard_output", "print_to_the_end"]


def print_to_the_end(text: str, in_colours: Callable[[str], None] | None = None) -> None:
    """Print a text of any length, to a terminal by ``in_colours`` if that is given."""
    try:
        if in_colours is not None and sys.stdout is not None and sys.stdout.isatty():
            in_colours(text)
        else:
            print(text, end="", flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        discard_output()


def discard_output() -> None:
    """Print to nowhere from here on, where the interpreter would complain when it flushes at its end."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:  # what is no file has no number
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
