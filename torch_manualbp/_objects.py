"""Objects that a command line names: ``package.module:expression``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["RefusedError", "evaluated", "evaluated_in", "one_line", "where_python_looks"]


class RefusedError(Exception):
    """What a command does not take."""


@contextmanager
def where_python_looks() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def evaluated(argument: str, text: str) -> Any:
    """What ``package.module:expression`` is.

    Raises:
        RefusedError: it is of another form, or the module or the expression raises.
    """
    name, _, expression = text.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", name) or not expression.strip():
        raise RefusedError(f"argument {argument}: {text!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a module raises that is imported
        raise RefusedError(f"argument {argument}: {name} cannot be imported: {one_line(error)}") from error
    return evaluated_in(argument, expression, vars(module))


def evaluated_in(argument: str, expression: str, names: Mapping[str, Any]) -> Any:
    """What a Python expression is in these names.

    Raises:
        RefusedError: it raises.
    """
    try:
        return eval(expression, {**names})
    except Exception as error:  # whatever the user's own expression raises
        raise RefusedError(f"argument {argument}: {expression} raises {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The kind of the error and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
