"""``examples/article.py``: the article's rows in order, the known case, and checks that fail when they should."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from forked import run_python

from torch_manualbp import nn

SCRIPT = Path(__file__).parent.parent / "examples" / "article.py"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the script's main: shared between threads, such small products are up to 60 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(*arguments)


@pytest.fixture(scope="module")
def printed() -> str:
    lesson = run("-W", "error", str(SCRIPT))
    assert lesson.returncode == 0, lesson.stderr
    assert lesson.stderr == ""
    return lesson.stdout


def known_case(article: ModuleType) -> Any:
    return article.forward_and_back(article.X, article.Y, article.NETWORK)


# What it prints


def test_rows_in_order(printed: str) -> None:
    assert re.findall(r"^(A\d+)  ", printed, re.MULTILINE) == [f"A{row}" for row in range(1, 12)]


def test_fits_the_terminal(printed: str) -> None:
    assert max(map(len, printed.splitlines())) <= 100


def test_prints_the_known_case_to_ten_digits(article: ModuleType, printed: str) -> None:
    for name, numbers in article.KNOWN.items():
        columns = torch.atleast_1d(getattr(known_case(article), name)).shape[-1]
        for row in range(0, len(numbers), columns):
            line = ", ".join(f"{number:.10g}" for number in numbers[row : row + columns])
            assert f"({line})\n" in printed, name


def test_prints_every_factor_of_the_worked_example(article: ModuleType, printed: str) -> None:
    a11 = printed[printed.index("\nA11  ") :]
    numbers = [float(number) for number in re.findall(r"^    \S.*? {2,}(-?\d+\.\d+) {2,}", a11, re.MULTILINE)]
    da, slope, a, *products = numbers
    assert da * slope * a == pytest.approx(products[0], rel=1e-9)
    assert products == [pytest.approx(article.KNOWN["dW2"][3], rel=1e-9)] * 3  # the product, row A7, autograd


def test_descent_meets_its_condition(printed: str) -> None:
    a10 = printed[printed.index("\nA10  ") : printed.index("\nA11  ")]
    outcome = re.search(r"Condition met after (\d+) steps: ‖∇C‖ = (\S+), tolerance (\S+)\.", a10)
    assert outcome is not None
    steps, length, tolerance = outcome.groups()
    assert float(length) < float(tolerance)
    rows = re.findall(r"^ +(\d+)   (\S+) +(\S+) +\d+ of \d+$", a10, re.MULTILINE)
    assert len(rows) >= 5
    assert rows[-1][0] == steps
    assert all(float(norm) >= float(tolerance) for _, _, norm in rows[:-1])
    costs = [float(cost) for _, cost, _ in rows]
    assert costs == sorted(costs, reverse=True)


def test_prints_that_pytorch_called_our_rules(printed: str) -> None:
    nodes = re.findall(r"^    (\w+Backward\d*)$", printed, re.MULTILINE)
    assert nodes == ["MeanSquaredErrorBackward", *["LinearBackward", "SigmoidBackward"] * 2, "LinearBackward"]


# The numbers


def test_known_table_is_what_40_digits_and_central_differences_give(article: ModuleType) -> None:
    exact = {name: [Decimal(repr(v)) for v in w.flatten().tolist()] for name, w in article.NETWORK._asdict().items()}
    x, y = ([Decimal(repr(v)) for v in t.flatten().tolist()] for t in (article.X, article.Y))

    def layer(a: list[Decimal], W: list[Decimal], b: list[Decimal]) -> list[Decimal]:
        return [sum((w * v for w, v in zip(W[j * len(a) :], a, strict=False)), c) for j, c in enumerate(b)]

    def values(network: dict[str, list[Decimal]]) -> dict[str, list[Decimal]]:
        z2 = layer(x, network["W1"], network["b1"])
        a2 = [1 / (1 + (-z).exp()) for z in z2]
        z3 = layer(a2, network["W2"], network["b2"])
        a3 = [1 / (1 + (-z).exp()) for z in z3]
        s = layer(a3, network["W3"], [Decimal(0)])
        return {"z2": z2, "a2": a2, "z3": z3, "a3": a3, "s": s, "C": [(s[0] - y[0]) ** 2]}

    with localcontext() as context:
        context.prec = 40
        table = values(exact)
        h = Decimal("1e-12")
        for name, w in exact.items():
            nudged = [[exact | {name: [*w[:i], w[i] + d, *w[i + 1 :]]} for d in (h, -h)] for i in range(len(w))]
            table[f"d{name}"] = [(values(up)["C"][0] - values(down)["C"][0]) / (2 * h) for up, down in nudged]
        table |= {"delta2": table["db1"], "delta3": table["db2"]}

    assert table.keys() == article.KNOWN.keys()
    for name, numbers in article.KNOWN.items():
        assert [f"{v:.12g}" for v in map(float, table[name])] == [f"{v:.12g}" for v in numbers], name


def test_formulas_reproduce_the_known_case(article: ModuleType) -> None:
    n = known_case(article)
    for name, numbers in article.KNOWN.items():
        assert getattr(n, name).flatten().tolist() == pytest.approx(numbers, rel=1e-10, abs=0), name


@pytest.mark.parametrize("layers", [torch.nn, nn], ids=["torch.nn", "torch_manualbp.nn"])
def test_backward_reproduces_the_known_case(article: ModuleType, layers: Any) -> None:
    n = article.by_backward(layers, layers.MSELoss(), article.X, article.Y, article.NETWORK)
    for name, numbers in article.KNOWN.items():
        assert getattr(n, name).flatten().tolist() == pytest.approx(numbers, rel=1e-10, abs=0), name


# The checks, which must be able to fail


@pytest.mark.parametrize("number", [1, 1 + 1e-9], ids=["as it is", "tenth digit off"])
def test_known_case_check_sees_the_tenth_digit(
    article: ModuleType, monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    w_22 = article.KNOWN["dW2"][3] * number
    monkeypatch.setitem(article.KNOWN, "dW2", (*article.KNOWN["dW2"][:3], w_22))
    if number == 1:
        article.check_known_case(known_case(article))
    else:
        with pytest.raises(SystemExit, match=r"FAILED: ∂C/∂W⁽²⁾ is .*0\.2275483758\), known is .*0\.227548376\)"):
            article.check_known_case(known_case(article))


MISTAKES: dict[str, tuple[Callable[..., torch.Tensor], str]] = {  # and the first number that it makes wrong
    "linear_weight_gradient": (lambda delta, a: -(delta.T @ a), "∂C/∂W⁽¹⁾"),
    "linear_input_gradient": (lambda delta, W: delta @ W.abs(), "∂C/∂a⁽³⁾"),
    "linear_bias_gradient": (lambda delta: 2 * delta.sum(0), "∂C/∂b⁽¹⁾"),
}


@pytest.mark.parametrize("formula", MISTAKES)
def test_known_case_check_sees_a_wrong_formula(
    article: ModuleType, monkeypatch: pytest.MonkeyPatch, formula: str
) -> None:
    mistake, wrong = MISTAKES[formula]
    monkeypatch.setattr(article, formula, mistake)
    with pytest.raises(SystemExit, match=f"FAILED: .*{wrong}"):
        article.check_known_case(known_case(article))


def test_sigmoid_without_its_factor_ends_the_lesson_with_status_1() -> None:
    planted = (
        "import torch_manualbp.rules.activation as rules; rules.Sigmoid.delta = staticmethod(lambda da, a: da * a)"
    )
    lesson = run("-c", f"import runpy; {planted}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')")
    assert lesson.returncode == 1
    assert lesson.stderr.startswith("article.py: FAILED: δ⁽³⁾ is (")
    assert lesson.stderr.count("\n") == 1
    assert "A10  " not in lesson.stdout


def test_descent_checks_many_samples_against_autograd(article: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # The mean is the sum for the one sample of the known case.
    monkeypatch.setattr(article, "linear_bias_gradient", lambda delta: delta.mean(0))
    article.check_known_case(known_case(article))
    with pytest.raises(SystemExit, match="FAILED: autograd"):
        article.a10_gradient_descent(seed=0, tolerance=1e-3, most_steps=1)


def test_descent_says_when_it_gives_up(article: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    article.a10_gradient_descent(seed=0, tolerance=1e-3, most_steps=20)
    assert "Condition NOT met, given up after 20 steps" in capsys.readouterr().out


def test_descent_without_scikit_learn(
    article: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    article.a10_gradient_descent(seed=0, tolerance=1e-3)
    output = capsys.readouterr().out
    assert "No scikit-learn" in output
    assert "Condition met" in output
    assert max(map(len, output.splitlines())) <= 100


# The command line


@pytest.mark.parametrize(
    "arguments",
    ["--seed x", "--seed -1", f"--seed {2**63}", "--tolerance 0", "--tolerance nan", "--tolerance inf", "more"],
)
def test_bad_values_are_one_line_and_status_2(
    article: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["article.py", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        article.main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("article.py: ")
    assert err.count("\n") == 1
    assert arguments.split()[-1] in err


def test_help(article: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["article.py", "--help"])
    with pytest.raises(SystemExit) as end:
        article.main()
    assert end.value.code == 0
    assert "--tolerance" in capsys.readouterr().out


def test_the_page_is_written_where_it_is_asked_for(
    article: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    printed: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "article.html"
    monkeypatch.setattr(sys, "argv", ["article.py", "--page", str(path)])
    article.main()
    assert capsys.readouterr().out == f"{printed}The page: {path}\n"
    html = path.read_text("utf-8")
    for numbers in article.KNOWN.values():
        for number in numbers:
            assert f">{number:.10g}<".replace("-", "−") in html
    with pytest.raises(SystemExit, match=r"^article.py: \[Errno 21\] Is a directory"):
        article.write_page(tmp_path)
