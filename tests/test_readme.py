"""What README says is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCK = r"((?:(?!```).)*)^```$"
PROGRAMS = re.findall(rf"^```python\n{BLOCK}\n\n```text\n{BLOCK}", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "printed"),
    PROGRAMS,
    ids=["quick start", "your own rule", "your own gradients", "a step without autograd", "see the backpropagation"],
)
def test_a_program_prints_what_it_says(program: str, printed: str) -> None:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == printed


def test_the_quick_start_begins_with_two_commands() -> None:
    after = README.split("## Quick start")[1].lstrip()
    assert after.startswith("```shell\n")
    commands = after.split("```")[1].splitlines()[1:]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert all("-c .ci/constraints.txt" in command for command in commands)


def test_every_file_that_it_names_is_there() -> None:
    names = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"(?:examples|tests|\.ci)/[\w.]+\.\w+", README)
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
