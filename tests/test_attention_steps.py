"""Attention of a recorded step: in blocks of queries it is what the formula says, and a program keeps no T×T."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import TrainStep, nn
from torch_manualbp.kernels import attention_steps
from torch_manualbp.kernels.attention_steps import attended_in_a_step, attention_gradients_in_a_step
from torch_manualbp.kernels.dispatch import plain
from torch_manualbp.rules.attention import attended, attention_gradients, bits_of

SHAPES = [
    ((2, 3, 40, 8), (2, 3, 40, 8)),
    ((2, 3, 37, 8), (2, 3, 21, 8)),
    ((2, 3, 21, 8), (2, 3, 37, 8)),
    ((3, 40, 8), (3, 40, 8)),
    ((2, 2, 3, 24, 8), (2, 2, 1, 24, 8)),  # a group of queries shares keys
]


def masks(L: int, S: int) -> dict[str, Tensor | None]:
    numbers = torch.randn(L, S, dtype=torch.float64)
    booleans = torch.rand(L, S) > 0.3
    booleans[3] = False
    return {"none": None, "numbers": numbers, "booleans": booleans, "keys": torch.rand(1, S) > 0.3}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_steps, "FEW_PAIRS_OF_STEPS", 1)
    monkeypatch.setattr(attention_steps, "ROWS", 4)
    monkeypatch.setattr(attention_steps, "BLOCK_NUMBERS", 1)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "numbers", "booleans", "keys"])
@pytest.mark.parametrize(("is_causal", "p"), [*itertools.product((False, True), (0.0, 0.4))])
def test_blocks_are_the_formula(shapes: Any, mask: str, is_causal: bool, p: float) -> None:
    torch.manual_seed(0)
    of_q, of_k = shapes
    q, k, v = (torch.randn(shape, dtype=torch.float64) for shape in (of_q, of_k, of_k))
    L, S = q.shape[-2], k.shape[-2]
    M = masks(L, S)[mask]
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    bits = bits_of(torch.rand(*batch, L, S) > p) if p else None
    given = q, k, v, M, bits, 0.3, is_causal, p
    o, lse = plain(attended)(*given)
    for ours, expected in zip(attended_in_a_step(*given), (o, lse), strict=True):
        torch.testing.assert_close(ours, expected)
    do = torch.randn_like(o)
    for needs in ((True, True, True, False), (False, True, False, False), (True, False, True, False)):
        gradients = attention_gradients_in_a_step(do, None, q, k, v, M, bits, lse, 0.3, is_causal, p, needs)
        theirs = plain(attention_gradients)(do, None, q, k, v, M, bits, lse, 0.3, is_causal, p, needs)
        for gradient, its in zip(gradients, theirs, strict=True):
            assert (gradient is None) == (its is None)
            if gradient is not None and its is not None:
                torch.testing.assert_close(gradient, its)


def test_a_causal_block_sees_no_later_keys() -> None:
    q, k, v = (torch.randn(2, 40, 8) for _ in range(3))
    heads = attention_steps._Heads(q, k, v, None, None, 0.0)
    seen = list(heads.blocks(is_causal=True))
    assert [n for _, _, n in seen] == [end for _, end, _ in seen]
    assert sorted(i for begin, end, _ in seen for i in range(begin, end)) == list(range(40))


class Causal(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_a_program_keeps_no_pairs() -> None:
    """Of blocks of 4 of 16 queries the largest has 4 × 16 pairs; none is read in forward and again in backward."""
    model = Causal()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(torch.randn(3, 16, 8), torch.randn(3, 2, 16, 4))
    assert "_flash_attention_for_cpu" in step.program
    assert "(3, 2, 16, 16)" not in step.program
    assert "(6, 16, 16)" not in step.program
    assert "(6, 4, 16)" in step.program
