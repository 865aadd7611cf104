"""Where each factor comes from: the formula of the forward or the backward line, with its numbers."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

from torch_manualbp.derive.tape import formulas
from torch_manualbp.insight.explanation.axes import Place
from torch_manualbp.insight.explanation.chain import Use
from torch_manualbp.insight.explanation.graph import through_the_loss
from torch_manualbp.insight.explanation.local import Edges, TooMuchError, edges, has_slope, product_of
from torch_manualbp.insight.explanation.names import Names, described, letter_of_slope
from torch_manualbp.insight.explanation.numbers import number
from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.symbols import Notation, plain, symbol, words
from torch_manualbp.insight.trace import Quantity, Stage, Trace

__all__ = ["Origins"]

MOST_TERMS = 4
"""Terms of a sum, at most, that is written out."""


class _Term(NamedTuple):
    """What comes back along one edge; without ``edges`` all that comes back through a stage."""

    edges: Edges | None
    p: int
    q: int
    upstream: float
    value: float
    stage: Stage

    @property
    def product(self) -> float:
        return self.upstream * self.value


class Origins:
    """The origins of the factors of one trace."""

    def __init__(self, trace: Trace, names: Names, digits: int) -> None:
        self.trace = trace
        self.names = names
        self.digits = digits

    def upstream(self, use: Use, flat: int, place: Place) -> Notation:
        """∂C/∂(head) = Σ δ w of the neurons that it feeds, and what the loss itself has of it."""
        terms: list[_Term] = []
        in_loss = is_of_loss(self.trace, use.stage)
        for stage in use.head.used_by:
            if not any(output.gradient is not None for output in stage.outputs):
                continue
            if in_loss or not is_of_loss(self.trace, stage):
                terms += self._terms(stage, use.head, flat)
        through = None if in_loss else through_the_loss(self.trace, use.head)
        if through is None:
            return self._sum(terms, place)
        by_loss = self.of_loss(use.head, flat)
        if not terms:
            return by_loss
        return self._sum(terms, place) + words(", and by the loss ") + self._number(float(through[flat]))

    def of_loss(self, quantity: Quantity, flat: int | None) -> Notation:
        """The formula of the loss; with the numbers of an entry."""
        stages = [stage for stage in self.trace.stages if is_of_loss(self.trace, stage)]
        if not stages:
            return words("the cost itself")
        rules = ", ".join(described(stage) for stage in stages)
        line = next((line for stage in stages if ".loss" in stage.rule.__module__ for line in _of_mean(stage)), "")
        formula = words(f"{rules}, {line}" if line else rules)
        if flat is None:
            return formula
        s = self.names.entry(quantity, flat)
        formula += words("; ") + s + " = " + self._value(quantity, flat)
        y = next((q for q in self.trace.quantities() if q.kind == "target"), None)
        if y is not None and y.tensor.shape == quantity.tensor.shape:
            formula += words(", ") + symbol("y") + " = " + self._value(y, flat)
        elif y is not None and y.tensor.shape == quantity.tensor.shape[:-1] and not y.tensor.is_floating_point():
            formula += words(f", y = class {int(y.tensor.reshape(-1)[flat // quantity.tensor.shape[-1]])}")
        return formula

    def elementwise(self, stage: Stage, flat: int, place: Place) -> Notation:
        """f'(z) with z and a."""
        z, a = stage.args[0], stage.output
        if letter := letter_of_slope(stage):
            return words(f"{described(stage)}, a = {letter} z with a random {letter}")
        line = next((line for line in formulas(stage.rule)[1] if "f'(z)" in line), "")
        line = line or next(iter(formulas(stage.rule)[1]), "")
        start = words(f"{described(stage)}, {_tidy(line)}" if line else described(stage))
        at = self.names.entry(z, flat, place) + " = " + self._value(z, flat)
        return start + words("; ") + at + words(", ") + self._entry(a, flat, place)

    def made(self, quantity: Quantity, flat: int, place: Place) -> Notation:
        """Where an activation comes from going forward."""
        stage = quantity.made_by
        if stage is None:
            return words("the input" if quantity.kind == "input" else quantity.name or "a constant")
        line = _tidy(next(iter(formulas(stage.rule)[0]), ""))
        start = words(f"{described(stage)}, {line}" if line else described(stage))
        if has_slope(stage):
            return start + words("; ") + self._entry(stage.args[0], flat, place)
        return start

    def local(self, use: Use, weight: Quantity) -> Notation:
        """How z answers to a weight that is not one of a linear layer."""
        lines = formulas(use.stage.rule)[0 if product_of(use.stage) is not None else 1]
        formula = "; ".join(map(_tidy, lines))
        return words(f"{described(use.stage)}, {formula}" if formula else described(use.stage))

    def _terms(self, stage: Stage, source: Quantity, flat: int) -> list[_Term]:
        """What comes back to one entry from each entry that a rule made of it."""
        try:
            found = edges(stage, source, torch.tensor([flat]))
        except TooMuchError:
            gradient = stage.backward(*[output.gradient for output in stage.outputs])[source]
            return [_Term(None, 0, 0, float(gradient.reshape(-1)[flat]), 1.0, stage)]
        terms = []
        for part in found:
            if part.target.gradient is not None:
                upstream = part.target.gradient.detach().reshape(-1).double().cpu()[part.q].tolist()
                columns = zip(part.p.tolist(), part.q.tolist(), upstream, part.value.tolist(), strict=True)
                terms += [_Term(part, p, q, g, v, stage) for p, q, g, v in columns]
        return terms

    def _sum(self, terms: list[_Term], place: Place) -> Notation:
        plus = plain(" + ")
        if not terms:
            return words("nothing: no neuron takes it")
        if len(terms) <= MOST_TERMS:
            numbers = (_after_plus(self._numbers(term), i) for i, term in enumerate(terms))
            return plus.joined(self._symbols(term, place) for term in terms) + " = " + plus.joined(numbers)
        strongest = sorted(terms, key=lambda term: -abs(term.product))[: MOST_TERMS - 1]
        rest = sum(term.product for term in terms) - sum(term.product for term in strongest)
        shown = plus.joined(self._symbols(term, place) + " (" + self._number(term.product) + ")" for term in strongest)
        return shown + words(f" + {len(terms) - len(strongest)} weaker terms (") + self._number(rest) + ")"

    def _symbols(self, term: _Term, place: Place) -> Notation:
        if term.edges is None:
            return words(f"through {described(term.stage)}")
        upstream = self.names.gradient(term.edges.target, term.q, place)
        is_named = product_of(term.stage) is not None or has_slope(term.stage)
        between = " " if is_named else " · "
        return upstream + between + self.names.step(term.edges, term.p, term.q, place)

    def _numbers(self, term: _Term) -> Notation:
        upstream = self._number(term.upstream)
        return upstream if term.edges is None else upstream + " · " + self._factor(term.value)

    def _entry(self, quantity: Quantity, flat: int, place: Place) -> Notation:
        return self.names.entry(quantity, flat, place) + " = " + self._value(quantity, flat)

    def _value(self, quantity: Quantity, flat: int) -> Notation:
        return self._number(float(quantity.tensor.detach().reshape(-1)[flat]))

    def _number(self, value: float) -> Notation:
        return number(value, self.digits)

    def _factor(self, value: float) -> Notation:
        """In brackets behind a sign of multiplication, where it is negative."""
        return plain("(") + self._number(value) + ")" if value < 0 else self._number(value)


def _after_plus(numbers: Notation, place: int) -> Notation:
    return plain("(") + numbers + ")" if place and numbers.text.startswith("-") else numbers


def _of_mean(stage: Stage) -> list[str]:
    """The backward formula of a loss, without its upstream g where that is 1 and its n where nothing is averaged."""
    lines = [_tidy(line) for line in formulas(stage.rule)[1]]
    if stage.output.tensor.dim() == 0 and _is_one(stage.output.gradient):
        lines = [line.replace(" g / n", " / n") for line in lines]
        if "sum" in stage.args:
            lines = [line.replace(" / n", "") for line in lines]
    return lines


def _is_one(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient == 1)


def _tidy(line: str) -> str:
    """A line of a docstring, whose columns are set with spaces."""
    return re.sub(r"  +", "  ", line).strip()
