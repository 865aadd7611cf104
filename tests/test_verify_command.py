"""``torch-manualbp verify``: what it takes, what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch_manualbp import cli
from torch_manualbp.verify import command
from torch_manualbp.verify.mistakes import MISTAKES
from torch_manualbp.verify.self_test import self_test

OPS = """
from torch.autograd import Function

class Wrong(Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, da):
        (z,) = ctx.saved_tensors
        return 2 * z * da * (1 + 1e-4)

class Right(Wrong):
    @staticmethod
    def backward(ctx, da):
        (z,) = ctx.saved_tensors
        return 2 * z * da
"""


@pytest.fixture(autouse=True)
def _ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ops_to_verify.py").write_text(OPS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("ops_to_verify:Right", ["randn(8, 16)"]),
        ("torch_manualbp.nn:Linear(16, 4)", ["randn(8, 16)"]),
        ("torch_manualbp.nn:GELU", ["randn(8, 16)"]),
        ("torch.nn.functional:cross_entropy", ["randn(8, 5)", "randint(5, (8,))"]),
    ],
)
def test_what_is_right_is_status_0(target: str, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["verify", target, *(part for text in inputs for part in ("--input", text))])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "correct" in printed
    assert "values, float64" in printed


def test_what_is_wrong_is_status_1_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "verify",
        "ops_to_verify:Wrong",
        "--input",
        "randn(8, 16)",
        "--json",
        "report.json",
        "--check",
        "values",
    ]
    assert cli.main(arguments) == 1
    assert "1.0001 times the right one" in capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert report["ok"] is False
    assert {row["check"].split(",")[0] for row in report["rows"]} == {"values"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ops_to_verify", "--input", "randn(3)"], "is not of the form package.module:name"),
        (["ops_to_verify:Nothing", "--input", "randn(3)"], "Nothing raises NameError"),
        (["ops_to_verify:Right", "--input", "rand(3"], "argument --input: rand(3 raises SyntaxError"),
        (["ops_to_verify:Right", "--input", "arange(3)"], "no tensor that needs a gradient (input[0] is int64)"),
        (["ops_to_verify:Right", "--input", "randn(3)", "--check", "vlaues"], "did you mean 'values'?"),
        (["torch_manualbp.nn:Linear", "--input", "randn(3)"], "write its arguments"),
    ],
)
def test_what_is_not_there_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_the_self_test_prints_and_writes_the_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = [mistake for mistake in MISTAKES if mistake.kind == "sign"] or MISTAKES[:2]
    monkeypatch.setattr(command, "self_test", lambda: self_test(few))
    written = tmp_path / "score.json"
    assert cli.main(["verify", "--self-test", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    assert all(mistake.name in printed for mistake in few)
    assert json.loads(written.read_text())["caught"]["verify"] == len(few)
    blind = {"verify": lambda mistake, target: ""}
    monkeypatch.setattr(command, "self_test", lambda: self_test(few, blind))
    assert cli.main(["verify", "--self-test"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what is missing is package.module:Thing"),
        (["torch_manualbp.nn:GELU"], "what is missing is --input"),
        (["torch_manualbp.nn:GELU", "--self-test"], "it takes no target and no input"),
    ],
)
def test_what_is_missing_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.l = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.l(x)

class Constant(Net):
    def forward(self, x):
        return x @ self.l.weight.data.T + self.l.bias
"""


@pytest.mark.parametrize(("name", "status"), [("Net", 0), ("Constant", 1)])
def test_a_model_is_verified(name: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net_to_verify.py").write_text(NET)
    arguments = ["--input", "randn(8, 4)", "--target", "randint(3, (8,))", "--loss", "CrossEntropyLoss"]
    assert cli.main(["verify-model", f"./net_to_verify.py:{name}", *arguments, "--json", "net.json"]) == status
    assert "whole model: finite differences" in capsys.readouterr().out
    report = json.loads(Path("net.json").read_text())
    assert report["schema"] == 3
    numbers = [row[name] for row in report["rows"] for name in ("error_ulps", "error_relative", "torch_ulps")]
    assert all(number is None or isinstance(number, float) for number in numbers)


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--layer", "m"], "has no layer 'm'; it has l"), (["--check", "vlaues"], "did you mean 'values'?")],
)
def test_what_a_model_has_not_is_one_line(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net_to_verify.py").write_text(NET)
    data = ["--input", "randn(8, 4)", "--target", "randn(8, 3)"]
    assert cli.main(["verify-model", "./net_to_verify.py:Net", *data, *option]) == 2
    assert message in capsys.readouterr().err
