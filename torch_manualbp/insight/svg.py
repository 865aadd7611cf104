"""A small network with its numbers as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from torch_manualbp._text import visible
from torch_manualbp.insight.layout import Layout, Place, layout_of
from torch_manualbp.insight.page.numbers import RAISED, shown

__all__ = ["drawn"]

STYLE = """
text { font-family: Palatino, "Liberation Serif", Georgia, serif; fill: light-dark(#22252b, #e8e4da); }
text { paint-order: stroke; stroke: Canvas; stroke-width: 3px; stroke-linejoin: round; }
.soft { fill: light-dark(#575c66, #aab0b8); }
.plus { stroke: light-dark(#1f5fa8, #7db7f2); }
.minus { stroke: light-dark(#b04a06, #f2a261); }
text.plus, .tint.plus { fill: light-dark(#1f5fa8, #7db7f2); stroke: Canvas; }
text.minus, .tint.minus { fill: light-dark(#b04a06, #f2a261); stroke: Canvas; }
.rule { stroke: light-dark(#c9c4b8, #4a5058); }
circle { fill: light-dark(#fff, #1b1f24); stroke: light-dark(#575c66, #aab0b8); stroke-width: 1.6; }
.plate { fill: Canvas; fill-opacity: .8; }
.tint.tint { stroke: none; pointer-events: none; }
.tint.rule { fill: none; }
line { stroke-linecap: round; }
"""
"""Where light-dark is not known the colours are those of the elements' own attributes."""

COLOURS = {"plus": "#1f5fa8", "minus": "#b04a06", "rule": "#a09c92", "soft": "#575c66"}
LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def drawn(network: Mapping[str, Any], sample: int, about: str) -> str:
    """The picture of :func:`~torch_manualbp.insight.page.data.network_data`, with the numbers of one sample."""
    layout = layout_of(network)
    several = f"; neurons: sample {sample + 1} of {network['batch']}" if network["batch"] > 1 else ""
    caption = "on a line: w, below it ∂C/∂w" if layout.labels else "blue: ∂C/∂w > 0, orange: ∂C/∂w < 0"
    parts = [
        _element("style", Markup(_scoped(STYLE))),
        *_lines(network, layout),
        *(part for c in range(len(network["columns"])) for part in _column(network, layout, c, sample)),
        *_cost(network, layout, sample),
        _text(layout.width / 2, layout.height + 8, caption + several, "soft", 12),
    ]
    width, height = round(layout.width), round(layout.height + 16)
    return str(
        _element(
            "svg",
            Markup("\n").join(parts),
            xmlns="http://www.w3.org/2000/svg",
            width=width,
            height=height,
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label=f"The network {about}",
            font_size=12.5,
            class_="manualbp-picture",
            style="color-scheme: light dark",
        )
    )


def _scoped(style: str) -> str:
    """Within this picture alone, since a notebook has other elements."""
    return "\n".join(f".manualbp-picture {line}" for line in style.strip().splitlines())


def _lines(network: Mapping[str, Any], layout: Layout) -> Iterator[Markup]:
    columns = network["columns"]
    for place in layout.places[-1]:
        yield _line(place, layout.cost, "rule", 2 if layout.is_roomy else 1, "")
    for c, column in enumerate(columns[1:], 1):
        W, dW = column["W"], column["dW"]
        thickness = _scale(dW or W, 5.5 if layout.is_roomy else 2.5)
        for j, k in itertools.product(range(column["n"]), range(columns[c - 1]["n"])):
            value = (dW or W)[j][k]
            told = f"w {shown(W[j][k], 6)}" + (f", ∂C/∂w {shown(dW[j][k], 6)}" if dW else ", frozen")
            name = f"w{_below(j, k)}⁽{_raised(c)}⁾"
            yield _line(*layout.ends(c, j, k), _sign(value), 0.6 + thickness(value), f"{name}: {told}")
    for (c, j, k), (x, y) in layout.labels.items():
        numbers = [(columns[c][what][j][k], what) for what in ("W", "dW") if columns[c][what]]
        half = 3.3 * max(len(shown(value, 4)) for value, _ in numbers)
        yield _element("rect", class_="plate", x=x - half, y=y - 13, width=2 * half, height=27, rx=4, fill="#fff")
        for i, (value, what) in enumerate(numbers):
            yield _text(x, y - 2 + 14 * i, shown(value, 4), _sign(value) if what == "dW" else "")


def _column(network: Mapping[str, Any], layout: Layout, c: int, sample: int) -> Iterator[Markup]:
    column = network["columns"][c]
    is_output = c == len(network["columns"]) - 1 and not column["f"]
    letter = "x" if c == 0 else "s" if is_output else "a" if column["f"] else "z"
    named = ": x" if c == 0 else f": {visible(column['f'])}" if column["f"] else ": s" if is_output else ""
    yield _text(layout.places[c][0][0], 20, f"layer {c + 1}{named}", "soft", 13)
    names = {"a": "x"} if c == 0 else {"z": letter if is_output else "z", "a": "a", "delta": "δ"}
    tint = _scale([column["delta" if c else "a"][sample]], 0.9)
    for j, (x, y) in enumerate(layout.places[c]):
        numbers = [(sign, column[what][sample][j]) for what, sign in names.items() if column.get(what)]
        name = letter + ("" if is_output and column["n"] == 1 else _below(j))
        name += "" if c == 0 or is_output else f"⁽{_raised(c + 1)}⁾"
        told = ", ".join(f"{sign} {shown(value, 6)}" for sign, value in numbers)
        yield _circle(x, y, layout.radius, f"{name}: {told}")
        if layout.is_roomy:
            yield _text(x, y + 5, name, "", 15)
            for i, (sign, value) in enumerate(numbers):
                yield _text(x, y + layout.radius + 15 + 15 * i, f"{sign} {shown(value, 4)}")
        else:
            _, value = numbers[-1]
            kind = _sign(value)
            place = {"cx": x, "cy": y, "r": layout.radius, "fill_opacity": tint(value)}
            yield _element("circle", **place, fill=COLOURS[kind], class_=f"tint {kind}")


def _cost(network: Mapping[str, Any], layout: Layout, sample: int) -> Iterator[Markup]:
    x, y = layout.cost
    radius = layout.radius if layout.is_roomy else 14
    yield _text(x, 20, "cost", "soft", 13)
    yield _circle(x, y, radius, "")
    yield _text(x, y + 5, "C", "", 15)
    yield _text(x, y + radius + 15, shown(network["cost"]["value"], 4))
    if network["cost"]["y"]:
        target = network["cost"]["y"][sample]
        more = ", …" if len(target) > 2 else ""
        yield _text(x, y - radius - 8, f"y {', '.join(shown(v, 4) for v in target[:2])}{more}")


def _line(start: Place, end: Place, kind: str, width: float, told: str) -> Markup:
    ends = dict(zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True))
    return _element("line", _title(told), **ends, class_=kind, stroke=COLOURS[kind], stroke_width=width)


def _circle(x: float, y: float, radius: float, told: str) -> Markup:
    return _element("circle", _title(told), cx=x, cy=y, r=radius, fill="#fff", stroke=COLOURS["rule"])


def _title(told: str) -> Markup:
    return _element("title", told) if told else Markup("")


def _text(x: float, y: float, said: str, kind: str = "", size: float = 12.5) -> Markup:
    fill = COLOURS.get(kind, "#22252b")
    return _element("text", said, x=x, y=y, text_anchor="middle", font_size=size, fill=fill, class_=kind)


def _element(tag: str, content: str | Markup = "", /, **attributes: Any) -> Markup:
    """With ``class_`` for class and ``font_size`` for font-size."""
    given = ((name.strip("_").replace("_", "-"), v) for name, v in attributes.items() if v != "")
    written = (Markup(' {}="{}"').format(name, round(v, 2) if isinstance(v, float) else v) for name, v in given)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(written), content)


def _scale(matrix: Sequence[Sequence[Any]], most: float) -> Callable[[Any], float]:
    """From 0 to ``most`` by the square root of the size next to the largest; what is not finite is the largest."""
    sizes = [abs(float(v)) for row in matrix for v in row]
    largest = max((v for v in sizes if math.isfinite(v)), default=0.0) or 1.0
    return lambda v: most * math.sqrt(min(abs(float(v)) / largest, 1.0)) if math.isfinite(float(v)) else most


def _sign(value: Any) -> str:
    return "plus" if float(value) > 0 else "minus" if float(value) < 0 else "rule"


def _below(*indices: int) -> str:
    parts = [str(i + 1) for i in indices]
    comma = "" if all(len(part) == 1 for part in parts) else ","
    return comma.join(parts).translate(LOWERED)


def _raised(number: int) -> str:
    return str(number).translate(RAISED)
