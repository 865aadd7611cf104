"""What the tests of ``explain`` would show of a wrong factor: the difference from autograd, whichever factor it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from explained import article, check
from torch import Tensor, nn

import torch_manualbp
from torch_manualbp import explain, rules
from torch_manualbp.rules import Rule


def spoiled(rule: type[Rule], position: int) -> staticmethod[..., Any]:
    """The rule's backward with the gradient of one argument a millionth too large."""
    right: Callable[..., Any] = rule.backward

    def backward(ctx: Any, *upstream: Tensor) -> Any:
        result = right(ctx, *upstream)
        parts = list(result) if isinstance(result, tuple) else [result]
        if parts[position] is not None:
            parts[position] = parts[position] * (1 + 1e-6)
        return tuple(parts) if isinstance(result, tuple) else parts[0]

    return staticmethod(backward)


@pytest.mark.parametrize("layers", [nn, torch_manualbp.nn], ids=["stock", "ours"])
@pytest.mark.parametrize("rule", [rules.Sigmoid, rules.Linear, rules.MeanSquaredError])
def test_a_wrong_derivative_is_a_difference(rule: type[Rule], layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = article(layers)
    loss = layers.MSELoss()
    check(explain(model, loss, x, y, "fc1.weight", (1, 1)))
    monkeypatch.setattr(rule, "backward", spoiled(rule, 0))
    e = explain(model, loss, x, y, "fc1.weight", (1, 1))
    assert 0.9e-6 < abs(e.difference / e.value) < 4e-6
    with pytest.raises(AssertionError):
        check(e)


@pytest.mark.parametrize("rule", [rules.Softmax, rules.PReLU, rules.GELU])
def test_of_every_kind_of_rule(rule: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    activation = {"Softmax": nn.Softmax(-1), "PReLU": nn.PReLU(), "GELU": nn.GELU()}[rule.__name__]
    model = nn.Sequential(nn.Linear(3, 3), activation, nn.Linear(3, 2)).double()
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    check(explain(model, nn.MSELoss(), x, y, "0.weight", (1, 1)))
    monkeypatch.setattr(rule, "backward", spoiled(rule, 0))
    e = explain(model, nn.MSELoss(), x, y, "0.weight", (1, 1))
    assert abs(e.difference / e.value) == pytest.approx(1e-6, rel=0.01)
    with pytest.raises(AssertionError):
        check(e)


def test_a_wrong_slope_of_a_path_alone_is_a_wrong_sum() -> None:
    """The paths are held against the gradient, too."""
    from torch_manualbp.insight.explanation.graph import graph_from
    from torch_manualbp.insight.explanation.paths import sum_of_ways
    from torch_manualbp.insight.trace import trace

    model, x, y = article()
    passed = trace(model, nn.MSELoss(), x, y)
    z = passed.stages[0].output
    assert z.gradient is not None
    graph = graph_from(passed, z, 0, False)
    right = sum_of_ways(graph)
    assert right == pytest.approx(float(z.gradient[0, 0]), rel=1e-14)
    graph.edges[1].value.mul_(1.000001)
    assert sum_of_ways(graph) != pytest.approx(right, rel=1e-9)
