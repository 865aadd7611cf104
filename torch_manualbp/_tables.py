"""Tables of results: for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_manualbp._extras import require
from torch_manualbp._files import write_text
from torch_manualbp._text import as_json, visible

__all__ = ["as_markdown", "print_table", "require_tables", "write"]


def require_tables() -> None:
    """Say that the terminal's tables are not there before hours of work are put into one."""
    require("rich.table", "cli")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is of words, the others are of figures."""
    text = require("rich.text", "cli").Text  # a string would be read as markup
    table = require("rich.table", "cli").Table(title=text(visible(title)))
    for i, column in enumerate(columns):
        table.add_column(text(visible(column)), justify="right" if i else "left")
    for row in rows:
        table.add_row(*(text(visible(cell)) for cell in row))
    console = require("rich.console", "cli").Console()
    if not console.is_terminal:  # a file has no edge to wrap at
        console.width = 1000
    console.print(table)


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = [columns, ["---", *("--:" for _ in columns[1:])], *rows]
    return "".join(f"| {' | '.join(visible(cell).replace('|', '∣') for cell in line)} |\n" for line in lines)


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write a text, or a dictionary as JSON, to a file that is then there as a whole, or as it was.

    Infinities and NaN, which JSON has not, are written as words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        content = as_json(content) + "\n"
    write_text(path, content)
