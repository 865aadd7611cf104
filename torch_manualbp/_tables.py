"""Tables of results: for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_manualbp._extras import require
from torch_manualbp._files import write_text

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
    """Write a text, or a dictionary as JSON, to a file that is then there as a whole, or as it was.

    Infinities and NaN, which JSON has not, are written as words.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        content = json.dumps(_in_json(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, content)


def _in_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
