"""Print the layers of this package with their formulas: the table that stands in nn/README.md. What a row of the
catalogue promises and nobody has written is named on standard error."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torch_manualbp import functional, nn, rules
from torch_manualbp.catalogue import CATALOGUE, Make, Operation, named

__all__ = ["add_arguments", "main", "missing", "table"]

COLUMNS = ["`torch_manualbp.nn`", "`.functional`", "forward", "⇒ backward", "kept for backward", "replaces"]

FORMULA = re.compile(r"(?:``[\w.]+``: )?(.+) ⇒ (.+?)\. Kept: (.+?)\.(?: |$)")
"""What the docstring of a layer says: ``forward ⇒ backward. Kept: what.``"""


def table(operations: Sequence[Operation] = CATALOGUE) -> str:
    """The layers with their formulas, in Markdown."""
    rows: dict[str, list[str]] = {}
    for operation in operations:
        for layer, function in operation.functions_of_layers().items():
            row = rows.setdefault(layer, [f"`{layer}`", "", *_formula(getattr(nn, layer)), f"`torch.nn.{layer}`"])
            if f"`{function}`" not in row[1]:
                row[1] += f"{', ' if row[1] else ''}`{function}`"
        for name in operation.functions.split():
            formula = _formula(getattr(functional, name)) if name in functional.__all__ else ()
            if any(formula) and name not in operation.functions_of_layers().values():
                rows.setdefault(f"F.{name}", ["", f"`{name}`", *formula, f"`torch.nn.functional.{name}`"])
    cells = [COLUMNS, ["---"] * len(COLUMNS), *([cell.replace("|", r"\|") for cell in row] for row in rows.values())]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def missing(operations: Sequence[Operation] = CATALOGUE) -> list[str]:
    """What the rows of a catalogue promise and is not there, and what is there without a row; a sentence each."""
    found = [sentence for operation in operations for sentence in _missing_of(operation)]
    listed = {operation.rule for operation in operations}
    functions = {name for operation in operations for name in operation.functions.split()}
    layers = {name for operation in operations for name in operation.layers.split()}
    for name, rule in vars(rules).items():
        if isinstance(rule, type) and issubclass(rule, rules.Rule) and "forward" in vars(rule) and rule not in listed:
            found.append(f"rules.{name} has no row in the catalogue.")
    found += [f"functional.{name} stands in no row." for name in functional.__all__ if name not in functions]
    return found + [f"nn.{name} stands in no row." for name in _ours() if name not in layers]


def _missing_of(operation: Operation) -> Iterator[str]:
    row = f"{operation.name}: its row"
    if getattr(rules, operation.name, None) is not operation.rule:
        yield f"{row} has a rule that torch_manualbp.rules does not export; add it to __all__ where it is defined."
    if next(iter(operation.samples(Make())), None) is None:
        yield f"{row} has no sample, so that nothing holds it to torch."
    for name in operation.functions.split():
        if name not in functional.__all__ and not named(name):
            yield f"{row} names the function {name}, which torch has nowhere."
        elif name not in functional.__all__ and operation.arguments is None:
            yield f"{row} names the function {name}: write functional.{name}, or say what `arguments` the rule takes."
    for name in operation.layers.split():
        if not hasattr(torch.nn, name):
            yield f"{row} names the layer {name}, which torch.nn has not."
        elif name not in _ours():
            yield f"{row} names the layer {name}: write nn.{name}."
        elif FORMULA.search(_paragraph(getattr(nn, name))) is None:
            yield f"nn.{name}: its docstring says no `forward ⇒ backward. Kept: what.`"
    if not operation.layers:
        for name in set(operation.functions.split()) & set(functional.__all__):
            if FORMULA.search(_said(getattr(functional, name))) is None:
                yield f"functional.{name}: its docstring says no `forward ⇒ backward. Kept: what.`"
    if operation.layers and not operation.functions:
        yield f"{row} names the layer {operation.layers} and no function that it calls."


def _ours() -> dict[str, Any]:
    return {name: value for name, value in vars(nn).items() if _is_ours(value)}


def _is_ours(value: Any) -> bool:
    return isinstance(value, type) and value.__module__.startswith(f"{nn.__name__}.")


def _formula(thing: Any) -> tuple[str, ...]:
    found = FORMULA.search(_paragraph(thing) if isinstance(thing, type) else _said(thing))
    return ("", "", "") if found is None else found.groups()


def _paragraph(layer: Any) -> str:
    """What stands around the ⇒, in one line; of a layer that says nothing that of the one it becomes."""
    return next(filter(None, map(_said, filter(_is_ours, layer.__mro__))), "")


def _said(thing: Any) -> str:
    """The paragraph of its docstring with the ⇒, in one line."""
    paragraphs = inspect.cleandoc(thing.__doc__ or "").split("\n\n")
    return next((" ".join(paragraph.split()) for paragraph in paragraphs if "⇒" in paragraph), "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--into", type=Path, metavar="FILE", help="write it in place of the table of layers in FILE")


def main(options: argparse.Namespace) -> int:
    """Print the table. Returns 1 where something is missing."""
    if options.into is None:
        print(table(), end="")
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(replaced(text), encoding="utf-8")
    found = missing()
    for sentence in found:
        print(sentence, file=sys.stderr)
    return int(bool(found))


def replaced(text: str) -> str:
    """A text with the table of layers as it is now in place of the one that it has.

    Raises:
        ValueError: it has none.
    """
    head = "| " + " | ".join(COLUMNS) + " |\n"
    before, found, after = text.partition(head)
    if not found:
        raise ValueError(f"no table of layers there, which begins with {head.strip()!r}")
    lines = after.splitlines(keepends=True)
    rest = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + table() + "".join(lines[rest:])
