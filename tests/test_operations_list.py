"""The list of the functions that a step takes, as the command prints it, stands among the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_manualbp import cli
from torch_manualbp.derive.listed import operations

RESULTS = Path(cli.__file__).parent / "bench" / "results"


def test_the_command_prints_what_stands_in_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["derive", "--operations"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed == operations()
    assert (RESULTS / "operations.md").read_text() == printed
    assert "| write torch.roll |" in printed
