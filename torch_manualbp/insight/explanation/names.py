"""What the quantities of a pass are called in an explanation, and the legend of what these symbols are."""

from __future__ import annotations

from collections import Counter, defaultdict

from torch_manualbp.derive.tape import identifier
from torch_manualbp.insight.explanation.axes import Axes, Place, unravelled
from torch_manualbp.insight.explanation.local import Edges, has_slope, other_factor, product_of
from torch_manualbp.insight.network import Layer, layers_of
from torch_manualbp.insight.symbols import LayerSymbols, Notation, over, partial, plain, slope, symbol
from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import Convolved, Product

__all__ = ["Names", "described", "letter_of_slope"]

DIAGONAL = Notation("diag ", r"\operatorname{diag} ", "diag ")


class Names:
    """The symbols of one trace."""

    def __init__(self, trace: Trace) -> None:
        self.layers = layers_of(trace)
        self.legend: dict[str, tuple[Notation, str]] = {}
        """By its text, each symbol that was used and what it is."""

        self._of: dict[Quantity, tuple[Layer, str]] = {}
        for layer in self.layers:
            if layer.number is not None:
                self._of.setdefault(layer.weight, (layer, "w"))
                if layer.bias is not None:
                    self._of.setdefault(layer.bias, (layer, "b"))
            self._of[layer.z] = layer, "z"
            if layer.activation is not None:
                self._of[layer.a] = layer, "a"
        self._above = _above(trace)
        self.axes = Axes(trace)

    def whole(self, quantity: Quantity) -> Notation:
        """The vector or matrix."""
        notation = self._symbol(quantity, ())
        what = self._what(quantity)
        if what and what != notation.text:
            self.legend.setdefault(notation.text, (notation, what))
        return notation

    def entry(self, quantity: Quantity, flat: int, place: Place | None = None) -> Notation:
        """One entry, counted off. Where it is not of the sample ``place``, its sample stands in brackets behind it."""
        self.whole(quantity)
        if quantity.kind == "parameter":
            return self._symbol(quantity, unravelled(flat, quantity.tensor.shape))
        own, index = self.axes.split(quantity, flat)
        return self._symbol(quantity, index) + _elsewhere(quantity, own, place)

    def place(self, quantity: Quantity, flat: int) -> Place:
        """The sample, and the position in a sequence."""
        return self.axes.split(quantity, flat)[0]

    def gradient(self, quantity: Quantity, flat: int, place: Place | None = None) -> Notation:
        """∂C/∂(entry), δ where it is a weighted input."""
        layer, letter = self._of.get(quantity, (None, ""))
        if layer is not None and letter == "z":
            delta = LayerSymbols(layer).delta()
            self.legend.setdefault(delta.text, (delta, f"∂C/∂{self.whole(quantity)}"))
            return LayerSymbols(layer).delta(*unravelled(flat, quantity.tensor.shape)[-1:])
        made = quantity.made_by
        if made is not None and (quantity.mark is not None or isinstance(made.rule.jacobian, Convolved)):
            letter = _letter(quantity, made)
            if letter == "z" or letter.startswith("z_"):  # weighted inputs of a convolution, or inside of an LSTM
                delta = symbol("δ" + letter[1:], (), self._above[quantity])
                self.legend.setdefault(delta.text, (delta, f"∂C/∂{self.whole(quantity)}"))
                own, index = self.axes.split(quantity, flat)
                return symbol("δ" + letter[1:], index, self._above[quantity]) + _elsewhere(quantity, own, place)
        return partial(self.entry(quantity, flat, place))

    def step(self, edges: Edges, p: int, q: int, place: Place | None = None) -> Notation:
        """The derivative of one entry by another: a weight, f'(z), or as it is written in general."""
        stage, source, target = edges.stage, edges.source, edges.target
        product = product_of(stage)
        if product is not None and product.input is source:
            return self.entry(product.weight, product.weight_entry(p, q))
        if has_slope(stage) and stage.args[0] is source:
            return self.factor(stage, p, place)
        if (other := other_factor(stage, source, p, q)) is not None:
            return self.entry(*other, place)
        return over(self.entry(target, q, place), self.entry(source, p, place))

    def factor(self, stage: Stage, flat: int, place: Place | None = None) -> Notation:
        """f'(z_j) of an elementwise rule, r_j of one that multiplies by constants."""
        z = stage.args[0]
        if letter := letter_of_slope(stage):
            return symbol(letter, unravelled(flat, z.tensor.shape)[-1:], stage.path)
        return slope(self.entry(z, flat, place))

    def matrix(self, edges: Edges, column: int | None) -> Notation:
        """The derivatives of a vector by a vector; of a single entry of it where ``column`` is that entry."""
        stage, source = edges.stage, edges.source
        product = product_of(stage)
        if product is not None and isinstance(product.jacobian, Product) and product.input is source:
            W = self.whole(product.weight)
            if column is None:
                return W
            k = column % source.tensor.shape[-1] + 1
            of_column = W + plain(f"[:, {k}]")
            self.legend.setdefault(of_column.text, (of_column, f"column {k} of {W}, counted from 1"))
            return of_column
        if has_slope(stage) and stage.args[0] is source:
            if column is not None:
                return self.factor(stage, column)
            letter = letter_of_slope(stage)
            return DIAGONAL + (symbol(letter, (), stage.path) if letter else slope(self.whole(source)))
        if column is not None and len(edges.q) == 1:
            other = other_factor(stage, source, int(edges.p[0]), int(edges.q[0]))
            if other is not None:
                return self.entry(*other)
        by = self.whole(source) if column is None else self.entry(source, column)
        return over(self.whole(edges.target), by)

    def _symbol(self, quantity: Quantity, index: Place) -> Notation:
        layer, letter = self._of.get(quantity, (None, ""))
        if layer is not None:
            return getattr(LayerSymbols(layer), letter)(*index)
        if quantity.kind == "parameter":
            path, _, name = quantity.name.rpartition(".")
            letter = {"weight": "w", "bias": "b"}.get(name, name)
            return symbol(letter if index or letter != "w" else "W", index, path)
        if quantity.made_by is None:
            return symbol(quantity.name or "c", index)
        return symbol(_letter(quantity, quantity.made_by), index, self._above[quantity])

    def _what(self, quantity: Quantity) -> str:
        if quantity.kind == "parameter":
            return quantity.name
        if quantity.kind in ("input", "target"):
            return f"the {quantity.kind}"
        return f"the output of {described(quantity.made_by)}" if quantity.made_by is not None else "a constant"


def _elsewhere(quantity: Quantity, own: Place, place: Place | None) -> Notation:
    """In brackets the place of an entry that is not of the place that is spoken of."""
    if place is None or own in ((), place) or quantity.tensor.shape[: len(own)].numel() <= 1:
        return plain("")
    return plain(f"[{', '.join(str(i + 1) for i in own)}]")


def letter_of_slope(stage: Stage) -> str:
    """``r`` of a rule that multiplies by constants; nothing of a function, whose slope is f'(z)."""
    slope = getattr(stage.rule.jacobian, "slope", "")
    return "" if slope == "f'" else slope


def described(stage: Stage) -> str:
    """Where a rule is, and its options: ``act1: LeakyReLU(0.01)``."""
    options = [arg for arg in stage.args if isinstance(arg, int | float | str) and not isinstance(arg, bool)]
    called = stage.rule.__name__ + (f"({', '.join(map(str, options))})" if options else "")
    return f"{stage.path}: {called}" if stage.path else called


def _letter(quantity: Quantity, stage: Stage) -> str:
    suffix = f"_{identifier(stage.path)}" if stage.path else ""
    name = quantity.name
    letter = name[: name.rindex(suffix)] if suffix and suffix in name else name
    return "d" if letter == "dropout" else letter


def _above(trace: Trace) -> dict[Quantity, str]:
    """The module's path, with a number behind it where it made several quantities of the same letter, or the
    time."""
    made = [(quantity, stage) for stage in trace.stages for quantity in stage.outputs]
    keys = [(_with_mark(stage.path, quantity), _letter(quantity, stage)) for quantity, stage in made]
    counts, so_far = Counter(keys), defaultdict[tuple[str, str], int](int)
    above = {}
    for (quantity, _), key in zip(made, keys, strict=True):
        so_far[key] += 1
        above[quantity] = f"{key[0]}#{so_far[key]}" if counts[key] > 1 else key[0]
    return above


def _with_mark(path: str, quantity: Quantity) -> str:
    return ",".join(part for part in (path, quantity.mark) if part)
