"""The pytest plugin: a fixture that verifies gradients, and a file of what it found.

::

    def test_my_function(verify_gradients):
        verify_gradients(MyFunction, torch.randn(8, 16))

The test fails with the report if a gradient is wrong. ``pytest --gradient-report FILE`` writes the reports of all tests
that ran, passed or failed, as JSON; also with pytest-xdist.
"""

# Loaded by every run of pytest where this package is installed, of projects without torch as well: what verifies is
# imported by the first test that does.

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch_manualbp.verify import Report

__all__ = ["GradientVerifier"]

PROPERTY = "torch_manualbp.gradients"
"""Under which a test carries its reports from a worker of pytest-xdist to the process that writes the file."""
BEGINNING = '{\n "tests": ['
"""How the file of reports begins, by which an earlier one is known."""


class GradientVerifier:
    """What the fixture ``verify_gradients`` is: verifies, keeps the report for the file, and fails the test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(self, target: Any, *inputs: Any, **options: Any) -> Report:
        """:func:`torch_manualbp.verify.verify` of a module, an ``autograd.Function`` or a callable.

        Raises:
            GradientError: a gradient is wrong; the message is the report.
        """
        __tracebackhide__ = True
        from torch_manualbp.verify import verify

        return self._judged(verify(target, *inputs, **options))

    def model(self, model: Any, inputs: Any, target: Any, loss: Any, **options: Any) -> Report:
        """:func:`torch_manualbp.verify.verify_model` of every layer of a model, where it stands.

        Raises:
            GradientError: a gradient is wrong; the message is the report.
        """
        __tracebackhide__ = True
        from torch_manualbp.verify import verify_model

        return self._judged(verify_model(model, inputs, target, loss, **options))

    def _judged(self, report: Report) -> Report:
        __tracebackhide__ = True
        if self._request.config.getoption("gradient_report") is not None:
            self._request.node.user_properties.append((PROPERTY, report.as_dict()))
        report.raise_for_status()
        return report


@pytest.fixture
def verify_gradients(request: pytest.FixtureRequest) -> GradientVerifier:
    """Verify the gradients of a target on inputs, and fail the test with the report if one is wrong."""
    return GradientVerifier(request)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gradient-report``."""
    group = parser.getgroup("torch-manualbp", "gradient verification")
    group.addoption(
        "--gradient-report",
        metavar="FILE",
        default=None,
        help="write what verify_gradients found in every test to FILE, as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect reports where they are to be written: not in the workers of pytest-xdist."""
    path = config.getoption("gradient_report")
    if path is not None and not hasattr(config, "workerinput"):
        _refuse_to_write(path)
        config.pluginmanager.register(_ReportFile(Path(path)), "torch_manualbp.report_file")


def _refuse_to_write(path: str) -> None:
    """Say before the tests run that the file cannot be written, or that it is another than such reports."""
    from torch_manualbp._files import check_writable

    try:
        check_writable(path, make_folder=True)
        if Path(path).is_file():
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                if file.read(len(BEGINNING)) not in (BEGINNING, ""):
                    raise FileExistsError(errno.EEXIST, "there is another file, which is not overwritten", path)
    except OSError as error:
        raise pytest.UsageError(f"argument --gradient-report: {error}") from error


class _ReportFile:
    """Writes the reports when all tests have run."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.tests: list[dict[str, Any]] = []
        self.error: OSError | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            found = [value for name, value in report.user_properties if name == PROPERTY]
            self.tests += [{"test": report.nodeid, "outcome": report.outcome, "report": one} for one in found]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from torch_manualbp._files import write_text

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"tests": self.tests}, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            self.error = error
            session.exitstatus = session.exitstatus or pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.error is not None:
            terminalreporter.write_line(f"gradient reports are not written: {self.error}", red=True)
        else:
            terminalreporter.write_line(f"gradient reports of {len(self.tests)} verifications: {self.path}")
