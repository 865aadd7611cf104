"""What a notebook displays of each object: well-formed HTML that asks for nothing, escaped; and short reprs."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CONTRAST, started

from torch_manualbp import TrainStep, convert, explain, insight, local_gradients, nn
from torch_manualbp._html import table
from torch_manualbp.catalogue import CATALOGUE
from torch_manualbp.verify import verify_model
from torch_manualbp.verify.matrix import contract_matrix
from torch_manualbp.verify.report import Report, Row

HOSTILE = "<script>document·title='taken'</script>\x1b\"'&amp;"
HISTORY = [{"step": i, "layers": {"fc<1>": {"grad_norm": 1.0 / i, "delta_q50": 0.0}}} for i in (1, 2)]


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.Linear(4, 3))
    model.add_module("act", nn.Tanh())
    model.add_module(HOSTILE, nn.Linear(3, 2))
    return model


X, Y, LOSS = torch.linspace(-1, 1, 48).reshape(12, 4), torch.arange(12) % 2, nn.CrossEntropyLoss()


def recorded(reduce: Any = None) -> insight.LocalGradients:
    model = network()
    with local_gradients(model, reduce=reduce) as record:
        LOSS(model(X), Y).backward()
    return record


def stepped() -> TrainStep:
    model = network()
    step = TrainStep(model, LOSS, torch.optim.SGD(model.parameters(), lr=0.1))
    step(X, Y)
    return step


def converted() -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Hardsigmoid())
    model.add_module(HOSTILE, type(HOSTILE, (torch.nn.Linear,), {"forward": lambda self, x: x})(2, 2))
    return convert(model)


DISPLAYS: dict[str, Callable[[], Any]] = {
    "LocalGradients": recorded,
    "LocalGradients, reduced": lambda: recorded(insight.summary),
    "Layer": lambda: recorded()["0"],
    "Call": lambda: recorded(insight.summary)[HOSTILE][0],
    "Report": lambda: verify_model(network(), X, Y, LOSS),
    "Report, wrong": lambda: Report(HOSTILE, (Row(HOSTILE, "values", "fails", error_ulps=3e5, hint=HOSTILE),)),
    "Matrix": lambda: contract_matrix(
        [e for e in CATALOGUE if e.name == "Tanh"], ["first derivatives", "raw backward"]
    ),
    "Conversion": converted,
    "TrainStep": stepped,
    "TrainStep, not called": lambda: TrainStep(m := network(), LOSS, torch.optim.SGD(m.parameters(), lr=0.1)),
    "Explanation": lambda: explain(network(), LOSS, X, Y, "0.weight", (1, 1)),
    "figure": lambda: insight.draw(HISTORY),
}


@pytest.fixture(scope="module")
def displays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    page = insight.report(network(), LOSS, X, Y, tmp_path_factory.mktemp("page") / "page.html", title=HOSTILE)
    return {**{name: make() for name, make in DISPLAYS.items()}, "page": page}


class Outline(HTMLParser):
    """Tags, attributes and text; that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.mark.parametrize("name", [*DISPLAYS, "page"])
def test_it_displays_itself_escaped_and_asks_for_nothing(name: str, displays: dict[str, Any]) -> None:
    html = displays[name]._repr_html_()
    outline = Outline(html)
    assert outline.tags[:2] == ["section", "style"]
    assert not {"script", "link", "b"} & set(outline.tags)
    assert not any(
        key in ("href", "onerror") or (key == "src" and "data:" not in str(v)) for key, v in outline.attributes
    )
    assert not re.search(r"@import|url\(", html.split("srcdoc=")[0])
    assert "\x1b" not in html


@pytest.mark.parametrize("name", [*DISPLAYS, "page"])
def test_the_plain_repr_is_one_short_line(name: str, displays: dict[str, Any]) -> None:
    assert re.fullmatch(r".{1,200}", repr(displays[name]))


def test_the_record_shows_delta_itself(displays: dict[str, Any]) -> None:
    record = displays["LocalGradients"]
    outline = Outline(record._repr_html_())
    assert re.findall(r"δ⁽.⁾ = ∂C/∂z of ", outline.said) == [
        "δ⁽²⁾ = ∂C/∂z of ",
        "δ⁽³⁾ = ∂C/∂z of ",
    ]  # of the activation, too
    first = record["0"].delta
    for i in (0, 3, 8, 11):
        for value in first[i].tolist():
            assert f"{value:.4g}".replace("-", "−") in outline.said
    assert f"{first[5, 0].item():.4g}".replace("-", "−") not in outline.said  # the middle is left out


def test_a_layer_shows_its_numbers_or_why_there_are_none(displays: dict[str, Any]) -> None:
    html = displays["Layer"]._repr_html_()
    said = Outline(html).said
    assert re.findall("<summary>(.*?)</summary>", html) == ["x", "z", "a", "δ = ∂C/∂z", "∂C/∂a"]
    for t in (displays["Layer"].x, displays["Layer"].a, displays["Layer"].da):
        assert f"{t[0, 0].item():.4g}".replace("-", "−") in said
    model = network()
    with local_gradients(model) as record:
        LOSS(model(X), Y).backward()
        with torch.no_grad():
            model(X)
    html = record["0"]._repr_html_()
    assert "0, call 2 of 2" in html
    assert "under torch.no_grad()" in html


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.tanh(self.first(x))
        out: torch.Tensor = self.last(a + torch.relu(self.second(a)))
        return out


@pytest.mark.parametrize("reduce", [None, torch.linalg.vector_norm])
def test_the_layers_of_a_chain_have_the_articles_numbers(reduce: Any) -> None:
    assert [row[3] for row in recorded(reduce).table()[1]] == ["δ⁽²⁾", "δ⁽²⁾", "δ⁽³⁾"]
    assert "δ⁽³⁾" in str(recorded(reduce))
    chain = torch.nn.Sequential(nn.Linear(2, 2), torch.nn.ReLU(inplace=True), torch.nn.Flatten(), nn.Linear(2, 1))
    twice = torch.nn.Sequential(layer := nn.Linear(2, 2), layer)
    for model, numbers in ((chain, ["δ⁽²⁾", "δ⁽²⁾", "δ", "δ⁽³⁾"]), (twice, ["δ"] * 2), (Residual(), ["δ"] * 3)):
        with local_gradients(model, reduce=reduce) as record:
            model(torch.ones(1, 2)).sum().backward()
        assert [row[3] for row in record.table()[1]] == numbers


def test_layers_that_an_explanation_calls_by_name_have_no_numbers() -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 2), torch.nn.BatchNorm1d(2), torch.nn.ReLU(), nn.Conv1d(2, 1, 2))
    with local_gradients(model) as record:
        model(torch.ones(2, 1, 5)).square().sum().backward()
    assert [row[3] for row in record.table()[1]] == ["δ"] * 4


def test_a_report_says_what_is_wrong(displays: dict[str, Any]) -> None:
    right, wrong = displays["Report"]._repr_html_(), displays["Report, wrong"]._repr_html_()
    assert '<p class="ok">✓ Sequential: correct (' in right
    assert '<tr class="fails">' not in right
    assert '<p class="fails">✗ ' in wrong
    assert '<tr class="fails">' in wrong
    assert "&lt;script&gt;" in wrong
    assert "? nothing: NOT VERIFIED" in Report("nothing", ())._repr_html_()


def test_a_step_shows_its_source(displays: dict[str, Any]) -> None:
    step = displays["TrainStep"]
    said = Outline(step._repr_html_()).said
    assert step.source.strip() in said
    assert step.program.strip() in said
    assert "no program yet" in displays["TrainStep, not called"]._repr_html_()


def test_numbers_stand_right_and_words_left() -> None:
    html = str(table(["name", "n"], [("a", "1")], numbers={1}))
    assert '<th>name</th><th class="n">n</th>' in html
    assert '<td>a</td><td class="n">1</td>' in html


def test_a_page_is_a_path_that_is_displayed(tmp_path: Path) -> None:
    page = insight.report(network(), LOSS, X, Y, tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert isinstance(page, Path)
    assert pickle.loads(pickle.dumps(page)) == page
    framed = dict(Outline(page._repr_html_() or "").attributes)
    assert framed["srcdoc"] == page.read_text("utf-8")
    assert framed["sandbox"] == "allow-scripts allow-downloads"
    page.unlink()
    assert page._repr_html_() is None


def test_a_figure_is_an_image_and_can_be_pickled() -> None:
    figure = insight.draw(HISTORY)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_html_().count("<img") == 1


@pytest.mark.slow  # torch anew
def test_nothing_is_loaded_before_it_is_displayed() -> None:
    packages = ["jinja2", "markupsafe", "pygments", "matplotlib", "IPython"]
    program = f"""import sys, torch
before = set(sys.modules)
import torch_manualbp.insight, torch_manualbp.verify, torch_manualbp.derive, torch_manualbp.convert
print([name for name in {packages} if name in set(sys.modules) - before])"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


JUPYTER = """
.jp-RenderedHTMLCommon { color: var(--jp-content-font-color1); font-family: sans-serif; font-size: 14px; }
.jp-RenderedHTMLCommon table { table-layout: fixed; margin-left: auto; font-size: 12px; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th, .jp-RenderedHTMLCommon tr { padding: .5em; white-space: normal; }
.jp-RenderedHTMLCommon:not(.jp-RenderedMarkdown) td { text-align: right; }
.jp-RenderedHTMLCommon:not(.jp-RenderedMarkdown) th { text-align: right; }
.jp-RenderedHTMLCommon tbody tr:nth-child(even) { background: var(--row); }
"""
"""What JupyterLab's own style says of tables in its outputs."""

THEMES = {
    "light": "--jp-content-font-color1: rgba(0, 0, 0, .87); --jp-content-font-color2: rgba(0, 0, 0, .54);"
    " --row: #f5f5f5; background: #fff",
    "dark": "--jp-content-font-color1: #fff; --jp-content-font-color2: rgba(255, 255, 255, .7);"
    " --row: #212121; background: #111",
}


ALIGNED = """const found = [...document.querySelectorAll(arguments[0])].map((e) => getComputedStyle(e).textAlign);
return [...new Set(found)]"""


@pytest.mark.slow  # eight pages in a browser
def test_in_jupyter_light_and_dark_at_any_width(displays: dict[str, Any], tmp_path: Path) -> None:
    outputs = "".join(f'<div class="jp-RenderedHTMLCommon">{shown._repr_html_()}</div>' for shown in displays.values())
    with started() as browser:
        for theme, variables in THEMES.items():
            is_light = str(theme == "light").lower()
            path = tmp_path / f"{theme}.html"
            path.write_text(
                '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
                f"<style>body {{ {variables} }} {JUPYTER}</style>"
                f'<body data-jp-theme-light="{is_light}">{outputs}',
                encoding="utf-8",
            )
            for width in (1280, 390):
                for dark in (False, True):
                    browser.open(path, width=width, dark=dark)
                    contrasts = browser.js(CONTRAST)
                    assert len(contrasts) > 100
                    assert [found for found in contrasts if found[0] < 4.4] == []
                    assert browser.js("return document.documentElement.scrollWidth") <= width
                    assert browser.js(ALIGNED, "td.n, th.n") == ["right"]
                    assert browser.js(ALIGNED, "td:not(.n), th:not(.n)") == ["left"]
                    assert browser.js("return document.title") != "taken"
