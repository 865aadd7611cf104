"""What cannot be derived: every place of it, in one error."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch

__all__ = ["NotDerivableError", "Problem", "line_of_model"]

_ROOTS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])


class Problem(tuple[str, str, str]):
    """A module path, what is there, and what to do; and the line of the model's code, if it is known."""

    line: str = ""

    @classmethod
    def here(cls, path: str, what: str, todo: str) -> Problem:
        """The problem of the line that is being run."""
        problem = cls((path, what, todo))
        problem.line = line_of_model()
        return problem


class NotDerivableError(RuntimeError):
    """A model whose step cannot be written out. ``problems`` lists every place: its module path, what is there,
    and what to do. The message has a line for each kind of problem, with its places."""

    def __init__(self, problems: Iterable[tuple[str, str, str]]) -> None:
        problems = list(problems)
        self.problems: list[tuple[str, str, str]] = [
            *dict.fromkeys((path, what, todo) for path, what, todo in problems)
        ]
        kinds: dict[tuple[str, str], dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        for problem in problems:
            path, what, todo = problem
            kinds[what, todo][getattr(problem, "line", "")][path or "the model itself"] = None
        lines = [f"  {_places(paths_of)}: {what}; {todo}" for (what, todo), paths_of in kinds.items()]
        count = sum(len(paths) for paths_of in kinds.values() for paths in paths_of.values())
        places = "one place" if count == 1 else f"{count} places"
        super().__init__(f"no step can be derived, because of {places}:\n" + "\n".join(lines))


def _places(paths_of: dict[str, dict[str, None]]) -> str:
    """Module paths by the line that is run there."""
    return ", ".join(", ".join(paths) + (f" ({line})" if line else "") for line, paths in paths_of.items())


def line_of_model() -> str:
    """The file and line that is being run, of code that is neither torch's nor ours; "" if there is none."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_ROOTS):
        frame = frame.f_back
    name = frame.f_code.co_filename
    return "" if name.startswith(_ROOTS) else f"{Path(name).name}:{frame.f_lineno}"
