"""The letters of the article, with their indices: for the terminal, in LaTeX and in HTML.

In a chain of layers, each used once, the layer's number stands above: w_22⁽²⁾, z_2⁽³⁾. In other networks it is the
module's name: w_22^fc2. Indices count from 1.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch_manualbp._text import in_markdown, visible
from torch_manualbp.insight.network import Layer

__all__ = ["COST", "LayerSymbols", "Notation", "over", "partial", "plain", "slope", "symbol", "words"]

RAISED = str.maketrans("0123456789()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾")
LATEX = {
    "δ": r"\delta ",
    "∂": r"\partial ",
    "·": r"\cdot ",
    "→": r"\to ",
    "Σ": r"\sum ",
    "<": r"\lt ",
    ">": r"\gt ",
    "|": r"\vert ",
    "\\": r"\backslash ",
    "~": r"\sim ",
    "^": r"\wedge ",
    "`": "'",
    **{sign: rf"\{sign}" for sign in "_{}$#%&"},
}
"""What LaTeX, or a Markdown table or code around it, would take for something else. A command ends with a space, so
that no letter after it belongs to its name."""

UNSAFE = re.compile(r"[\\{}$#%&~^`_]")


@dataclass(frozen=True)
class Notation:
    """A piece of a formula, or of a text with formulas, in its forms."""

    text: str
    latex: str
    html: str
    markdown: str = ""
    """Formulas stand between dollars with backticks, where GitHub leaves backslashes and underscores alone; from the
    LaTeX if it is not given."""

    def __post_init__(self) -> None:
        if not self.markdown and self.latex:
            object.__setattr__(self, "markdown", f"$`{self.latex}`$")

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Notation | str) -> Notation:
        other = plain(other) if isinstance(other, str) else other
        if self.markdown.endswith("`$") and other.markdown.startswith("$`"):
            markdown = self.markdown[:-2] + other.markdown[2:]
        else:
            markdown = self.markdown + other.markdown
        return Notation(self.text + other.text, self.latex + other.latex, self.html + other.html, markdown)

    def joined(self, parts: Iterable[Notation]) -> Notation:
        """The parts with this one between them."""
        result: Notation | None = None
        for part in parts:
            result = part if result is None else result + self + part
        return plain("") if result is None else result


def plain(text: str) -> Notation:
    """Numbers and signs as they are, such as `` · `` or ``= 0.5``."""
    text = visible(text)
    return Notation(text, _escaped(text), html.escape(text))


def words(text: str) -> Notation:
    """Words between formulas."""
    text = visible(text)
    latex = rf"\text{{{UNSAFE.sub('·', text)}}}" if text else ""
    return Notation(text, latex, html.escape(text), in_markdown(text))


def symbol(letter: str, indices: Sequence[int] = (), above: str = "") -> Notation:
    """A letter, its indices, which are given from 0 and shown from 1, and what stands above it: ``"(2)"``, ``"fc2"``.

    An index of several digits is set apart by commas: w_12,3.
    """
    letter, above = visible(letter), visible(above)
    below = [str(i + 1) for i in indices]
    subscript = ("" if all(len(i) == 1 for i in below) else ",").join(below)
    number = re.fullmatch(r"\(\d+\)", above)
    raised = above.translate(RAISED) if number else f"^{above}" if above else ""
    name = above if number else _upright(above)
    return Notation(
        letter + (f"_{subscript}" if subscript else "") + raised,
        (_escaped(letter).strip() if len(letter) == 1 else _upright(letter))
        + (f"_{{{subscript}}}" if subscript else "")
        + (f"^{{{name}}}" if above else ""),
        f"<var>{html.escape(letter)}</var>"
        + (f"<sub>{subscript}</sub>" if subscript else "")
        + (f"<sup>{html.escape(above)}</sup>" if above else ""),
    )


def _escaped(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text).replace("  ", " ")


def _upright(name: str) -> str:
    """Not a variable, such as the name of a module."""
    inner = r"\ ".join(map(_escaped, name.split(" ")))
    return rf"\mathrm{{{inner}}}"


COST = symbol("C")


def partial(of: Notation) -> Notation:
    """∂C/∂(it)."""
    return Notation(f"∂C/∂{of.text}", rf"\frac{{\partial C}}{{\partial {of.latex}}}", f"∂<var>C</var>/∂{of.html}")


def over(of: Notation, by: Notation) -> Notation:
    """∂(one)/∂(other)."""
    latex = rf"\frac{{\partial {of.latex}}}{{\partial {by.latex}}}"
    return Notation(f"∂{of.text}/∂{by.text}", latex, f"∂{of.html}/∂{by.html}")


def slope(of: Notation) -> Notation:
    """f'(it)."""
    return Notation(f"f'({of.text})", f"f'({of.latex})", f"<var>f</var>&thinsp;′({of.html})")


@dataclass(frozen=True)
class LayerSymbols:
    """The symbols of a layer. Without an index they are those of the vector or matrix; indices are given from 0."""

    layer: Layer

    @property
    def above_weights(self) -> str:
        """``"(k)"`` of W⁽ᵏ⁾, or the module's name, with the number of the use where there are several."""
        layer = self.layer
        if layer.number is not None:
            return f"({layer.number})"
        return layer.name

    @property
    def above_neurons(self) -> str:
        """``"(k+1)"`` of z⁽ᵏ⁺¹⁾, or the module's name."""
        layer = self.layer
        if layer.number is not None:
            return f"({layer.number + 1})"
        return layer.name if layer.uses == 1 else f"{layer.name}#{layer.use + 1}"

    def w(self, *indices: int) -> Notation:
        """w_jk⁽ᵏ⁾, or W⁽ᵏ⁾."""
        return symbol("w" if indices else "W", indices, self.above_weights)

    def b(self, *indices: int) -> Notation:
        """b_j⁽ᵏ⁾."""
        return symbol("b", indices, self.above_weights)

    def z(self, *indices: int) -> Notation:
        """z_j⁽ᵏ⁺¹⁾; s_j for the network's output, where it has no activation."""
        if self._is_s():
            return symbol("s", self._one_or(indices))
        return symbol("z", indices, self.above_neurons)

    def a(self, *indices: int) -> Notation:
        """a_j⁽ᵏ⁺¹⁾; what z is where there is no activation."""
        return symbol("a", indices, self.above_neurons) if self.layer.activation is not None else self.z(*indices)

    def delta(self, *indices: int) -> Notation:
        """δ_j⁽ᵏ⁺¹⁾ = ∂C/∂z_j⁽ᵏ⁺¹⁾."""
        return symbol("δ", self._one_or(indices) if self._is_s() else indices, self.above_neurons)

    def dz(self, *indices: int) -> Notation:
        """∂C/∂z_j⁽ᵏ⁺¹⁾."""
        return partial(self.z(*indices))

    def da(self, *indices: int) -> Notation:
        """∂C/∂a_j⁽ᵏ⁺¹⁾."""
        return partial(self.a(*indices))

    def dw(self, *indices: int) -> Notation:
        """∂C/∂w_jk⁽ᵏ⁾."""
        return partial(self.w(*indices))

    def db(self, *indices: int) -> Notation:
        """∂C/∂b_j⁽ᵏ⁾."""
        return partial(self.b(*indices))

    def slope(self, *indices: int) -> Notation:
        """f'(z_j⁽ᵏ⁺¹⁾)."""
        return slope(self.z(*indices))

    def _is_s(self) -> bool:
        return self.layer.is_last and self.layer.activation is None

    def _one_or(self, indices: Sequence[int]) -> Sequence[int]:
        """The article's network has one output, s, without an index."""
        return () if self.layer.z.tensor.shape[-1:] == (1,) else indices
