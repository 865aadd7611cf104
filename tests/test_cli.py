"""The command line: what it takes, what it says of what it does not take, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_manualbp import cli, nn
from torch_manualbp.bench import layers, timing


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of a call that fails, and the line that it says."""
    try:
        status = cli.main(arguments)
    except SystemExit as exit:
        status = int(str(exit.code))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return status, captured.err.strip()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "--help"], ["bench"], ["no such command"]])
def test_says_what_it_takes(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "torch_manualbp", *arguments], capture_output=True, text=True)
    assert done.returncode == (0 if arguments[-1].startswith("--") else 2)
    assert "torch-manualbp" in (done.stderr if done.returncode else done.stdout)


def test_layers_take_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    status = failure(["matrix", "--layers", "--rule", "ReLU"], capsys)
    assert status == (2, "torch-manualbp matrix: --layers takes all layers and checks, and no catalogue")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command, (_, does) in cli.COMMANDS.items():
        group, _, word = command.rpartition(" ")
        with pytest.raises(SystemExit) as exit:
            cli.main([*group.split(), "--help"])
        assert exit.value.code == 0
        printed = capsys.readouterr().out
        assert word in printed
        assert does in printed
        with pytest.raises(SystemExit) as exit:
            cli.main([*command.split(), "--help"])
        assert exit.value.code == 0
        assert "--json FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "laiers"], "argument command: invalid choice: 'laiers' (choose from 'layers', 'step')"),
        (["bench", "layers", "--mode", "fast"], "'fast' (choose from 'eager', 'formulas', 'compiled', 'all')"),
        (["bench", "layers", "--layer", "Relu"], "argument --layer: no layer 'Relu'; near it: ReLU"),
        (
            ["bench", "layers", "--layer", "xyz"],
            "argument --layer: no layer 'xyz'; choose: BCELoss, BCEWithLogitsLoss, ",
        ),
        (["bench", "layers", "--repeats", "0"], "argument --repeats: '0' is not a whole number of at least 1"),
        (["bench", "layers", "--threads", "two"], "argument --threads: 'two' is not a whole number of at least 1"),
        (["bench", "layers", "--rep", "3"], "unrecognized arguments: --rep 3"),
    ],
)
def test_names_the_value_that_it_does_not_take(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failure(arguments, capsys)
    assert status == 2
    assert line.startswith("torch-manualbp bench")
    assert said in line


def test_says_how_to_install_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [_Without("rich"), *sys.meta_path])
    status, line = failure(["bench", "layers", "--layer", "ReLU"], capsys)
    assert status == 1
    assert line == (
        'torch-manualbp bench layers: rich is not installed; to install it: pip install "torch-manualbp[cli]"'
    )


class _Without:
    """Finds every module but one, which it does not find."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named {self.module!r}", name=self.module)


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "measure", interrupted)
    assert failure(["bench", "layers"], capsys) == (130, "torch-manualbp bench layers: interrupted")


def test_bench_layers_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, table = tmp_path / "out" / "layers.json", tmp_path / "layers.md"
    arguments = ["--layer", "ReLU", "--mode", "eager", "--repeats", "2", "--json", str(figures), "--markdown"]
    assert cli.main(["bench", "layers", *arguments, str(table)]) == 0
    printed = capsys.readouterr().out
    assert "32×64" in printed
    assert "bounds met" in printed
    written = json.loads(figures.read_text())
    assert written.keys() == {"torch", "python", "machine", "threads", "dtype", "repeats", "rows"}
    assert (written["torch"], written["dtype"], written["repeats"]) == (torch.__version__, "float32", 2)
    assert [(r["layer"], r["size"], r["mode"], r["bound"]) for r in written["rows"]] == [
        ("ReLU", "512×4096", "eager", 1.5),
        ("ReLU", "32×64", "eager", None),
    ]
    for row in written["rows"]:
        assert row.keys() == set(layers.Row.__dataclass_fields__)
        assert 2 <= row["rounds"] <= 8
        assert min(row[figure] for figure in ("ours", "stock", "ratio", "forward", "backward")) > 0
        assert row["met"] is (None if row["bound"] is None else row["ratio"] <= row["bound"])
    lines = table.read_text().splitlines()
    assert lines[0].startswith("Our layers against torch")
    assert lines[2] == "| layer | size | eager |"
    assert [line.split(" | ")[1] for line in lines[4:6]] == ["512×4096", "32×64"]


def test_the_panel_has_every_layer_of_ours() -> None:
    ours = {name for name in dir(nn) if getattr(getattr(nn, name), "__module__", "").startswith("torch_manualbp.nn.")}
    # which have no arithmetic of their own: one passes its input on, the other becomes a Linear
    assert {case.name for case in layers.panel()} == ours - {"Identity", "LazyLinear"}


@pytest.mark.parametrize("case", list(layers.panel()), ids=lambda case: f"{case.layer} {case.size}")
def test_the_panel_compares_ours_with_torchs(case: layers.Case) -> None:
    assert type(case.build(nn)).__module__.startswith("torch_manualbp.nn.")
    assert type(case.build(torch.nn)).__module__.startswith("torch.nn.")


def test_a_ratio_is_of_one_way_by_another() -> None:
    """The planted mistakes here: ratios upside down, parts in the wrong order, times that are not of one call."""

    def stopwatch(*seconds: float) -> timing.Stopwatch:
        return lambda repeats: tuple(repeats * s for s in seconds)

    ways = {"stock": stopwatch(1.0, 4.0, 5.0), "ours": stopwatch(2.0, 3.0, 5.0), "products": stopwatch(1.0, 1.0, 2.0)}
    comparison = timing.compare(ways, rounds=3)
    assert comparison.rounds == 3
    assert [comparison.seconds("ours", part) for part in range(3)] == [2, 3, 5]
    assert [comparison.ratio("ours", "stock", part) for part in range(3)] == [2, 0.75, 1]
    assert comparison.ratio("stock", "products") == 2.5
    assert comparison.error("ours", "stock") == 0


def test_each_way_is_the_first_in_turn() -> None:
    order: list[str] = []

    def way(name: str) -> timing.Stopwatch:
        def run(_: int) -> tuple[float, ...]:
            order.append(name)
            return (1.0,)

        return run

    timing.compare({name: way(name) for name in "abc"}, rounds=4)
    assert "".join(order[-12:]) == "abcbcacababc"


def test_measures_longer_where_rounds_disagree() -> None:
    def alternating() -> timing.Stopwatch:
        seconds = iter([1.0, 2.0] * 100)
        return lambda repeats: (repeats * next(seconds),)

    def steady(seconds: float) -> timing.Stopwatch:
        return lambda repeats: (repeats * seconds,)

    question = timing.Question("ours", "stock")
    comparison = timing.compare({"stock": steady(1.0), "ours": alternating()}, 5, [question])
    assert comparison.rounds == 20
    assert comparison.error("ours", "stock") == pytest.approx(timing.median_error([1.0, 2.0] * 10))
    assert timing.compare({"stock": steady(1.0), "ours": alternating()}, 5, [question], at_most=7).rounds == 7
    assert timing.compare({"stock": steady(1.0), "ours": alternating()}, 5).rounds == 5
    near = timing.Question("ours", "stock", 1.3)
    assert timing.compare({"stock": steady(1.0), "ours": steady(1.301)}, 5, [near]).rounds == 5
