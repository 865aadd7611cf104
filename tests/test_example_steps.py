"""``examples/steps``: models that people train, each by its derived step, in at most 60 lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from forked import run_python

STEPS = Path(__file__).parent.parent / "examples" / "steps"
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"steps": 6, "width": 8, "layers": 1},
    "llama": {"steps": 6, "width": 16},
    "lstm": {"steps": 8, "width": 4},
    "nanogpt": {"steps": 6, "context": 8, "batch": 4},
    "resnet18": {"steps": 3, "width": 4, "batch": 4, "pixels": 8},
}


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", STEPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_has_a_size_to_run_at_and_few_lines() -> None:
    files = sorted(STEPS.glob("*.py"))
    assert [file.stem for file in files] == list(SIZES)
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)


@pytest.mark.parametrize("name", [pytest.param("bert", marks=pytest.mark.slow), *list(SIZES)[1:]])
def test_it_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "bert":
        pytest.importorskip("transformers", reason="BERT is transformers'")
    losses = example(name).main(**SIZES[name])
    assert len(losses) == SIZES[name]["steps"]
    assert losses[-1] < losses[0]
    assert "a step of" in capsys.readouterr().out


WITH_LIBRARIES = ("bert", "digits", "gpt", "image", "sequence")  # Lightning's or transformers' import takes seconds
EXAMPLES = [
    pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if file.stem in WITH_LIBRARIES else [])
    for file in sorted(STEPS.parent.rglob("*.py"))
]


@pytest.mark.parametrize("file", EXAMPLES)
def test_help_of_an_example_is_help(file: Path) -> None:
    """It says what the example is, and runs nothing."""
    run = run_python(str(file), "--help")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: ")
    assert file.name in run.stdout
