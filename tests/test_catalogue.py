"""One row an operation: what a row names is there, and what is there has a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import functional, nn, rules
from torch_manualbp.catalogue import CATALOGUE, FAMILIES, Make, Operation, Sample
from torch_manualbp.catalogue.operation import alone
from torch_manualbp.layers import main, missing, replaced, table

README = Path(__file__).parent.parent / "torch_manualbp" / "nn" / "README.md"

(TANH,) = (operation for operation in CATALOGUE if operation.rule is rules.Tanh)


class Exp(rules.Elementwise):
    """a = exp(z)  ⇒  f'(z) = a"""

    keeps_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.exp()

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a


def samples(make: Make) -> Iterator[Sample]:
    yield Sample("matrix", (make(5, 4),))


EXP = Operation(Exp, torch.exp, samples, functions="exp", arguments=alone)


def test_nothing_is_missing() -> None:
    assert missing() == []


FORGOTTEN = {
    "rule": (EXP, "Exp: its row has a rule that torch_manualbp.rules does not export; add it to __all__"),
    "functional": (replace(EXP, arguments=None), "Exp: its row names the function exp: write functional.exp"),
    "nn": (replace(TANH, layers="Tanh Flatten"), "Tanh: its row names the layer Flatten: write nn.Flatten."),
    "torch": (replace(TANH, functions="tanhh"), "Tanh: its row names the function tanhh, which torch has nowhere."),
    "torch.nn": (replace(TANH, layers="Exp"), "Tanh: its row names the layer Exp, which torch.nn has not."),
    "function of the layer": (replace(TANH, functions=""), "Tanh: its row names the layer Tanh Tanhshrink and no"),
    "samples": (replace(TANH, samples=lambda make: iter(())), "Tanh: its row has no sample"),
}


@pytest.mark.parametrize(("row", "sentence"), FORGOTTEN.values(), ids=FORGOTTEN)
def test_a_place_that_is_forgotten_is_named_in_one_sentence(row: Operation, sentence: str) -> None:
    others = [operation for operation in CATALOGUE if operation.name != row.name]
    (found,) = (s for s in missing([*others, row]) if s.startswith(sentence))
    assert "\n" not in found


@pytest.mark.parametrize(
    "sentence",
    ["rules.Tanh has no row in the catalogue.", "functional.tanh stands in no row.", "nn.Tanh stands in no row."],
)
def test_what_has_no_row_is_named(sentence: str) -> None:
    assert sentence in missing([operation for operation in CATALOGUE if operation is not TANH])


def test_a_layer_without_its_formula_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Tanh, "__doc__", "``torch.nn.Tanh``.")
    assert missing() == ["nn.Tanh: its docstring says no `forward ⇒ backward. Kept: what.`"]


def test_every_row_stands_in_one_family_and_every_rule_in_one_row() -> None:
    assert sorted(CATALOGUE, key=id) == sorted((row for family in FAMILIES.values() for row in family), key=id)
    assert len({operation.rule for operation in CATALOGUE}) == len(CATALOGUE)


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(nn.Tanh, "__doc__", "``torch.nn.Tanh``.")
    assert main(type("Options", (), {"into": None})()) == 1
    assert capsys.readouterr().err.startswith("nn.Tanh: ")


# README


def test_the_table_of_layers_in_readme_is_what_the_command_prints() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == replaced(text), "torch-manualbp layers --into torch_manualbp/nn/README.md writes it anew"


def test_the_table_lists_every_layer_and_function_of_ours() -> None:
    rows = [line.split("|")[1:3] for line in table().splitlines()[2:]]
    ours = {name for name, value in vars(nn).items() if getattr(value, "__module__", "").startswith("torch_manualbp.")}
    assert {layer.strip(" `") for layer, _ in rows} - {""} == ours
    listed = {function.strip(" `") for _, functions in rows for function in functions.split(",")}
    assert listed == {name for name in functional.__all__ if not name.endswith("_with_indices")}  # no layer calls these


def test_a_text_without_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table of layers there"):
        replaced("# Title\n")


def test_only_the_table_of_a_text_is_replaced() -> None:
    head = table().splitlines(keepends=True)[0]
    assert replaced(f"before\n{head}| --- |\n| old |\n\nafter | x |\n") == f"before\n{table()}\nafter | x |\n"


# What a layer says it keeps


@pytest.mark.parametrize(
    "operation", [row for row in FAMILIES["activations"] if len(row.layers.split()) == 1], ids=lambda row: row.name
)
def test_an_activation_keeps_what_its_layer_says(operation: Operation) -> None:
    kept = table([operation]).splitlines()[2].split("|")[-3].strip()
    z, *options = next(iter(operation.samples(Make()))).args
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        a = operation.rule.apply(z.requires_grad_(), *options)
    if kept in ("z", "a"):
        (tensor,) = saved
        assert tensor.data_ptr() == (z if kept == "z" else a).data_ptr()
    else:
        assert kept in ("z, w", "u, v", "r")
