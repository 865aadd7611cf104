"""Imports run downwards, from room to room of the package and from file to file, with no circle."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import torch_manualbp

ROOT = Path(torch_manualbp.__file__).parent

LEVELS = (
    "_expressions _extras _files _output _progress _text _torch _version",
    "_html _tables",
    "rules",
    "catalogue",
    "kernels",
    "functional",
    "nn",
    "_objects",
    "recognition",
    "convert layers",
    "verify",
    "derive",
    "insight",
    "lightning",
    "bench cli",
    "__main__",
)
"""The rooms; each may import those of the levels above its own line, and itself."""

LEVEL = {room: i for i, rooms in enumerate(LEVELS) for room in rooms.split()}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The package's files by their names, parsed; of those that import nothing when they run, too."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run, in functions, too: all but those that a type checker alone sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from statements(child)


def imported(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    """The files of the package that one imports: of ``from package import name`` the file of that name, if there is."""
    found = set()
    for statement in statements(tree):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif statement.module is not None:
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= {name if name in known else statement.module for name in names}
    return found & known.keys()


def room(module: str) -> str:
    """``rules`` of ``torch_manualbp.rules.linear``; of the package itself nothing."""
    return module.partition(".")[2].partition(".")[0]


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each file imports."""
    return {name: imported(tree, modules()) - {name} for name, tree in modules().items()}


def test_every_room_has_its_level() -> None:
    assert {room(name) for name in modules()} - {""} == LEVEL.keys()


@pytest.mark.parametrize("rooms", LEVELS)
def test_a_room_imports_those_below_it_alone(rooms: str) -> None:
    upwards = {
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if room(name) in rooms.split() and room(other) not in ("", room(name))
        if LEVEL[room(other)] >= LEVEL[room(name)]
    }
    assert upwards == set()


def test_the_package_itself_is_imported_by_what_is_above_the_rooms_alone() -> None:
    """Its attributes are imported when they are asked for, from any room."""
    those = {name for name, others in imports().items() if torch_manualbp.__name__ in others}
    assert {room(name) for name in those} <= {"bench", "cli", "__main__", "lightning"}


def test_there_is_no_circle_of_files() -> None:
    # A file of a package runs the package's own __init__ before it; that one imports its files.
    TopologicalSorter(imports()).prepare()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch_manualbp.rules.linear", {"torch_manualbp.rules.linear"}),
        ("from torch_manualbp.rules import linear, Rule", {"torch_manualbp.rules", "torch_manualbp.rules.linear"}),
        ("def f():\n    from torch_manualbp import nn", {"torch_manualbp.nn"}),
        ("if TYPE_CHECKING:\n    from torch_manualbp import nn", set()),
    ],
    ids=["module", "names", "in a function", "for a type checker"],
)
def test_imports_are_found(text: str, found: set[str]) -> None:
    assert imported(ast.parse(text), modules()) == found


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()
