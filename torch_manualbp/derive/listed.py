"""Which functions of torch a step is derived of, and what to write for those that it refuses."""

from __future__ import annotations

from torch import Tensor

from torch_manualbp.derive.composites import REFUSED
from torch_manualbp.derive.expected import ANSWERED, COUNTED, UNIQUE
from torch_manualbp.derive.operations import IN_PLACE, OPERATIONS

__all__ = ["operations"]


def operations() -> str:
    """The list, in Markdown."""
    refused = {name for names in REFUSED for name in names.split()}
    functions: set[str] = set()
    methods: set[str] = set()
    places: set[str] = set()
    for function in OPERATIONS:
        name, is_method = _named(function)
        if name.removeprefix("linalg.").removeprefix("special.") not in refused and name not in refused:
            (methods if is_method else functions).add(name)
    for function in IN_PLACE:
        places.add(_named(function)[0])
    lines = [
        "# Functions of torch that a derived step takes",
        "",
        "`torch-manualbp derive --operations` prints this. Of what nothing is learnt from, a step takes any function.",
        "",
        f"**By rules**, {len(functions)} of torch, `nn.functional`, `special`, `linalg`, `fft`: {_words(functions)}.",
        "",
        f"**Methods of tensors beside these**: {_words(methods - functions)}.",
        "",
        f"**In place**: {_words(places)}.",
        "",
        "**Numbers that are read**, with a program for each answer of whole numbers and truth values: "
        f"{_words(ANSWERED | COUNTED.keys() | UNIQUE)}.",
        "",
        "**Refused by name**; any other function of what is learnt is refused as one without a rule.",
        "",
        "| functions | what to write |",
        "| --- | --- |",
    ]
    by_todo: dict[str, list[str]] = {}
    for names, todo in REFUSED.items():
        by_todo.setdefault(todo, []).extend(names.split())
    lines += [f"| {_words(set(names))} | {todo} |".replace("||", "|") for todo, names in by_todo.items()]
    return "\n".join(lines) + "\n"


def _named(function: object) -> tuple[str, bool]:
    """The name of a function, and whether it is a method of tensors."""
    name: str = getattr(function, "__name__", "")
    if name == "__get__":
        return function.__self__.__name__, True  # type: ignore[attr-defined]
    for room in ("linalg", "special", "fft"):
        name = f"{room}.{name.removeprefix(f'{room}_')}" if name.startswith(f"{room}_") else name
    return name, getattr(Tensor, name, None) is function


def _words(names: set[str] | frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
