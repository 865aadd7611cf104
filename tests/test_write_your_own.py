"""The example of a rule of one's own: it passes the contract, and mistakes planted in it do not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from torch_manualbp.verify import contract_matrix

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "write_your_own.py"


def example(source: str) -> ModuleType:
    module = ModuleType("write_your_own")
    sys.modules["write_your_own"] = module
    exec(compile(source, str(EXAMPLE), "exec"), vars(module))
    return module


@pytest.mark.slow
def test_it_passes_and_learns() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " ok, " in result.stdout
    assert not re.search(r"\d fail", result.stdout)
    assert "✗ Snake" not in result.stdout
    assert "mean squared error" in result.stdout


MISTAKES = {  # and the check that catches it
    "return 1 + ripple": ("return 1 - ripple", "first derivatives"),
    ".sum_to_size(x.shape)": ("", "raw backward"),
    "slopes(*(x.conj() for x in args))": ("slopes(*args)", "complex numbers"),
    "[d * t for": ("[2 * d * t for", "forward mode"),
    "z, beta = widened(z), widened(beta)": ("", "one rounding, bfloat16"),
    "g if needed else None": ("g", "raw backward"),
}


@pytest.mark.parametrize("right", MISTAKES)
def test_a_mistake_ends_it_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], right: str
) -> None:
    wrong, check = MISTAKES[right]
    source = EXAMPLE.read_text(encoding="utf-8")
    assert source.count(right) == 1
    for written, verdict in ((right, "✓"), (wrong, "✗")):
        module = example(source.replace(right, written))
        monkeypatch.setattr(module, "contract_matrix", partial(contract_matrix, checks=[check]))
        monkeypatch.setattr(module, "learn_a_wave", lambda: (1.0, 0.0))
        assert module.main() == (0 if written == right else 1)
        assert verdict in capsys.readouterr().out.splitlines()[1]
