"""``torch-manualbp bench verify`` times verifications, and says what they found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torch_manualbp import cli, nn
from torch_manualbp.bench import verification


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "LAYERS", {"GELU": verification.LAYERS["GELU"]})
    monkeypatch.setattr(verification, "MODELS", {"few": (6, 8, 3)})


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    arguments = ["--rounds", "1", "--json", str(figures), "--markdown", str(table)]
    assert cli.main(["bench", "verify", *arguments]) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["target"], row["verdict"]) for row in rows] == [
        ("GELU", "correct"),
        ("a model of few parameters", "correct"),
    ]
    assert all(0 < row["step"] < row["seconds"] for row in rows)
    assert "| GELU | " in table.read_text()
    assert "correct" in capsys.readouterr().out


def test_a_wrong_gradient_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, z: torch.Tensor) -> torch.Tensor:
            return z * 2

        @staticmethod
        def backward(ctx: object, da: torch.Tensor) -> torch.Tensor:
            return da * 2.001

    layer = nn.Identity()
    monkeypatch.setattr(layer, "forward", Wrong.apply)
    monkeypatch.setitem(verification.LAYERS, "GELU", (lambda: layer, lambda: (torch.randn(4, 3),)))
    assert cli.main(["bench", "verify", "--rounds", "1"]) == 1
    assert "values, float64" in capsys.readouterr().err
