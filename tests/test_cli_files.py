"""Files that commands write: said before any work where they cannot be, not over files of the user's, whole or not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from ordinary import one_of_each

from torch_manualbp import TrainStep, _files, _tables, cli, nn
from torch_manualbp.derive import command as derive_command
from torch_manualbp.insight import draw, report
from torch_manualbp.insight.page import make

NET = "torch_manualbp.nn:Sequential(Linear(2, 3), Tanh(), Linear(3, 1))"
DATA = ["--input", "ones(1, 2)", "--target", "ones(1, 1)"]
COMMANDS = {
    "derive": ["derive", NET, "--input", "1,2", "--loss", "MSELoss", "--output"],
    "explain": ["explain", NET, "0.weight", "0,0", *DATA, "--output"],
    "report": ["report", NET, *DATA, "--output"],
    "verify": ["verify", "torch_manualbp.nn:Tanh", "--input", "ones(2)", "--check", "structure", "--json"],
    "matrix": ["matrix", "--rule", "Tanh", "--check", "meta device", "--markdown"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notes").write_text("the user's own")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return status, captured.err.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_is_not_written_over_unless_forced(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = COMMANDS[command][-1]
    line = f"torch-manualbp {command}: argument {option}: notes exists; --force writes over it"
    assert said([*COMMANDS[command], "notes"], capsys) == (2, line)
    assert (folder / "notes").read_text() == "the user's own"
    assert cli.main([*COMMANDS[command], "notes", "--force"]) == 0
    assert "the user's own" not in (folder / "notes").read_text()
    (folder / "empty").touch()  # such as mktemp makes
    assert cli.main([*COMMANDS[command], "empty"]) == 0
    assert (folder / "empty").read_text()
    assert sorted(os.listdir(folder)) == ["empty", "notes"]


def test_the_page_that_nobody_named_is_no_exception(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").write_text("the user's own")
    status, line = said(["report", NET, *DATA], capsys)
    assert (status, line) == (2, "torch-manualbp report: argument --output: report.html exists; --force writes over it")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "Is a directory: '.'"),
        ("", "Is a directory: '.'"),
        ("notes/file", "Not a directory: "),
        ("a\0b", "no file can have this name: "),
        ("n" * 300, "File name too long: "),
    ],
)
def test_a_file_that_cannot_be_written_is_said_before_any_work(
    command: str, path: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda *_: pytest.fail("work has begun"))
    status, line = said([*COMMANDS[command], path], capsys)
    assert status == 1
    assert line.startswith(f"torch-manualbp {command}: [Errno ")
    assert reason in line
    assert os.listdir(folder) == ["notes"]


def test_derive_makes_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = said([*COMMANDS["derive"], "missing/step.py"], capsys)
    assert status == 1
    assert line.endswith(f"the folder does not exist: '{folder / 'missing'}'")


def test_two_tables_in_one_file_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = "torch-manualbp matrix: arguments --json and --markdown: these are one file"
    assert said(["matrix", "--json", "table", "--markdown", "./table"], capsys) == (2, line)


@contextmanager
def full_disk(path: Any) -> Iterator[BinaryIO]:
    """As whole_file, on a disk that is full after half of the file."""
    with _files.whole_file(path) as file:

        class Half:
            def write(self, content: bytes) -> None:
                file.write(bytes(content)[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        yield Half()  # type: ignore[misc]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(path: Any, text: str) -> None:
        with full_disk(path) as file:
            file.write(text.encode())

    for module in (_tables, make, derive_command, sys.modules["torch_manualbp.derive.step"]):
        if hasattr(module, "write_text"):
            monkeypatch.setattr(module, "write_text", write_text)
    monkeypatch.setattr("torch_manualbp.insight.figures.whole_file", full_disk)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("full")
def test_a_full_disk_leaves_the_file_that_is_there(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMANDS[command], "notes", "--force"]) == 1
    assert capsys.readouterr().err == f"torch-manualbp {command}: [Errno 28] No space left on device: 'notes'\n"
    assert (folder / "notes").read_text() == "the user's own"
    assert os.listdir(folder) == ["notes"]


HISTORY = [{"step": 1, "layers": {"0": {"grad_norm": 1.0, "update_ratio": 0.1}}, "noise_scale": None}]


@pytest.mark.parametrize("name", ["figure.png", "figure.svg", "figure"])
def test_figures_are_written_whole(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(HISTORY, folder / "new" / name)
    (made,) = (folder / "new").iterdir()
    assert made.name == (name if "." in name else f"{name}.png")
    good = made.read_bytes()
    monkeypatch.setattr("torch_manualbp.insight.figures.whole_file", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        draw(HISTORY, folder / "new" / name)
    assert made.read_bytes() == good
    assert os.listdir(folder / "new") == [made.name]


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("figure.xyz", ValueError, "figure.xyz: '.xyz' is the suffix of no figure; there are .*png"),
        ("notes/figure.png", NotADirectoryError, "Not a directory"),
    ],
)
def test_a_figure_that_cannot_be_saved_is_said_before_training(path: str, error: type[Exception], reason: str) -> None:
    from torch_manualbp.lightning import GradientFlow

    with pytest.raises(error, match=reason):
        draw(HISTORY, path)
    with pytest.raises(error, match=reason):
        GradientFlow(path)


def test_the_functions_are_whole_too(folder: Path, full: None) -> None:
    model, (x, y) = nn.Sequential(nn.Linear(2, 1)), (torch.ones(1, 2), torch.ones(1, 1))
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(x, y)
    for write in (lambda: step.save("notes"), lambda: report(model, nn.MSELoss(), x, y, "notes")):
        with pytest.raises(OSError, match="No space left on device: 'notes'"):
            write()
        assert (folder / "notes").read_text() == "the user's own"
    assert os.listdir(folder) == ["notes"]


def test_infinities_and_nan_are_words_in_json(folder: Path) -> None:
    _tables.write(folder / "figures.json", {"rows": [{"ratio": float("nan"), "more": (float("-inf"), 1.5)}]})
    written = json.loads((folder / "figures.json").read_text(), parse_constant=pytest.fail)
    assert written == {"rows": [{"ratio": "nan", "more": ["-inf", 1.5]}]}


# --- where it prints -------------------------------------------------------------------------------------------------

TANH = '-m torch_manualbp verify torch_manualbp.nn:Tanh --input "ones(2)" --check structure'
PRINTED = {
    ">/dev/full": (1, "torch-manualbp verify: [Errno 28] No space left on device\n"),
    ">&-": (0, ""),
    "| true": (0, ""),
    "--json /dev/full": (1, "torch-manualbp verify: [Errno 28] No space left on device: '/dev/full'\n"),
    "--json /dev/stdout >file": (0, ""),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("where", one_of_each(PRINTED, lambda where: [PRINTED[where][0]]))
def test_output_that_goes_nowhere_ends_in_one_line(where: str) -> None:
    command = f'set -o pipefail; "{sys.executable}" {TANH} {where}'
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == PRINTED[where]


# --- hostile arguments -----------------------------------------------------------------------------------------------

HOSTILE = {
    "derive {net} --input 999999999999,4": (2, "argument --input: there can be no tensor 999999999999,4: RuntimeError"),
    "derive {net} --input 99999999999999999999,4": (2, "argument --input: there can be no tensor "),
    "derive {net} --input 1,2:quint8": (2, "argument --input: there can be no tensor 1,2:quint8: NotImpl"),
    "derive {net} --input=-1,2": (2, "argument --input: '-1,2' is no shape"),
    "explain {net} 0.weight 0,0 {data} --seed -1": (2, "argument --seed: '-1' is not a whole number from 0"),
    "explain {net} 0.weight 0,0 {data} --seed 99999999999999999999": (2, "argument --seed: '99999999999999999999' is"),
    "explain {net} 0.weight 0,0 {data} --paths -1": (2, "paths=-1"),
    "explain {net} 0.w\udc80 0,0 {data}": (2, "there is no parameter '0.w\\udc80'"),
    "report {net} {data} --history .": (1, "[Errno 21] Is a directory: '.'"),
    "report {net} {data} --history /dev/zero": (2, "argument --history: /dev/zero is not JSON: ValueError: it"),
    "report torch_manualbp.nn:Linear(99999999,99999999) {data}": (2, "argument model: Linear(99999999,99999999) "),
    "verify torch_manualbp.nn:Tanh --input ones(2) --budget nan": (2, "argument --budget: 'nan' is not a number"),
    "verify torch_manualbp.nn:Tanh --input ones(2) --budget -1": (2, "argument --budget: '-1' is not a number"),
    "verify torch_manualbp.nn:Tanh --input ones(2) --check order --leave-out order": (2, "argument --leave-out: no "),
    "matrix ..:x": (2, "the 'package' argument is required"),
    "matrix nothing:x": (2, "No module named 'nothing'"),
    "bench layers --threads 99999999999999999999": (2, "argument --threads: '99999999999999999999' is not a whole"),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_arguments_are_answered_in_one_line(
    text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"{net}": [NET], "{data}": DATA}
    arguments = [part for word in text.split(" ") for part in parts.get(word, [word])]
    try:
        status = cli.main(arguments)
    except SystemExit as exit:
        status = int(str(exit.code))
    captured = capsys.readouterr()
    command = text.split(" ")[0] if not text.startswith("bench") else "bench layers"
    assert captured.out == ""
    assert captured.err.startswith(f"torch-manualbp {command}: {HOSTILE[text][1]}")
    assert captured.err.count("\n") == 1
    assert status == HOSTILE[text][0]
    assert os.listdir(folder) == ["notes"]
