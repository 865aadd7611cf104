"""The strongest paths from an entry to C, exactly, and how many there are in all.

The gradient is the sum over all paths of the product of the derivatives along them. The k strongest from an entry go
on by one of the k strongest of the entry that comes next (Viterbi's argument: |product| along a path only grows with
|product| of its rest), so that one pass from C back finds them, with k numbers an entry, however many paths there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_manualbp.insight.explanation.graph import Graph
from torch_manualbp.insight.explanation.local import Edges
from torch_manualbp.insight.trace import Quantity

__all__ = ["Step", "Way", "count_ways", "strongest_ways", "sum_of_ways"]


@dataclass(frozen=True)
class Step:
    """From an entry to one that depends on it."""

    edges: Edges
    p: int
    q: int
    value: float


@dataclass(frozen=True)
class Way:
    """A path from the start of a graph to C, without what leads to the start."""

    steps: tuple[Step, ...]
    end: Quantity
    end_entry: int
    end_value: float
    """∂C/∂(where the loss takes over)."""

    product: float


@dataclass(eq=False)
class _Best:
    """The strongest ways from some entries: a row for each, in falling order, 0 where there are no more."""

    entries: Tensor
    product: Tensor
    is_there: Tensor
    part: Tensor
    """Which edges of the graph go on, −1 where the way ends here."""

    edge: Tensor
    """Which of them."""

    rank: Tensor
    """Which of the ways from there."""


def strongest_ways(graph: Graph, k: int) -> list[Way]:
    """The k ways of the largest |product|, the largest first."""
    best: dict[Quantity, _Best] = {}
    for quantity in _from_C_back(graph):
        best[quantity] = _best_from(graph, quantity, graph.leaving[quantity], best, k)
    start = best[graph.source]
    row = int(torch.searchsorted(start.entries, graph.start))
    return [_way(graph, best, row, rank) for rank in range(int(start.is_there[row].sum()))]


def count_ways(graph: Graph, only_nonzero: bool = False) -> float:
    """How many ways there are, exactly up to 2⁵³; with ``only_nonzero`` those whose product is not 0."""

    def one(t: Tensor) -> Tensor:
        return t.ne(0).double() if only_nonzero else torch.ones_like(t)

    return _summed(graph, one)


def sum_of_ways(graph: Graph) -> float:
    """The sum of the products of all ways, which is ∂C/∂(start)."""
    return _summed(graph, lambda t: t)


def _summed(graph: Graph, of: Callable[[Tensor], Tensor]) -> float:
    total: dict[Quantity, Tensor] = {}
    for quantity in _from_C_back(graph):
        sums = of(graph.ends[quantity]) if quantity in graph.ends else torch.zeros(quantity.tensor.numel()).double()
        for part in (graph.edges[number] for number in graph.leaving[quantity]):
            sums = sums.index_add(0, part.p, of(part.value) * total[part.target][part.q])
        total[quantity] = sums
    return float(total[graph.source][graph.start])


def _from_C_back(graph: Graph) -> list[Quantity]:
    """Each quantity after all that are made of it."""
    order: dict[Quantity, None] = {graph.source: None}
    for part in graph.edges:
        order.pop(part.target, None)
        order[part.target] = None
    return list(reversed(order))


def _best_from(graph: Graph, quantity: Quantity, parts: list[int], best: dict[Quantity, _Best], k: int) -> _Best:
    """The k strongest ways that leave each entry of a quantity."""
    entry: list[Tensor] = []
    product: list[Tensor] = []
    part: list[Tensor] = []
    edge: list[Tensor] = []
    rank: list[Tensor] = []
    reached = graph.reached[quantity]
    if quantity in graph.ends:
        entry.append(reached)
        product.append(graph.ends[quantity][reached])
        for column, value in ((part, -1), (edge, 0), (rank, 0)):
            column.append(torch.full_like(reached, value))
    for number in parts:
        e = graph.edges[number]
        after = best[e.target]
        if not after.is_there.numel():
            continue
        row = torch.searchsorted(after.entries, e.q)
        # An edge that is not among the k best by the best way from its end is in none of the k best.
        chosen, _ = _strongest(e.p, e.value * after.product[row, 0], k)
        row, p, factor = row[chosen], e.p[chosen], e.value[chosen]
        there = after.is_there[row]
        entry.append(p[:, None].expand_as(there)[there])
        product.append((factor[:, None] * after.product[row])[there])
        edge.append(chosen[:, None].expand_as(there)[there])
        rank.append(torch.arange(there.shape[1]).expand_as(there)[there])
        part.append(torch.full_like(edge[-1], number))
    if not entry:
        entry, part, edge, rank, product = [[reached[:0]]] * 4 + [[reached[:0].double()]]
    return _kept(reached, [torch.cat(column) for column in (entry, product, part, edge, rank)], k)


def _strongest(entry: Tensor, product: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k of the largest |product| of each entry, and which of these each is."""
    each = int((entry == entry[0]).sum()) if len(entry) else 0
    if each and len(entry) % each == 0 and (entry.view(-1, each) == entry[::each, None]).all():
        # As many of every entry, one after another, as of a layer's weights: 0.3 ms for 256×1024, sorting 48.
        rows = entry[::each]
        if len(rows.unique()) == len(rows):
            best = product.abs().view(-1, each).topk(min(k, each)).indices
            first = torch.arange(len(rows))[:, None] * each
            return (first + best).flatten(), torch.arange(best.shape[1]).repeat(len(rows))
    order = product.abs().argsort(descending=True, stable=True)
    order = order[entry[order].argsort(stable=True)]
    grouped = entry[order]
    place = torch.arange(len(order)) - torch.searchsorted(grouped, grouped)
    return order[place < k], place[place < k]


def _kept(reached: Tensor, columns: list[Tensor], k: int) -> _Best:
    """As a table with a row for each entry."""
    entry, product, part, edge, rank = columns
    order, place = _strongest(entry, product, k)
    row = torch.searchsorted(reached, entry[order])
    width = min(k, int(place.max()) + 1) if len(place) else 0

    def table(values: Tensor) -> Tensor:
        return values.new_zeros(len(reached), width).index_put((row, place), values[order])

    is_there = table(torch.ones_like(entry)) > 0
    return _Best(reached, table(product), is_there, table(part), table(edge), table(rank))


def _way(graph: Graph, best: dict[Quantity, _Best], row: int, rank: int) -> Way:
    quantity, entry = graph.source, graph.start
    product = float(best[quantity].product[row, rank])
    steps: list[Step] = []
    while (part := int(best[quantity].part[row, rank])) >= 0:
        e, edge = graph.edges[part], int(best[quantity].edge[row, rank])
        rank = int(best[quantity].rank[row, rank])
        quantity, entry = e.target, int(e.q[edge])
        row = int(torch.searchsorted(best[quantity].entries, entry))
        steps.append(Step(e, int(e.p[edge]), entry, float(e.value[edge])))
    return Way(tuple(steps), quantity, entry, float(graph.ends[quantity][entry]), product)
