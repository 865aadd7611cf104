"""``torch-manualbp explain``: what it takes, what it writes, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch_manualbp import cli

NETS = """
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1, bias=False)).double()
numbers = (
    ((0.1, -0.2, 0.3, 0.4), (0.5, 0.6, -0.7, -0.8)),
    (0.1, -0.1),
    ((0.3, -0.4), (0.5, 0.6)),
    (0.05, -0.05),
    ((0.7, -0.9),),
)
for parameter, values in zip(net.parameters(), numbers):
    parameter.data = torch.tensor(values, dtype=torch.float64)

def squared(s, y):
    return ((s - y) * (s - y)).mean()

class Renormalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return torch.renorm(self.fc(x), 2, 0, 1.0)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, z):
        return self.fc(x) * z
"""

ARTICLE = ["nets_to_explain:net", "2.weight", "1,1", "--input", "tensor([[1, 0.5, -1, 2]])", "--target", "ones(1, 1)"]


@pytest.fixture(autouse=True)
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_to_explain.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status = cli.main(["explain", *arguments])
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out


def test_prints_the_chain_of_row_A11(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(ARTICLE, capsys)
    assert "∂C/∂w_22⁽²⁾ = ∂C/∂a_2⁽³⁾ · f'(z_2⁽³⁾) · a_2⁽²⁾" in text
    assert "autograd    0.227548375798" in text


def test_takes_a_loss_of_the_users_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert "0.227548375798" in printed([*ARTICLE, "--loss", "nets_to_explain:squared"], capsys)


def test_takes_several_inputs_and_draws_from_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["nets_to_explain:Two", "fc.bias", "1", "--input", "randn(3, 2)", "--input", "randn(3, 2)"]
    given += ["--target", "zeros(3, 2)", "--samples", "2", "--paths", "1"]
    text = printed(given, capsys)
    assert "the other 1" in text
    assert printed(given, capsys) == text
    assert printed([*given, "--seed", "1"], capsys) != text


@pytest.mark.parametrize(
    ("form", "suffix", "start"),
    [
        ("text", "txt", "∂C/∂w_22⁽²⁾ = 0.2"),
        ("markdown", "md", "## $`"),
        ("html", "html", "<!DOCTYPE"),
        ("json", "json", "{"),
    ],
)
def test_writes_every_form(form: str, suffix: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("folder") / f"weight.{suffix}"
    said = printed([*ARTICLE, "--output", str(path)], capsys)
    written = path.read_text(encoding="utf-8")
    assert said == f"{path}: {len(written.splitlines())} lines\n"
    assert written.startswith(start)
    assert printed([*ARTICLE, "--format", form], capsys) == written
    if form == "json":
        assert json.loads(written)["name"] == "2.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: "nets_to_explain:nothing"}, "argument model: nothing raises NameError"),
        ({0: "nets_to_explain:numbers"}, "is of class tuple, and not a torch.nn.Module"),
        ({1: "2.wieght"}, "there is no parameter '2.wieght': did you mean '2.weight' of shape (2, 2)"),
        ({2: "1,2"}, "2.weight has the shape (2, 2), and no entry (1, 2): from (0, 0) to (1, 1)"),
        ({2: "1"}, "its index is 2 numbers, such as (0, 0), and not (1,)"),
        ({2: "one"}, "argument INDEX: 'one' is no index, such as 1,1"),
        ({4: "tensor([[1"}, "argument --input: tensor([[1 raises SyntaxError"),
        ({6: "nothing"}, "argument --target: nothing raises NameError"),
        ({6: "ones(1, 1)", 7: "--loss", 8: "L1Loss(reduction='none')"}, "the loss returns a tensor of shape (2, 1)"),
        ({7: "--samples", 8: "0"}, "samples=0"),
    ],
)
def test_what_is_not_there_is_one_line(
    changes: dict[int, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARTICLE, *[""] * max(0, max(changes) + 1 - len(ARTICLE))]
    for i, text in changes.items():
        arguments[i] = text
    if "reduction" in arguments[-1]:
        arguments[4] = "randn(2, 4)"
        arguments[6] = "ones(2, 1)"
    assert cli.main(["explain", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_index_in_brackets_may_be_negative(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ARTICLE]
    arguments[2] = "(-1, -1)"
    assert printed(arguments, capsys) == printed(ARTICLE, capsys)


def test_what_no_rule_computes_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--input", "randn(3, 2)", "--target", "zeros(3, 2)"]
    assert cli.main(["explain", "nets_to_explain:Renormalised", "fc.weight", "0,0", *given]) == 1
    assert "torch.renorm has no rule" in capsys.readouterr().err
    assert cli.main(["explain", "nets_to_explain:Two", "fc.weight", "0,0", *given]) == 1
    assert "do not take these inputs: TypeError" in capsys.readouterr().err
