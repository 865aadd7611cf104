"""The source of a step, which is there to be read, computes what its program computes."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sources import assert_alike
from step_cases import MODELS, Structured, data, mlp
from torch import Tensor
from torch.nn import Module

from torch_manualbp import Rule, TrainStep, cli, nn
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.derive.update import forms_of

ROOT = Path(__file__).parent.parent
OTHERS = sorted({*Path(__file__).parent.glob("test_train_step*.py")} - {Path(__file__)})

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


OPTIONS: tuple[dict[str, Any], ...] = (
    {"keep_deltas": True},
    {"keep_output": True, "keep_layers": True},
    {"skip_nonfinite": True},
    {"accumulate": 3},
    {"clip_norm": 0.1},
    {"compile": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
def test_the_source_returns_what_the_program_returns(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the text is the matter here
    model = Structured().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), **options)
    for i in range(2):  # the second adds to the gradients of the first
        step(*data(i))
        assert_alike(step._program(), model, step.loss, list(data(2)))


def test_nothing_is_updated_where_the_loss_is_not_finite() -> None:
    model = mlp().double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), skip_nonfinite=True)
    x, y = data(0)
    step.derive(x, y)
    x[0, 0] = float("nan")
    assert_alike(step._program(), model, step.loss, [x, y])


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_source_knows_nothing_of_memory(make: type[Module]) -> None:
    model = make()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters()))
    step.derive(*data(0, torch.float32))
    for word in ("out=", "in the same memory", "torch.empty(", "int32", "_C.", ".view(", "_foreach", "_fused"):
        assert word not in step.source
    assert not re.search(r"\bt\d+\b", step.source)


def test_what_is_around_does_not_matter() -> None:
    sources = []
    for around in (contextlib.nullcontext(), torch.inference_mode(), torch.no_grad(), torch.device("meta")):
        model = Structured()
        step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        step.derive(*data(0, torch.float32), program=True)
        state = torch.get_rng_state()
        with around:
            sources.append(step.source)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(set(sources)) == 1


class Constant(Module):
    """A model that returns its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.p


def test_a_loss_that_is_a_parameter_is_returned_as_it_was() -> None:
    model = Constant()
    step = TrainStep(model, lambda s, y: s, torch.optim.SGD(model.parameters(), lr=0.1))
    step.derive(torch.zeros(1), None)
    assert "C = torch.clone(p)" in step.source
    assert_alike(step._program(), model, step.loss, [torch.zeros(1)])


class Cube(Rule):
    """a = z³.

    ::

        a = z³
        ⇒
        ∂C/∂z = 3 z² ∂C/∂a
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z * z * z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        slope = 3 * z * z
        return slope * da


class OfRule(Module):
    """A linear layer, and a rule of somebody's own."""

    def __init__(self, rule: type[Rule]) -> None:
        super().__init__()
        self.fc, self.rule = nn.Linear(6, 5), rule

    def forward(self, x: Tensor) -> Tensor:
        cubes: Tensor = self.rule.apply(self.fc(x)) * 2
        return cubes


def test_names_are_those_of_the_code_of_the_model_and_of_its_rules() -> None:
    model = OfRule(Cube).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step.derive(*data(0))
    for line in (
        "cube = z_fc * z_fc * z_fc",
        "cubes = cube * 2",
        "slope = z_fc * 3 * z_fc",
        "delta_fc = slope * dcube",
    ):
        assert f"        {line} " in step.source
    assert "# Cube:   a = z³" in step.source
    assert_alike(step._program(), model, step.loss, list(data(1)))


@torch.library.custom_op("test_train_step_article::halved", mutates_args=())
def halved(z: Tensor) -> Tensor:
    """An operator that nobody has told about tensors without numbers."""
    return z / 2


class Halved(Cube):
    """a = z / 2."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        result: Tensor = halved(z)
        return result

    @staticmethod
    def backward(ctx: Any, da: Tensor) -> Tensor:
        return da / 2


class Asks(Halved):
    """a = z / 2, for those who know that 0 + 1 is 1."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        one = torch.ones(2).sum() - 1
        return halved(z) if one.item() == 1 else z


def test_a_rule_whose_operator_has_no_kernel_without_numbers() -> None:
    model = OfRule(Halved).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(*data(0))
    assert "= torch.ops.test_train_step_article.halved" in step.source
    assert_alike(step._program(), model, step.loss, list(data(1)))


def test_a_rule_that_asks_for_numbers_has_a_program_alone() -> None:
    model = OfRule(Asks).double()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(*data(0))
    assert "halved" in step.program
    with pytest.raises(NotDerivableError, match=r"the formulas of Asks cannot be written down without its numbers"):
        _ = step.source


def test_the_step_in_the_documentation_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "torch_manualbp" / "derive" / "README.md").read_text(encoding="utf-8")
    command, printed = re.findall(r"```(?:shell|python)\n(.*?)```", text.split("## A step to read")[1], re.DOTALL)
    assert cli.main(command.split()[1:]) == 0
    assert capsys.readouterr().out == printed


def test_an_optimizer_that_makes_its_own_step_has_no_form() -> None:
    with pytest.raises(ValueError, match="RMSprop makes its own step"):
        forms_of(torch.optim.RMSprop(mlp().parameters()), [0])


@pytest.mark.slow
@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.stem)
def test_every_step_that_a_test_derives_has_a_source_that_computes_the_same(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "sources", "-m", "not slow", str(file)]
    path = os.pathsep.join([str(file.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stdout[-4000:]
