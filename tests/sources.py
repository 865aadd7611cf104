"""Runs the source and the program of a derived step from one state; as a pytest plugin, of every step that is derived.

pytest -p sources tests/test_train_step.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from torch_manualbp.derive import deriving
from torch_manualbp.derive import step as step_module
from torch_manualbp.derive.derived import Derived
from torch_manualbp.derive.recording import named_tensors

TOLERANCE = {torch.float64: 1e-12, torch.complex128: 1e-12, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""By the narrowest dtype in a program; of float32 it is the last."""

BOUNDS = {"clip_norm": 0.1, "clip_value": 0.01}


def assert_alike(derived: Derived, model: Module, loss: Any, leaves: list[Tensor]) -> None:
    """One step of the source and one of the program, from the state of now, come to the same."""
    names = named_tensors(model, loss)
    given = {keys[key]: t for p, (_, _, keys) in derived.forms.items() for key, t in derived.state[p].items()}
    groups = derived.optimizer.param_groups
    settings = [number for i, form in derived.groups for number in form.numbers(groups[i])]
    settings += [BOUNDS[name] for name in derived.how.bounds]
    results = []
    for text in (derived.article.text_to_save(), derived.text_to_save()):
        parameters = {name: t.detach().clone() for name, t in names.items()}
        state = {key: t.clone() for key, t in given.items()}
        grads = [torch.full_like(p, 0.5).detach() for p in derived.parameters] if derived.how.adds else []
        namespace: dict[str, Any] = {}
        exec(compile(text, "<text>", "exec"), namespace)
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.device(derived.device):
            torch.manual_seed(0)
            run = namespace["build"](parameters, state)
            returned = run(*(t.clone() for t in leaves), *grads, *settings)
        results.append([returned, parameters, state, grads])
    low = min(
        (t.dtype for t in pytree.tree_leaves(results) if t.is_floating_point()), key=lambda d: torch.finfo(d).bits
    )
    tolerance = TOLERANCE.get(low, 1e-4)
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.fixture(autouse=True)
def _hold_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the source of every step that a test derives against its program."""
    derive = deriving.derived_program

    def derived_program(
        model: Module, loss: Any, optimizer: Any, inputs: Any, target: Any, *how: Any, **others: Any
    ) -> Any:
        derived, reads = derive(model, loss, optimizer, inputs, target, *how, **others)
        leaves = [leaf for leaf in pytree.tree_leaves((inputs, target)) if isinstance(leaf, Tensor)]
        assert_alike(derived, model, loss, leaves)
        return derived, reads

    monkeypatch.setattr(step_module, "derived_program", derived_program)
