"""Expressions of a command line: what they may hold, and that nothing else of Python is run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_manualbp import cli
from torch_manualbp._expressions import data_names, evaluate

TAKEN: dict[str, Any] = {
    'float("nan")': math.nan,
    'float("inf")': math.inf,
    "-inf": -math.inf,
    "int(3.5)": 3,
    "complex(1, 2)": 1 + 2j,
    "[1, (2.5, None), 'sum']": [1, (2.5, None), "sum"],
    "{'a': True}": {"a": True},
    "2 ** 10 - 7 // 2 % 3 + 1 / 4": 1024.25,
    "[0] * 3": [0, 0, 0],
    "zeros(2, dtype=float64)": torch.zeros(2).double(),
    "torch.ones(2, 1)": torch.ones(2, 1),
    "ones(3).to(int)": torch.ones(3, dtype=torch.int),
    "tensor([float('nan'), 1e3, -inf])": torch.tensor([math.nan, 1e3, -math.inf]),
    "arange(6).reshape(2, 3)[:, ::2]": torch.arange(6).reshape(2, 3)[:, ::2],
    "arange(6).view(3, 2).T": torch.arange(6).view(3, 2).T,
    "arange(4)[..., None]": torch.arange(4)[..., None],
    "arange(4) > 1": torch.arange(4) > 1,
    "~(arange(4) > 1) & (arange(4) != 0)": torch.tensor([False, True, False, False]),
    "eye(2) @ (2 * ones(2, 1))": 2 * torch.ones(2, 1),
    "one_hot(tensor([1, 0]), 3)": torch.tensor([[0, 1, 0], [1, 0, 0]]),
    "nn.functional.one_hot(tensor([1]))": torch.tensor([[0, 1]]),
    "torch.nn.functional.softmax(zeros(2), 0)": torch.full((2,), 0.5),
}


@pytest.mark.parametrize("text", TAKEN)
def test_data_are_made_of_numbers_and_torch(text: str) -> None:
    assert torch.equal(*tensors(evaluate(text, data_names()), TAKEN[text]))


def tensors(*values: Any) -> list[torch.Tensor]:
    """Whatever has the same bits is the same: NaN, too."""
    if not isinstance(values[0], float | torch.Tensor):
        assert values[0] == values[1]
        return [torch.zeros(0)] * 2
    return [torch.as_tensor(value).nan_to_num(nan=12345.0, posinf=1e30, neginf=-1e30) for value in values]


REFUSED = {
    "quit()": "NameError: name 'quit' is not defined",
    "exit": "NameError: name 'exit' is not defined",
    "__import__('os').system('false')": "NameError: name '__import__' is not defined",
    "__builtins__": "NameError: name '__builtins__' is not defined",
    "eval('1')": "NameError: name 'eval' is not defined",
    "open('file', 'w')": "NameError: name 'open' is not defined",
    "rnadn(2)": "NameError: name 'rnadn' is not defined; did you mean 'randn'?",
    "load('file')": "NameError: name 'load' is not defined",
    "save(1, 'file')": "NameError: name 'save' is not defined",
    "os.getcwd()": "NameError: name 'os' is not defined",
    "torch.os.getcwd()": "AttributeError: 'os' of torch may not be used here",
    "torch.load('file')": "AttributeError: 'load' of torch may not be used here",
    "nn.Linear(1, 1)": "AttributeError: 'Linear' of torch may not be used here",
    "torch.__dict__": "AttributeError: '__dict__' of torch may not be used here",
    "().__class__.__base__.__subclasses__()": "AttributeError: '__class__' of tuple may not be used here",
    "zeros(1).__class__": "AttributeError: '__class__' of Tensor may not be used here",
    "zeros(1).register_hook(tensor)": "AttributeError: 'register_hook' of Tensor may not be used here",
    "zeros(1).apply_(tensor)": "AttributeError: 'apply_' of Tensor may not be used here",
    "zeros(1).data": "AttributeError: 'data' of Tensor may not be used here",
    "'{0.__class__}'.format(1)": "AttributeError: 'format' of str may not be used here",
    "tensor.__self__": "AttributeError: '__self__' of builtin_function_or_method may not be used here",
    "lambda: 1": "ValueError: 'lambda: 1' is no literal",
    "[x for x in (1, 2)]": "ValueError: '[x for x in (1, 2)]' is no literal",
    "f'{1}'": "ValueError: \"f'{1}'\" is no literal",
    "(x := 1)": "ValueError: '(x := 1)' is no literal",
    "zeros(1)(2)": "ValueError: 'zeros(1)(2)' is no literal",
    "zeros(*[2])": "ValueError: '*[2]' is no literal",
    "zeros(**{'size': 2})": "ValueError: \"zeros(**{'size': 2})\": write its keywords one by one",
    "9 ** 9 ** 9": "ValueError: 9 ** 387420489 is too large a number",
    "[0] * 10 ** 9": "ValueError: a list of 1 entries, 1000000000 times, is too long",
    "'a' * 10 ** 9": "ValueError: there is no arithmetic of strings here",
    "'%999999999d' % 1": "ValueError: there is no arithmetic of strings here",
    "1 if 1 else 2": "ValueError: '1 if 1 else 2' is no literal",
    "import os": "SyntaxError: ",
    "1; 2": "SyntaxError: ",
    "": "SyntaxError: ",
    "zeros(999999999999, 4)": "RuntimeError: ",
    "zeros(-1)": "RuntimeError: ",
    "-" * 10_000 + "1": "",
    "(" * 300 + ")" * 300: "",
    "1\0": "",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20].replace("\0", "NUL"))
def test_nothing_else_of_python_is_run(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "torch_manualbp.nn:Linear(2, 1)", "weight", "0,0", "--target", "ones(1)"]
    assert cli.main([*arguments, f"--input={text}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("torch-manualbp explain: argument --input: ")
    assert f" raises {REFUSED[text]}" in captured.err
    assert len(captured.err) < 1000


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's, in the working directory, and of others that end the process."""
    (tmp_path / "named_things.py").write_text(
        "import torch\nmodels = {'a': torch.nn.Linear(2, 1)}\n"
        "class Group:\n    inner = torch.nn.Linear\n"
        "def leave():\n    raise SystemExit(0)\n"
        "class Leaving(torch.nn.Linear):\n    def forward(self, x):\n        quit()\n"
    )
    (tmp_path / "quitting.py").write_text("quit()")
    (tmp_path / "moving.py").write_text("import sys, torch\nsys.path.clear()\nnet = torch.nn.Linear(2, 1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("named_things", "quitting", "moving"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "named_things"


DATA = ["weight", "0,0", "--input", "ones(1, 2)", "--target", "ones(1, 1)"]


@pytest.mark.parametrize("name", ["named_things:models['a']", "named_things:Group.inner(2, 1)", "moving:net"])
def test_a_model_is_a_dotted_name_or_a_call_of_it(
    name: str, module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["explain", name, *DATA]) == 0
    assert "∂C/∂w" in capsys.readouterr().out


ENDING = {
    "quitting:net": (2, "argument model: quitting cannot be imported: SystemExit"),
    "named_things:leave": (2, "argument model: named_things:leave() raises SystemExit: 0"),
    "named_things:leave()": (2, "argument model: leave() raises SystemExit: 0"),
    "named_things:Leaving(2, 1)": (1, "SystemExit"),
    "named_things:quit()": (2, "argument model: quit() raises NameError: name 'quit' is not defined"),
    "named_things:__builtins__['quit']()": (2, "argument model: "),
    "named_things:models.__class__": (2, "argument model: models.__class__ raises AttributeError: "),
    "named_things:eval('quit()')": (2, "argument model: eval('quit()') raises NameError: "),
    "named_things:Group(lambda: 1)": (2, "argument model: Group(lambda: 1) raises ValueError: "),
}


@pytest.mark.parametrize("name", ENDING)
def test_what_ends_the_process_does_not_say_that_all_is_well(
    name: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = ENDING[name]
    assert cli.main(["explain", name, *DATA]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(f"torch-manualbp explain: {said}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--loss", "CrossEntropyLoss(weight=tensor([1, float('nan')]))", None),
        ("--loss", "MSELoss(reduction='su' + 'm')", "there is no arithmetic of strings here"),
        ("--loss", "functional.sys.exit()", "name 'functional' is not defined"),
        ("--loss", "eval('1')", "name 'eval' is not defined"),
        ("--optimizer", "SGD(lr=10 ** -3, momentum=1 - 0.1)", None),
        ("--optimizer", "SGD(lr=float('inf'))", None),
        ("--optimizer", "torch.load('x')", "name 'torch' is not defined"),
        ("--optimizer", "SGD.__subclasses__()", "'__subclasses__' of partial may not be used here"),
        ("--optimizer", "SGD.func", "'func' of partial may not be used here"),
    ],
)
def test_losses_and_optimizers_are_named_and_called(
    option: str, text: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = "torch_manualbp.nn:Linear(2, 2)", ["--input", "ones(3, 2)", "--target", "ones(3).long()"]
    loss = [] if option == "--loss" else ["--loss", "CrossEntropyLoss"]
    page = tmp_path / "page.html"
    status = cli.main(["report", model, *data, *loss, option, text, "--output", str(page)])
    assert status == (0 if said is None else 2)
    if said is not None:
        assert said in capsys.readouterr().err
        assert not page.exists()
