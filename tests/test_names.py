"""Names of classes, modules, parameters and losses reach no page, formula, table, terminal or file as anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch.nn import Linear, Module, Sequential

from torch_manualbp import explain, local_gradients, nn, verify
from torch_manualbp._tables import as_markdown, print_table, write
from torch_manualbp._text import as_json, in_markdown, visible
from torch_manualbp.insight import Explanation, RunStatistics, report
from torch_manualbp.verify import Report, verify_model

NAMES = {
    "markup": '</title></script><script>x()</script><img src=x onerror="x()">\'&amp;<!--',
    "latex": r"\input{a}%$x$ \\ } { ^_ # & ~ \end{aligned} \verb|x| $$",
    "markdown": "`a` ``` | b | **c** _d_ [e](https://x) ![f](g) ~~h~~ <i> # - > 1) www x",
    "fence": "`$ ```\n```math\nx\n```",
    "newline": "a\nb\r\n| c |\n# d\u2028e\u0085f",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\x08\x00",
    "bidirectional": "a\u202egnp.exe\u2066",
    "surrogate": "a\udfffb\ud800c",
    "rich": "[red]a[/] [/b] [link=x]",
    "far": "表δ🧮 \U000e0041",
    "quotes": '"""\nimport os\n""" \'\'\' \\',
}

FORBIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_clean(text: str) -> bool:
    """Whether there is nothing in it that a terminal obeys or UTF-8 has no bytes for, besides line feeds."""
    text.encode("utf-8")
    return FORBIDDEN.search(text) is None


class Parsed(HTMLParser):
    """The elements of a page, checked to be closed in their order."""

    EMPTY = ("meta", "link", "br", "hr", "img", "input", "line", "circle", "rect", "path", "polyline", "polygon")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def check_latex(formula: str) -> None:
    """Braces are balanced, and there are no commands but those that explanations are made of."""
    commands = set(re.findall(r"\\([A-Za-z]+|.)", formula, re.DOTALL))
    assert commands <= KNOWN_COMMANDS, commands - KNOWN_COMMANDS
    rest = re.sub(r"\\([A-Za-z]+|.)", "", formula, flags=re.DOTALL)
    assert not set(rest) & set("$%#`"), rest
    depth = 0
    for c in rest:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    assert is_clean(formula)


KNOWN_COMMANDS = {
    *(
        "mathrm",
        "text",
        "frac",
        "partial",
        "delta",
        "cdot",
        "to",
        "sum",
        "lt",
        "gt",
        "vert",
        "backslash",
        "sim",
        "wedge",
    ),
    *("operatorname", "begin", "end", "\\", "_", "{", "}", "$", "#", "%", "&", " ", "left", "right", "top", "odot"),
    *("quad", "times"),
}


FORMULA = r"\$`(.*?)`\$"


def check_markdown(text: str) -> None:
    """Tables have as many cells in each row as in their head, fences and formulas end where they begin."""
    assert is_clean(text)
    lines = text.split("\n")
    in_formula = False
    columns = 0
    for i, line in enumerate(lines):
        if line.startswith("```"):
            assert line == ("```" if in_formula else "```math")
            in_formula = not in_formula
            continue
        if in_formula:
            check_latex(re.sub(r"\\(begin|end)\{aligned\}|(?<!\\) &= ", "", line).removesuffix(r" \\"))
            continue
        cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        if cells:
            assert line.startswith("| ")
            columns = columns or cells
            assert cells == columns, line
        else:
            columns = 0
            assert not line or re.match(r"#{2,3} |[^#\->+]", line), line
        for formula in re.findall(FORMULA, line):
            check_latex(formula)
        outside = re.sub(FORMULA, "", line).replace("<br>", "")
        assert not re.search(r"(?<!\\)(?:\\\\)*[`*_<>$~\[]", outside), (i, outside)
    assert not in_formula


def strict(text: str) -> Any:
    """JSON without what JSON has not."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert is_clean(text)
    return json.loads(text, parse_constant=refuse)


def named(cls: type, name: str, *args: Any) -> Any:
    """An object of a class of this name."""
    made = type(name.replace("\0", "").encode("utf-8", "replace").decode(), (cls,), {})
    return made(*args)


def model(name: str) -> Module:
    torch.manual_seed(0)
    path = name.replace(".", "")
    inner = torch.nn.ModuleDict({f"{path} 2": named(Linear, name, 4, 2)})

    class Network(Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(path, named(Linear, name, 3, 4))
            self.add_module("inner", inner)
            self.register_parameter(path + "p", torch.nn.Parameter(torch.ones(4)))

        def forward(self, x: Any) -> Any:
            h = torch.tanh(self.get_submodule(path)(x)) * getattr(self, path + "p")
            return self.get_submodule("inner")[f"{path} 2"](h)  # type: ignore[index]

    return named(Network, name)


class Loss(torch.nn.MSELoss):
    pass


def batch() -> tuple[Any, Any]:
    torch.manual_seed(1)
    return torch.randn(2, 3), torch.randn(2, 2)


def explanation(name: str, of: str = "weight") -> Explanation:
    path = name.replace(".", "")
    weight = {"weight": f"{path}.weight", "own": path + "p"}[of]
    return explain(model(name), named(Loss, name), *batch(), weight, (0, 0) if of == "weight" else 0)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("of", ["weight", "own"])
def test_an_explanation_in_all_its_forms(name: str, of: str) -> None:
    e = explanation(name, of)
    assert is_clean(str(e))
    assert is_clean(repr(e))
    check_markdown(e.to_markdown())
    dollars = e.to_markdown(dollars=True)
    assert is_clean(dollars)
    assert dollars.count("\n$$\n") % 2 == 0
    assert strict(e.to_json()) == e.as_dict()
    for page in (e.to_html(), e.to_html(page=False)):
        assert is_clean(page)
        parsed = Parsed(page)
        assert not parsed.tags & {"script", "img", "i"}
        assert "onerror" not in parsed.attributes
    assert visible(name.replace(".", "")) in "".join(Parsed(e.to_html()).said)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_page(name: str, tmp_path: Any) -> None:
    network = Sequential()
    network.add_module(name.replace(".", ""), named(Linear, name, 3, 2))
    history = [{"step": i, "layers": {name: {"delta_norm": 1.0, name: float("nan")}}} for i in range(3)]
    page = report(network, named(Loss, name), *batch(), tmp_path / "page.html", title=name, history=history)
    text = page.read_text("utf-8")
    parsed = Parsed(text)
    assert "onerror" not in parsed.attributes
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    strict(data[1].strip())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_records_and_reports(name: str) -> None:
    network = model(name)
    with local_gradients(network) as record:
        Loss()(network(batch()[0]), batch()[1]).backward()
    assert is_clean(str(record))
    assert len(str(record).split("\n")) == 1 + len(record)
    assert all(is_clean(repr(layer)) for layer in record.values())
    of_model = verify_model(network, *batch(), named(Loss, name))
    of_layer = verify(named(nn.Linear, name, 3, 2), torch.randn(2, 3), checks=["structure"])
    for found in (of_model, of_layer):
        assert found.ok, found
        assert is_clean(str(found))
        assert all(is_clean(str(row)) and "\n" not in str(row) for row in found.rows)
        assert strict(found.to_json()) == found.as_dict()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_tables(name: str, capsys: Any) -> None:
    print_table(name, ["layer", name], [[name, "1"], ["b", name]])
    out = capsys.readouterr().out
    assert is_clean(out)
    assert visible(name) in out
    assert as_markdown(["a", "b"], [[name, name]]).count("\n") == 3


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_words_come_back_from_json_and_are_on_one_line(name: str) -> None:
    assert strict(as_json({name: [name, 1.5, None, True]})) == {name: [name, 1.5, None, True]}
    assert is_clean(visible(name))
    assert "\n" not in in_markdown(name)


def of_explanation(value: float) -> str:
    network = Sequential(Linear(3, 2), torch.nn.Tanh(), Linear(2, 1)).double()
    x, y = torch.ones(2, 3).double(), torch.full((2, 1), value, dtype=torch.float64)
    if value == 1e308:  # whose square is infinite
        y = y * 10
    return explain(network, torch.nn.MSELoss(), x, y, "0.weight", (0, 0)).to_json()


def of_report(value: float) -> str:
    def times(x: torch.Tensor) -> torch.Tensor:
        return x * value

    return verify(times, torch.ones(3)).to_json()


def of_row(value: float) -> str:
    from torch_manualbp.verify.report import Row

    return Report("f", (Row("x", "c", "fails", error_ulps=value, torch_ulps=-value),)).to_json()


@pytest.mark.parametrize("make", [of_explanation, of_report, of_row])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308])
def test_numbers_that_are_not_finite_are_words_in_json(make: Callable[[float], str], value: float) -> None:
    text = make(value)
    strict(text)
    if make is not of_report:
        assert re.search(r'"(nan|inf)"', text) or value == 1e308


def test_files_have_words_for_them_too(tmp_path: Any) -> None:
    statistics = RunStatistics(network := Linear(2, 1), every=1)
    with statistics.step():
        (network(torch.full((2, 2), float("inf"))) * 0).sum().backward()
    write(tmp_path / "run.json", {"history": statistics.history})
    (entry,) = strict((tmp_path / "run.json").read_text())["history"]
    assert entry["layers"][""]["grad_norm"] == "nan"
    report(Linear(2, 1), Loss(), torch.ones(1, 2), torch.ones(1, 1), tmp_path / "page.html", history=[entry])
