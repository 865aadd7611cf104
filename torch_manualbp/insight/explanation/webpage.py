"""An explanation as HTML without outside resources: formulas are letters with indices, and need no MathML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from torch_manualbp import _html
from torch_manualbp._text import visible
from torch_manualbp.insight.explanation.document import Block, Formula, Heading, Paragraph, Table, document
from torch_manualbp.insight.symbols import Notation

if TYPE_CHECKING:
    from torch_manualbp.insight.explanation.result import Explanation

__all__ = ["html_of", "to_html"]


def to_html(e: Explanation, page: bool) -> str:
    """A page, or one ``section`` to be put into one."""
    blocks = map(html_of, document(e))
    index = ", ".join(map(str, e.index))
    return _html.page(visible(f"∂C/∂ {e.name}[{index}]"), *blocks) if page else _html.section(*blocks)


def html_of(block: Block) -> Markup:
    """One block of an explanation."""
    match block:
        case Heading():
            tag = f"h{block.level + 1}"
            return Markup("<{0}>{1}</{0}>").format(tag, _marked(block.content))
        case Paragraph():
            return _html.paragraph(_marked(block.content))
        case Formula():
            lefts = [_marked(block.left), *[""] * (len(block.right) - 1)]
            lines = [(left, "=", _marked(right)) for left, right in zip(lefts, block.right, strict=True)]
            return _html.table((), lines, kind="formula")
        case Table():
            cells = [[_marked(cell) for cell in row] for row in block.rows]
            return _html.table(block.columns, cells, block.numbers, continued=block.continued)


def _marked(notation: Notation) -> Markup:
    return Markup(notation.html)
