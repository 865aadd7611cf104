"""What a step says of its memory is what it holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp import TrainStep


def _step() -> tuple[TrainStep, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))
    return (
        TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1)),
        torch.randn(8, 6),
        torch.randn(8, 3),
    )


def test_memory_is_what_the_program_holds() -> None:
    step, x, y = _step()
    step(x, y)
    held = step.memory()
    closure = [cell.cell_contents for cell in step._programs[-1].derived.step.__closure__]
    given = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in closure if isinstance(t, Tensor)}
    own = {p: s for p, s in storages.items() if p not in given and s.nbytes() > 8}  # but for numbers of one entry
    kept = [buffer for buffer in held.buffers if buffer.is_kept and buffer.bytes > 8]
    assert sorted(buffer.bytes for buffer in kept) == sorted(s.nbytes() for s in own.values())
    assert held.kept <= held.peak
    assert held.needed <= held.peak


def test_large_tensors_are_let_go_when_nobody_reads_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 3))
    step = TrainStep(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), fuse=False)
    x, y = torch.randn(64, 64), torch.randn(64, 3)
    step(x, y)
    assert "        del " in step.program
    made = [buffer for buffer in step.memory().buffers if not buffer.is_kept and buffer.bytes >= 1 << 16]
    assert made
    assert all(buffer.until == max(last for _, _, last in buffer.lives) for buffer in made)


def test_what_lives_there_is_named_with_its_calls() -> None:
    step, x, y = _step()
    with pytest.raises(RuntimeError, match="no program yet"):
        step.memory()
    step(x, y)
    held = step.memory()
    text = str(held)
    assert f"{held.peak:,} bytes at most" in text
    assert "z_0" in text
    for buffer in held.buffers:
        assert all(0 <= first <= last < held.calls for _, first, last in buffer.lives)
    assert held.svg().count("<rect") == sum(len(buffer.lives) for buffer in held.buffers)
    assert "<svg" in held._repr_html_()
