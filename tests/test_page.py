"""The report page as a file: what it is made of, what is refused, and the command that writes it."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_pages import attention_report, cost
from torch import Tensor

from torch_manualbp import cli, explain, nn
from torch_manualbp.insight import RunStatistics, report
from torch_manualbp.insight.page.charts import Scale, by_layer, by_step, scale_of, sparkline
from torch_manualbp.insight.page.history import checked
from torch_manualbp.insight.page.numbers import shown
from torch_manualbp.insight.statistics import STATISTICS
from torch_manualbp.verify import verify_model

PLAIN = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")
X, Y = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0], [0.0], [2.0]])


def model_of(*layers: Any) -> torch.nn.Sequential:
    return torch.nn.Sequential(*layers)


def small() -> torch.nn.Sequential:
    return model_of(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def large() -> torch.nn.Sequential:
    return model_of(nn.Linear(2, 150), nn.ReLU(), nn.Linear(150, 80), nn.ReLU(), nn.Linear(80, 1))


def network_in(path: Path) -> Any:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])["network"]


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The numbers


def test_the_numbers_are_those_of_autograd(tmp_path: Path) -> None:
    model, loss = small().double(), nn.MSELoss()
    x, y = X.double(), Y.double()
    network = network_in(report(model, loss, x, y, tmp_path / "page.html", lr=0.5))
    stock = model_of(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    stock.load_state_dict(model.state_dict())
    z = [stock[0](x)]
    a = stock[1](z[0])
    z.append(stock[2](a))
    for t in (*z, a):
        t.retain_grad()
    C = torch.nn.functional.mse_loss(z[1], y)
    C.backward()
    close = functools.partial(torch.testing.assert_close, rtol=1e-14, atol=1e-16)
    assert network["cost"]["value"] == pytest.approx(C.item(), rel=1e-15)
    assert [column["n"] for column in network["columns"]] == [2, 3, 1]
    first, last = network["columns"][1:]
    close(real(network["columns"][0]["a"]), x)
    close(real(first["z"]), z[0])
    close(real(first["a"]), a)
    close(real(first["delta"]), z[0].grad)
    close(real(first["da"]), a.grad)
    close(real(first["slope"]), 1 - a**2)
    close(real(last["delta"]), z[1].grad)
    optimizer = torch.optim.SGD(stock.parameters(), lr=0.5)
    optimizer.step()
    for column, layer in ((first, stock[0]), (last, stock[2])):
        close(real(column["dW"]), layer.weight.grad)
        close(real(column["autoW"]), layer.weight.grad)
        close(real(column["db"]), layer.bias.grad)
        close(real(column["Wnext"]), layer.weight)
        close(real(column["bnext"]), layer.bias)
    assert network["cost"]["after"] == pytest.approx(torch.nn.functional.mse_loss(stock(x), y).item(), rel=1e-14)
    assert network["optimizer"] == {"name": "SGD(lr=0.5)", "kind": "SGD", "plain": True}


def test_autograds_numbers_are_not_of_our_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong rule shows: the page's two numbers differ."""
    from torch_manualbp.rules.activation import Tanh

    right = Tanh.backward
    monkeypatch.setattr(Tanh, "backward", staticmethod(lambda ctx, da: right(ctx, 2 * da)))
    column = network_in(report(small(), nn.MSELoss(), X, Y, tmp_path / "page.html"))["columns"][1]
    torch.testing.assert_close(real(column["dW"]), 2 * real(column["autoW"]))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "LBFGS", "SGD"])
def test_any_optimizer_makes_its_own_step_on_a_copy(name: str, tmp_path: Path) -> None:
    model = small()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, **({"momentum": 0.9} if name == "SGD" else {}))

    def closure() -> Tensor:
        optimizer.zero_grad()
        C = torch.nn.functional.mse_loss(model(X), Y)
        C.backward()
        return C

    for _ in range(2):  # so that it has a state
        optimizer.step(closure)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    closure()
    gradients = [copy.copy(p.grad) for p in model.parameters()]
    network = network_in(report(model, nn.MSELoss(), X, Y, tmp_path / "page.html", optimizer=optimizer))
    after = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradients, rtol=0, atol=0)
    optimizer.step(closure)
    assert network["optimizer"]["kind"] == name
    assert network["optimizer"]["name"].startswith(f"{name}(lr=0.05")
    torch.testing.assert_close(real(network["columns"][1]["Wnext"]), model[0].weight.double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(real(network["columns"][2]["bnext"]), model[2].bias.double(), rtol=1e-5, atol=1e-7)


def test_the_step_of_a_scheduled_optimizer_is_not_the_originals(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    report(model, nn.MSELoss(), X, Y, tmp_path / "page.html", optimizer=optimizer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_nothing_is_changed(tmp_path: Path) -> None:
    model = model_of(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 1))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    report(model, torch.nn.MSELoss(), X, Y, tmp_path / "page.html")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(type(layer).__module__.startswith("torch.nn.") for layer in model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_so_many_samples_are_in_the_page(tmp_path: Path) -> None:
    network = network_in(report(small(), nn.MSELoss(), X, Y, tmp_path / "page.html", samples=2))
    assert (network["samples"], network["batch"]) == (2, 3)
    assert len(network["columns"][1]["z"]) == len(network["cost"]["y"]) == 2


def test_modes_without_gradients_do_not_matter(tmp_path: Path) -> None:
    model = small()
    expected = report(model, nn.MSELoss(), X, Y, tmp_path / "page.html").read_bytes()
    with torch.no_grad():
        assert report(model, nn.MSELoss(), X, Y, tmp_path / "page.html").read_bytes() == expected
    with torch.inference_mode():
        assert report(model, nn.MSELoss(), X.clone(), Y.clone(), tmp_path / "page.html").read_bytes() == expected


def test_one_sample_needs_no_batch(tmp_path: Path) -> None:
    network = network_in(report(small(), nn.MSELoss(), X[0], Y[0], tmp_path / "page.html"))
    assert network["batch"] == 1
    assert len(network["columns"][1]["z"][0]) == 3


def test_stock_layers_and_flattened_inputs_are_drawn_as_well(tmp_path: Path) -> None:
    model = model_of(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    x, y = torch.randn(5, 2, 2), torch.tensor([0, 1, 1, 0, 1])
    network = network_in(report(model, torch.nn.CrossEntropyLoss(), x, y, tmp_path / "page.html"))
    assert [column["n"] for column in network["columns"]] == [4, 3, 2]
    assert network["cost"]["y"][:2] == [[0], [1]]
    assert network["columns"][1]["formula"] == "δ = ∂C/∂a where a > 0, else 0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0636304907927, "0.06363049079"), (-1.5, "−1.5"), (0, "0"), (None, "–"), (math.nan, "NaN"), (math.inf, "∞"),
        (-math.inf, "−∞"), (1.25e-7, "1.25·10⁻⁷"), (-3e12, "−3·10¹²"), (0.0001, "0.0001"), (1234567890, "1234567890"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_in_a_textbook(value: float | None, text: str) -> None:
    assert shown(value) == text


# What is not drawn


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.fc1(x))
        out: Tensor = self.fc3(a + torch.tanh(self.fc2(a)))
        return out


class Spectrum(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.fft.fft(x).abs())
        return out


NOT_DRAWN: dict[str, tuple[Any, Tensor, str]] = {
    "large": (large(), X, "Its 233 neurons are too many to be drawn one by one: up to 200 are. Here are its layers."),
    "residual": (Residual(), X, "Its layers do not form a chain, each used once, so it is not drawn neuron by neuron."),
    "dropout": (
        model_of(nn.Linear(2, 3), torch.nn.Dropout(0.5), nn.Linear(3, 1)), X,
        "Dropout draws random numbers, so it is not drawn neuron by neuron: model.eval() switches that off.",
    ),
    "random slopes": (model_of(nn.Linear(2, 3), nn.RReLU(), nn.Linear(3, 1)), X, "RReLU draws random numbers"),
    "gate": (model_of(nn.Linear(2, 6), nn.GLU(), nn.Linear(3, 1)), X, "GLU has fewer outputs than inputs"),
    "convolution": (
        model_of(torch.nn.Conv1d(1, 3, 2), nn.ReLU(), torch.nn.Flatten(), nn.Linear(3, 1)), X.unsqueeze(1),
        "Its layers do not form a chain, each used once, so it is not drawn neuron by neuron.",
    ),
    "spectrum": (Spectrum(), X, "It is not drawn neuron by neuron: the model itself: torch.fft.fft has no rule"),
    "sequence": (small(), X.expand(2, 3, 2), "Its data are not rows of real numbers, so it is not drawn neuron by"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_DRAWN)
def test_what_is_not_drawn_has_its_layers_and_says_why(case: str, tmp_path: Path) -> None:
    model, x, why = NOT_DRAWN[case]
    y = torch.zeros(*x.shape[:-1], 1) if case == "sequence" else Y
    path = report(model, torch.nn.MSELoss(), x, y, tmp_path / "page.html")
    assert network_in(path) is None
    html = path.read_text("utf-8")
    assert why in html
    layers = [name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    rows = re.findall(r'<th scope="row" data-value="\d+">(.*?)</th>', html)
    assert sorted(rows) == sorted(layers)
    assert html.count('<figure class="by-layer">') >= 3


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), nn.RReLU()])
def test_what_draws_no_more_is_drawn(layer: Any, tmp_path: Path) -> None:
    model = model_of(nn.Linear(2, 3), layer, nn.Linear(3, 1)).eval()
    assert network_in(report(model, nn.MSELoss(), X, Y, tmp_path / "page.html")) is not None


@pytest.mark.parametrize("name", ["PReLU", "ELU", "Hardtanh", "Softmax"])
def test_the_product_through_an_elementwise_activation_is_delta(name: str, tmp_path: Path) -> None:
    f = torch.nn.Softmax(-1) if name == "Softmax" else getattr(nn, name)()
    model = model_of(nn.Linear(2, 3), f, nn.Linear(3, 1)).double()
    column = network_in(report(model, nn.MSELoss(), X.double(), Y.double(), tmp_path / "page.html"))["columns"][1]
    assert column["elementwise"] == (name != "Softmax")
    if column["elementwise"]:
        torch.testing.assert_close(real(column["da"]) * real(column["slope"]), real(column["delta"]))
    assert column["formula"] is None or column["formula"].startswith(("f'(z) = ", "δ = "))


# The statistics


def test_the_history_of_a_run_is_shown(tmp_path: Path) -> None:
    model = large()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    statistics = RunStatistics(model, every=1)
    for _ in range(4):
        with statistics.step():
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(X), Y).backward()
            optimizer.step()
    html = report(model, nn.MSELoss(), X, Y, tmp_path / "p.html", history=statistics.history).read_text("utf-8")
    last = statistics.history[-1]["layers"]
    cells = re.findall(r'<td(?: class="detail")? data-value="([^"]*)">', html)
    names = [name for name in STATISTICS if name in last["0"]]
    expected = [last[layer].get(name) for layer in last for name in names]
    assert [float(cell) if cell else None for cell in cells[: len(expected)]] == expected
    assert html.count('class="spark"') > 20
    assert html.count('<figure class="by-step">') >= 3
    assert "The last of 4 steps that were looked at, step 4" in html


def test_shares_of_units_go_from_0_to_1_over_the_steps() -> None:
    moments = checked([{"step": i, "layers": {"a": {"dead": 0.0, "saturated": 0.01 * i}}} for i in (1, 2)])
    drawn = {lines["title"]: lines for lines in by_step(moments)}
    assert list(drawn) == ["Dead units", "Saturated units"]
    assert [text for _, text in drawn["Saturated units"]["ticks"]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert drawn["Saturated units"]["lines"][0]["runs"] == ["0,99 100,98"]


def test_a_small_network_with_a_history_has_both(tmp_path: Path) -> None:
    history = [{"step": 1, "layers": {"0": {"delta_norm": 1.0}}}]
    path = report(small(), nn.MSELoss(), X, Y, tmp_path / "page.html", history=history)
    folded = "<details open><summary>Each layer in a row"
    assert network_in(path) is not None
    assert 'id="layers"' in path.read_text("utf-8")
    assert folded not in path.read_text("utf-8")
    html = report(small(), nn.MSELoss(), X, Y, path).read_text("utf-8")  # then they are those of the pass
    assert html.index(folded) < html.index('id="layers"')
    assert "dead" in html


BAD_HISTORIES: list[tuple[Any, str]] = [
    ({}, "history: it is a list with an entry for each step, and not of class dict"),
    ("[]", "history: it is a list with an entry for each step, and not of class str"),
    ([3], 'history[0]: it is {"step": …, "layers": {name: {statistic: number}}}, and not 3'),
    ([{"step": 1}], 'history[0]: it is {"step": …'),
    ([{"step": "1", "layers": {}}], "history[0]['step']: it is a whole number, and not '1'"),
    ([{"step": 1, "layers": []}], "history[0]['layers']: it is a dictionary of dictionaries, and not []"),
    ([{"step": 1, "layers": {"a": 3}}], "history[0]['layers']: it is a dictionary of dictionaries, and not {'a': 3}"),
    ([{"step": 1, "layers": {"a": {"b": "c"}}}], "history[0]['layers']['a']['b']: it is a number or None, and not 'c'"),
    (
        [{"step": 1, "layers": {"a": {"b": True}}}],
        "history[0]['layers']['a']['b']: it is a number or None, and not True",
    ),
    ([{"step": 1, "layers": {}, "loss": []}], "history[0]['loss']: it is a number or None, and not []"),
]


def test_a_step_of_numpy_is_a_whole_number() -> None:
    (moment,) = checked([{"step": np.int64(3), "layers": {"a": {"dead": np.float32(0.5)}}}])
    assert (moment.step, moment.layers["a"]["dead"]) == (3, 0.5)


@pytest.mark.parametrize(("history", "said"), BAD_HISTORIES)
def test_a_history_of_another_form_is_refused_in_one_line(history: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        checked(history)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("history", [[], [{"step": 3, "layers": {}}], [{"step": 1, "layers": {"a": {}}}]])
def test_a_history_may_be_empty(history: Any, tmp_path: Path) -> None:
    html = report(large(), nn.MSELoss(), X, Y, tmp_path / "page.html", history=history).read_text("utf-8")
    assert "The layers" in html


def test_a_scale_places_numbers_by_order_of_magnitude() -> None:
    scale = scale_of([1e-6, 3.0, None, math.nan, 0.0])
    assert scale is not None
    assert scale == Scale(-6.0, 1.0, True)
    assert scale.place(1e-6) == 0
    assert scale.place(0.0) is None  # a gap
    assert scale.place(10.0) == 100
    assert scale.place(1e-3) == pytest.approx(300 / 7, abs=0.01)
    assert scale.place(None) is scale.place(math.inf) is None
    assert [text for _, text in scale.ticks()] == ["10⁻⁶", "0.0001", "0.01", "1"]
    assert scale_of([None, math.inf]) is None
    assert scale_of([0.1], is_share=True) == Scale(0.0, 1.0, False)
    assert scale_of([-1.0, 3.0]) == Scale(-1.0, 3.0, False)
    assert scale_of([2.0]) == scale_of([2.0, 1.5]) == Scale(0.0, 2.0, False)  # a flat line needs no powers of ten
    assert scale_of([0.31, 0.3]) == Scale(0.0, 0.4, False)
    assert scale_of([2.0, 0.1]) == Scale(-1.0, 1.0, True)


def test_a_sparkline_leaves_out_what_is_not_known() -> None:
    assert sparkline([1.0, None, 3.0]) == "2.0,14.0 62.0,2.0"
    assert sparkline([1.0, None]) == sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "2.0,8.0 62.0,8.0"
    assert len(sparkline([float(i) for i in range(1000)]).split()) <= 65


# The verification


def test_the_verification_is_a_table(tmp_path: Path) -> None:
    model = small()
    found = verify_model(model, X, Y, nn.MSELoss())
    for verification in (True, found):
        html = report(model, nn.MSELoss(), X, Y, tmp_path / "p.html", verification=verification).read_text("utf-8")
        table = html[html.index('id="verification"') :]
        assert table[: table.index("</table>")].count("<tr>") == len(found.table()[1]) + 1
        assert "correct (" in html
    assert "verification" not in report(model, nn.MSELoss(), X, Y, tmp_path / "p.html").read_text("utf-8")


# What is refused


def test_a_compiled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the model is compiled"):
        report(torch.compile(small()), nn.MSELoss(), X, Y, tmp_path / "page.html")  # type: ignore[arg-type]
    assert not (tmp_path / "page.html").exists()


def test_other_things_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"^the loss returns a tensor of shape \(3, 1\): it is to be one number"):
        report(small(), torch.nn.MSELoss(reduction="none"), X, Y, path)
    with pytest.raises(ValueError, match=r"^optimizer: it holds none of the parameters of the model$"):
        report(small(), nn.MSELoss(), X, Y, path, optimizer=torch.optim.SGD(small().parameters(), lr=1.0))
    with pytest.raises(ValueError, match=r"^the model has no parameter that asks for a gradient"):
        report(small().requires_grad_(False), nn.MSELoss(), X, Y, path)
    with pytest.raises(ValueError, match=r"^samples: 0 is not a number of rows from 1 on$"):
        report(small(), nn.MSELoss(), X, Y, path, samples=0)
    with pytest.raises(OSError, match="Is a directory"):
        report(small(), nn.MSELoss(), X, Y, tmp_path)


# The file


class Outline(HTMLParser):
    """Whether tags close in order, ids are there once, and labels name something."""

    VOID = ("meta", "link", "input", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [name for key in ("id",) if (name := given.get(key))]
        self.named += [name for key in ("for", "aria-labelledby") if (name := given.get(key))]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


@pytest.mark.parametrize("make", [small, large])
def test_the_page_is_well_formed(make: Any, tmp_path: Path) -> None:
    html = report(make(), nn.MSELoss(), X, Y, tmp_path / "page.html", verification=True).read_text("utf-8")
    outline = Outline()
    outline.feed(html)
    outline.close()
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.named) <= set(outline.ids)
    assert html.startswith('<!doctype html>\n<html lang="en">')


def test_a_wheel_has_the_templates() -> None:
    """The pattern of the package's data finds each of them."""
    root = Path(__file__).parent.parent
    pattern = re.search(r'torch_manualbp = \["py.typed", "(.*?)"\]', (root / "pyproject.toml").read_text())
    assert pattern is not None
    found = {path.name for path in (root / "torch_manualbp").glob(pattern[1])}
    assert {"page.html", "style.css", "drawing.js"} <= found
    sources = (root / "torch_manualbp" / "insight" / "page").rglob("*")
    assert {path.name for path in sources if path.suffix in (".html", ".css", ".js")} == found


def test_missing_folders_are_made_and_the_page_is_always_the_same(tmp_path: Path) -> None:
    model = small()
    first = report(model, nn.MSELoss(), X, Y, tmp_path / "a" / "b" / "page.html")
    second = report(model, nn.MSELoss(), X, Y, str(tmp_path / "page.html"))
    assert first == tmp_path / "a" / "b" / "page.html"
    assert isinstance(second, Path)
    assert first.read_bytes() == second.read_bytes()


def test_the_size_of_a_page(tmp_path: Path) -> None:
    """An article's network takes some tens of kilobytes, the largest that is drawn less than two megabytes."""
    assert report(small(), nn.MSELoss(), X, Y, tmp_path / "small.html").stat().st_size < 100_000
    widest = model_of(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24)).double()
    x, y = torch.randn(32, 64).double(), torch.randint(24, (32,))
    path = report(widest, nn.CrossEntropyLoss(), x, y, tmp_path / "crowded.html")
    assert path.stat().st_size < 2_000_000


# The command

MODEL = "torch_manualbp.nn:Sequential(Linear(2, 3), Tanh(), Linear(3, 1))"
DATA = ["--input", "tensor([[1, 0.5]])", "--target", "ones(1, 1)"]


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, history = tmp_path / "page.html", tmp_path / "run.json"
    history.write_text('[{"step": 1, "layers": {"0": {"delta_norm": NaN}}}]')
    more = ["--optimizer", "Adam(lr=0.5)", "--history", str(history), "--verify", "--title", "A <title>", "--seed", "3"]
    assert cli.main(["report", MODEL, *DATA, *more, "--output", str(path)]) == 0
    out = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(str(path))}: \d+ KB\n", out.out)
    assert out.err == ""
    html = path.read_text("utf-8")
    assert "<h1>A &lt;title&gt;</h1>" in html
    assert 'id="layers"' in html
    assert 'id="verification"' in html
    assert network_in(path)["optimizer"]["name"] == "Adam(lr=0.5)"
    torch.manual_seed(3)
    expected = torch.nn.Linear(2, 3).weight.double()
    torch.testing.assert_close(real(network_in(path)["columns"][1]["W"]), expected, rtol=1e-11, atol=0)


REFUSED = {
    "--loss MSELos": (2, "argument --loss: MSELos raises NameError: name 'MSELos' is not defined"),
    "--optimizer SDG": (2, "argument --optimizer: SDG raises NameError: name 'SDG' is not defined"),
    "--history {}/no.json": (1, "[Errno 2] No such file or directory: '{}/no.json'"),
    "--history {}/bad.json": (2, "argument --history: {}/bad.json is not JSON: JSONDecodeError: Expecting value"),
    "--history {}/list.json": (2, 'history[0]: it is {{"step": …'),
    "--input randn(1,3)": (1, f"{MODEL} and MSELoss do not take these inputs: "),
    "--input rand": (1, f"{MODEL} and MSELoss do not take these inputs: "),
    "--output {}": (1, "[Errno 21] Is a directory: '{}'"),
    "--samples 0": (2, "samples: 0 is not a number of rows from 1 on"),
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_the_command_says_in_one_line_what_is_wrong(
    arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.json").write_text("nothing")
    (tmp_path / "list.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    status, said = REFUSED[arguments]
    option, value = arguments.format(tmp_path).split()
    data = DATA[2:] if option == "--input" else DATA
    assert cli.main(["report", MODEL, *data, option, value]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"torch-manualbp report: {said.format(tmp_path) if '{' in said else said}")
    assert not (tmp_path / "report.html").exists()


def test_zeros_of_delta_are_gaps() -> None:
    values = (1.0, 0.1, 0.0, 0.01, 0.0)
    (lines,) = by_step(checked([{"step": i, "layers": {"a": {"delta_norm": v}}} for i, v in enumerate(values)]))
    assert lines["lines"][0]["runs"] == ["0,0 25,50", "75,100 75,100"]  # a number alone is a dot
    row = {"delta_norm": 0.5, "delta_q05": 0.0, "delta_q50": 0.0, "delta_q95": 2.0}
    (chart,) = by_layer(checked([{"step": 1, "layers": {"a": row, "b": dict.fromkeys(row, 0.0)}}]))
    first, second = chart["rows"]
    assert first["band"][:2] == [0.0, None]  # it begins at the edge, and has no median
    assert first["band"][2] is not None
    assert (second["dot"], second["band"][1:]) == (None, [None, None])


def test_the_columns_that_a_reader_needs_are_explained(tmp_path: Path) -> None:
    row = dict.fromkeys(STATISTICS, 0.5)
    html = report(
        large(), nn.MSELoss(), X, Y, tmp_path / "p.html", history=[{"step": 1, "layers": {"0": row}}]
    ).read_text("utf-8")
    heads = re.findall(r'<th scope="col" aria-sort="none"( class="detail")?>', html)
    assert heads.count("") == 6  # of 15
    explained = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)
    assert [title for title, _ in explained] == ["‖δ‖", "‖∂C/∂W‖", "‖ΔW‖ / ‖W‖", "dead", "saturated", "noise scale"]


def test_other_costs_have_the_formula_of_their_rule(tmp_path: Path) -> None:
    cost = network_in(report(small(), nn.SmoothL1Loss(), X, Y, tmp_path / "page.html"))["cost"]
    assert cost["formula"][0] == "C_i = (s_i − y_i)² / 2β where |s_i − y_i| < β"
    assert cost["formula"][-1] == "C = Σ C_i / n, n = the number of entries"
    assert cost["derivative"][0].startswith("∂C/∂s_i = ")
    assert (cost["columns"], cost["rows"], cost["is_class"]) == ([], [], False)
    composed = network_in(report(small(), lambda s, y: ((s - y) ** 2).mean(), X, Y, tmp_path / "page.html"))["cost"]
    assert composed["formula"] == ["C is made by Difference, Power, Mean"]
    summed = network_in(report(small(), nn.MSELoss(reduction="sum"), X, Y, tmp_path / "page.html"))["cost"]
    assert (summed["formula"], summed["n"]) == (["C = Σ (s − y)²"], 1)


def test_of_a_transformer_attention_and_the_residual_stream_are_shown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    page, model, x, y = attention_report(tmp_path / "page.html")
    scores, P, stream = model.by_hand(x)
    cost(scores, y).backward()
    assert P.grad is not None
    assert stream.grad is not None
    html = page.read_text(encoding="utf-8")
    tables = [
        [float(n.replace("·10", "e").translate(PLAIN)) for n in re.findall(r'title="(.*?)"', table)]
        for table in re.findall(r'<table class="heat">.*?</table>', html, re.DOTALL)
    ]
    right = [t.flatten() for head in range(2) for t in (P[0, head], P.grad[0, head])] + [stream.grad[0].norm(dim=-1)]
    assert len(tables) == len(right)
    for table, numbers in zip(tables, right, strict=True):
        assert torch.allclose(torch.tensor(table, dtype=torch.float64), numbers, rtol=1e-9, atol=1e-15)


def test_the_chains_of_a_page_are_those_of_explain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    page, model, x, y = attention_report(tmp_path / "page.html")
    html = page.read_text(encoding="utf-8")
    gradient = torch.autograd.grad(cost(model(x), y), model.q.weight)[0]
    index = divmod(int(gradient.abs().argmax()), 4)
    e = explain(model, cost, x, y, "q.weight", index)
    assert f"<summary>∂<var>C</var>/∂{e.symbol.html} = " in html
    strongest = " · ".join(factor.symbol.html for factor in e.factors)
    assert strongest in html
    assert f"{e.value:.12g}" in html
