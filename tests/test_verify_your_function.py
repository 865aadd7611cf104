"""The example of verification: the report says of each try what is wrong, and of the last that nothing is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from forked import run_python
from torch.autograd import gradcheck, gradgradcheck

from torch_manualbp.verify import verify

EXAMPLE = Path(__file__).parents[1] / "examples" / "verify_your_function.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def wrong(example: dict[str, Any], name: str) -> set[tuple[str, str]]:
    return {(row.check, row.name) for row in verify(example[name], *example["inputs"]()).failures}


def test_the_first_try_has_a_wrong_gradient_and_one_that_is_not_summed(example: dict[str, Any]) -> None:
    found = wrong(example, "FirstTry")
    assert ("structure", "input[1]") in found
    assert ("values, float64", "input[0]") in found
    assert ("values, float64", "input[1]") not in found  # the engine repairs it


def test_the_second_try_passes_gradcheck_and_has_wrong_second_derivatives(example: dict[str, Any]) -> None:
    assert gradcheck(example["SecondTry"].apply, example["inputs"]())
    assert {check for check, _ in wrong(example, "SecondTry")} == {"second order"}


def test_the_last_is_right(example: dict[str, Any]) -> None:
    assert gradcheck(example["RMSNorm"].apply, example["inputs"](), check_batched_grad=True)
    assert gradgradcheck(example["RMSNorm"].apply, example["inputs"]())
    report = verify(example["RMSNorm"], *example["inputs"]())
    assert report.ok, report
    assert {row.check for row in report.rows if row.verdict == "ok"} >= {"second order", "vmap", "functorch"}


def test_it_ends_with_status_0() -> None:
    result = run_python(str(EXAMPLE))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SecondTry: torch.autograd.gradcheck passes; verify says:\n  second order: input[0]" in result.stdout
    assert "RMSNorm: correct" in result.stdout
