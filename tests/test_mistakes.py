"""The planted mistakes are mistakes, and their twins are correct."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import one_of_each

from torch_manualbp.catalogue import Make
from torch_manualbp.verify import verify
from torch_manualbp.verify.mistakes import KINDS, MISTAKES, Mistake
from torch_manualbp.verify.outputs import outputs
from torch_manualbp.verify.self_test import TOOLS, self_test

NO_GOOD_FOR = {
    "allclose": {  # these gradients have entries near 0, with few right digits in float32, torch's own among them
        "GELU, tail",
        "GELU, by its approximation",
        "GELU, rounded at every step",
    }
}

VALUES = ["values"]
CAUGHT_BY = {  # of each kind, the checks of which one must catch it; the others may notice too
    "sign": VALUES,
    "factor": VALUES,
    "wrong variable": VALUES,
    "transpose": VALUES,
    "missing sum": ["structure", "values"],
    "missing mean": VALUES,
    "batch size": VALUES,
    "wrong count": VALUES,
    "missing term": VALUES,
    "option ignored": VALUES,
    "conj": VALUES,
    "tiny error": VALUES,
    "raw structure": ["structure", "values"],
    "upstream": ["values", "linearity", "unused outputs"],
    "second derivative": ["second order"],
    "forward mode": ["adjoint identity"],
    "vmap": ["vmap"],
    "kink": ["kinks"],
    "special values": ["special values", "kinks"],
    "precision": VALUES,
    "layout": ["layout"],
    "empty batch": ["empty batch"],
    "saved tensors": ["saved tensors"],
    "randomness": VALUES,
    "frozen arguments": ["frozen tensors"],
    "autocast": ["autocast"],
}
CRASHES = {"moments, unused output", "squared error, empty batch", "tanh, empty batch", "linear, under autocast"}
CRASHES |= {"tanh, view of the upstream"}
"""Wrong by raising, where the others are wrong by value."""

every_mistake = pytest.mark.parametrize("mistake", MISTAKES, ids=[m.name for m in MISTAKES])


def test_there_are_many_and_of_every_kind() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 40
    assert {mistake.kind for mistake in MISTAKES} == set(KINDS)


def test_a_kind_is_one_of_the_list() -> None:
    with pytest.raises(ValueError, match="'tanh' is of kind 'typo'; kinds are sign, factor, "):
        Mistake("tanh", "typo", "", torch.tanh, torch.tanh, lambda make: (make(3),))


@every_mistake
def test_a_mistake_is_not_in_the_forward(mistake: Mistake) -> None:
    wrong, right = (_forward(target, mistake) for target in (mistake.target, mistake.twin))
    for a, b in zip(wrong, right, strict=True):
        assert torch.equal(a, b)


def _forward(target: Any, mistake: Mistake) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return outputs(getattr(target, "apply", target)(*mistake.args()))


@pytest.mark.parametrize(
    ("tool", "mistake"),
    one_of_each(
        itertools.product(["gradcheck", "gradgradcheck", "allclose"], MISTAKES),
        lambda tool, mistake: [(tool, mistake.kind)],
    ),
    ids=lambda value: getattr(value, "name", value),
)
def test_torchs_own_checks_pass_the_twin(tool: str, mistake: Mistake) -> None:
    if mistake.name in NO_GOOD_FOR.get(tool, set()):
        assert TOOLS[tool](mistake, mistake.twin)
    else:
        assert TOOLS[tool](mistake, mistake.twin) == ""


@every_mistake
def test_verify_catches_it_for_what_it_is(mistake: Mistake) -> None:
    report = verify(mistake.target, *mistake.args(), checks=CAUGHT_BY[mistake.kind], kinks="autograd")
    verdict = "error" if mistake.name in CRASHES else "fails"
    assert verdict in {row.verdict for row in report.rows}, report


TWINS = {(m.twin, m.inputs(Make())[0].shape, m.is_complex): m for m in MISTAKES}


@pytest.mark.parametrize(
    "mistake",
    one_of_each(TWINS.values(), lambda mistake: [mistake.kind]),
    ids=lambda m: f"{m.twin.__name__} of {m.name}",
)
def test_verify_passes_the_twin(mistake: Mistake) -> None:
    report = verify(mistake.twin, *mistake.args())
    assert report.ok, report


def test_what_torchs_own_checks_let_through_is_counted() -> None:
    """One of each kind that they cannot see, and one that everybody sees."""
    let_through = {
        "linear, bias not summed": "·",
        "sigmoid, 0.09 % too large": "·",
        "scaled tanh, nine times too large": "·",
        "ReLU, at 0": "·",
        "sigmoid, detached": "·",
        "sigmoid, sign": "✓",
    }
    chosen = [mistake for mistake in MISTAKES if mistake.name in let_through]
    result = self_test(chosen, {name: TOOLS[name] for name in ("gradcheck", "gradcheck, fast")})
    for row in result.rows:
        caught = let_through[row.mistake.name] == "✓"
        assert (row.verdict("gradcheck") == row.verdict("gradcheck, fast") == "caught") is caught
    assert result.count("gradcheck") == 1
    assert result.count("gradcheck", "missed") == 5
    assert result.to_json()["caught"] == {"gradcheck": 1, "gradcheck, fast": 1}
    *_, last, _, legend = str(result).splitlines()
    assert last.split() == ["caught", "of", "6", "1", "1"]
    assert legend.startswith("✓ caught")


def test_a_tool_that_refuses_the_twin_too_has_caught_nothing() -> None:
    result = self_test(MISTAKES[:1], {"verify": lambda mistake, target: "no"})
    (row,) = result.rows
    assert row.verdict("verify") == "false alarm"
    assert not result.ok
    assert f"false alarm: {row.mistake.name}: no" in str(result)


def test_all_tools_look_at_a_mistake_and_its_twin() -> None:
    result = self_test(MISTAKES[:1])
    assert result.tools == ("verify", "gradcheck", "gradcheck, fast", "gradgradcheck", "opcheck", "allclose")
    assert result.ok, result
    (row,) = result.rows
    assert [row.verdict(tool) for tool in result.tools] == ["caught", *5 * ["missed"]]
    assert row.found["verify"].startswith("structure: ")


@pytest.mark.slow
@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the README has the score of torch 2.13")
def test_the_readme_has_the_score() -> None:
    """verify's part of it is what the tests above say: all."""
    readme = (Path(__file__).parents[1] / "torch_manualbp" / "verify" / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith("| caught of "))
    others = {name: tool for name, tool in TOOLS.items() if name != "verify"}
    result = self_test(tools=others)
    counts = [len(MISTAKES), *(result.count(tool) for tool in result.tools)]
    assert row == f"| caught of {len(MISTAKES)} | {' | '.join(map(str, counts))} |"
