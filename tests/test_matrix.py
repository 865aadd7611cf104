"""The matrix of the contract: what it shows, writes and returns."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import rules
from torch_manualbp.catalogue import CATALOGUE, Make, Operation, Sample
from torch_manualbp.rules import Rule
from torch_manualbp.verify import Matrix, Row, contract_matrix, surroundings
from torch_manualbp.verify import matrix as command
from torch_manualbp.verify.check import named
from torch_manualbp.verify.checks import FOR_A_MATRIX
from torch_manualbp.verify.contract import CHECKS, Case, Check, DoesNotApply, check
from torch_manualbp.verify.matrix import target_matrix
from torch_manualbp.verify.mistakes.surroundings import KeptOnTheContext
from torch_manualbp.verify.subject import Subject
from torch_manualbp.verify.trial import Target

BY_NAME = {entry.name: entry for entry in CATALOGUE}


class Wrong(rules.Tanh):
    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return 2 * rules.Tanh.backward(ctx, da)[0]


def _samples(make: Make) -> Iterator[Sample]:
    yield Sample("row", (make(4),))
    yield Sample("matrix", (make(5, 4),))


WRONG = (Operation(rules.Sigmoid, torch.sigmoid, _samples), Operation(Wrong, torch.tanh, _samples))


def arguments(*written: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(written)


def test_a_matrix_says_what_passed_and_what_failed() -> None:
    matrix = contract_matrix(WRONG, ["first derivatives", "raw backward", "one tensor in two places"])
    assert not matrix.ok
    assert matrix.counts() == {"ok": 6, "fails": 2, "error": 0, "left out": 0, "does not apply": 4}
    assert [matrix.cell("Wrong", name) for name in matrix.checks] == ["✗", "✓", "a"]
    assert [matrix.cell("Sigmoid", name) for name in matrix.checks] == ["✓", "✓", "a"]
    lines = str(matrix).splitlines()
    assert "a  no two of the arguments that take a gradient may be the same tensor" in lines
    assert any(line.startswith("✗ Wrong row: first derivatives: argument 0 float64: fails by") for line in lines)
    with pytest.raises(AssertionError, match="Wrong matrix: first derivatives"):
        matrix.raise_for_status()
    assert json.loads(matrix.to_json())["counts"] == matrix.counts()
    assert "| `Wrong` | ✗ | ✓ | a |\n\n1. first derivatives\n" in matrix.to_markdown()


def test_rules_stand_below_each_other_where_there_are_many() -> None:
    of_rules = [Row("", name, subject=f"Rule{i}") for i in range(6) for name in ("one", "two")]
    lines = str(Matrix("rules", tuple(of_rules))).splitlines()
    assert lines[:2] == ["  1  one", "  2  two"]
    assert "Rule3 ✓ ✓" in lines


def test_a_part_that_does_not_apply_has_its_letter_beside_the_pass() -> None:
    def partly(case: Case) -> None:
        raise DoesNotApply(f"no {case.sample} here", partly=case.sample == "row")

    matrix = contract_matrix(WRONG[:1], [Check("partly", partly)])
    assert matrix.ok
    assert matrix.cell("Sigmoid", "partly") == "✓a,b"
    assert matrix.reasons == {"no row here": "a", "no matrix here": "b"}


def test_an_error_in_a_rule_is_a_failure_of_its_name() -> None:
    class Broken(rules.Tanh):
        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            raise KeyError("planted")

    matrix = contract_matrix([Operation(Broken, torch.tanh, _samples)], ["raw backward"])
    assert [row.hint for row in matrix.failures] == ["KeyError: 'planted'"] * 2


def test_what_compiles_runs_on_the_first_sample_unless_all_are_asked_for() -> None:
    def ran(case: Case) -> None:
        seen.append(case.sample)

    for all_samples, expected in ((False, ["row"]), (True, ["row", "matrix"])):
        seen: list[str] = []
        contract_matrix(WRONG[:1], [Check("slow", ran, slow=True)], all_samples=all_samples)
        assert seen == expected


def test_every_check_says_what_is_owed() -> None:
    assert all(len(c.about) > 20 for c in CHECKS)
    assert len({c.name for c in CHECKS}) == len(CHECKS)
    assert check("vmap").about.startswith("Outputs and gradients under torch.vmap")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no check is named 'vamp': did you mean 'vmap'"):
        contract_matrix(WRONG, ["vamp"])
    exempt = Operation(rules.Tanh, torch.tanh, _samples, exempt={"vamp": "no reason"})
    with pytest.raises(ValueError, match="Tanh is exempt from 'vamp', which is no check"):
        contract_matrix([exempt])


def test_the_command_writes_files_and_returns_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = "--json", str(tmp_path / "matrix.json"), "--markdown", str(tmp_path / "matrix.md")
    assert command.main(arguments("--rule", "Tanh", "--check", "raw backward", *files)) == 0
    assert "raw backward  ✓" in capsys.readouterr().out
    assert json.loads((tmp_path / "matrix.json").read_text())["ok"] is True
    assert "| `Tanh` | ✓ |" in (tmp_path / "matrix.md").read_text()

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert command.main(arguments("test_matrix:WRONG", "--check", "first derivatives")) == 1
    assert "✗ Wrong row: first derivatives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (["--rule", "Thanh"], "no rule is named 'Thanh'"),
        (["--check", "vamp"], "no check is named 'vamp'"),
        (["torch_manualbp.rules"], "write package.module:NAME"),
        (["torch_manualbp.rules:Rule"], "is no list or tuple of Operation"),
        (["no_such_package:CATALOGUE"], "No module named 'no_such_package'"),
    ],
)
def test_the_command_names_what_is_not_there(
    capsys: pytest.CaptureFixture[str], written: list[str], message: str
) -> None:
    assert command.main(arguments(*written)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("torch-manualbp matrix: ")
    assert message in err


def test_checks_import_neither_pytest_nor_numpy() -> None:
    import subprocess
    import sys

    program = "import sys, torch; old = set(sys.modules); import torch_manualbp.verify; print(set(sys.modules) - old)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"pytest", "numpy.testing", "lightning", "pytorch_lightning"} & set(eval(result.stdout))


def test_a_rule_of_ones_own_needs_no_function() -> None:
    assert issubclass(Wrong, Rule)
    assert contract_matrix(WRONG[1:], ["autocast, bfloat16"]).cell("Wrong", "autocast, bfloat16") == "✗"
    own = Operation(type("Own", (rules.Tanh,), {}), torch.tanh, _samples)
    assert contract_matrix([own], ["autocast, bfloat16"]).ok


ONE_CLAIM = [  # the check of a rule, of a layer, of a target
    ("first derivatives", None, "values, float64"),
    ("raw backward", None, "structure"),
    ("forward mode", None, "adjoint identity"),
    ("vmap", None, "vmap"),
    ("torch.compile", None, "compile"),
    ("frozen arguments", None, "frozen tensors"),
    ("checkpointing", "checkpoint", "checkpoint"),
    ("autocast, bfloat16", "autocast, bfloat16", "autocast"),
    ("meta device", "meta device", "meta device"),
    ("fake tensors", "FakeTensorMode", "fake tensors"),
    ("saved-tensor hooks", None, "saved-tensor hooks"),
]


@pytest.mark.parametrize("names", ONE_CLAIM, ids=lambda names: names[0])
def test_a_claim_is_written_once(names: tuple[str | None, ...]) -> None:
    tables = CHECKS, surroundings.CHECKS, FOR_A_MATRIX
    found = [named(table, name)[0].about for table, name in zip(tables, names, strict=True) if name]
    assert len(set(found)) == 1


def test_a_target_of_ones_own_has_a_matrix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    target = "test_matrix:Wrong", "--input", "randn(5, 4)"
    chosen = "--check", "structure", "--check", "adjoint identity", "--check", "Jacobians"
    assert command.main(arguments(*target, *chosen, "--json", str(tmp_path / "matrix.json"))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [["Wrong"], ["structure", "✓"], ["adjoint", "identity", "✓"]]
    rows = json.loads((tmp_path / "matrix.json").read_text())["rows"]
    assert [(row["subject"], row["verdict"]) for row in rows][:2] == [("Wrong", "ok"), ("Wrong", "ok")]
    assert command.main(arguments("torch:tanh", "--input", "randn(5, 4)", "--check", "ranks")) == 2
    assert command.main(arguments("torch:tanh", "--input", "randn(5, 4)", "--check", "ranks 0 to 5")) == 0


def test_a_target_may_have_no_forward_mode_and_no_vmap() -> None:
    matrix = target_matrix(Target(Subject(KeptOnTheContext.__mro__[1], [torch.randn(5, 4), torch.randn(5, 4)])))
    assert matrix.ok, matrix
    for name in ("adjoint identity", "vmap", "Jacobians", "tangents"):
        assert "✓" not in matrix.cell("Scale", name)
    assert any("must override the setup_context staticmethod" in reason for reason in matrix.reasons)
