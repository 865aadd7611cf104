"""``examples/vanishing.py``: the gradient that vanishes, why, and checks that fail when they should."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from forked import run_python

SCRIPT = Path(__file__).parent.parent / "examples" / "vanishing.py"


@pytest.fixture(scope="module")
def vanishing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vanishing", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vanishing"] = module  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-W", "error", str(SCRIPT), *arguments)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What it prints, and the folder of the figures."""
    folder = tmp_path_factory.mktemp("vanishing") / "out"
    result = run("--output", str(folder), "--steps", "300")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout, folder


def rows(printed: str) -> list[list[float]]:
    """layer, ‖δ‖, the ratio, max f', ‖W‖ and mean f', of both networks."""
    lines = re.findall(r"^ {4,}(\d+(?: +[\d.e+-]+){5})$", printed, re.MULTILINE)
    return [[float(number) for number in line.split()] for line in lines]


@pytest.mark.slow
def test_prints_the_factors_of_every_layer(ran: tuple[str, Path]) -> None:
    table = rows(ran[0])
    assert [row[0] for row in table] == [*range(11, 1, -1)] * 2
    sigmoid, relu = table[:10], table[10:]
    for network, steepest in ((sigmoid, 0.25), (relu, 1)):
        for above, below in itertools.pairwise(network):
            assert below[1] / above[1] == pytest.approx(below[2], rel=0.02)
        assert all(row[2] <= row[3] * row[4] * 1.01 for row in network)
        assert all(row[3] <= steepest for row in network)
    assert sigmoid[-1][1] < 1e-6 * sigmoid[0][1]
    assert relu[-1][1] == pytest.approx(relu[0][1], rel=0.9)


@pytest.mark.slow
def test_prints_how_both_trained(ran: tuple[str, Path]) -> None:
    found = re.findall(r"After 300 steps: C = ([\d.]+), ([\d.]+)% of the test's digits are right", ran[0])
    (sigmoid_cost, sigmoid_right), (relu_cost, relu_right) = [(float(c), float(r)) for c, r in found]
    assert sigmoid_cost == pytest.approx(2.303, abs=0.1)
    assert sigmoid_right < 20
    assert relu_cost < 0.5
    assert relu_right > 90


@pytest.mark.slow
def test_fits_the_terminal(ran: tuple[str, Path]) -> None:
    assert max(len(line) for line in ran[0].splitlines() if str(ran[1]) not in line) <= 115


@pytest.mark.slow
def test_writes_figures_and_pages(ran: tuple[str, Path]) -> None:
    printed, folder = ran
    names = ["cost.png", "delta.png", "factors.png", "relu.html", "sigmoid.html"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(str(folder / name) in printed for name in names)
    for name in names[:3]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size > 10_000
    page = (folder / "sigmoid.html").read_text("utf-8")
    assert "The last of 30 steps that were looked at, step 300" in page
    assert page.count('<th scope="row"') == 11


def test_the_factors_are_those_of_autograd(vanishing: ModuleType) -> None:
    torch.manual_seed(0)
    model = vanishing.sigmoid_network().double()
    x, y = torch.randn(16, 64, dtype=torch.float64), torch.randint(10, (16,))
    found = vanishing.factors(model, x, y)
    kept, a = [], x
    for layer in model:
        a = layer(a)
        if isinstance(layer, torch.nn.Linear):
            a.retain_grad()
            kept.append((layer, a))
    torch.nn.functional.cross_entropy(a, y).backward()
    for row, ((_, z), (above, z_above)) in zip(found[::-1], itertools.pairwise(kept), strict=True):
        assert z.grad is not None
        assert z_above.grad is not None
        slope = torch.sigmoid(z) * (1 - torch.sigmoid(z))
        expected = (z.grad.norm(), slope.mean(), slope.max(), torch.linalg.svdvals(above.weight)[0])
        assert (row.delta, row.slope, row.steepest, row.weight) == pytest.approx([t.item() for t in expected])
        assert row.ratio == pytest.approx((z.grad.norm() / z_above.grad.norm()).item())


def made_up(vanishing: ModuleType, name: str, deltas: list[float], accuracy: float, cost: float) -> object:
    pairs = zip(deltas, [*deltas[1:], 1.0], strict=True)
    start = [vanishing.Factors(n, d, 0.2, 0.25, 10.0, d / above) for n, (d, above) in enumerate(pairs, 2)][::-1]
    return vanishing.Run(name, None, start, [cost], accuracy, [])


def test_the_checks_catch_what_is_not_so(vanishing: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    sigmoid = made_up(vanishing, "Sigmoid", [1e-6, 1e-3, 1.0], 0.1, 2.3)
    relu = made_up(vanishing, "ReLU", [1.0, 1.0, 1.0], 0.95, 0.1)
    vanishing.check(sigmoid, relu)
    planted = {
        "does not vanish": (made_up(vanishing, "Sigmoid", [1e-3, 1e-2, 1.0], 0.1, 2.3), relu),
        "vanishes, or explodes": (sigmoid, made_up(vanishing, "ReLU", [0.01, 0.1, 1.0], 0.95, 0.1)),
        "the sigmoids learn": (made_up(vanishing, "Sigmoid", [1e-6, 1e-3, 1.0], 0.5, 2.3), relu),
        "the cost of the sigmoids": (made_up(vanishing, "Sigmoid", [1e-6, 1e-3, 1.0], 0.1, 1.0), relu),
        "does not learn": (sigmoid, made_up(vanishing, "ReLU", [1.0, 1.0, 1.0], 0.5, 0.1)),
        "beyond max f' · ‖W‖": (sigmoid, made_up(vanishing, "ReLU", [1.0, 0.2, 1.0], 0.95, 0.1)),
    }
    for said, runs in planted.items():
        with pytest.raises(SystemExit, match=f"^vanishing.py: FAILED: .*{re.escape(said)}"):
            vanishing.check(*runs)
    steep = dataclasses.replace(sigmoid.start[0], steepest=0.3)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match="at most 1/4"):
        vanishing.check(dataclasses.replace(sigmoid, start=[steep, *sigmoid.start[1:]]), relu)  # type: ignore


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "-1"], "argument --seed: -1 is not from 0 to 2**63 - 1"),
        (["--steps", "5"], "argument --steps: 5 is less than 300, too few to learn the digits in"),
    ],
)
def test_says_in_one_line_what_is_wrong(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stderr) == (2, f"vanishing.py: {said}\n")


def test_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--output", str(tmp_path / "file"))
    assert result.returncode == 1
    assert result.stderr == f"vanishing.py: [Errno 17] File exists: '{tmp_path / 'file'}'\n"
