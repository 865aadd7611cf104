"""The picture of a small network: its numbers, where they stand, and that no number lies on another line."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from torch_manualbp import nn
from torch_manualbp.insight import picture
from torch_manualbp.insight.layout import Layout, _cuts, layout_of
from torch_manualbp.insight.page.autograd import step_of
from torch_manualbp.insight.page.data import NotDrawableError, network_data
from torch_manualbp.insight.trace import trace


def small(*sizes: int, activation: type[torch.nn.Module] = nn.Tanh) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for i, n in enumerate(sizes[1:]):
        layers += [nn.Linear(sizes[i], n), activation()]
    return torch.nn.Sequential(*layers[:-1])


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_every_number_of_the_article_is_in_it(article: ModuleType) -> None:
    shown = picture(article.as_model(nn, article.NETWORK), nn.MSELoss(), article.X, article.Y)
    said = texts(shown.svg)

    def in_it(value: float, before: str = "") -> bool:
        return before + f"{value:.4g}".replace("-", "−") in said

    for name, letter in (
        ("z2", "z"),
        ("a2", "a"),
        ("delta2", "δ"),
        ("z3", "z"),
        ("a3", "a"),
        ("delta3", "δ"),
        ("s", "s"),
    ):
        for value in article.KNOWN[name]:
            assert in_it(value, f"{letter} "), (name, value)
    for name in ("dW1", "dW2", "dW3", "C"):
        for value in article.KNOWN[name]:
            assert in_it(value), (name, value)
    for W in (article.NETWORK.W1, article.NETWORK.W2, article.NETWORK.W3):
        assert all(in_it(value) for value in W.flatten().tolist())
    assert repr(shown) == "<Picture: 4 → 2 → 2 → 1, cost MSELoss = 1.46>"


def layout(*sizes: int) -> Layout:
    model, loss = small(*sizes), nn.MSELoss()
    x, y = torch.randn(3, sizes[0]), torch.randn(3, sizes[-1])
    step = step_of(model, loss, x, y, None, 0.1)
    return layout_of(network_data(trace(model, loss, x, y), step, cost="MSELoss", samples=8))


@pytest.mark.parametrize(
    ("sizes", "labelled"),
    [((4, 2, 2, 1), 14), ((2, 3, 1), 9), ((4, 3, 2), 18), ((3, 4, 2), 20), ((4, 4, 4), 0), ((2, 2, 2, 2), 12)],
)
def test_no_number_lies_on_another_line(sizes: tuple[int, ...], labelled: int) -> None:
    drawn = layout(*sizes)
    assert len(drawn.labels) == labelled
    boxes = {line: (x - 15, y - 13.5, x + 15, y + 13.5) for line, (x, y) in drawn.labels.items()}
    lines = [
        (c, j, k) for c in range(1, len(sizes)) for j, k in itertools.product(range(sizes[c]), range(sizes[c - 1]))
    ]
    for line, box in boxes.items():
        assert _cuts(*drawn.ends(*line), box)  # it lies on its own
        assert not any(_cuts(*drawn.ends(*other), box) for other in lines if other != line)
    for one, other in itertools.combinations(boxes.values(), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert all(0 < x < drawn.width and 0 < y < drawn.height for column in drawn.places for x, y in column)


def test_a_larger_network_has_its_numbers_to_be_pointed_at() -> None:
    shown = picture(small(12, 9, 4), nn.CrossEntropyLoss(), torch.randn(5, 12), torch.tensor([0, 1, 2, 3, 0]), sample=2)
    svg = ElementTree.fromstring(shown.svg)
    titles = [element.text or "" for element in svg.iter() if element.tag.endswith("title")]
    assert len(titles) == 12 + 9 + 4 + 12 * 9 + 9 * 4
    assert any(re.fullmatch(r"w₉,₁₂⁽¹⁾: w \S+, ∂C/∂w \S+", title) for title in titles)
    assert "neurons: sample 3 of 5" in shown.svg


def test_it_can_be_saved_and_asks_for_nothing(tmp_path: Path) -> None:
    name = "<script>&\"'"
    model = torch.nn.Sequential()
    model.add_module(name, nn.Linear(2, 1))
    loss: Any = type(name, (nn.MSELoss,), {})()
    shown = picture(model, loss, torch.ones(1, 2), torch.ones(1, 1))
    shown.save(tmp_path / "network.svg")
    assert (tmp_path / "network.svg").read_text("utf-8") == shown.svg == shown._repr_svg_()
    assert "<script" not in shown.svg
    assert not re.search(r"href|@import|url\(", shown.svg)
    html = shown._repr_html_()
    assert html.startswith('<section class="manualbp">')
    assert "color-scheme: light dark" not in html  # it goes with the notebook


def test_numbers_that_are_none_and_frozen_layers_are_drawn() -> None:
    model = small(2, 2, 1)
    model[0].requires_grad_(False)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    shown = picture(model, nn.MSELoss(), torch.ones(1, 2), torch.ones(1, 1))
    assert "NaN" in texts(shown.svg)
    assert "frozen" in shown.svg


def test_what_is_not_drawn_is_refused() -> None:
    x, y = torch.randn(1, 2), torch.randn(1, 1)
    with pytest.raises(NotDrawableError, match="251 neurons are too many"):
        picture(small(2, 248, 1), nn.MSELoss(), x, y)
    with pytest.raises(IndexError, match=r"^sample 1: there are 1, counted from 0$"):
        picture(small(2, 1), nn.MSELoss(), x, y, sample=1)
    with pytest.raises(IndexError, match="sample -1"):
        picture(small(2, 1), nn.MSELoss(), x, y, sample=-1)


def test_nothing_is_changed() -> None:
    model = small(2, 2, 1)
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    picture(model, nn.MSELoss(), torch.randn(1, 2, generator=torch.Generator()), torch.ones(1, 1))
    assert all(map(torch.equal, model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
