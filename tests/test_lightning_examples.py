"""``examples/gpt.py``, ``image.py``, ``sequence.py``: a GPT, a residual network and an LSTM, by either engine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from torch_manualbp import TrainStep

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--blocks=1", "--width=16", "--heads=2", "--context=8", "--batch-size=4", "--every=10", "--threads=1"]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpt_example", EXAMPLES / "gpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_gpt_learns_samples_and_resumes(tmp_path: Path) -> None:
    first = run("gpt.py", *SMALL, "--steps", "20", "--output", str(tmp_path / "run"))
    assert first.returncode == 0, first.stderr
    losses = [float(loss) for loss in re.findall(r"step \d+: train_loss [\d.]+, val_loss ([\d.]+)", first.stdout)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert "def step(x, y, lr" in (tmp_path / "run" / "step.py").read_text()
    again = run("gpt.py", "--output", str(tmp_path / "run"), "--resume", "--steps", "30", "--engine", "autograd")
    assert again.returncode == 0, again.stderr
    assert re.findall(r"step (\d+): train_loss", again.stdout) == ["30"]
    whole = run("gpt.py", *SMALL, "--steps", "30", "--output", str(tmp_path / "whole"))
    of_30 = [re.findall(r"step 30: .*val_loss ([\d.]+)", r.stdout) for r in (again, whole)]
    assert of_30[0] == of_30[1] != []


@pytest.mark.slow
def test_engines_are_compared(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20, encoding="utf-8")
    result = run("gpt.py", *SMALL, "--file", str(text), "--compare")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[-2:]] == ["autograd", "derived"]
    assert result.stdout.startswith("820 characters, 15 different; ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--file", "nowhere.txt"], "argument --file: nowhere.txt: No such file or directory"),
        (["--heads", "3"], "argument --heads: 3 heads do not share 128 evenly"),
        (["--dropout", "1"], "argument --dropout: 1.0 is not a share from 0 to below 1"),
        (["--steps", "0"], "argument --steps: '0' is not a whole number of at least 1"),
    ],
)
def test_what_it_does_not_take(
    arguments: list[str], said: str, gpt: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpt.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f": {said}\n")


def test_the_step_of_one_block_fits_on_a_screen(gpt: ModuleType) -> None:
    """The lines of a second block, which are what one block adds: forward and backward."""
    lengths = []
    for blocks in (1, 2):
        model = gpt.GPT(11, 8, 16, 2, blocks, 0.0)
        step = TrainStep(model, gpt.loss, torch.optim.SGD(model.parameters(), lr=0.1))
        step(torch.randint(11, (2, 8)), torch.randint(11, (2, 8)))
        text = step.source[step.source.index("    def step") : step.source.index("# ---- update")]
        lengths.append(sum(not line.strip().startswith("#") for line in text.splitlines() if line.strip()))
    assert lengths[1] - lengths[0] <= 64


@pytest.mark.slow
@pytest.mark.parametrize("script", ["image.py", "sequence.py"])
@pytest.mark.parametrize("engine", ["autograd", "derived"])
def test_digits_are_told_apart(script: str, engine: str) -> None:
    result = run(script, "--width", "8", "--epochs", "3", "--engine", engine)
    assert result.returncode == 0, result.stderr
    accuracy = re.search(r"test accuracy ([\d.]+)% on 360 images", result.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 50  # a guess is right in ten of a hundred
