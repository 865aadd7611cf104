"""``torch-manualbp bench insight`` times steps with the statistics of a run and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch_manualbp import cli
from torch_manualbp.bench import insight


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(insight, "SIZES", ((8, 4), (16, 4)))
    monkeypatch.setattr(insight, "WIDTH", 16)
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    arguments = ["--rounds", "1", "--json", str(figures), "--markdown", str(table)]
    assert cli.main(["bench", "insight", *arguments]) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["width"], row["engine"]) for row in rows] == [(w, e) for w in (8, 8, 16, 16) for e in insight.ENGINES]
    assert all(row["step"] > 0 and row["every_tenth"] > 0.5 for row in rows)
    assert [row["bound"] for row in rows] == [None] * 4 + [insight.BOUND] * 4
    assert "| 16 | 4 | GELU | derived | " in table.read_text()
    assert "every tenth" in capsys.readouterr().out
