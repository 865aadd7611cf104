"""Tables of results: for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch_manualbp._extras import require

__all__ = ["as_markdown", "print_table", "require_tables", "write"]


def require_tables() -> None:
    """Say that the terminal's tables are not there before hours of work are put into one."""
    require("rich.table", "cli")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is of words, the others are of figures."""
    table = require("rich.table", "cli").Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = require("rich.console", "cli").Console()
    if not console.is_terminal:  # a file has no edge to wrap at
        console.width = 1000
    console.print(table)


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    lines = [columns, ["---", *("--:" for _ in columns[1:])], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '∣') for cell in line)} |\n" for line in lines)


def write(path: Path, content: str | dict[str, Any]) -> None:
    """Write a text, or a dictionary as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n")
