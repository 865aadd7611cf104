"""The report page in Chromium: the article's numbers read out of it, and what is done by mouse and keyboard."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from attention_pages import attention_report
from browser import CONTRAST, Browser, started

from torch_manualbp import explain, nn
from torch_manualbp.insight import report
from torch_manualbp.insight.statistics import STATISTICS

TAB, ENTER, SPACE = "\ue004", "\ue007", " "
LEFT, UP, RIGHT, DOWN, END, HOME = "\ue012", "\ue013", "\ue014", "\ue015", "\ue010", "\ue011"

FACTORS = "[...document.querySelectorAll('#panel .factor > td[data-value]')].map((t) => Number(t.dataset.value))"
AGREES = "return document.querySelector('[data-agrees]').dataset.agrees"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def article_page(article: ModuleType, folder: Path) -> Path:
    return Path(article.write_page(folder / "article.html"))


def small(*sizes: int, activation: type[torch.nn.Module] = nn.Tanh) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i, n in enumerate(sizes[1:]):
        layers += [nn.Linear(sizes[i], n), activation()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def samples_page(folder: Path) -> Path:
    torch.manual_seed(1)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    return report(small(3, 4, 2).double(), nn.MSELoss(), x, y, folder / "samples.html", samples=3)


@pytest.fixture(scope="module")
def crowded_page(folder: Path) -> Path:
    torch.manual_seed(1)
    model = small(64, 64, 48, 24, activation=nn.ReLU)
    loss, y = nn.CrossEntropyLoss(), torch.randint(24, (16,))
    return report(
        model, loss, torch.randn(16, 64), y, folder / "crowded.html", optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )


HISTORY: list[dict[str, Any]] = [
    {
        "step": 10 * i,
        "loss": 2.0 / i,
        "noise_scale": None if i == 1 else 30.0,
        "layers": {
            "first": {"delta_norm": 1e-6 * i, "dead": 0.5, "my own": 3.0},
            "second": {"delta_norm": 2e-3, "dead": None, "my own": math.inf},
            "third": {"delta_norm": math.nan, "dead": 0.25, "my own": -1.0},
            "fourth": {"delta_norm": 1e-9, "dead": 0.0, "my own": 10.0},
        },
    }
    for i in range(1, 6)
]


@pytest.fixture(scope="module")
def large_page(folder: Path) -> Path:
    torch.manual_seed(1)
    model = small(300, 40, 10)
    x, y = torch.randn(8, 300), torch.randint(10, (8,))
    return report(model, nn.CrossEntropyLoss(), x, y, folder / "large.html", history=HISTORY, verification=True)


@pytest.fixture(scope="module")
def attention_page(folder: Path) -> Path:
    torch.manual_seed(1)
    return attention_report(folder / "attention.html")[0]


@pytest.fixture(params=["article_page", "samples_page", "crowded_page", "large_page", "attention_page"])
def any_page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def digits(value: float) -> str:
    """As the page shows it."""
    mantissa, _, power = f"{value:.10g}".replace("-", "−").partition("e")
    raised = power.translate(str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+"))
    return mantissa + "·10" + re.sub("^(⁻?)⁰+", r"\1", raised) if power else mantissa


def flat(t: torch.Tensor) -> list[float]:
    numbers: list[float] = t.flatten().tolist()
    return numbers


def go_to(browser: Browser, step: int) -> None:
    browser.js(
        "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))", step
    )


def choose(browser: Browser, id: str) -> None:
    browser.js(
        f"document.querySelector('[data-id=\"{id}\"]').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
    )


def open_at_the_end(browser: Browser, path: Path, **window: Any) -> None:
    """At the first step at which all of the pass is known, the article's own weight chosen."""
    browser.open(path, **window)
    go_to(browser, int(browser.find("#slider").get_attribute("max")) - 2)
    if browser.js("return document.querySelector('[data-id=e-2-1-1]') !== null"):
        choose(browser, "e-2-1-1")


def titles(browser: Browser) -> list[str]:
    """Of all steps."""
    found = []
    for step in range(int(browser.find("#slider").get_attribute("max")) + 1):
        go_to(browser, step)
        found.append(browser.text("#step-title"))
    return found


# The article's numbers


@pytest.mark.parametrize(
    ("title", "of", "name"),
    [
        ("Forward to layer 2: z⁽²⁾ and a⁽²⁾", "z", "z2"),
        ("Forward to layer 2: z⁽²⁾ and a⁽²⁾", "a", "a2"),
        ("Forward to layer 3: z⁽³⁾ and a⁽³⁾", "z", "z3"),
        ("Forward to layer 3: z⁽³⁾ and a⁽³⁾", "a", "a3"),
        ("Forward to layer 4: s", "z", "s"),
        ("The cost", "C", "C"),
        ("The local gradient of layer 3: δ⁽³⁾", "delta", "delta3"),
        ("The local gradient of layer 2: δ⁽²⁾", "delta", "delta2"),
        ("The gradients of W⁽³⁾", "dW", "dW3"),
        ("The gradients of W⁽²⁾ and b⁽²⁾", "dW", "dW2"),
        ("The gradients of W⁽²⁾ and b⁽²⁾", "db", "db2"),
        ("The gradients of W⁽¹⁾ and b⁽¹⁾", "dW", "dW1"),
        ("The gradients of W⁽¹⁾ and b⁽¹⁾", "db", "db1"),
    ],
)
def test_every_number_of_the_article_is_shown_at_its_step(
    title: str, of: str, name: str, browser: Browser, article_page: Path, article: ModuleType
) -> None:
    browser.open(article_page)
    go_to(browser, titles(browser).index(title))
    assert browser.text("#step-title") == title
    assert browser.texts(f"#step-numbers [data-of={of}] dd") == [digits(v) for v in article.KNOWN[name]]


def test_every_weight_has_its_chain(browser: Browser, article_page: Path, article: ModuleType) -> None:
    open_at_the_end(browser, article_page)
    count = 0
    for c, (W, dW) in enumerate(zip(("W1", "W2", "W3"), ("dW1", "dW2", "dW3"), strict=True), 1):
        weights = getattr(article.NETWORK, W)
        for i, known in enumerate(article.KNOWN[dW]):
            j, k = divmod(i, weights.shape[1])
            choose(browser, f"e-{c}-{j}-{k}")
            assert browser.text("#chain [data-value]") == digits(weights[j, k].item())
            numbers = browser.js(f"return {FACTORS}")
            assert len(numbers) == (2 if c == 3 else 3)
            assert math.prod(numbers) == pytest.approx(known, rel=1e-11)
            assert browser.text("#panel .product td") == digits(known)
            assert browser.text("#panel .autograd td") == digits(known)
            assert browser.js(AGREES) == "true"
            label = browser.js(f"return document.querySelector('[data-id=e-{c}-{j}-{k}]').getAttribute('aria-label')")
            assert f"= {known:.6g}".replace("-", "−") in label
            count += 1
    assert count == 14


def test_the_worked_example_is_what_the_step_of_its_layer_shows(browser: Browser, article_page: Path) -> None:
    """Row A11: ∂C/∂w_22⁽²⁾ = ∂C/∂a_2⁽³⁾ · f'(z_2⁽³⁾) · a_2⁽²⁾."""
    browser.open(article_page)
    go_to(browser, titles(browser).index("The gradients of W⁽²⁾ and b⁽²⁾"))
    assert browser.texts("#panel .factor > td[data-value]") == ["2.17460218", "0.2324455454", "0.4501660027"]
    assert browser.text("#panel .factor + tr .term td") == "−2.416224644 · (−0.9) =2.17460218"
    assert browser.text("#panel .product td") == browser.text("#panel .autograd td") == "0.2275483758"
    assert "rounding" in browser.text("[data-agrees]") or "digit by digit" in browser.text("[data-agrees]")


def test_every_neuron_shows_its_sums(browser: Browser, article_page: Path, article: ModuleType) -> None:
    open_at_the_end(browser, article_page)
    known = article.KNOWN
    for c in (1, 2):
        for j in range(2):
            choose(browser, f"n-{c}-{j}")
            shown = browser.texts("#panel > .scroll > table > tbody > tr > td[data-value]")
            assert digits(known[f"z{c + 1}"][j]) in shown
            assert digits(known[f"a{c + 1}"][j]) in shown
            assert shown.count(digits(known[f"delta{c + 1}"][j])) >= 1
            assert digits(known[f"db{c}"][j]) in shown
            terms = browser.js(
                "return [...document.querySelectorAll('#panel .terms')][0].querySelectorAll('.term td').length"
            )
            assert terms == (4, 2)[c - 1] + 1  # the bias is a term, too
    choose(browser, "n-3-0")
    assert "−0.2081123221" in browser.texts("#panel td[data-value]")
    choose(browser, "cost")
    assert "1.459535383" in browser.texts("#panel td[data-value]")


def test_the_update_is_the_optimizers_own(browser: Browser, article_page: Path, article: ModuleType) -> None:
    browser.open(article_page)
    go_to(browser, titles(browser).index("The update"))
    entries = browser.js(
        "return [...document.querySelectorAll('#step-numbers [data-of=update]')]"
        ".map((e) => [...e.querySelectorAll('dd')].map((d) => Number(d.dataset.value)))"
    )
    network, known = article.NETWORK, article.KNOWN
    names = ("W1", "b1", "W2", "b2", "W3")
    befores = [v for name in names for v in getattr(network, name).flatten().tolist()]
    gradients = [v for name in names for v in known[f"d{name}"]]
    assert [before for before, _ in entries] == befores
    assert [after for _, after in entries] == pytest.approx(
        [w - 0.1 * g for w, g in zip(befores, gradients, strict=True)], rel=1e-10
    )
    choose(browser, "e-2-1-1")
    assert browser.text("#panel .before td") == "0.6"
    assert browser.text("#panel .after td") == digits(0.6 - 0.1 * known["dW2"][3])
    go_to(browser, 14)
    before, after = browser.js(
        "return ['C', 'after']"
        ".map((k) => Number(document.querySelector(`#step-numbers [data-of=${k}] dd`).dataset.value))"
    )
    assert before == pytest.approx(known["C"][0])
    n = article.forward_and_back(
        article.X,
        article.Y,
        article.Network(
            *(
                w - 0.1 * getattr(article.forward_and_back(article.X, article.Y, network), f"d{name}")
                for name, w in zip(names, network, strict=True)
            )
        ),
    )
    assert after == pytest.approx(n.C.item(), rel=1e-12)


# The slider


def test_the_formulas_are_those_of_rows_of_samples(browser: Browser, article_page: Path, folder: Path) -> None:
    """z = a Wᵀ + b on the way there as ∂C/∂a = δ W and ∂C/∂W = δᵀ a on the way back."""

    def formulas() -> list[str]:
        found = []
        for step in range(int(browser.find("#slider").get_attribute("max")) + 1):
            go_to(browser, step)
            found += browser.texts("#step-formulas math")
        return found

    browser.open(article_page)
    assert formulas() == [
        "z(2)=x(W(1))T+b(1)", "a(2)=f(z(2))", "z(3)=a(2)(W(2))T+b(2)", "a(3)=f(z(3))", "s=a(3)(W(3))T", "C=(s−y)2",
        "δ(4)=∂C∂s", "∂C∂W(3)=(δ(4))Ta(3)", "∂C∂a(3)=δ(4)W(3)", "δ(3)=∂C∂a(3)⊙f′(z(3))", "∂C∂W(2)=(δ(3))Ta(2)",
        "∂C∂b(2)=∑samplesδ(3)", "∂C∂a(2)=δ(3)W(2)", "δ(2)=∂C∂a(2)⊙f′(z(2))", "∂C∂W(1)=(δ(2))Tx",
        "∂C∂b(1)=∑samplesδ(2)", "w≔w−ε∂C∂w",
    ]  # fmt: skip
    model = torch.nn.Sequential(nn.Linear(2, 2), torch.nn.Softmax(-1))
    browser.open(report(model, nn.MSELoss(), torch.randn(1, 2), torch.randn(1, 2), folder / "softmax.html"))
    assert "δ(2)=∂C∂a(2)J" in formulas()


def test_only_what_is_known_is_shown(browser: Browser, article_page: Path, article: ModuleType) -> None:
    browser.open(article_page)
    everything = titles(browser)
    assert len(everything) == 15

    def in_drawing() -> list[str]:
        return [text for text in browser.texts(".drawing .value > tspan:last-child, .drawing .label") if text]

    go_to(browser, 0)
    assert browser.text("#step-title") == "One step of training, number by number"
    assert sorted(in_drawing()) == sorted(
        [*map(digits, [*flat(article.X), *(w for W in article.NETWORK if W.dim() == 2 for w in flat(W))]), "y 1"]
    )
    assert browser.texts("#panel td[data-value]") == ["0.5"]  # x itself
    assert browser.texts("#panel td.from .goto") == ["step 11", "step 12", "step 13"]
    assert "0.5429277547" not in browser.text("#panel")
    counts = []
    for step in range(len(everything)):
        go_to(browser, step)
        counts.append(len(in_drawing()))
    assert counts[:13] == sorted(counts[:13])
    go_to(browser, everything.index("The local gradient of layer 3: δ⁽³⁾"))
    deltas = {0: "", 1: "", 2: "−0.4224", 3: "−2.416"}
    for c, shown in deltas.items():
        last = browser.js(
            f"return [...document.querySelectorAll('[data-id=n-{c}-0] .value')].at(-1).lastChild.textContent"
        )
        assert c == 0 or last == shown


def test_what_is_not_yet_known_leads_to_its_step(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    go_to(browser, 0)
    choose(browser, "e-2-1-1")
    first = browser.find("#panel td.from .goto")
    assert first.text == "step 8"
    first.click()
    assert browser.text("#step-title") == "Back to layer 3: ∂C/∂a⁽³⁾"
    assert browser.js("return document.activeElement.id") == "panel"
    assert browser.texts("#panel .factor > td[data-value]") == ["2.17460218", "0.4501660027"]


def test_the_slider_goes_by_keyboard_and_is_announced(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    browser.js("document.getElementById('slider').focus()")
    browser.keys(HOME)
    slider = browser.find("#slider")
    assert slider.get_attribute("value") == "0"
    browser.keys(RIGHT)
    assert slider.get_attribute("aria-valuetext") == "2 of 15, forward: Forward to layer 2: z⁽²⁾ and a⁽²⁾"
    numbers = "0.6, −0.2, 0.6456563062, 0.4501660027"
    assert browser.text("#live") == numbers  # the slider says the rest
    browser.find("#previous").click()
    browser.find("#next").click()
    assert browser.text("#live") == f"Step 2 of 15, forward. Forward to layer 2: z⁽²⁾ and a⁽²⁾. {numbers}"
    browser.js("document.getElementById('slider').focus()")
    assert browser.js("return document.getElementById('live').getAttribute('aria-live')") == "polite"
    browser.keys(END)
    assert browser.text("#step-title") == "The cost again"
    assert not browser.find("#next").is_enabled()
    browser.find("#previous").click()
    assert browser.text("#step-title") == "The update"
    browser.find("[data-phase=cost]").click()
    assert browser.text("#step-title") == "The cost"
    assert browser.js("return document.querySelector('[aria-current=step]').textContent") == "cost"


# The drawing by mouse and keyboard


def test_a_click_on_an_edge_opens_its_chain(browser: Browser, article_page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(article_page)
    line = browser.find("[data-id=e-1-0-0] .line")
    width, height = line.size["width"], line.size["height"]
    # A quarter of the way, where no other line crosses.
    ActionChains(browser.driver).move_to_element_with_offset(line, int(-width / 4), int(-height / 4)).click().perform()
    assert browser.text("#chain [data-value]") == "0.1"
    assert "chosen" in browser.find("[data-id=e-1-0-0]").get_attribute("class")
    assert "onpath" in browser.find("[data-id=e-2-1-0]").get_attribute("class")
    assert browser.text("#live").startswith("Opened below: Weight from x₁ to z₁⁽²⁾: w₁₁⁽¹⁾ = 0.1")


def test_the_drawing_is_walked_by_keyboard(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    go_to(browser, 9)
    browser.js("document.getElementById('drawing').focus()")
    browser.keys(TAB)
    focused = "return document.activeElement.dataset.id"
    assert browser.js(focused) == "e-2-1-1"
    for key, id in [
        (RIGHT, "n-2-1"), (UP, "n-2-0"), (LEFT, "e-2-0-0"), (DOWN, "e-2-0-1"), (LEFT, "n-1-1"), (END, "cost"),
        (LEFT, "n-3-0"), (LEFT, "e-3-0-0"), (DOWN, "e-3-0-1"), (DOWN, "e-3-0-1"), (HOME, "n-0-0"), (LEFT, "n-0-0"),
        (RIGHT, "e-1-0-0"),
    ]:  # fmt: skip
        browser.keys(key)
        assert browser.js(focused) == id
    assert browser.text("#readout").startswith("Weight from x₁ to z₁⁽²⁾")
    browser.keys(ENTER)
    assert browser.text("#chain [data-value]") == "0.1"
    browser.keys(DOWN, SPACE)
    assert browser.text("#chain [data-value]") == "−0.2"
    assert browser.js("return document.querySelectorAll('.drawing [tabindex=\"0\"]').length") == 1
    shown = browser.js("return getComputedStyle(document.activeElement.querySelector('.hit')).stroke")
    assert shown not in ("none", "rgba(0, 0, 0, 0)", "transparent")


def test_a_weight_is_chosen_from_lists(browser: Browser, article_page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    open_at_the_end(browser, article_page)
    Select(browser.find("#choose-layer")).select_by_visible_text("W⁽¹⁾")
    Select(browser.find("#choose-from")).select_by_visible_text("x₄")
    Select(browser.find("#choose-to")).select_by_visible_text("z₁⁽²⁾")
    assert browser.text("#chain [data-value]") == "0.4"
    assert browser.text("#panel .product td") == "0.05766040748"


# Several samples


def test_the_numbers_of_a_weight_are_those_that_explain_prints(browser: Browser, samples_page: Path) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    model = small(3, 4, 2).double()
    open_at_the_end(browser, samples_page)
    for layer, name, index in ((1, "0.weight", (3, 1)), (2, "2.weight", (1, 2))):
        choose(browser, f"e-{layer}-{index[0]}-{index[1]}")
        e = explain(model, nn.MSELoss(), x, y, name, index, samples=5)
        factors = [factor.value for factor in e.samples[0].factors]
        assert browser.js(f"return {FACTORS}") == pytest.approx(factors, rel=1e-14)
        rows = browser.js(
            "return [...document.querySelectorAll('.terms:has(caption) tbody td')].map((t) => Number(t.dataset.value))"
        )
        assert rows[:3] == pytest.approx(e.products[:3].tolist(), rel=1e-14)
        assert rows[4] == pytest.approx(e.value, rel=1e-14)


def test_the_gradient_is_the_sum_over_samples(browser: Browser, samples_page: Path) -> None:
    from selenium.webdriver.support.ui import Select

    open_at_the_end(browser, samples_page)
    products = []
    for sample in range(3):
        Select(browser.find("#sample")).select_by_index(sample)
        products.append(math.prod(browser.js(f"return {FACTORS}")))
        assert browser.text(".terms [aria-current] th") == f"sample {sample + 1}"
    rows = browser.js(
        "return [...document.querySelectorAll('.terms:has(caption) tbody td')].map((t) => Number(t.dataset.value))"
    )
    assert rows[:3] == pytest.approx(products)
    assert browser.texts(".terms:has(caption) th")[3] == "the other 2"
    assert sum(rows[:4]) == pytest.approx(rows[4])
    autograd = browser.js("return Number(document.querySelector('#panel .autograd td').dataset.value)")
    assert rows[4] == pytest.approx(autograd, rel=1e-12)
    assert browser.js(AGREES) == "true"


@pytest.mark.parametrize(
    "name", ["ReLU", "ELU", "GELU", "SiLU", "Softplus", "Hardtanh", "LeakyReLU", "Softmax", "PReLU"]
)
def test_the_product_is_autograds_for_every_edge(name: str, browser: Browser, folder: Path) -> None:
    torch.manual_seed(2)
    f = torch.nn.Softmax(-1) if name == "Softmax" else getattr(nn, name)()
    model = torch.nn.Sequential(nn.Linear(3, 4), f, nn.Linear(4, 2), f).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    path = report(model, torch.nn.SmoothL1Loss(), x, y, folder / f"{name}.html")
    open_at_the_end(browser, path)
    for c, rows, columns in ((1, 4, 3), (2, 2, 4)):
        for j in range(rows):
            for k in range(columns):
                choose(browser, f"e-{c}-{j}-{k}")
                total, autograd = browser.js(
                    "return ['.sum', '.autograd']"
                    ".map((s) => Number(document.querySelector(`#panel ${s} td`).dataset.value))"
                )
                assert total == pytest.approx(autograd, rel=1e-10, abs=1e-15)
                assert browser.js(AGREES) == "true"
    assert browser.complaints() == []


def test_a_wrong_number_is_called_wrong(browser: Browser, article_page: Path, folder: Path) -> None:
    html = article_page.read_text()
    by_autograd = re.search(r'"autoW":\[\[[^]]*\],\[[^,]*,([^]]*)\]\]', html[html.index('"path":"2"') :])
    assert by_autograd is not None
    number = by_autograd[1]
    path = folder / "planted.html"
    at = html.index(by_autograd[0])
    path.write_text(
        html[:at]
        + html[at:]
        .replace(number, str(float(number) * (1 + 1e-9)), 1)
        .replace(by_autograd[0], by_autograd[0].replace(number, str(float(number) * (1 + 1e-9))))
    )
    open_at_the_end(browser, path)
    choose(browser, "e-2-1-1")
    assert browser.js(AGREES) == "false"
    assert "another number" in browser.text("[data-agrees]")


def test_half_precision_does_not_excuse_a_wrong_number(browser: Browser, folder: Path) -> None:
    torch.manual_seed(0)
    model = small(2, 2, 1).bfloat16()
    path = report(model, nn.MSELoss(), torch.randn(1, 2).bfloat16(), torch.ones(1, 1).bfloat16(), folder / "half.html")
    open_at_the_end(browser, path)
    choose(browser, "e-1-0-0")
    assert browser.js(AGREES) == "true"
    html = path.read_text("utf-8")
    planted = re.sub(r'"autoW":\[\[([^,]*),', lambda m: m[0].replace(m[1], str(2 * float(m[1]))), html, count=1)
    path.write_text(planted, "utf-8")
    open_at_the_end(browser, path)
    choose(browser, "e-1-0-0")
    assert browser.js(AGREES) == "false"


def test_the_sum_that_is_shown_is_compared(browser: Browser, folder: Path) -> None:
    """0 · ∞ is NaN in a product, where the rule of ReLU has 0."""
    first, last = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    model = torch.nn.Sequential(first, nn.ReLU(), last).double()
    first.weight.data[:] = torch.tensor([[1.0], [-1.0]])
    last.weight.data.fill_(1e200)
    x = torch.full((2, 1), 1e200, dtype=torch.float64)
    open_at_the_end(browser, report(model, nn.MSELoss(), x, x, folder / "beyond.html"))
    choose(browser, "e-1-1-0")
    assert (browser.text("#panel .sum td"), browser.text("#panel .autograd td")) == ("NaN", "0")
    assert browser.text("[data-agrees]") == "✗ another number: not all that is multiplied is finite"


def test_terms_that_cancel_in_samples_that_are_not_shown(browser: Browser, folder: Path) -> None:
    """Of a sum near 0, what is rounding depends on its terms, not on the few that are in the page."""
    x = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    model = small(1, 1).double()
    path = report(model, nn.MSELoss(), x, x, folder / "cancel.html", samples=1)
    html = path.read_text("utf-8")
    for name, number in (("W", 3e-17), ("b", 2e-17)):
        html = re.sub(rf'"d{name}":(\[+)[^]]*', rf'"d{name}":\g<1>{number}', html)
        html = re.sub(rf'"auto{name}":(\[+)[^]]*', rf'"auto{name}":\g<1>{-number}', html)
    path.write_text(html, "utf-8")
    open_at_the_end(browser, path)
    assert browser.text("#panel .autograd td") == "−3·10⁻¹⁷"
    assert browser.js(AGREES) == "true"
    choose(browser, "n-1-0")
    assert browser.text("#panel .autograd td") == "−2·10⁻¹⁷"
    assert browser.js(AGREES) == "true"


def test_what_a_step_is_about_moves_into_view(browser: Browser, folder: Path) -> None:
    torch.manual_seed(0)
    model = small(*[3] * 14)
    browser.open(report(model, nn.MSELoss(), torch.randn(1, 3), torch.randn(1, 3), folder / "deep.html"), width=360)
    for step, id in ((1, "n-1-0"), (9, "n-9-0"), (13, "n-13-0"), (14, "cost"), (15, "n-13-0"), (0, "n-0-0")):
        go_to(browser, step)
        inside = browser.js(
            "const [a, b] = [arguments[0], '#drawing'].map((s) => document.querySelector(s).getBoundingClientRect());"
            "return a.left >= b.left && a.right <= b.right",
            f"[data-id={id}] circle",
        )
        assert inside, (step, id)


# The large network


def column(browser: Browser, i: int, table: str = "layers") -> list[str]:
    return browser.texts(f"#{table} tbody tr > :nth-child({i + 1})")


def test_the_layers_sort_by_any_column(browser: Browser, large_page: Path) -> None:
    browser.open(large_page)
    assert column(browser, 0) == ["first", "second", "third", "fourth"]
    heads = browser.texts("#layers thead th")
    assert heads == ["layer", "‖δ‖", "dead", "my own"]
    button = browser.find("#layers th:nth-child(2) button")
    button.click()
    assert column(browser, 0) == ["fourth", "first", "second", "third"]  # NaN at the end
    assert browser.js("return [...document.querySelectorAll('#layers th[aria-sort]')].map((t) => t.ariaSort)") == [
        "none", "ascending", "none", "none",
    ]  # fmt: skip
    button.send_keys(ENTER)
    assert column(browser, 0) == ["second", "first", "fourth", "third"]
    assert browser.text("#live") == "Sorted by ‖δ‖, descending"
    browser.find("#layers th:nth-child(3) button").send_keys(SPACE)
    assert column(browser, 2) == ["0", "0.25", "0.5", "–"]
    browser.find("#layers th:nth-child(4) button").click()
    assert column(browser, 3) == ["−1", "3", "10", "∞"]
    browser.find("#layers th:nth-child(4) button").click()
    assert column(browser, 3) == ["∞", "10", "3", "−1"]
    browser.find("#layers th:nth-child(1) button").click()
    assert column(browser, 0) == ["first", "second", "third", "fourth"]
    browser.find("#verification th:nth-child(1) button").click()
    checks = column(browser, 0, "verification")
    assert checks == sorted(checks)
    assert len(browser.texts(".by-layer")) == 2  # δ, and dead units
    assert len(browser.js("return [...document.querySelectorAll('.by-step polyline')]")) > 3
    assert len(browser.js("return [...document.querySelectorAll('#layers .spark')]")) == 9  # of changing finite numbers


# Any page


def test_any_page_is_quiet_and_asks_for_nothing(browser: Browser, any_page: Path) -> None:
    browser.complaints()
    browser.open(any_page)
    assert browser.js("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    if browser.js("return !!document.getElementById('slider')"):
        titles(browser)
    assert browser.complaints() == []
    html = any_page.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<>]+", html)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|<img|<iframe| src=", html)


@pytest.mark.parametrize("dark", [False, True])
def test_any_page_fits_a_narrow_window(browser: Browser, any_page: Path, dark: bool) -> None:
    browser.open(any_page, width=360, dark=dark)
    wide = """return [...document.querySelectorAll("body *")].filter((e) => {
      const r = e.getBoundingClientRect();
      const scrolls = e.closest(".scroll, .drawing, .vectors, .terms, .formula, .skip, .hidden, svg");
      return r.right > innerWidth + 1 && !scrolls;
    }).map((e) => e.outerHTML.slice(0, 80))"""
    assert browser.js(wide) == []
    assert browser.js("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert (
        browser.js(
            "return [...document.querySelectorAll('button, select')]"
            ".filter((b) => b.offsetHeight && b.offsetHeight < 24).length"
        )
        == 0
    )


@pytest.mark.parametrize("dark", [False, True])
def test_any_page_is_easy_to_read(browser: Browser, any_page: Path, dark: bool) -> None:
    browser.open(any_page, dark=dark)
    browser.js("for (const d of document.querySelectorAll('details')) d.open = true")
    luminance = browser.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(luminance) < 50 if dark else min(luminance) > 240
    texts = browser.js(CONTRAST)
    assert len(texts) > 50
    assert [entry for entry in texts if entry[0] < 4.5] == []
    assert browser.find("#theme").text == ("Light" if dark else "Dark")
    browser.find("#theme").click()
    assert [entry for entry in browser.js(CONTRAST) if entry[0] < 4.5] == []
    after = browser.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert min(after) > 240 if dark else max(after) < 50


def test_everything_is_reached_by_tab(browser: Browser, any_page: Path) -> None:
    browser.open(any_page)
    order: list[tuple[Any, ...]] = []
    for _ in range(200):
        browser.keys(TAB)
        here = browser.js(
            """const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
            const name = e.id || e.dataset.id || e.dataset.phase || e.textContent.trim().slice(0, 30);
            return e === document.body ? null : [name,
              s.outlineStyle !== "none" || e.closest("svg") !== null, r.width > 0 || r.height > 0]"""
        )
        if here is None or (order and tuple(here) == order[0]):
            break
        order.append(tuple(here))
    names = [name for name, _, _ in order]
    assert names[0] == "Skip to the content"
    assert names[1] == "theme"
    assert all(is_shown for _, is_shown, _ in order), order
    assert all(has_size for _, _, has_size in order), order
    wanted = browser.js(
        """return [...document.querySelectorAll("a, button:enabled, select, input:not([type=radio]), summary")]
        .filter((e) => e.checkVisibility())
        .map((e) => e.id || e.dataset.id || e.dataset.phase || e.textContent.trim().slice(0, 30))"""
    )
    assert [name for name in wanted if name not in names] == []
    order_on_page = [name for name in names if name in wanted]
    assert order_on_page == sorted(order_on_page, key=wanted.index)


def test_the_skip_link_leads_to_the_content(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    browser.keys(TAB, ENTER)
    assert browser.js("return document.activeElement.id") == "content"


def test_nothing_moves_for_those_who_ask_for_it(browser: Browser, article_page: Path) -> None:
    moves = "return getComputedStyle(document.querySelector('.edge .line')).transitionDuration"
    browser.open(article_page, reduced_motion=True)
    assert browser.js(moves) == "0s"
    browser.open(article_page, reduced_motion=False)
    assert browser.js(moves) != "0s"


def test_without_javascript_the_numbers_are_there(browser: Browser, article_page: Path, article: ModuleType) -> None:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(article_page)
        body = browser.find("body").text
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert "need JavaScript, which is off" in body
    assert "Next →" not in body
    for numbers in article.KNOWN.values():
        for number in numbers:
            assert digits(number) in body
    assert "Layer 3: Sigmoid, module 2" in body
    for name in ("∂C/∂x", "∂C/∂a⁽³⁾", "f'(z⁽³⁾)", "δ⁽⁴⁾ = ∂C/∂s", "The target y"):
        assert name in body
    assert "z⁽⁴⁾" not in body  # it is called s


def test_it_prints_all(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.js("return [...document.querySelectorAll('details')].every((d) => d.open)")
        assert not browser.find("#slider").is_displayed()
        assert browser.find("#panel").is_displayed()
    finally:
        browser.cdp("Emulation.setEmulatedMedia", media="")


def test_a_large_page_prints_whole(browser: Browser, folder: Path) -> None:
    layers = {f"blocks.{i}.fc": dict.fromkeys(STATISTICS, 1.234e-5) for i in range(3)}
    history = [{"step": i, "layers": layers} for i in (1, 2)]
    x, y = torch.randn(2, 300), torch.randn(2, 1)
    browser.open(report(small(300, 1), nn.MSELoss(), x, y, folder / "print.html", history=history), width=718)
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.js("return document.documentElement.scrollWidth") <= 718  # A4 between its margins
        assert not browser.find("#theme").is_displayed()
    finally:
        browser.cdp("Emulation.setEmulatedMedia", media="")


def test_colours_that_mean_something_stay_when_colours_are_forced(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    for kind in ("plus", "minus"):
        colours = browser.js(
            "const of = (s) => getComputedStyle(document.querySelector(s));"
            "return [of(`.legend .${arguments[0]}`).backgroundColor, of(`.edge.${arguments[0]} .line`).stroke]",
            kind,
        )
        assert colours[0] == colours[1]


def test_a_long_name_leaves_room_for_the_numbers(browser: Browser, folder: Path) -> None:
    history = [{"step": 1, "layers": {"encoder_block_" * 30: dict.fromkeys(STATISTICS, 1.0)}}]
    model, x, y = small(2, 1), torch.randn(1, 2), torch.randn(1, 1)
    path = report(model, nn.MSELoss(), x, y, folder / "long.html", history=history)
    for width in (1280, 360):
        browser.open(path, width=width)
        assert browser.js("return document.querySelector('#layers td').offsetLeft") < 0.5 * width


HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'\"&amp;"


def test_names_are_only_names(browser: Browser, folder: Path) -> None:
    class Loss(nn.MSELoss):
        pass

    Loss.__name__ = HOSTILE
    name = HOSTILE.replace(".", "·")
    model = torch.nn.Sequential()
    model.add_module(name, nn.Linear(2, 2))
    model.add_module("f", nn.Tanh())
    model.add_module(f"2{name}", nn.Linear(2, 1))
    path = report(model, Loss(), torch.randn(1, 2), torch.randn(1, 1), folder / "hostile.html", title=HOSTILE)
    browser.complaints()
    browser.open(path)
    titles(browser)
    choose(browser, "n-1-0")
    assert name in browser.text("#panel")
    choose(browser, "cost")
    assert HOSTILE in browser.text("#panel")
    assert browser.js("return document.title") == HOSTILE
    assert browser.text("h1") == HOSTILE
    assert browser.complaints() == []
    layers = [{"step": 1, "layers": {HOSTILE: {HOSTILE: 1.0, "delta_norm": 1.0}}}]
    big = small(150, 60, 1)
    path = report(big, nn.MSELoss(), torch.randn(1, 150), torch.randn(1, 1), folder / "hostile2.html", history=layers)
    browser.open(path)
    assert column(browser, 0) == [HOSTILE]
    assert HOSTILE in browser.texts("#layers thead th")
    assert browser.js("return document.title") == "Backpropagation of Sequential"
    assert browser.complaints() == []


def test_numbers_that_are_none(browser: Browser, folder: Path) -> None:
    model = small(2, 2, 1).double()
    with torch.no_grad():
        weight = next(model.parameters())
        weight[0, 0], weight[1, 0] = math.inf, math.nan
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    browser.complaints()
    open_at_the_end(browser, report(model, nn.MSELoss(), x, y, folder / "nan.html"))
    choose(browser, "e-1-0-0")
    assert browser.text("#chain [data-value]") == "∞"
    choose(browser, "e-1-1-0")
    assert browser.text("#chain [data-value]") == "NaN"
    assert browser.js(AGREES) == "true"  # NaN, both
    assert "nan" in browser.find("[data-id=e-1-1-0]").get_attribute("class").split()
    assert browser.find("#not-numbers").is_displayed()
    assert browser.complaints() == []


def test_numbers_are_written_as_python_writes_them(browser: Browser, folder: Path) -> None:
    """The page's tables are written by Python and its panel by JavaScript: the same numbers, the same digits."""
    model = small(5, 6, 5, activation=nn.Sigmoid).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10.0 ** torch.randint(-14, 14, p.shape).double())
    x, y = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    browser.open(report(model, nn.MSELoss(), x, y, folder / "digits.html"))
    tables = set(browser.texts("details td"))
    for c, weight in enumerate((p for p in model.parameters() if p.dim() == 2), 1):
        for (j, k), value in zip(
            torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist(), flat(weight), strict=True
        ):
            choose(browser, f"e-{c}-{j}-{k}")
            assert browser.text("#chain [data-value]") == digits(value)
            assert digits(value) in tables


def test_a_frozen_layer_says_so(browser: Browser, folder: Path) -> None:
    model = small(2, 2, 2, 1)
    model[0].requires_grad_(False)
    browser.complaints()
    path = report(model, nn.MSELoss(), torch.randn(1, 2), torch.randn(1, 1), folder / "frozen.html")
    browser.open(path)
    titles(browser)
    choose(browser, "e-1-0-0")
    assert "frozen" in browser.text("#panel")
    choose(browser, "n-1-0")
    assert browser.complaints() == []


# What the page tells


def test_the_page_opens_at_step_1_and_tells_what_comes(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    assert browser.text("#count") == "Step 1 of 15 · network"
    assert browser.find("#slider").get_attribute("value") == "0"
    assert "Going forward" in browser.text("#step-words")
    assert "Press Next" in browser.text("#step-words")


def test_the_weight_shown_belongs_to_the_step(browser: Browser, article_page: Path) -> None:
    browser.open(article_page)
    chosen = "return document.querySelector('.drawing [aria-current]').dataset.id"
    shown = []
    for step in range(15):
        go_to(browser, step)
        shown.append(browser.js(chosen))
    first, second, third = "e-1-1-1", "e-2-1-1", "e-3-0-1"
    assert shown == [first, first, second, third, "cost", third, third, *[second] * 3, *[first] * 3, first, "cost"]
    choose(browser, "e-2-0-1")  # by hand: it stays that of its layer
    for step, id in ((12, first), (9, "e-2-0-1"), (8, "e-2-0-1"), (2, "e-2-0-1")):
        go_to(browser, step)
        assert browser.js(chosen) == id
    choose(browser, "n-2-0")
    go_to(browser, 7)
    assert browser.js(chosen) == "n-2-0"  # a neuron of the layer is as good


def cost_terms(browser: Browser) -> list[list[float]]:
    found: list[list[float]] = browser.js(
        "return [...document.querySelectorAll('.cost-term')]"
        ".map((row) => [...row.querySelectorAll('td')].map((t) => Number(t.dataset.value)))"
    )
    return found


def test_the_squared_error_has_its_formula_and_numbers(browser: Browser, samples_page: Path) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    s = small(3, 4, 2).double()(x).detach()
    browser.open(samples_page)
    go_to(browser, titles(browser).index("The cost"))
    assert browser.texts("#panel .rule") == ["C = Σ (s − y)² / n"]
    assert browser.texts("#panel .terms thead th") == ["s", "y", "s − y", "(s − y)²"]  # 2 (s − y) is of the way back
    rows = torch.tensor(cost_terms(browser), dtype=torch.float64)
    torch.testing.assert_close(rows, torch.stack([s[0], y[0], s[0] - y[0], (s[0] - y[0]) ** 2], -1))
    open_at_the_end(browser, samples_page)
    choose(browser, "cost")
    assert browser.texts("#panel .rule") == ["C = Σ (s − y)² / n", "∂C/∂s = 2 (s − y) / n"]
    rows = torch.tensor(cost_terms(browser), dtype=torch.float64)
    torch.testing.assert_close(rows[:, 4], 2 * (s[0] - y[0]))
    assert "divided by n = 10" in browser.text("#panel")


def test_cross_entropy_has_its_softmax_and_classes_count_as_neurons_do(browser: Browser, folder: Path) -> None:
    torch.manual_seed(3)
    model, x, y = small(3, 2, 3).double(), torch.randn(2, 3, dtype=torch.float64), torch.tensor([2, 0])
    open_at_the_end(browser, report(model, nn.CrossEntropyLoss(), x, y, folder / "classes.html"))
    choose(browser, "cost")
    s = model(x).detach()[0]
    p, q = s.softmax(0), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    rows = torch.tensor(cost_terms(browser), dtype=torch.float64)
    torch.testing.assert_close(rows, torch.stack([s, p, q, -(q * p.log()), p - q], -1))
    assert browser.texts("#panel .rule") == ["p = softmax(s)", "C = −Σ y log p / n", "∂C/∂s = (p − y) / n"]
    assert "y: s₃" in browser.texts(".drawing .value")
    go_to(browser, titles(browser).index("The cost"))
    assert browser.texts("#step-formulas math") == ["C=−12∑allylog\u2061p,p=softmax(s)"]  # −½ Σ
    assert browser.text("#whose").startswith("Numbers at neurons are those of sample 1 of 2;")


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(weight=torch.ones(3)), nn.NLLLoss()]
)
def test_what_is_not_the_plain_cost_has_the_formula_of_its_rule(loss: Any, browser: Browser, folder: Path) -> None:
    browser.complaints()
    path = report(small(3, 2, 3), loss, torch.randn(2, 3), torch.tensor([2, 0]), folder / "smoothed.html")
    open_at_the_end(browser, path)
    choose(browser, "cost")
    assert cost_terms(browser) == []
    assert any(rule.startswith("∂C/∂s") for rule in browser.texts("#panel .rule"))
    assert browser.complaints() == []


def test_a_crowded_picture_shows_the_numbers_of_what_is_pointed_at(browser: Browser, crowded_page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_at_the_end(browser, crowded_page)
    assert browser.texts(".tip text")[0].startswith("w₂₂⁽²⁾ = ")  # what is chosen
    ActionChains(browser.driver).move_to_element(browser.find("[data-id=n-1-5] circle")).perform()
    assert [text.split(" = ")[0] for text in browser.texts(".tip text")[-3:]] == ["z₆⁽²⁾", "a₆⁽²⁾", "δ₆⁽²⁾"]
    browser.js("document.getElementById('drawing').focus()")
    browser.keys(TAB, RIGHT)
    assert browser.texts(".tip text")[-1].startswith("δ₂⁽³⁾ = ")
    inside = """const a = document.querySelector('.tip').getBoundingClientRect();
    const b = document.querySelector('.drawing svg').getBoundingClientRect();
    return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom"""
    assert browser.js(inside)


def test_a_picture_that_does_not_fit_says_that_it_scrolls(browser: Browser, article_page: Path) -> None:
    for width, scrolls in ((1280, False), (390, True)):
        browser.open(article_page, width=width)
        assert browser.find("#scrolls").is_displayed() == scrolls
        assert (
            browser.js("const d = document.getElementById('drawing'); return d.scrollWidth > d.clientWidth") == scrolls
        )


def test_the_picture_of_a_step_can_be_saved(browser: Browser, article_page: Path) -> None:
    open_at_the_end(browser, article_page)
    browser.js(
        """window.saved = [];
        const make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { window.blob = blob; return make.call(URL, blob); };
        HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); }"""
    )
    browser.find("#save").click()
    text = browser.driver.execute_async_script("window.blob.text().then(arguments[0])")
    assert browser.js("return window.saved") == ["step-13.svg"]
    root = ElementTree.fromstring(text)
    said = [element.text for element in root.iter() if element.tag.endswith(("text", "tspan"))]
    assert {"0.2275", "0.6325", "−2.416"} <= set(said)
    assert "var(" not in text
    assert not re.search(r" (class|style|tabindex|data-\w+)=", text)
    strokes = {element.get("stroke") for element in root.iter() if element.tag.endswith("line")}
    assert "rgb(31, 95, 168)" in strokes


def test_a_click_on_a_weight_of_a_transformer_opens_its_chain(browser: Browser, attention_page: Path) -> None:
    browser.open(attention_page)
    assert browser.js("return document.querySelectorAll('details.chain[open]').length") == 0
    summary = browser.find("details.chain summary")
    assert summary.text.startswith("∂C/∂")
    summary.click()
    assert "The chain" in browser.text("details.chain[open]")
    assert "autograd" in browser.text("details.chain[open]")


def test_quantiles_are_shown_where_they_are_asked_for(browser: Browser, folder: Path) -> None:
    history = [{"step": i, "layers": {"fc": dict.fromkeys(STATISTICS, 0.1 * i)}} for i in (1, 2)]
    x, y = torch.randn(2, 300), torch.randn(2, 1)
    browser.open(report(small(300, 1), nn.MSELoss(), x, y, folder / "columns.html", history=history))
    shown = "return [...document.querySelectorAll('#layers th button')].filter((b) => b.checkVisibility()).length"
    assert browser.js(shown) == 7
    browser.find("#all-columns").click()
    assert browser.js(shown) == 16
