"""Objects by configuration: what is built, and what each mistake is answered with."""

from __future__ import annotations

import re
from typing import Any

import numpy
import pytest
import torch
from lightning_runs import ACCURACY, LOSS, MODEL, SGD

from torch_manualbp import nn
from torch_manualbp.lightning import ManualBackpropModule
from torch_manualbp.lightning.config import instantiate, plain_copy


def test_builds_nested_objects() -> None:
    model = instantiate(MODEL)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert model[2].p == 0.3
    assert repr(model[3]) == "Linear(in_features=32, out_features=10, bias=True)"


def test_gives_its_own_arguments_first() -> None:
    optimizer = instantiate(SGD, [torch.nn.Parameter(torch.ones(1))])
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults["lr"] == 0.1


MISTAKES: list[tuple[Any, str]] = [
    ({"class": "torch.nn.ReLU"}, r"model has the unknown key 'class': it takes .*class_path"),
    ({}, r"model lacks 'class_path'"),
    ({"class_path": 3}, r"model.class_path is 3: it takes the full name of a class"),
    ({"class_path": "torhc.nn.ReLU"}, r"model.class_path is 'torhc.nn.ReLU', .* did you mean 'torch'\?"),
    ({"class_path": "torch.n.ReLU"}, r"model.class_path is 'torch.n.ReLU', and torch has no 'n'.*"),
    (
        {"class_path": "torch_manualbp.nn.Liner"},
        r"nn has no 'Liner'; did you mean 'torch_manualbp.nn.Line",
    ),
    ({"class_path": "torch.nn.relu"}, r"torch.nn has no 'relu'; did you mean 'torch.nn.ReLU'\?"),
    ({"class_path": "torch.nn."}, r"model.class_path is 'torch.nn.', and torch.nn has no ''"),
    ({"class_path": "torch.nn.functional.relu"}, r"which is not a class of modules"),
    ({"class_path": "subprocess.Popen", "init_args": ["true"]}, r"'subprocess.Popen', which is not a class of modules"),
    (
        {"class_path": "torch.nn.ReLU", "init_args": 3},
        r"model.init_args is 3: it takes a mapping of keywords, or a list",
    ),
    (
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_feature": 2}},
        r"model.init_args: Linear .*'out_features?'.* it takes \(in_features, out_features, bias",
    ),
    (
        {"class_path": "torch.nn.ReLU", "init_args": {"inplac": True}},
        r"model.init_args: ReLU got an unexpected .*'inplac'; did you mean 'inplace'\?; it takes \(inplace",
    ),
    ({"class_path": "torch.nn.ReLU", "init_args": [1, 2]}, r"model.init_args: ReLU too many positional arguments"),
    (
        {"class_path": "torch.nn.Dropout", "init_args": [2.0]},
        r"model: torch.nn.Dropout refuses init_args \[2.0\]: .*2.0",
    ),
    (
        {"class_path": "torch.nn.Sequential", "init_args": [{"class_path": "torch.nn.ReLU", "init_args": {"p": 1}}]},
        r"model.init_args\[0\].init_args: ReLU got an unexpected keyword argument 'p'",
    ),
]


@pytest.mark.parametrize(("config", "answer"), MISTAKES)
def test_a_mistake_is_named_in_one_line(config: Any, answer: str) -> None:
    with pytest.raises(ValueError, match=answer) as caught:
        ManualBackpropModule(config, LOSS)
    assert "\n" not in str(caught.value)


def test_a_value_that_the_optimizer_refuses() -> None:
    module = ManualBackpropModule(MODEL, LOSS, {"class_path": "torch.optim.SGD", "init_args": {"lr": -1}})
    with pytest.raises(
        ValueError, match=r"^optimizer: torch.optim.SGD refuses init_args {'lr': -1}: .*learning rate: -1"
    ):
        module.configure_optimizers()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"model": nn.Linear, "loss": LOSS}, r"^model is <class .*it takes a torch.nn.Module, or {'class_path'"),
        ({"model": MODEL, "loss": "mse"}, r"^loss is 'mse': it takes a function of \(output, target\), or"),
        ({"model": MODEL, "loss": nn.MSELoss}, r"^loss is <class"),
        ({"model": MODEL, "loss": LOSS, "metrics": ACCURACY}, r"^metrics is .*: it takes names and metrics"),
        (
            {"model": MODEL, "loss": LOSS, "metrics": {"accuracy": 3}},
            r"^metrics\['accuracy'\] is 3: it takes a torchmetr",
        ),
    ],
)
def test_an_argument_of_another_kind(arguments: dict[str, Any], answer: str) -> None:
    with pytest.raises(TypeError, match=answer):
        ManualBackpropModule(**arguments)


def test_a_metric_must_not_be_called_loss() -> None:
    with pytest.raises(ValueError, match="metrics has the name 'loss'"):
        ManualBackpropModule(MODEL, LOSS, metrics={"loss": ACCURACY})


def test_only_plain_data_is_copied() -> None:
    plain = plain_copy({"a": [1, (2.0, None)], "b": {"c": numpy.float64(3), "d": torch.float64, "e": True}})
    assert plain == {"a": [1, (2.0, None)], "b": {"c": 3.0, "d": torch.float64, "e": True}}
    assert type(plain["b"]["c"]) is float
    assert type(plain["b"]["e"]) is bool
    with pytest.raises(TypeError, match=re.escape("ReLU is not plain data")):
        plain_copy({"class_path": "torch.nn.Sequential", "init_args": [nn.ReLU()]})
