"""The layers that a pass went through, and the symbols of their neurons and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from explained import Functional, Residual, article
from torch import Tensor, nn

from torch_manualbp.insight.network import Layer, layers_of
from torch_manualbp.insight.symbols import LayerSymbols, Notation, plain, symbol, words
from torch_manualbp.insight.trace import trace


def layers(*modules: nn.Module, width: int = 3) -> tuple[Layer, ...]:
    model = nn.Sequential(*modules).double()
    return layers_of(trace(model, lambda s, y: (s * s).mean(), torch.randn(2, width).double(), None))


def test_the_layers_of_the_article() -> None:
    model, x, y = article()
    first, second, last = layers_of(trace(model, nn.MSELoss(), x, y))
    assert [layer.name for layer in (first, second, last)] == ["fc1", "fc2", "fc3"]
    assert [layer.number for layer in (first, second, last)] == [1, 2, 3]
    assert [layer.is_last for layer in (first, second, last)] == [False, False, True]
    assert first.source.name == "x"
    assert second.source is first.a
    assert last.activation is None
    assert last.a is last.z
    assert last.bias is None
    assert second.z.gradient is not None
    assert second.z.gradient.flatten().tolist() == pytest.approx([-0.42241159927, 0.505476589613], abs=5e-12)


CHAINS: dict[str, tuple[nn.Module, ...]] = {
    "dropout and shape between": (
        nn.Linear(3, 2),
        nn.Tanh(),
        nn.Dropout(),
        nn.Flatten(0),
        nn.Unflatten(0, (2, 2)),
        nn.Linear(2, 2),
    ),
    "functional": (nn.Linear(3, 2), Functional(torch.relu), nn.Linear(2, 2), Functional(torch.softmax, -1)),
    "in place": (nn.Linear(3, 2), nn.ReLU(inplace=True), nn.Linear(2, 2)),
    "without activations": (nn.Linear(3, 2), nn.Linear(2, 2), nn.Flatten(0)),
    "gated": (nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 1)),
}
SHARED = nn.Linear(3, 3)
OTHERS: dict[str, tuple[nn.Module, ...]] = {
    "residual": (nn.Linear(3, 3), Residual(3, nn.Tanh())),
    "used twice": (SHARED, nn.Tanh(), SHARED),
    "two activations": (nn.Linear(3, 3), nn.Tanh(), nn.ReLU(), nn.Linear(3, 3)),
    "an activation first": (nn.Tanh(), nn.Linear(3, 3)),
    "something behind": (nn.Linear(3, 3), Functional(torch.mul, 2.0)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_numbered(name: str) -> None:
    found = layers(*CHAINS[name])
    assert [layer.number for layer in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_not(name: str) -> None:
    assert {layer.number for layer in layers(*OTHERS[name])} == {None}


def test_uses_are_counted() -> None:
    first, second = layers(SHARED, nn.Tanh(), SHARED)
    assert [(layer.use, layer.uses) for layer in (first, second)] == [(0, 2), (1, 2)]
    assert LayerSymbols(second).z(0).text == "z_1^0#2"
    assert LayerSymbols(second).w(0, 1).text == "w_12^0"


def test_layers_of_the_loss_are_left_out() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 1, dtype=torch.float64)

        def forward(self, s: Tensor, y: Any) -> Tensor:
            return self.fc(s).mean()

    model = nn.Sequential(nn.Linear(3, 2)).double()
    (only,) = layers_of(trace(model, Loss(), torch.randn(2, 3).double(), None))
    assert (only.name, only.number) == ("0", 1)


def test_symbols_in_every_form() -> None:
    model, x, y = article()
    first, _, last = (LayerSymbols(layer) for layer in layers_of(trace(model, nn.MSELoss(), x, y)))
    assert first.dw(1, 1).text == "∂C/∂w_22⁽¹⁾"
    assert first.dw(1, 1).latex == r"\frac{\partial C}{\partial w_{22}^{(1)}}"
    assert first.w(1, 11).text == "w_2,12⁽¹⁾"
    assert first.w().text == "W⁽¹⁾"
    assert first.slope(0).text == "f'(z_1⁽²⁾)"
    assert first.delta(1).latex == r"\delta_{2}^{(2)}"
    assert (last.z(0).text, last.a(0).text, last.delta(0).text) == ("s", "s", "δ⁽⁴⁾")
    assert first.z(0).html == "<var>z</var><sub>1</sub><sup>(2)</sup>"
    assert symbol("w", (0, 1), "a_b.c<d>").latex == r"w_{12}^{\mathrm{a\_b.c\lt d\gt }}"
    assert "<d>" not in symbol("w", (0, 1), "a_b.c<d>").html


def test_text_and_formulas_go_together() -> None:
    sentence = words("where ") + symbol("z", (0,)) + " = 5" + words(" is, ") + plain("a") + plain(" · b")
    assert sentence.text == "where z_1 = 5 is, a · b"
    assert sentence.markdown == r"where $`z_{1} = 5`$ is, $`a \cdot b`$"
    assert plain(" + ").joined([]) == words("")
    assert Notation("a", "a", "a").markdown == "$`a`$"
