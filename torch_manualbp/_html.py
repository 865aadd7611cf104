"""Objects as HTML: what notebooks display, and pages without outside resources.

Everything is escaped that is not ``Markup`` already. Colours are those of the notebook's theme where it has any, and
else go with the ``color-scheme`` of what is around, so that light and dark are both easy to read.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence

from markupsafe import Markup, escape

from torch_manualbp._extras import require
from torch_manualbp._text import visible

__all__ = ["code", "drawing", "folded", "frame", "image", "page", "paragraph", "section", "table"]

DARK = ", ".join(
    f":is({host}) .manualbp"
    for host in (
        '[data-jp-theme-light="false"]',  # JupyterLab, Notebook 7, nbconvert
        ".vscode-dark, .vscode-high-contrast:not(.vscode-high-contrast-light)",
        '[theme="dark"], [data-theme="dark"]',  # Colab, pages of Sphinx
    )
)
"""Where dark is a matter of attributes."""

STYLE = (
    """
.manualbp.manualbp.manualbp {
  --soft: var(--jp-content-font-color2, color-mix(in srgb, currentColor 78%, transparent));
  --good: light-dark(#1d6b3a, #7fd39b); --bad: light-dark(#a8201a, #ff9a92);
  --positive: light-dark(#1f5fa8, #7db7f2); --negative: light-dark(#b04a06, #f2a261);
  color: var(--jp-content-font-color1, var(--vscode-editor-foreground, inherit)); font: 15px/1.5 system-ui, sans-serif;
  max-width: 75rem; overflow-wrap: anywhere;
  & var { font-family: "Latin Modern Math", "STIX Two Math", Cambria, Georgia, serif; font-style: italic; }
  & sub, & sup { font-size: .7em; line-height: 0; }
  & h2, & h3 { line-height: 1.25; margin: 1.5em 0 .5em; font-weight: 600; }
  & h2 { font-size: 1.4em; } & h3 { font-size: 1.1em; }
  & p { margin: .4em 0; }
  & .soft { color: var(--soft); } & .ok { color: var(--good); } & .fails { color: var(--bad); font-weight: 600; }
  & .scroll, & .wide { overflow: auto; margin: .6em 0; } & .scroll { max-height: 36rem; }
  & .wide svg { max-width: none; }
  & table { border: 0; border-collapse: collapse; font-size: inherit; font-variant-numeric: tabular-nums; margin: 0;
    table-layout: auto; }
  & tr, & tbody tr:hover, & tbody tr:nth-child(odd) { background: none; }
  & th, & td { text-align: left; padding: .2em .9em .2em 0; vertical-align: top; line-height: inherit; border: 0;
    max-width: none; }
  & th { font-weight: 600; } & td, & th, & pre { overflow-wrap: normal; } & tbody th { font-weight: 400; }
  & thead { border: 0; } & thead th { border-bottom: 1px solid #8888; vertical-align: bottom; }
  & tbody tr + tr > * { border-top: 1px solid #8883; }
  & tbody tr.more > * { border-top: 0; padding-top: 0; }
  & td:first-child, & .n { white-space: nowrap; } & .n { text-align: right; }
  & th.turned { writing-mode: vertical-rl; rotate: 180deg; text-align: left; white-space: nowrap; padding: .4em .1em; }
  & th:last-child:not(:nth-child(2)):not(.n):not(.turned) { min-width: 16rem; }
  & .formula td { border: 0; padding: .1em .3em .1em 0; }
  & .entries td { padding: 1px; border: 0; } & .entries span { display: block; padding: .05em .6em; }
  & .plus { background: color-mix(in srgb, var(--positive) var(--size), transparent); }
  & .minus { background: color-mix(in srgb, var(--negative) var(--size), transparent); }
  & summary { cursor: pointer; padding: .15em 0; }
  & pre { margin: 0; padding: 0; background: none; color: inherit; white-space: pre; font-size: 13px; line-height: 1.45;
    font-family: var(--jp-code-font-family, ui-monospace, "DejaVu Sans Mono", Consolas, monospace); }
  & iframe { width: 100%; height: 44rem; border: 1px solid #8886; border-radius: 6px; resize: vertical; }
  & img { max-width: 100%; background: #fff; border-radius: 6px; }
  & .k { color: light-dark(#8a1a6b, #e59adf); } & .c { color: light-dark(#3c6a3c, #93c393); font-style: italic; }
  & .s { color: light-dark(#9a3412, #f0ad7f); } & .m { color: light-dark(#1f5fa8, #7db7f2); }
  & .d { color: light-dark(#5b3fa0, #c3a8ff); }
}
:is([data-jp-theme-light="true"], .vscode-light, [theme="light"], [data-theme="light"]) .manualbp {
  color-scheme: light;
}
"""
    + f"{DARK} {{ color-scheme: dark; }}\n"
    + f":is({DARK}) img {{ filter: invert(.92) hue-rotate(180deg); }}\n"
)

KINDS = (
    ("Keyword", "k"),
    ("Operator.Word", "k"),
    ("Literal.String", "s"),
    ("Literal.Number", "m"),
    ("Comment", "c"),
    ("Name.Function", "d"),
    ("Name.Class", "d"),
)
"""The tokens of Pygments that have a colour."""

Cell = str | Markup


def section(*blocks: Cell) -> str:
    """One element to be put into a page, such as a notebook, with the style of its blocks."""
    body = Markup("\n").join(blocks)
    return str(Markup('<section class="manualbp">\n<style>{}</style>\n{}\n</section>').format(Markup(STYLE), body))


def page(title: str, *blocks: Cell) -> str:
    """A whole page."""
    whole = Markup(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<style>:root {{ color-scheme: light dark; }}</style>\n<title>{}</title>\n</head>\n"
        "<body>\n{}\n</body>\n</html>\n"
    ).format(_safe(title), Markup(section(*blocks)))
    return str(whole)


def paragraph(text: Cell, kind: str = "") -> Markup:
    """Words; ``kind`` is ``"soft"``, ``"ok"`` or ``"fails"``."""
    return Markup("<p{}>{}</p>").format(_kind(kind), _safe(text))


def table(
    columns: Sequence[Cell],
    rows: Iterable[Sequence[Cell]],
    numbers: Collection[int] = (),
    *,
    continued: Collection[int] = (),
    turned: Collection[int] = (),
    kinds: Sequence[str] = (),
    kind: str = "",
) -> Markup:
    """A table that scrolls where it is wide.

    Args:
        numbers: the columns that are set flush right; words stand left.
        continued: the rows that go on with the one before them.
        turned: the columns whose names stand upright.
        kinds: of the rows, each ``"ok"``, ``"fails"`` or empty.
        kind: ``"formula"``, whose lines are those of an equation, or ``"entries"``, those of a tensor.
    """

    def cells(tag: str, line: Sequence[Cell]) -> Markup:
        return Markup("").join(
            Markup("<{0}{1}>{2}</{0}>").format(
                tag,
                _kind(" ".join(("n",) * (i in numbers) + ("turned",) * (tag == "th" and i in turned))),
                _safe(cell),
            )
            for i, cell in enumerate(line)
        )

    lines = [
        Markup("<tr{}>{}</tr>").format(
            _kind(" ".join(filter(None, ("more" if i in continued else "", kinds[i] if kinds else "")))),
            cells("td", row),
        )
        for i, row in enumerate(rows)
    ]
    head = Markup("<thead><tr>{}</tr></thead>\n").format(cells("th", columns)) if columns else ""
    return Markup('<div class="scroll"><table{}>\n{}<tbody>\n{}\n</tbody></table></div>').format(
        _kind(kind), head, Markup("\n").join(lines)
    )


def folded(summary: Cell, content: Markup, is_open: bool = False) -> Markup:
    """What is seen at a click."""
    return Markup("<details{}><summary>{}</summary>{}</details>").format(
        Markup(" open") if is_open else "", _safe(summary), content
    )


def code(text: str) -> Markup:
    """Python, highlighted."""
    lexer = require("pygments.lexers.python", "cli").PythonLexer()
    parts = []
    for token, piece in require("pygments", "cli").lex(text, lexer):
        name = str(token).removeprefix("Token.")
        kind = next((short for long, short in KINDS if name == long or name.startswith(f"{long}.")), "")
        parts.append(Markup('<span class="{}">{}</span>').format(kind, piece) if kind else escape(piece))
    return Markup('<div class="scroll"><pre>{}</pre></div>').format(Markup("").join(parts))


def frame(html: str, title: str) -> Markup:
    """A page in a frame of its own, whose script reaches nothing of what is around."""
    return Markup('<iframe title="{}" sandbox="allow-scripts allow-downloads" srcdoc="{}"></iframe>').format(
        _safe(title), html
    )


def drawing(svg: str) -> Markup:
    """SVG that is none of the user's, in the colours of what is around; where there is no room it scrolls."""
    return Markup('<div class="wide">{}</div>').format(Markup(svg.replace(' style="color-scheme: light dark"', "", 1)))


def image(png: bytes, words: str, width: float) -> Markup:
    """A picture of so many pixels across, and what it shows in words."""
    data = base64.b64encode(png).decode()
    return Markup('<img alt="{}" width="{:.0f}" src="data:image/png;base64,{}">').format(_safe(words), width, data)


def _safe(text: Cell) -> Markup:
    return text if isinstance(text, Markup) else escape(visible(text))


def _kind(kind: str) -> Markup:
    return Markup(' class="{}"').format(kind) if kind else Markup("")
