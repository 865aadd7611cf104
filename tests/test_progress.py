"""What takes long says where it is, and Ctrl-C keeps what is there."""

from __future__ import annotations

import sys

import pytest
import torch

from torch_manualbp._progress import Counted
from torch_manualbp.cli import main
from torch_manualbp.verify import accuracy, matrix
from torch_manualbp.verify.mistakes import MISTAKES
from torch_manualbp.verify.self_test import self_test


def test_a_loop_says_at_once_where_it_is_and_how_long_it_may_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("time.monotonic", iter(range(0, 10_000, 100)).__next__)
    with Counted(["a", "b", "c"], "letters") as todo:
        assert list(todo) == ["a", "b", "c"]
    lines = capsys.readouterr().err.split("\r\x1b[K")
    assert lines[1] == "letters, 1 of 3, a"
    assert lines[2].startswith("letters, 2 of 3, b, about ")
    assert lines[2].endswith(" min left")
    assert lines[-1] == ""  # and it is gone


def test_nothing_is_said_where_nobody_waits(capsys: pytest.CaptureFixture[str]) -> None:
    with Counted(["a", "b"], "letters") as todo:
        assert list(todo) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_an_interruption_before_anything_is_done_is_raised() -> None:
    def interrupted() -> None:
        with Counted(["a"], "letters"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_an_interrupted_matrix_is_printed_as_far_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = matrix.contract_matrix

    def interrupted(entries: list[object], *args: object, **kwargs: object) -> object:
        if entries[0].name == "Tanh":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return own(entries, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(matrix, "contract_matrix", interrupted)
    rules = [word for name in ("Sigmoid", "Tanh") for word in ("--rule", name)]
    assert main(["matrix", *rules, "--check", "first derivatives"]) == 130
    out, err = capsys.readouterr()
    assert "Sigmoid" in out
    assert "Tanh" not in out
    assert "matrix: interrupted after 1 of 2" in err


def test_interrupted_errors_are_printed_as_far_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    own = accuracy.measure

    def interrupted(entry: object, dtype: object) -> object:
        if entry.name == "Tanh":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return own(entry, dtype)  # type: ignore[arg-type]

    monkeypatch.setattr(accuracy, "measure", interrupted)
    assert main(["accuracy", "--rule", "Sigmoid", "Tanh", "--dtype", "bfloat16"]) == 130
    out, err = capsys.readouterr()
    assert "Sigmoid" in out
    assert "Tanh" not in out
    assert "accuracy: interrupted after 1 of 2" in err


def test_an_interrupted_self_test_has_the_mistakes_before() -> None:
    def tool(mistake: object, target: object) -> str:
        if mistake is MISTAKES[2]:
            raise KeyboardInterrupt
        return ""

    found = self_test(MISTAKES[:4], {"verify": tool})
    assert found.interrupted
    assert [row.mistake for row in found.rows] == MISTAKES[:2]
