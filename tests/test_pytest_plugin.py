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
"""

OTHER = """
    def test_other():
        pass
"""
"""Without the seconds that torch takes to be imported."""


def run(pytester: pytest.Pytester, *arguments: str, tests: str = OTHER) -> Any:
    """In a process of its own, as a user does, with the plugin loaded once."""
    pytester.makepyfile(tests)
    return pytester.runpytest_subprocess(*_plugin(), "-p", "no:cacheprovider", *arguments)


def _plugin() -> list[str]:
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    return [] if installed else ["-p", PLUGIN]


def test_it_is_registered() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points.pytest11]\ntorch_manualbp = "{PLUGIN}"\n' in project


def test_no_file_is_written_unless_asked_for(pytester: pytest.Pytester) -> None:
    result = run(pytester)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*gradient reports of*")


@pytest.mark.parametrize(
    "workers", [pytest.param([], id="one process", marks=pytest.mark.slow), pytest.param(["-n", "1"], id="xdist")]
)
def test_a_wrong_gradient_fails_the_test_and_the_file_has_every_report(
    pytester: pytest.Pytester, workers: list[str]
) -> None:
    result = run(pytester, "--gradient-report", "reports/gradients.json", *workers, tests=TESTS)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*test_wrong*", "*values*"])
    result.stdout.no_fnmatch_line("*not reached*")
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


def test_it_imports_nothing_until_a_test_asks(pytester: pytest.Pytester) -> None:
    """Every run of pytest loads it, of whatever project."""
    pytester.makepyfile("""
        import sys

        HEAVY = ("torch", "numpy", "pytorch_lightning", "rich", "matplotlib", "jinja2")

        def test_of_another_project():
            assert sys.modules.keys() & {"torch_manualbp.verify.pytest_plugin"}
            assert not sys.modules.keys() & set(HEAVY)

        def test_that_asks(verify_gradients):
            from torch_manualbp.rules import Sigmoid
            import torch

            assert verify_gradients(Sigmoid, torch.randn(3).double().requires_grad_(), checks=["values"]).ok
    """)
    result = pytester.runpytest_subprocess(*_plugin(), "-p", "no:xdist", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


def test_loading_it_imports_nothing_but_the_package(pytester: pytest.Pytester) -> None:
    script = f"""if True:
        import sys, pytest, json, errno, typing
        before = set(sys.modules)
        import {PLUGIN}
        print(sorted(set(sys.modules) - before))
    """
    loaded = ["torch_manualbp", "torch_manualbp._version", "torch_manualbp.verify", PLUGIN]
    assert pytester.run(sys.executable, "-c", script).outlines == [str(loaded)]


# --- a file that cannot be written -----------------------------------------------------------------------------------

UNWRITABLE = {
    "notes.txt/reports.json": "Not a directory: '*notes.txt'",
    ".": "Is a directory: '.'",
    "": "no file can have this name: ''",
    "/dev/null/reports.json": "Not a directory: '/dev/null'",
    "notes.txt": "there is another file, which is not overwritten: 'notes.txt'",
}


@pytest.mark.parametrize("path", UNWRITABLE)
def test_a_file_that_cannot_be_written_is_said_before_the_tests(path: str, pytester: pytest.Pytester) -> None:
    pytester.makefile(".txt", notes="the user's own")
    result = run(pytester, "--gradient-report", path)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: argument --gradient-report: *{UNWRITABLE[path]}"])
    assert len([line for line in result.errlines if line]) == 1
    result.stdout.no_fnmatch_line("*test_other*")
    assert (pytester.path / "notes.txt").read_text() == "the user's own"


def test_an_earlier_file_of_reports_is_replaced(pytester: pytest.Pytester) -> None:
    path = pytester.path / "reports.json"
    for _ in range(2):
        run(pytester, "--gradient-report", "reports.json").assert_outcomes(passed=1)
        assert json.loads(path.read_text()) == {"tests": []}
        path.write_text('{\n "tests": [\n ]\n}')


def test_a_disk_that_is_full_in_the_end_is_one_line(pytester: pytest.Pytester) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full on this system")
    result = run(pytester, "--gradient-report", "/dev/full")
    result.stdout.fnmatch_lines(["gradient reports are not written: *No space left on device: '/dev/full'"])
    assert result.ret != 0
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
