"""Names of classes, modules, parameters and paths in what is printed or written: they may hold anything."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["as_json", "in_markdown", "near", "one_line", "visible", "with_words"]

MARKDOWN = re.compile(r"([\\`*_<>|\[\]$~#&]|:(?=//)|(?<=www)\.)")
"""What Markdown, or one of its tables, would take for something else; in the last two, for a link."""


def visible(text: str) -> str:
    """The text on one line, with what a terminal would obey and what no file can hold written as Python escapes it.

    ::

        visible("fc\\x1b[31m\\n") == r"fc\\x1b[31m\\n"
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The kind of the error and its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def in_markdown(text: str) -> str:
    """The text as words of Markdown, in which nothing is a mark."""
    return MARKDOWN.sub(r"\\\1", visible(text))


def near(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are like this one, the likest first; upper and lower case are alike.

    ::

        near("Relu", ["ReLU", "RNNCell"]) == ["ReLU"]
    """
    of_lower: dict[str, list[str]] = {}
    for known_name in known:
        of_lower.setdefault(known_name.lower(), []).append(known_name)
    return [n for lower in difflib.get_close_matches(name.lower(), of_lower, 3, 0.5) for n in of_lower[lower]]


def as_json(value: Any, indent: int | None = 1) -> str:
    """JSON of plain data, which every parser takes: NaN and infinities, which JSON has not, are the words ``"nan"``,
    ``"inf"`` and ``"-inf"``, which Python's ``float`` reads. Strings are as they were when it is read back."""
    text = json.dumps(with_words(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^\n -~]", _escaped_in_json, text)


def _escaped_in_json(found: re.Match[str]) -> str:
    c = found[0]
    return c if c.isprintable() else json.dumps(c)[1:-1]


def with_words(value: Any) -> Any:
    """The same plain data without NaN and infinities, as :func:`as_json` writes it."""
    if isinstance(value, Mapping):
        return {key: with_words(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_words(item) for item in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
