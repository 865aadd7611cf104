"""Puts an explanation together: the samples, the products of matrices and the paths, with their symbols."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from torch_manualbp._progress import Progress
from torch_manualbp.insight.explanation.chain import Use
from torch_manualbp.insight.explanation.graph import Graph, graph_from
from torch_manualbp.insight.explanation.local import Edges, TooMuchError, has_slope, product_of
from torch_manualbp.insight.explanation.names import Names, described
from torch_manualbp.insight.explanation.numbers import number, vector
from torch_manualbp.insight.explanation.origins import Origins
from torch_manualbp.insight.explanation.paths import Way, count_ways, strongest_ways
from torch_manualbp.insight.explanation.result import (
    Explanation,
    Factor,
    MatrixChain,
    MatrixFactor,
    Path,
    Sample,
)
from torch_manualbp.insight.explanation.routes import MOST_ROUTES, Matrix, Route, count_routes, routes
from torch_manualbp.insight.explanation.weight import Weight
from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.symbols import COST, Notation, over, partial, plain, words
from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import Normalization, Product

__all__ = ["Story"]

SMALL = 16
"""Numbers in a matrix up to which they are shown."""


@dataclass
class _Found:
    """What was found between the weight and C."""

    chains: list[MatrixChain] = field(default_factory=list)
    count_chains: int = 0
    paths: list[Path] = field(default_factory=list)
    count_paths: float = 0
    count_nonzero_paths: float = 0

    def strongest(self, count: int) -> tuple[Path, ...]:
        """Those whose product is not 0; if there are none, one of the others."""
        some = [path for path in self.paths if path.value != 0]
        return tuple(sorted(some or self.paths[:1], key=_strength, reverse=True)[:count])


class Story:
    """The parts of an explanation of one weight."""

    def __init__(
        self, trace: Trace, quantity: Quantity, asked: Weight, uses: list[Use], digits: int, progress: Progress | None
    ) -> None:
        self.trace = trace
        self.quantity = quantity
        self.asked = asked
        self.digits = digits
        self.progress = progress
        self.names = Names(trace)
        self.origins = Origins(trace, self.names, digits)
        self.uses = uses
        self.terms = [(use, t) for use in uses for t in range(len(use.position))]
        self.products = torch.cat([use.products for use in uses])

    def told(
        self, reference: float, count_paths: int, count_samples: int, count_searched: int | None = None
    ) -> Explanation:
        """The whole, with the paths of the ``count_searched`` strongest terms, or of all that are shown."""
        symbol = self.names.entry(self.quantity, self.asked.flat)
        strength = torch.where(self.products.isnan(), torch.inf, self.products.abs())
        order = strength.argsort(descending=True, stable=True).tolist()
        shown = list(range(len(order))) if len(order) <= count_samples else order[:count_samples]
        samples = tuple(self._sample(i) for i in shown)
        searched = order[: count_samples if count_searched is None else count_searched]
        found = _Found()
        notes: list[str] = []
        try:
            for n, i in enumerate(searched, 1):  # one at a time, since of a large network a graph takes 100 MB
                if self.progress is not None:
                    self.progress.part = f"the paths of term {n} of {len(searched)}"
                self._search(i, self._graph(i), count_paths, found)
        except TooMuchError as error:
            notes.append(f"Paths were not looked for: {error}.")
            searched, found = [], _Found()
        if len(order) > 1:
            notes.append("Samples count from 1, as the indices of the symbols do.")
        value = float(self.products.sum())
        return Explanation(
            name=self.asked.name,
            index=self.asked.index,
            symbol=symbol,
            weight=float(self.asked.parameter.detach().reshape(-1)[self.asked.flat]),
            cost=float(self.trace.C.tensor),
            significant=self.digits,
            value=value,
            autograd=reference,
            count=len(order),
            products=self.products,
            samples=samples,
            chains=tuple(found.chains),
            count_chains=found.count_chains,
            paths=found.strongest(count_paths),
            count_paths=found.count_paths,
            count_nonzero_paths=found.count_nonzero_paths,
            searched=tuple(self._place(i) for i in searched),
            searched_value=float(self.products[searched].sum()) if searched else 0.0,
            notes=tuple(notes),
            legend=self._legend(symbol),
        )

    def _legend(self, symbol: Notation) -> tuple[tuple[Notation, str], ...]:
        index = ", ".join(map(str, self.asked.index))
        first = symbol, f"{self.asked.name}[{index}]" if self.asked.index else self.asked.name
        return (first, *self.names.legend.values())

    # Samples

    def _sample(self, i: int) -> Sample:
        use, t = self.terms[i]
        flat = int(use.position[t])
        place = self.names.place(use.output, flat)
        factors = [
            Factor(
                self.names.gradient(use.head, flat, place),
                float(use.upstream[t]),
                self.origins.upstream(use, flat, place),
            )
        ]
        for stage, slopes in reversed(use.elementwise):
            origin = self.origins.elementwise(stage, flat, place)
            factors.append(Factor(self.names.factor(stage, flat, place), float(slopes[t]), origin))
        factors.append(self._local(use, t))
        return Sample(self._place(i), tuple(factors), float(self.products[i]))

    def _local(self, use: Use, t: int) -> Factor:
        """∂z/∂w: of a linear layer what comes in through the weight, or 1 for its bias."""
        value, flat = float(use.local[t]), int(use.position[t])
        place = self.names.place(use.output, flat)
        if (product := product_of(use.stage)) is not None:
            source = product.input
            if product.weight is self.quantity and source is not self.quantity:
                entry = product.input_entry(flat, self.asked.flat)
                return Factor(self.names.entry(source, entry, place), value, self.origins.made(source, entry, place))
            if product.bias is self.quantity:
                return Factor(plain("1"), value, self.origins.local(use, self.quantity))
        z = self.names.entry(use.output, flat, place)
        symbol = over(z, self.names.entry(self.quantity, self.asked.flat))
        return Factor(symbol, value, self.origins.local(use, self.quantity))

    def _place(self, i: int) -> str:
        """Which sample it is, and which use."""
        use, t = self.terms[i]
        if len(self.terms) == 1:
            return ""
        place, entry = self.names.axes.split(use.output, int(use.position[t]))
        sample, positions = place[:1], place[1:]
        if self.names.axes.is_image(use.output):  # the weight is of one channel
            positions, entry = entry[1:], entry[:1]
        parts = []
        if len(self.uses) > 1:
            n = self.uses.index(use) + 1
            mark = use.output.mark
            parts = [mark.replace("t=", "time ") if mark else f"use {n} of {len(self.uses)}"]
        parts += [f"sample {n + 1}" for n in sample]
        parts += [f"position {', '.join(str(n + 1) for n in positions)}"] if positions else []
        if product_of(use.stage) is None:  # of which each place has one term
            parts += [f"entry {n + 1}" for n in entry]
        return ", ".join(parts)

    # Between the weight and C

    def _graph(self, i: int) -> Graph:
        use, t = self.terms[i]
        return graph_from(
            self.trace, use.output, int(use.position[t]), is_of_loss(self.trace, use.stage), self.progress
        )

    def _search(self, i: int, graph: Graph, count: int, found: _Found) -> None:
        """Add what there is of one sample; products of matrices are those of the first."""
        found.count_paths += count_ways(graph)
        found.count_nonzero_paths += count_ways(graph, only_nonzero=True)
        if count:
            found.paths += [self._path(i, way) for way in strongest_ways(graph, count)]
        if not found.count_chains:
            found.count_chains = count_routes(graph)
            if found.count_chains <= MOST_ROUTES:
                found.chains = [self._chain(i, route) for route in routes(graph)]

    def _chain(self, i: int, route: Route) -> MatrixChain:
        use, t = self.terms[i]
        local = self._local(use, t)
        last = MatrixFactor(local.symbol, (), torch.tensor(local.value, dtype=torch.float64), local.origin, None)
        factors = [self._end(route), *(self._matrix(m) for m in route.matrices if not _passes_on(m)), last]
        return MatrixChain(tuple(factors), route.value * local.value)

    def _end(self, route: Route) -> MatrixFactor:
        only = int(route.end_entries[0]) if route.end.tensor.numel() == 1 else None
        symbol = self.names.whole(route.end) if only is None else self.names.entry(route.end, only)
        values = route.end_values
        origin = self.origins.of_loss(route.end, only)
        numbers = values if values.numel() <= SMALL else None
        return MatrixFactor(partial(symbol), tuple(values.shape), numbers, origin, None)

    def _matrix(self, matrix: Matrix) -> MatrixFactor:
        only = int(matrix.columns[0]) if len(matrix.columns) == 1 else None
        symbol = self.names.matrix(matrix.edges, only)
        so_far = matrix.up_to_here if matrix.up_to_here.numel() <= SMALL else None
        stage = matrix.edges.stage
        numbers = None
        if has_slope(stage) and matrix.edges.source is stage.args[0]:
            numbers = matrix.edges.value if matrix.edges.value.numel() <= SMALL else None
        elif matrix.shape[0] * matrix.shape[1] <= SMALL:
            numbers = matrix.dense()
        if numbers is not None and only is not None:
            numbers = numbers.reshape(-1)
        return MatrixFactor(symbol, matrix.shape, numbers, self._named(matrix.edges) + _repeated(matrix), so_far)

    def _named(self, edges: Edges) -> Notation:
        """The parameter whose numbers they are, or the rule."""
        stage = edges.stage
        product = product_of(stage)
        if product is not None and product.input is edges.source:
            of_window = "" if isinstance(product.jacobian, Product) else " where a window covers it"
            return words((product.weight.name or described(stage)) + of_window)
        if isinstance(stage.rule.jacobian, Normalization) and stage.args[0] is edges.source:
            return words(described(stage) + ", ") + self._of_normalization(edges, stage.rule.jacobian)
        return words(described(stage))

    def _of_normalization(self, edges: Edges, jacobian: Normalization) -> Notation:
        """What the Jacobian of a row is, with σ and ẑ of the row where it is one."""
        shape, weight = edges.stage.args[1:3]
        n = math.prod(shape)
        factor = "diag w " if isinstance(weight, Quantity) else ""
        mean = " − 1/n" if jacobian.is_centred else ""
        formula = words(f"{factor}(I{mean} − ẑ ẑᵀ/n) / σ, n = {n}")
        rows = (edges.p // n).unique()
        if len(rows) != 1:
            return formula
        z_hat, r = jacobian.normalized(edges.source.tensor.detach().cpu().double(), n, edges.stage.args[-1])
        formula += words(", σ = ") + number(float(1 / r[rows[0]]), self.digits)
        return formula + (words(", ẑ = ") + vector(z_hat[rows[0]], 6) if n <= SMALL else words(""))

    def _path(self, i: int, way: Way) -> Path:
        use, t = self.terms[i]
        flat = int(use.position[t])
        place = self.names.place(use.output, flat)
        local = self._local(use, t)
        neurons = [self.names.entry(use.output, flat, place)]
        factors = [local]
        for step in way.steps:
            neurons.append(self.names.entry(step.edges.target, step.q, place))
            if not _is_passed_on(step.edges, step.value):
                symbol = self.names.step(step.edges, step.p, step.q, place)
                factors.append(Factor(symbol, step.value, self._named(step.edges)))
        if way.end is not self.trace.C:
            end = partial(self.names.entry(way.end, way.end_entry, place))
            factors.append(Factor(end, way.end_value, self.origins.of_loss(way.end, way.end_entry)))
            neurons.append(COST)
        product = product_of(use.stage)
        is_input = product is not None and product.weight is self.quantity
        start = local.symbol if is_input else self.names.entry(self.quantity, self.asked.flat)
        return Path(self._place(i), (start, *neurons), tuple(reversed(factors)), way.product * local.value)


def _is_product(stage: Stage) -> bool:
    return isinstance(stage.rule.jacobian, Product)


def _repeated(matrix: Matrix) -> Notation:
    """A layer's weights stand in the matrix once for each position that is reached."""
    stage, rows = matrix.edges.stage, matrix.shape[0]
    out = stage.output.tensor.shape[-1] if _is_product(stage) else rows
    return words(f", for each of {rows // out} positions" if rows > out else "")


def _strength(path: Path) -> float:
    return torch.inf if path.value != path.value else abs(path.value)


def _is_passed_on(edges: Edges, value: float) -> bool:
    """Whether a rule passes an entry on as it is: a sum, another shape, and the like."""
    return value == 1 and not _is_product(edges.stage) and not has_slope(edges.stage)


def _passes_on(matrix: Matrix) -> bool:
    e = matrix.edges
    if _is_product(e.stage) or has_slope(e.stage):
        return False
    return bool((e.value == 1).all()) and len(e.p) == len(matrix.rows) == len(matrix.columns)
