"""The source and the program of a step can be read, saved, and run without this package."""

from __future__ import annotations

import ast
import cProfile
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import MODELS, Pair, data, mlp
from torch.nn import Module

from torch_manualbp import TrainStep, nn


def derived(model: Module, **settings: Any) -> TrainStep:
    step = TrainStep(model.double(), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1, **settings))
    step.derive(*data(0))
    return step


def lines_of_step(source: str) -> list[str]:
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    def step("))
    return [line for line in lines[start + 1 :] if line.startswith("        ")]


@pytest.mark.parametrize("which", ["source", "program"])
def test_sections_formulas_names_and_shapes_can_be_read(which: str) -> None:
    text = getattr(derived(mlp(nn.ReLU)), which)
    for section in ("forward", "loss", "backward", "update"):
        assert f"# ---- {section} ---" in text
    lines = ["# fc1: Linear:   z = a Wᵀ + b", "# act1: ReLU:   a = max(z, 0)"]
    if which == "source":
        lines += ["z_fc1 = x @ W_fc1.T + b_fc1", "da_act1 = delta_fc2 @ W_fc2", "W_fc1 -= lr * dW_fc1"]
    else:
        lines += ["F.linear(x, W_fc1, b_fc1, out=z_fc1)", "torch.mm(delta_fc2, W_fc2, out=da_act1)"]
        lines += ["W_fc1.addmm_(delta_fc1_t, x, alpha=-lr)"]
    for line in lines:
        assert line in text
    for line in lines_of_step(text):
        code, _, note = line.partition("  # ")
        if code.strip() and not code.strip().startswith(("#", "return", "nonlocal")):
            assert note.startswith("("), line


@pytest.mark.parametrize("which", ["source", "program"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_step_is_straight_line_code(make: type[Module], which: str) -> None:
    tree = ast.parse(getattr(derived(make()), which))
    step = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "step")
    kinds = ast.Expr | ast.Assign | ast.AugAssign | ast.Return | ast.Nonlocal
    assert all(isinstance(node, kinds) for node in step.body)


def test_the_gradient_of_a_weight_is_never_there_under_sgd() -> None:
    assert "dW_" not in derived(mlp(), momentum=0.9, weight_decay=0.1).program


RUNS_SAVED_MODULES = """
import importlib.util, sys, torch
sys.modules["torch_manualbp"] = None
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = torch.load(path + ".pt")
    step = module.build(data["parameters"], {})
    torch.manual_seed(0)
    for expected in data["losses"]:
        loss = step(data["x"], data["y"], 0.1)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0, msg=lambda differs: f"{path}: {differs}")
"""


def test_the_saved_modules_run_without_this_package(tmp_path: Path) -> None:
    """All in one process, which takes 3 s to begin."""
    for make, program in itertools.product(MODELS, (False, True)):
        torch.manual_seed(0)
        model = make()
        step = derived(model)
        parameters = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
        path = tmp_path / f"{make.__name__}, {'program' if program else 'source'}.py"
        step.save(path, program)
        x, y = data(0)
        torch.manual_seed(0)
        losses = [step(x, y) for _ in range(3)]
        torch.save({"parameters": parameters, "x": x, "y": y, "losses": losses}, f"{path}.pt")
    saved = sorted(map(str, tmp_path.glob("*.py")))
    assert len(saved) == 2 * len(MODELS)
    subprocess.run([sys.executable, "-I", "-c", RUNS_SAVED_MODULES, *saved], check=True)


def test_a_step_may_be_profiled() -> None:
    """cProfile's profiler is no function that could be put aside and set again."""
    pair = Pair(mlp())
    profile = cProfile.Profile()
    profile.enable()
    try:
        ours, expected = pair.advance(*data(0))
    finally:
        profile.disable()
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    assert "# fc1: Linear:" in pair.step.source
