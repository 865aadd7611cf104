"""The source of a step, which is there to be read, computes what its program computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sources import assert_alike
from step_cases import MODELS, data
from torch.nn import Module

from torch_manualbp import TrainStep, nn

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD with decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "Nesterov's": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, maximize=True),
    # With an ε that no gradient which is 0 but for rounding is made large by.
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True, eps=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, maximize=True, eps=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "two groups": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 0.1, "amsgrad": True}, {"params": p[2:]}], eps=1e-3
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_source_computes_what_the_program_computes(make: type[Module], optimizer: Any) -> None:
    torch.manual_seed(0)
    model = make().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer([p for p in model.parameters() if p.requires_grad]))
    for i in range(2):
        step(*data(i))
    assert_alike(step._program(), model, step.loss, list(data(2)))
