"""The sum over all paths as products of matrices, one for each way through the rules.

::

    ∂C/∂z_j⁽²⁾ = ∂C/∂s · W⁽³⁾ · diag f'(z⁽³⁾) · W⁽²⁾[:, j] · f'(z_j⁽²⁾)

A network that is a chain has one such product; a residual connection has two, with and without the layers it passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_manualbp.insight.explanation.graph import Graph
from torch_manualbp.insight.explanation.local import Edges
from torch_manualbp.insight.trace import Quantity

__all__ = ["MOST_ROUTES", "Matrix", "Route", "count_routes", "routes"]

MOST_ROUTES = 8
"""From which on they are counted only: each block with a residual connection doubles them."""


@dataclass(eq=False)
class Matrix:
    """One factor of a route: the derivatives of some entries of a quantity by some of another."""

    edges: Edges
    rows: Tensor
    """Which entries of the target, counted off."""

    columns: Tensor
    """Which entries of the source."""

    up_to_here: Tensor
    """The product from ∂C/∂(the output) up to this matrix: along this route, ∂C/∂(each of ``columns``)."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def dense(self) -> Tensor:
        """The matrix of ``shape``, in float64."""
        matrix = torch.zeros(self.shape, dtype=torch.float64)
        at = torch.searchsorted(self.rows, self.edges.q), torch.searchsorted(self.columns, self.edges.p)
        return matrix.index_put(at, self.edges.value)


@dataclass(eq=False)
class Route:
    """A product of matrices, from C to the start of a graph."""

    end: Quantity
    end_entries: Tensor
    end_values: Tensor
    """∂C/∂(each of them), by way of the loss."""

    matrices: tuple[Matrix, ...]
    """The nearest to C first."""

    value: float
    """The product, a number."""


def count_routes(graph: Graph) -> int:
    """How many ways there are through the rules."""
    counts: dict[Quantity, int] = defaultdict(int)
    for quantity in graph.ends:
        counts[quantity] = 1
    for part in reversed(graph.edges):
        counts[part.source] += counts[part.target]
    return counts[graph.source]


def routes(graph: Graph) -> list[Route]:
    """All of them."""
    return [_route(graph, parts) for parts in _ways_from(graph, graph.source)]


def _ways_from(graph: Graph, quantity: Quantity) -> Iterator[tuple[Edges, ...]]:
    if quantity in graph.ends:
        yield ()
    for part in (graph.edges[number] for number in graph.leaving[quantity]):
        for rest in _ways_from(graph, part.target):
            yield (part, *rest)


def _route(graph: Graph, parts: tuple[Edges, ...]) -> Route:
    reached = graph.reached
    end = parts[-1].target if parts else graph.source
    entries = reached[end]
    values = so_far = graph.ends[end][entries]
    matrices = []
    for part in reversed(parts):
        rows, columns = reached[part.target], reached[part.source]
        terms = so_far[torch.searchsorted(rows, part.q)] * part.value
        so_far = torch.zeros(len(columns), dtype=torch.float64).index_add(0, torch.searchsorted(columns, part.p), terms)
        matrices.append(Matrix(part, rows, columns, so_far))
    return Route(end, entries, values, tuple(matrices), float(so_far.sum()))
