"""``torch-manualbp bench step``: that it times what it says, that it finds variants that train otherwise, and what it
writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_memory
import pytest
import torch
from ordinary import one_of_each
from planted_memory import HELD
from test_cli import failure
from torch.utils.flop_counter import FlopCounterMode

from torch_manualbp import cli
from torch_manualbp.bench import memory, step, variants
from torch_manualbp.bench.networks import ACTIVATIONS, NETWORKS, OPTIMIZERS, PRECISIONS, Case, Network, panel
from torch_manualbp.bench.rows import Row, findings, table, table_of_memory
from torch_manualbp.bench.variants import PRODUCTS, VARIANTS, Running

TINY = NETWORKS[0]
TRAINED = [variant for variant in VARIANTS if variant not in PRODUCTS]
SMALL_PANEL = list(panel([TINY, NETWORKS[1]], ACTIVATIONS, OPTIMIZERS, PRECISIONS))
QUICK = ["--network", "4-2-2-1", "--activation", "ReLU", "--rounds", "1", "--threads", "1", "--memory", "none"]


def test_the_panel() -> None:
    assert [network.at for network in NETWORKS] == [
        "4-2-2-1:32",
        "64-128-64-10:64",
        "784-256-128-10:64",
        "784-512-512-10:256",
        "1024-4096-1024:64",
        "1024-4096-1024:512",
        "residual:128",
    ]
    assert len(set(panel(NETWORKS, ACTIVATIONS, OPTIMIZERS, PRECISIONS))) == 7 * 3 * 3 * 2


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.at)
def test_a_network_is_of_its_widths(network: Network) -> None:
    case = Case(network, "ReLU", "sgd", "float32")
    linear = [m for m in case.model(torch.nn).modules() if isinstance(m, torch.nn.Linear)]
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    assert widths == [*[case.network.widths[0]] * 2 * case.network.blocks, *case.network.widths]
    x, _ = case.batches()[0]
    assert x.shape == (case.network.batch, widths[0])


@pytest.mark.parametrize("case", SMALL_PANEL, ids=str)
def test_derived_trains_as_stock_does(case: Case) -> None:
    _, change = step._started("eager", case, None)
    assert change is not None
    assert change.norm() > 0
    step._started("derived", case, change)


@pytest.mark.slow
def test_compiled_variants_train_as_stock_does() -> None:
    row = step.measure(Case(TINY, "Tanh", "momentum", "float32"), list(VARIANTS), rounds=1)
    assert row.failures == {}
    assert row.times.keys() == VARIANTS.keys()
    assert row.losses.keys() == set(TRAINED)
    assert row.ours in ("derived", "derived-compile")
    assert row.fastest in ("eager", "compile")
    products = {"ours / products", "ours / by oneDNN"} if "products-onednn" in VARIANTS else {"ours / products"}
    assert row.ratios.keys() == row.errors.keys() == {"eager / ours", "fastest / ours", *products}


@pytest.mark.parametrize("network", [TINY, NETWORKS[1], NETWORKS[6]], ids=lambda network: network.at)
def test_the_products_are_those_of_a_stock_step(network: Network) -> None:
    case = Case(network, "Tanh", "sgd", "float32")
    flops = []
    for variant in ("eager", "products"):
        running = VARIANTS[variant][1](case)
        with FlopCounterMode(display=False) as counter:
            running.step()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


def test_the_products_are_of_the_weights_and_the_batches() -> None:
    case = Case(NETWORKS[1], "Tanh", "sgd", "float32")
    running = VARIANTS["products"][1](case)
    weights = [p.detach() for p in case.model(torch.nn).parameters() if p.dim() == 2]
    for x, _ in [*case.batches(), case.batches()[0]]:
        torch.testing.assert_close(running.step(), x @ weights[0].t() @ weights[1].t() @ weights[2].t())


def test_a_variant_that_trains_otherwise_gets_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The planted mistake: gradients of the step before are added."""

    def start(case: Case) -> Running:
        model, loss = case.model(torch.nn), case.loss(torch.nn)
        optimizer = case.new_optimizer(model.parameters())
        batches = iter(case.batches())

        def adds() -> torch.Tensor:
            x, y = next(batches)
            C: torch.Tensor = loss(model(x), y)
            C.backward()
            optimizer.step()
            return C

        return Running(adds, [*model.parameters()], [])

    monkeypatch.setitem(VARIANTS, "derived", ("derived", start))
    assert cli.main(["bench", "step", *QUICK, "--optimizer", "sgd", "--variants", "eager", "derived"]) == 1
    printed = capsys.readouterr()
    assert "its weights move otherwise: " in printed.err
    assert "no ratio" in printed.err
    assert "–" not in next(line for line in printed.out.splitlines() if "4-2-2-1" in line).split("│")[5]


def test_a_variant_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def start(case: Case) -> Running:
        raise NotImplementedError("no kernel of this kind\nand much that follows")

    monkeypatch.setitem(VARIANTS, "eager", ("stock", start))
    assert cli.main(["bench", "step", *QUICK, "--optimizer", "sgd", "--variants", "eager", "derived", "products"]) == 1
    printed = capsys.readouterr()
    assert "    stock: NotImplementedError: no kernel of this kind and much that follows" in printed.err.splitlines()
    assert "ours / products" in printed.err


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, tables = tmp_path / "out" / "step.json", tmp_path / "step.md"
    arguments = ["--variants", "eager", "derived", "products", "--json", str(figures), "--markdown", str(tables)]
    assert cli.main(["bench", "step", *QUICK, *arguments]) == 0
    printed = capsys.readouterr()
    assert "bounds met" in printed.out
    assert printed.err.count("eager / ours") == 3
    written = json.loads(figures.read_text())
    about = {"torch", "python", "machine", "processor", "threads", "products"}
    assert written.keys() == about | {"rounds", "rows", "figures"}
    assert (written["torch"], written["threads"], written["rounds"]) == (torch.__version__, 1, 1)
    assert [row["optimizer"] for row in written["rows"]] == list(OPTIMIZERS)
    for row in written["rows"]:
        assert row.keys() == set(Row.__dataclass_fields__)
        assert (row["network"], row["batch"], row["activation"], row["precision"]) == ("4-2-2-1", 32, "ReLU", "float32")
        assert row["times"].keys() == {"eager", "derived", "products"}
        assert (row["ours"], row["fastest"], row["failures"]) == ("derived", None, {})
        assert row["ratios"].keys() == {"eager / ours", "ours / products"}
        assert min(*row["times"].values(), *row["ratios"].values(), row["deriving"]) > 0
        assert row["losses"]["derived"] == pytest.approx(row["losses"]["eager"], rel=1e-4)
    lines = tables.read_text().splitlines()
    assert lines[2].startswith("| network | batch | activation | optimizer | stock µs | derived µs | products µs |")
    assert lines[4].startswith("| 4-2-2-1 | 32 | ReLU | SGD | ")
    assert lines[4].split(" | ")[5].startswith("**")


def test_leaves_torch_as_it_was() -> None:
    def keeps_subnormal() -> bool:
        return bool(torch.tensor(1e-39) * 1 != 0)

    threads = torch.get_num_threads()
    assert keeps_subnormal()
    with step._conditions(threads + 1):
        assert not keeps_subnormal()
        assert torch.get_num_threads() == threads + 1
    assert keeps_subnormal()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "784-256-10"], "argument --network: no network '784-256-10'; near it: 784-256-128-10, "),
        (["--network", "x"], "argument --network: no network 'x'; near it: 4-2-2-1:32, 64-128-64-10:64, "),
        (
            ["--activation", "Relu"],
            "argument --activation: invalid choice: 'Relu' (choose from 'ReLU', 'GELU', 'Tanh')",
        ),
        (
            ["--optimizer", "adam"],
            "argument --optimizer: invalid choice: 'adam' (choose from 'sgd', 'momentum', 'adamw')",
        ),
        (["--precision", "half"], "argument --precision: invalid choice: 'half'"),
        (
            ["--variants", "fast"],
            "argument --variants: invalid choice: 'fast' (choose from 'eager', 'compile', 'derived'",
        ),
        (["--memory", "some"], "argument --memory: invalid choice: 'some' (choose from 'bounded', 'all', 'none')"),
        (["--rounds", "0"], "argument --rounds: '0' is not a whole number of at least 1"),
        (["--threads", "two"], "argument --threads: 'two' is not a whole number of at least 1"),
    ],
)
def test_names_the_value_that_it_does_not_take(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(["bench", "step", *arguments], capsys)
    assert status == 2
    assert line.startswith(f"torch-manualbp bench step: {said}")


def test_a_name_without_a_batch_is_of_all_batches() -> None:
    assert [n.at for n in step._networks(["1024-4096-1024"])] == ["1024-4096-1024:64", "1024-4096-1024:512"]
    assert [n.at for n in step._networks(["residual", "1024-4096-1024:512"])] == ["1024-4096-1024:512", "residual:128"]
    assert step._networks(None) == NETWORKS


def a_row(
    eager: float,
    fastest: float,
    network: str = "4-2-2-1",
    activation: str = "ReLU",
    optimizer: str = "sgd",
    precision: str = "float32",
) -> Row:
    ratios = {"eager / ours": eager, "fastest / ours": fastest}
    return Row(network, 32, activation, optimizer, precision, ratios=ratios)


def test_bounds_are_held_against_means_and_single_rows() -> None:
    rows = [a_row(4.0, 1.5), a_row(1.0, 1.5, network="784-512-512-10")]
    found = {f.about: f for f in findings(rows)}
    assert found.keys() == {
        f"{ratio}, float32 sgd, {what}"
        for ratio in ("eager / ours", "fastest / ours")
        for what in ("geometric mean", "least")
    }
    assert {about: (f.value, f.met) for about, f in found.items()} == {
        "eager / ours, float32 sgd, geometric mean": (pytest.approx(2.0), True),
        "eager / ours, float32 sgd, least": (1.0, False),
        "fastest / ours, float32 sgd, geometric mean": (pytest.approx(1.5), False),
        "fastest / ours, float32 sgd, least": (1.5, True),
    }
    assert found["eager / ours, float32 sgd, least"].at == "784-512-512-10:32 ReLU sgd float32"


def test_bounds_are_of_the_float32_panel() -> None:
    assert all(f.met is None for f in findings([a_row(0.5, 0.5, precision="bfloat16")]))
    adamw = {f.about: f.met for f in findings([a_row(1.2, 0.9, optimizer="adamw")])}
    assert list(adamw.values()) == [False, True, None, None]
    together = [f.about for f in findings([a_row(2, 2), a_row(2, 2, optimizer="momentum")])]
    assert "eager / ours, float32 sgd + momentum, geometric mean" in together


@pytest.mark.parametrize(
    ("activation", "ratio", "met"), [("ReLU", 1.04, False), ("GELU", 1.04, True), ("Tanh", 1.11, False)]
)
def test_large_layers_are_held_against_their_products(activation: str, ratio: float, met: bool) -> None:
    row = a_row(1, 1, "1024-4096-1024", activation=activation)
    large = replace(row, batch=512, ratios={"ours / products": ratio})
    assert [(f.about, f.met) for f in findings([large])] == [("ours / products", met)]
    assert findings([replace(large, batch=64)]) == []


def test_memory_and_deriving_have_bounds() -> None:
    peaks = {"eager": memory.Peak(10, 100, 100), "derived": memory.Peak(10, 300, 26)}
    row = replace(a_row(1, 1, "784-256-128-10"), ratios={}, memory=peaks, deriving=49.0)
    assert [(f.value, f.met) for f in findings([row])] == [(0.26, False), (49.0, True)]
    first = replace(row, memory={}, network="4-2-2-1", unchecked=19.0, times={"derived": 1000.0})
    assert [(f.value, f.met) for f in findings([first])] == [(2.5, True)]
    assert table_of_memory([row])[0] == ["row", "parameters MB", "stock MB", "derived MB"]


def test_the_table_marks_ours_and_what_was_not_measured() -> None:
    row = replace(
        a_row(2, 1.5), times={"eager": 200.0, "derived": 100.0, "derived-compile": 99.0}, ours="derived-compile"
    )
    columns, cells = table([row, replace(row, precision="bfloat16", times={}, ours=None)], "**")
    assert columns[4:8] == ["precision", "stock µs", "derived µs", "derived, compiled µs"]
    assert cells[0][4:] == ["float32", "200", "100", "**99.0**", "2.00", "1.50", "–", "–"]
    assert cells[1][4:8] == ["bfloat16", "–", "–", "–"]


CAN_FORGET = pytest.mark.skipif(not memory._forget_peak(), reason="this system cannot forget a peak of memory")


def test_an_interrupted_run_reports_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    measure, cases = step.measure, []

    def interrupted(case: Case, *args: Any) -> Row:
        cases.append(case)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return measure(case, *args)

    monkeypatch.setattr(step, "measure", interrupted)
    figures = tmp_path / "figures.json"
    assert cli.main(["bench", "step", *QUICK, "--variants", "eager", "derived", "--json", str(figures)]) == 130
    assert [row["optimizer"] for row in json.loads(figures.read_text())["rows"]] == [cases[0].optimizer]
    assert "interrupted" in capsys.readouterr().err


@CAN_FORGET
@pytest.mark.parametrize("when", one_of_each(planted_memory.PLANTED, lambda when: [when == "first"]))
def test_memory_is_what_a_step_takes_at_its_peak(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known amounts: held for good, during the first step, and during each step; in the process that measures, since
    this one's malloc may keep what earlier tests have freed."""
    monkeypatch.setattr(memory, "PROGRAM", [sys.executable, planted_memory.__file__])
    peak = memory.peak_memory(Case(TINY, "ReLU", "sgd", "float32"), when, threads=1)
    assert peak.parameters == planted_memory.WEIGHT
    assert peak.first == pytest.approx(HELD, abs=HELD / 10)
    assert peak.later == pytest.approx(0 if when == "first" else HELD, abs=HELD / 10)


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    peak = memory.peak_memory(Case(TINY, "ReLU", "sgd", "float32"), "derived", threads=1)
    assert peak.parameters == 4 * (4 * 2 + 2 + 2 * 2 + 2 + 2 + 1)
    assert peak.later <= peak.first + (1 << 20)


def test_memory_says_what_the_process_said() -> None:
    with pytest.raises(RuntimeError, match=r"KeyError: 'no variant'"):
        memory.peak_memory(Case(TINY, "ReLU", "sgd", "float32"), "no variant", threads=1)


def test_memory_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def peak(case: Case, variant: str, threads: int) -> memory.Peak:
        asked.append(f"{case} {variant}")
        return memory.Peak(68, 2_000_000, 1_500_000)

    monkeypatch.setattr(step, "peak_memory", peak)
    arguments = [*QUICK[:-1], "all", "--optimizer", "sgd", "--variants", "eager", "derived"]
    assert cli.main(["bench", "step", *arguments]) == 0
    assert asked == ["4-2-2-1:32 ReLU sgd float32 eager", "4-2-2-1:32 ReLU sgd float32 derived"]
    assert "1.5 (2.0)" in capsys.readouterr().out
    assert not step._has_bound_of_memory(Case(TINY, "ReLU", "sgd", "float32"))
    assert step._has_bound_of_memory(Case(NETWORKS[4], "ReLU", "sgd", "float32"))
    assert [n.at for n in NETWORKS].index("1024-4096-1024:64") == 4


def test_the_time_before_a_sample_is_not_measured() -> None:
    """The first step of a sample fetches its weights into the cache."""
    steps = 0

    def one() -> torch.Tensor:
        nonlocal steps
        steps += 1
        return torch.ones(())

    running: Callable[[int], tuple[float, ...]] = variants.stopwatch(Running(one, [], []))
    assert len(running(3)) == 1
    assert steps == 4
