"""Whatever modules, parameters and classes are called, the program is right, and only what was to be written."""

from __future__ import annotations

import ast
import builtins
import keyword
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import Pair
from torch import Tensor
from torch.nn import Module, Parameter

from torch_manualbp import TrainStep
from torch_manualbp.derive.source import GIVEN, RESERVED, Names, Source, _identifier

HOSTILE = [
    '"""\n_flag.append(1)\n"""',
    "\\",
    "\\\"\"\"\n_flag.append(1)\n'''",
    "x\n    _flag.append(1)",
    "x\r_flag.append(1)",
    "x\x0c\n_flag.append(1)\x0b\x1c\x85\u2028",
    "\x00",
    "\ud800",
    "\u202e\u2066",
    "# coding: utf-7",
    "{}{0}{_flag.append(1)}%s",
    "; _flag.append(1)",
    "'] + _flag.append(1) #",
    "a b",
    "",
]
OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.AdamW(p, lr=0.01),
    lambda p: torch.optim.RMSprop(p, lr=0.01),
]
NAMES = [
    *[
        "0",
        "1e5",
        "lambda",
        "class",
        "match",
        "None",
        "__debug__",
        "__class__",
        "torch",
        "step",
        "lr",
        "F",
        "x",
        "y",
        "C",
        "t1",
    ],
    *[
        "len",
        "slice",
        "float",
        "parameters",
        "state",
        "build",
        "_",
        "W",
        "eps",
        "blocks1",
        "rows1",
        "onednn_linear",
        "i",
    ],
    *["ﬁ", "fi", "ℌ", "H", "ª", "a", "²", "2", "größe", "größe", "½", "፩", "x·y", "ǆ", "ſ", "s"],
]
"""Among them keywords, digits, names that the program uses, and such as Python reads as others."""


def of_parameters(names: list[str]) -> Module:
    """A model that sums parameters of these names, each with a factor of its own."""

    class Model(Module):
        def forward(self, x: Tensor) -> Tensor:
            s = next(self.children())(x)
            for k, parameter in enumerate(self._parameters.values()):
                assert parameter is not None
                s = s + torch.tanh(parameter) * (k + 1)
            return s

    model = Model()
    for k, name in enumerate(names):
        model._parameters[name] = Parameter(torch.linspace(-1, 1, 3) * (k + 1) / len(names))
    model._modules[names[0]] = torch.nn.Linear(4, 3)
    return model.double()


def assert_trains(model: Module, optimizer: Any) -> TrainStep:
    pair = Pair(model, torch.nn.MSELoss(), optimizer)
    for i in range(3):
        torch.manual_seed(i)
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
        ours, expected = pair.advance(x, y)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    return pair.step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lists_and_dicts_of_parameters(optimizer: Any) -> None:
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)
            self.scales = torch.nn.ParameterList([Parameter(torch.rand(3)) for _ in range(12)])
            self.lists = torch.nn.ModuleList([torch.nn.ParameterList([Parameter(torch.rand(3))]) for _ in range(2)])
            self.named = torch.nn.ParameterDict({"1 a": Parameter(torch.rand(3)), "lambda": Parameter(torch.rand(3))})

        def forward(self, x: Tensor) -> Tensor:
            for p in [*self.scales, *(p for inner in self.lists for p in inner.parameters()), *self.named.values()]:
                x = x * p if x.shape[1] == 3 else self.layer(x)
            return x

    torch.manual_seed(0)
    step = assert_trains(Model(), optimizer)
    assert "scales" in step.source
    assert "scales" in step.program


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_names_that_python_has_other_uses_for(optimizer: Any) -> None:
    assert_trains(of_parameters(NAMES), optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[:2])
def test_names_of_any_characters(optimizer: Any, tmp_path: Path) -> None:
    model = of_parameters(HOSTILE)
    step = assert_trains(model, optimizer)
    step.save(tmp_path / "step.py")
    assert (tmp_path / "step.py").read_text(encoding="utf-8") == step.source


def test_every_name_is_an_identifier_and_comes_once() -> None:
    wanted = [*NAMES, *HOSTILE, *keyword.kwlist, *keyword.softkwlist, *dir(builtins), *GIVEN, *RESERVED] * 2
    wanted += [chr(code) + suffix for code in range(0x100, sys.maxunicode, 97) for suffix in ("", "a")]
    names = Names(["lr_0"])
    given = [names(name) for name in wanted]
    assert len(set(given)) == len(given)
    assert not set(given) & {*GIVEN, *RESERVED, *keyword.kwlist, "lr_0"}
    for name in given:
        (statement,) = ast.parse(f"{name} = 0").body
        assert ast.unparse(statement) == f"{name} = 0"  # which Python reads as it stands there
    assert _identifier("W_größe") == "W_größe"


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_no_code_in_a_name_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag: list[int] = []
    monkeypatch.setattr(builtins, "_flag", flag, raising=False)
    text = name.replace("\x00", "").encode("utf-8", "ignore").decode()  # as a class may be called

    class Loss(Module):
        def forward(self, s: Tensor, y: Tensor) -> Tensor:
            return ((s - y) * (s - y)).mean()

    class Optimizer(torch.optim.SGD):
        pass

    class Network(torch.nn.Sequential):
        pass

    for cls in (Loss, Network, Optimizer):
        cls.__name__ = cls.__qualname__ = text
    model = Network()
    model.add_module(name.replace(".", "_") or " ", torch.nn.Linear(4, 3))
    model.add_module("act", torch.nn.Tanh())
    model.double()
    for optimizer in (Optimizer, torch.optim.SGD):
        step = TrainStep(model, Loss(), optimizer(model.parameters(), lr=0.1))
        step(torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64))
        assert "\\ud800" in step.source if name == "\ud800" else True
    assert not flag


def test_the_parser_tells_what_was_not_written() -> None:
    def of(line: str) -> Source:
        source = Source(["Heading", "", "Text"])
        source.add("import torch")
        source.add("def build(parameters, state):")
        source.comment("a\nb", 4)
        source.add("W = parameters['W']", 4, "(3,)")
        source.add("def step(x, lr):", 4)
        source.add(line, 8)
        source.add("return C", 8)
        source.add("return step", 4)
        return source

    of("C = torch.add(x, W, alpha=-lr)").check()
    for line in (
        "C = eval(x)",
        "C = x; y = x",
        "import os",
        "C = x\n        y = x",
        "C = x  # \n        exit()",
        "C = (lambda: x)()",
        "C = __import__('os')",
        "C = [x for x in ().__class__]\nexit()",
    ):
        with pytest.raises(AssertionError, match="derived program"):
            of(line).check()
