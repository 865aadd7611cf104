"""``explain`` of a deep network: the work grows with the depth, and somebody who waits for it is told."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_manualbp import _progress as progress
from torch_manualbp import explain


class Block(nn.Module):
    """Attention and two layers, each with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / x.shape[-1] ** 0.5
        x = x + self.o(torch.softmax(scores, -1) @ self.v(x))
        out: Tensor = x + self.down(self.act(self.up(x)))
        return out


def stack(blocks: int, width: int = 4, positions: int = 3) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, 2))
    x, y = torch.randn(2, positions, width).double(), torch.randn(2, positions, 2).double()
    return model.double(), nn.MSELoss(), x, y, "0.weight", (0, 0)


def calls_in(blocks: int) -> int:
    """How many functions are called for an explanation."""
    arguments, count = stack(blocks), 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        explain(*arguments)
    finally:
        sys.setprofile(None)
    return count


def test_the_work_grows_with_the_depth() -> None:
    explain(*stack(1))
    four, eight, sixteen = map(calls_in, (4, 8, 16))
    assert sixteen - eight < 2.5 * (eight - four)  # 2 if it is linear, 4 if it grows with the square


def test_a_deep_explanation_is_right() -> None:
    e = explain(*stack(12))
    assert e.value == pytest.approx(e.autograd, rel=1e-12)
    assert e.count_paths > 1e30


class Terminal(io.StringIO):
    def __init__(self, is_one: bool) -> None:
        super().__init__()
        self.is_one = is_one

    def isatty(self) -> bool:
        return self.is_one


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("after", [0.0, 1000.0])
def test_who_waits_at_a_terminal_is_told(is_one: bool, after: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "AFTER_S", after)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(is_one))
    explain(*stack(2))
    said = terminal.getvalue()
    if not is_one or after:
        assert not said
        return
    assert "explain, the paths of term 1 of 5, operation 0 of " in said
    assert said.endswith(progress.CLEARED)
    assert "\n" not in said


def test_a_line_is_cleared_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "AFTER_S", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(True))
    told = progress.Progress("explain")
    told.at("operation 1 of 2")
    told.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert terminal.getvalue() == f"{progress.CLEARED}explain, operation 1 of 2{progress.CLEARED}"
