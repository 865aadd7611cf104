"""What the documents say is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from forked import run_python

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("torch_manualbp/*/README.md"))]
README = DOCUMENTS[0].read_text(encoding="utf-8")

BLOCK = r"((?:(?!```).)*)^```$"
PROGRAMS = [
    pytest.param(program, printed, id=f"{document.parent.name}-{i}")
    for document in DOCUMENTS
    for i, (program, printed) in enumerate(
        re.findall(
            rf"^```python\n{BLOCK}\n\n```text\n{BLOCK}", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    )
]


@pytest.mark.parametrize(("program", "printed"), PROGRAMS)
def test_a_program_prints_what_it_says(program: str, printed: str) -> None:
    result = run_python("-c", program, cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, printed), result.stderr


def test_the_quick_start_begins_with_two_commands() -> None:
    block = re.search(r"^## Quick start.*?^```shell\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert block is not None
    commands = block[1].splitlines()
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands)
    assert all("-c .ci/constraints.txt" in command for command in commands)


def test_a_first_reader_has_200_lines() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.parent.name)
def test_every_file_that_it_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [document.parent / name for name in re.findall(r"\]\(([^)#:]+)\)", text)]
    files = [ROOT / name for name in re.findall(r"(?:examples|tests|\.ci)/[\w.]+\.\w+", text)]
    for file in (*links, *files):
        assert file.exists(), file
