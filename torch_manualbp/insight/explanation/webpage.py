"""An explanation as HTML without outside resources: formulas are letters with indices, and need no MathML."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch_manualbp._text import visible
from torch_manualbp.insight.explanation.document import Block, Formula, Heading, Paragraph, Table, document

if TYPE_CHECKING:
    from torch_manualbp.insight.explanation.result import Explanation

__all__ = ["to_html"]

STYLE = """
.manualbp { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; }
.manualbp var { font-family: "Latin Modern Math", "STIX Two Math", Cambria, Georgia, serif; font-style: italic; }
.manualbp sub, .manualbp sup { font-size: .7em; line-height: 0; }
.manualbp h2, .manualbp h3 { line-height: 1.25; margin: 1.5em 0 .5em; }
.manualbp h2 { font-size: 1.4em; } .manualbp h3 { font-size: 1.1em; }
.manualbp .scroll { overflow-x: auto; margin: .75em 0; }
.manualbp table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.manualbp th, .manualbp td { text-align: left; padding: .2em .75em .2em 0; vertical-align: top; }
.manualbp th { font-weight: 600; border-bottom: 1px solid #8888; }
.manualbp tbody tr + tr td { border-top: 1px solid #8883; }
.manualbp tbody tr.more td { border-top: 0; padding-top: 0; }
.manualbp td:first-child { white-space: nowrap; }
.manualbp th:last-child:not(:nth-child(2)) { min-width: 18rem; }
.manualbp .n { text-align: right; white-space: nowrap; }
.manualbp .formula td { border: 0; padding: .1em .3em .1em 0; }
"""


def to_html(e: Explanation, page: bool) -> str:
    """A page, or one ``section`` to be put into one."""
    blocks = "\n".join(line for block in document(e) for line in _lines(block))
    section = f'<section class="manualbp">\n<style>{STYLE}</style>\n{blocks}\n</section>'
    if not page:
        return section
    index = ", ".join(map(str, e.index))
    title = html.escape(visible(f"∂C/∂ {e.name}[{index}]"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n</head>\n<body>\n{section}\n</body>\n</html>\n"
    )


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading():
            yield f"<h{block.level + 1}>{block.content.html}</h{block.level + 1}>"
        case Paragraph():
            yield f"<p>{block.content.html}</p>"
        case Formula():
            yield '<div class="scroll"><table class="formula">'
            for i, right in enumerate(block.right):
                left = block.left.html if i == 0 else ""
                yield f"<tr><td>{left}</td><td>=</td><td>{right.html}</td></tr>"
            yield "</table></div>"
        case Table():
            yield '<div class="scroll"><table>'
            heads = (_cell("th", column, i in block.numbers) for i, column in enumerate(block.columns))
            yield f"<thead><tr>{''.join(heads)}</tr></thead>"
            yield "<tbody>"
            for n, row in enumerate(block.rows):
                cells = (_cell("td", cell.html, i in block.numbers) for i, cell in enumerate(row))
                more = ' class="more"' if n in block.continued else ""
                yield f"<tr{more}>{''.join(cells)}</tr>"
            yield "</tbody></table></div>"


def _cell(tag: str, content: str, is_number: bool) -> str:
    return f'<{tag} class="n">{content}</{tag}>' if is_number else f"<{tag}>{content}</{tag}>"
