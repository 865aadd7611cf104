"""verify raises no false alarm by accident of the numbers: right layers pass with every seed, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch_manualbp import functional as F
from torch_manualbp.verify import verify

CHECKS = ("structure", "values", "finite differences", "adjoint identity")
"""What compares numbers on the inputs as they are."""

LAYERS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "layer_norm": (lambda z, gamma, beta: F.layer_norm(z, (12,), gamma, beta), ((6, 12), (12,), (12,))),
    "softmax": (lambda z: F.softmax(z, -1), ((6, 12),)),
    "gelu": (F.gelu, ((6, 12),)),
    "silu": (F.silu, ((6, 12),)),
    "mish": (F.mish, ((6, 12),)),
    "rms_norm": (lambda z, gamma: F.rms_norm(z, (12,), gamma), ((6, 12), (12,))),
    "attention": (F.scaled_dot_product_attention, ((2, 5, 4), (2, 5, 4), (2, 5, 4))),
}

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("seeds", [2, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_no_seed_raises_an_alarm(name: str, dtype: torch.dtype, seeds: int) -> None:
    layer, shapes = LAYERS[name]
    alarms = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        inputs = [torch.randn(shape).to(dtype) for shape in shapes]
        report = verify(layer, *inputs, checks=CHECKS, seed=seed)
        if not report.values_ok:
            alarms[seed] = str(report.failures[0])
    assert not alarms, f"{len(alarms)} of {seeds} seeds: {alarms}"
