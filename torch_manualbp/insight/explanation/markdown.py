"""An explanation as Markdown, with its formulas in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_manualbp.insight.explanation.document import Block, Formula, Heading, Paragraph, Table, document
from torch_manualbp.insight.symbols import Notation

if TYPE_CHECKING:
    from torch_manualbp.insight.explanation.result import Explanation

__all__ = ["to_markdown"]


def to_markdown(e: Explanation, dollars: bool) -> str:
    """Its blocks, with empty lines between them; formulas as GitHub and GitLab have them, or between dollars alone."""
    text = "\n\n".join("\n".join(_lines(block)) for block in document(e)) + "\n"
    if dollars:
        text = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", text, flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"\$`([^`]*)`\$", r"$\1$", text)
    return text


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"{'#' * (block.level + 1)} {_inline(block.content)}"
        case Paragraph():
            yield _inline(block.content)
        case Formula():
            yield "```math"  # between double dollars GitHub would take a backslash from the end of each line
            yield r"\begin{aligned}"
            for i, right in enumerate(block.right):
                left = block.left.latex if i == 0 else ""
                end = r" \\" if i < len(block.right) - 1 else ""
                yield f"{left} &= {right.latex}{end}"
            yield r"\end{aligned}"
            yield "```"
        case Table():
            yield f"| {' | '.join(block.columns)} |"
            yield f"| {' | '.join('--:' if i in block.numbers else '---' for i in range(len(block.columns)))} |"
            for cells in _rows(block):
                yield f"| {' | '.join(cells)} |"


def _rows(table: Table) -> list[list[str]]:
    rows: list[list[str]] = []
    for i, row in enumerate(table.rows):
        cells = [_inline(cell) for cell in row]
        if i in table.continued:
            rows[-1] = ["<br>".join(filter(None, both)) for both in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


def _inline(notation: Notation) -> str:
    """Without empty formulas, and without spaces at the edges of the others."""
    return re.sub(r"\$`( *)([^`]*?)( *)`\$", _trimmed, notation.markdown)


def _trimmed(formula: re.Match[str]) -> str:
    before, inner, after = formula.groups()
    return f"{before}$`{inner}`${after}" if inner else before + after
