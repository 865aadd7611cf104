"""The rules, PyTorch's databases, the step and the verifier on an accelerator: ``pytest -m gpu``.

``TORCH_MANUALBP_DEVICE=cpu`` runs the same on another device than CUDA, to see that the tests themselves are right.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
import upstream
from torch import Tensor
from torch.testing._internal.common_utils import freeze_rng_state
from torch.utils._pytree import tree_leaves

from torch_manualbp import TrainStep, nn, verify
from torch_manualbp.catalogue import CATALOGUE, Make, Operation
from torch_manualbp.verify.outputs import outputs

DEVICE = os.environ.get("TORCH_MANUALBP_DEVICE", "cuda")
IS_THERE = DEVICE == "cpu" or (DEVICE.startswith("cuda") and torch.cuda.is_available())
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not IS_THERE, reason=f"no device {DEVICE} here"),
    *map(
        pytest.mark.filterwarnings,
        (
            "ignore:reduction. 'mean' divides",  # torch's, of KLDivLoss's own default
            "ignore:linear_cross_entropy. ``options`` ignored",  # torch's, of upstream's options
            "ignore:The PyTorch API of nested tensors",  # torch's, of its transformer's fast path
        ),
    ),
]
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def gradients(results: Any, learning: list[Tensor]) -> list[Tensor | None]:
    found = [o for o in tree_leaves(results) if isinstance(o, Tensor) and o.requires_grad]
    if not found or not learning:
        return []
    pulls = [torch.linspace(0.5, 1.5, o.numel(), dtype=o.real.dtype, device=o.device).reshape(o.shape) for o in found]
    pulls = [pull.to(o.dtype) for pull, o in zip(pulls, found, strict=True)]
    return list(torch.autograd.grad(found, learning, pulls, allow_unused=True))


def assert_close(ours: Any, theirs: Any) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        mine = None if mine is None else mine.detach().cpu()
        if mine is None or other is None:
            present = other if mine is None else mine
            assert present is None or not present.abs().sum().item(), "a gradient that the other has not"
            continue
        torch.testing.assert_close(mine, other.detach().cpu(), equal_nan=True, **CLOSE)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_rules_compute_on_the_device_what_they_do_on_the_cpu(entry: Operation) -> None:
    for sample in entry.samples(Make()):
        positions = entry.differentiable(sample)
        results = []
        for device in ("cpu", DEVICE):
            args = [a.detach().clone().to(device) if isinstance(a, Tensor) else a for a in sample.args]
            learning = [args[i].requires_grad_() for i in positions]
            with freeze_rng_state():
                result = outputs(entry.rule.apply(*args))
            results.append([*result, *gradients(result, learning)])
        assert_close(results[1], results[0])


@pytest.mark.parametrize("info", upstream.MODULES, ids=lambda info: info.name)
def test_layers_compute_on_the_device_what_they_do_on_the_cpu(info: Any) -> None:
    if "Drop" in info.name or "RReLU" in info.name or "Fractional" in info.name:
        pytest.skip("draws other random numbers on other devices")
    dtype = torch.float64
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    for given in inputs:
        if given.forward_input is None:
            continue
        constructor, forward = given.constructor_input, given.forward_input
        layer = info.module_cls(*constructor.args, **constructor.kwargs).to(dtype).eval()
        with torch.no_grad():
            expected = layer(*copy.deepcopy(forward.args), **copy.deepcopy(forward.kwargs))
            to_device = torch.utils._pytree.tree_map(
                lambda t: t.to(DEVICE) if isinstance(t, Tensor) else t, (forward.args, forward.kwargs)
            )
            found = layer.to(DEVICE)(*to_device[0], **to_device[1])
        pairs = [[t for t in tree_leaves(r) if isinstance(t, Tensor)] for r in (found, expected)]
        assert_close(*pairs)


def test_a_step_trains_on_the_device_as_autograd_does() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).double().to(DEVICE)
    twin, loss = copy.deepcopy(model), nn.CrossEntropyLoss()
    step = TrainStep(model, loss, torch.optim.AdamW(model.parameters(), lr=0.01))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for _ in range(4):
        x, y = torch.randn(8, 6, dtype=torch.float64).to(DEVICE), torch.randint(4, (8,)).to(DEVICE)
        value = step(x, y)
        optimizer.zero_grad()
        expected = loss(twin(x), y)
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(torch.as_tensor(value).cpu(), expected.detach().cpu(), **CLOSE)
    assert_close(list(model.parameters()), list(twin.parameters()))


def test_the_verifier_finds_a_mistake_on_the_device_and_no_other() -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return z.square()

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            (z,) = ctx.saved_tensors
            return da * z

    z = torch.randn(5, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert verify(nn.Tanh(), z, checks=["values"]).ok
    assert not verify(Halved, z, checks=["values"]).ok
