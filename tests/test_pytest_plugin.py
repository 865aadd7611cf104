"""The pytest plugin: the fixture passes what is right and fails what is wrong; the file has every report."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "torch_manualbp.verify.pytest_plugin"

TESTS = """
    import torch
    from torch_manualbp.nn import Linear, MSELoss, ReLU, Sequential
    from torch_manualbp.rules import Sigmoid
    from torch_manualbp.verify.mistakes.activation import SigmoidWithoutFactor

    FEW = {"checks": ["values"]}

    def z():
        return torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def test_right(verify_gradients):
        report = verify_gradients(Sigmoid, z(), **FEW)
        assert report.ok

    def test_wrong(verify_gradients):
        verify_gradients(SigmoidWithoutFactor, z(), **FEW)
        raise AssertionError("not reached")

    def test_model(verify_gradients):
        model = Sequential(Linear(3, 4), ReLU(), Linear(4, 2))
        verify_gradients.model(model, torch.randn(5, 3), torch.randn(5, 2), MSELoss())
        verify_gradients(Sigmoid, z(), **FEW)

    def test_other():
        pass
"""


def run(pytester: pytest.Pytester, *arguments: str) -> Any:
    """In a process of its own, as a user does, with the plugin loaded once."""
    pytester.makepyfile(TESTS)
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    load = [] if installed else ["-p", PLUGIN]
    return pytester.runpytest_subprocess(*load, "-p", "no:cacheprovider", *arguments)


def test_it_is_registered() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points.pytest11]\ntorch_manualbp = "{PLUGIN}"\n' in project


def test_a_wrong_gradient_fails_the_test_with_the_report(pytester: pytest.Pytester) -> None:
    result = run(pytester)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*test_wrong*", "*values*"])
    result.stdout.no_fnmatch_line("*not reached*")
    result.stdout.no_fnmatch_line("*gradient reports of*")


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["one process", "xdist"])
def test_the_file_has_the_report_of_every_verification(pytester: pytest.Pytester, workers: list[str]) -> None:
    result = run(pytester, "--gradient-report", "reports/gradients.json", *workers)
    result.assert_outcomes(passed=3, failed=1)
    path = pytester.path / "reports" / "gradients.json"
    result.stdout.fnmatch_lines([f"gradient reports of 4 verifications: {path}"])
    tests = json.loads(path.read_text(encoding="utf-8"))["tests"]
    found = [(test["test"].split("::")[1], test["outcome"], test["report"]["ok"]) for test in tests]
    assert sorted(found) == [
        ("test_model", "passed", True),
        ("test_model", "passed", True),
        ("test_right", "passed", True),
        ("test_wrong", "failed", False),
    ]


def test_loading_it_imports_nothing_but_the_package(pytester: pytest.Pytester) -> None:
    """Every run of pytest loads it, of whatever project."""
    script = f"""if True:
        import sys, pytest, torch_manualbp.verify
        before = set(sys.modules)
        import {PLUGIN}
        print(sorted(set(sys.modules) - before))
    """
    pytester.run(sys.executable, "-c", script).stdout.fnmatch_lines([f"['{PLUGIN}']"])
