"""An explanation as plain text, for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_manualbp.insight.explanation.document import Block, Formula, Heading, Paragraph, Table, document

if TYPE_CHECKING:
    from torch_manualbp.insight.explanation.result import Explanation

__all__ = ["to_text"]

INDENT = "    "


def to_text(e: Explanation) -> str:
    """Its blocks, one below the other."""
    lines: list[str] = []
    for block in document(e):
        if lines and not (isinstance(block, Table) and block.columns[0] == "symbol"):
            lines.append("")
        lines += _lines(block)
    return "\n".join(line.rstrip() for line in lines)


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield block.content.text
        case Paragraph():
            yield INDENT + block.content.text
        case Formula():
            left = block.left.text
            for right in block.right:
                yield f"{INDENT}{left} = {right}"
                left = " " * _width(left)
        case Table():
            yield from _table(block)


def _table(table: Table) -> Iterator[str]:
    """In columns, the last of which may be as long as it is. A heading is needed where there are more than three."""
    rows = [[cell.text for cell in row] for row in table.rows]
    if len(table.columns) > 3:
        rows.insert(0, list(table.columns))
    widths = [max(_width(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            room = " " * (width - _width(cell))
            cells.append(room + cell if i in table.numbers and len(table.columns) > 3 else cell + room)
        yield INDENT + "  ".join(cells)


def _width(text: str) -> int:
    """Columns of a terminal: signs that are set on the one before take none, those of Chinese and the like take two."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "FW" else 1 for c in text)
