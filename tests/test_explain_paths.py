"""The paths of ``explain``: all of them sum up to the gradient, and the strongest are those of an enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from explained import ACTIVATIONS, Residual, article, random_network
from ordinary import one_of_each
from torch import Tensor, nn

from torch_manualbp.insight.explanation import explain
from torch_manualbp.insight.explanation.graph import Graph, graph_from
from torch_manualbp.insight.explanation.paths import Way, count_ways, strongest_ways, sum_of_ways
from torch_manualbp.insight.explanation.routes import count_routes, routes
from torch_manualbp.insight.trace import Quantity, trace


def all_products(graph: Graph, quantity: Quantity, entry: int) -> list[float]:
    """The products of all paths from an entry, one by one."""
    found = [float(graph.ends[quantity][entry])] if quantity in graph.ends else []
    for part in graph.edges:
        if part.source is quantity:
            for p, q, value in zip(part.p.tolist(), part.q.tolist(), part.value.tolist(), strict=True):
                if p == entry:
                    found += [value * rest for rest in all_products(graph, part.target, q)]
    return found


def graphs(model: nn.Module, x: Tensor, y: Tensor) -> list[tuple[Graph, float]]:
    """From each entry of the first weighted input to C, with ∂C/∂(it)."""
    passed = trace(model, nn.MSELoss(), x, y)
    z = passed.stages[0].output
    assert z.gradient is not None
    gradients = z.gradient.flatten().tolist()
    return [(graph_from(passed, z, i, False), g) for i, g in enumerate(gradients)]


def product(way: Way) -> float:
    return way.end_value * math.prod(step.value for step in way.steps)


NAMES = ("Tanh", "ReLU", "Softmax", "GLU", "RReLU", "PReLU")


@pytest.mark.parametrize("seed", one_of_each(range(6), lambda seed: ["random network"]))
@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_paths_are_those_of_an_enumeration(name: str, seed: int) -> None:
    model, x, out = random_network(ACTIVATIONS[name][0], seed)
    y = torch.randn(*x.shape[:-1], out, dtype=torch.float64)
    for graph, gradient in graphs(model, x, y)[:3]:
        every = all_products(graph, graph.source, graph.start)
        scale = math.fsum(map(abs, every))
        assert math.fsum(every) == pytest.approx(gradient, abs=1e-13 * scale)
        assert sum_of_ways(graph) == pytest.approx(gradient, abs=1e-13 * scale)
        assert count_ways(graph) == len(every)
        assert count_ways(graph, only_nonzero=True) == sum(value != 0 for value in every)
        for k in (1, 3, 10, len(every) + 5):
            ways = strongest_ways(graph, k)
            expected = sorted(map(abs, every), reverse=True)[:k]
            assert [abs(way.product) for way in ways] == pytest.approx(expected, rel=1e-13, abs=1e-300)
            assert [product(way) for way in ways] == pytest.approx([way.product for way in ways], rel=1e-13)
            assert len({tuple((id(s.edges), s.p, s.q) for s in way.steps) for way in ways}) == len(ways)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_products_of_matrices_are_one_for_each_way_through_the_layers(times: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), Residual(3, nn.SiLU(), times), nn.Linear(3, 2)).double()
    for graph, gradient in graphs(model, torch.randn(2, 2).double(), torch.randn(2, 2).double()):
        assert count_routes(graph) == len(routes(graph)) == 2**times
        for route in routes(graph):
            by_hand: Any = route.end_values
            for matrix in route.matrices:
                by_hand = by_hand @ matrix.dense()
            assert float(by_hand) == pytest.approx(route.value, rel=1e-13)
        assert sum(route.value for route in routes(graph)) == pytest.approx(gradient, rel=1e-12)


def test_many_ways_through_the_layers_are_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), Residual(3, nn.SiLU(), 6), nn.Linear(3, 2)).double()
    e = explain(model, nn.MSELoss(), torch.randn(2, 2).double(), torch.randn(2, 2).double(), "0.weight", (0, 0))
    assert e.chains == ()
    assert e.count_chains == 64
    assert "There are 64 ways through the layers" in str(e)


def test_a_gap_in_the_list_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails where the search takes the weakest."""
    from torch_manualbp.insight.explanation import paths

    right = paths._strongest
    monkeypatch.setattr(paths, "_strongest", lambda entry, product, k: right(entry, 1 / product, k))
    model, x, y = article()
    (graph, _), *_ = graphs(model, x, y)
    every = all_products(graph, graph.source, graph.start)
    assert abs(strongest_ways(graph, 1)[0].product) == pytest.approx(min(map(abs, every)))


def test_all_shown_paths_make_up_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    x, y = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    for index in itertools.product(range(3), range(2)):
        e = explain(model, nn.MSELoss(), x, y, "0.weight", index, paths=100)
        assert e.count_paths == 3 * 4
        assert sum(path.value for path in e.paths) == pytest.approx(e.value, rel=1e-12)
        assert len(e.paths) == e.count_nonzero_paths or e.count_nonzero_paths == 0


def test_more_than_is_looked_at_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_manualbp.insight.explanation import graph

    monkeypatch.setattr(graph, "MOST_EDGES", 3)
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc1.weight", (0, 0))
    assert (e.paths, e.chains, e.searched) == ((), (), ())
    assert e.notes == ("Paths were not looked for: more than 3 derivatives lie between z_fc1 and C.",)
    assert e.notes[0] in str(e)
    assert abs(e.difference) < 1e-15


def test_a_jacobian_that_is_too_large_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_manualbp.insight.explanation import local

    monkeypatch.setattr(local, "MOST_NUMBERS", 10)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Softmax(-1), nn.Linear(3, 1)).double()
    e = explain(model, nn.MSELoss(), torch.randn(2, 2).double(), torch.randn(2, 1).double(), "0.weight", (0, 0))
    assert e.notes[0] == "Paths were not looked for: the Jacobian of 1: Softmax would take 6 products of 6 numbers."
    assert e.factors[0].origin.text.startswith("through 1: Softmax(-1) = ")
    assert abs(e.difference) < 1e-15


def test_all_paths_are_all_or_it_is_said_of_which_terms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(7, 2).double(), torch.randn(7, 2).double()
    whole = explain(model, nn.MSELoss(), x, y, "0.weight", (0, 1), samples=7, paths=100)
    assert "\nAll 14 paths\n" in str(whole)
    assert math.isclose(sum(path.value for path in whole.paths), whole.value, rel_tol=1e-12)
    part = explain(model, nn.MSELoss(), x, y, "0.weight", (0, 1), samples=3, paths=100)
    assert "\nAll 6 paths of the 3 strongest terms\n" in str(part)
    assert math.isclose(sum(path.value for path in part.paths), part.searched_value, rel_tol=1e-12)


def test_what_the_chain_has_said_is_not_said_as_a_product_of_matrices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = torch.randn(1, 2).double(), torch.randn(1, 1).double()
    last = explain(model, nn.MSELoss(), x, y, "2.weight", (0, 1))
    assert "whole chain" not in str(last)
    assert str(last).count("1: Tanh, ") == 1
    first = explain(model, nn.MSELoss(), x, y, "0.weight", (0, 1))
    assert "The whole chain" in str(first)
    assert str(first).count("the input") == 2  # as a factor and as a symbol
