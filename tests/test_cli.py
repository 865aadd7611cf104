"""The command line: what it takes, what it says of what it does not take, and what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_manualbp import TrainStep, cli, nn
from torch_manualbp.bench import layers, timing
from torch_manualbp.catalogue import CATALOGUE


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
        last = {"derive": "--output", "explain": "--output", "report": "--output", "layers": "--into"}
        assert f"{last.get(command, '--json')} FILE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["bench", "laiers"],
            "argument command: invalid choice: 'laiers' "
            "(choose from 'insight', 'kernels', 'layers', 'lightning', 'step', 'verify')",
        ),
        (["bench", "layers", "--mode", "fast"], "'fast' (choose from 'eager', 'formulas', 'compiled', 'all')"),
        (["bench", "layers", "--layer", "Relu"], "argument --layer: no layer 'Relu'; near it: ReLU"),
        (
            ["bench", "layers", "--layer", "xyz"],
            "argument --layer: no layer 'xyz'; choose: AdaptiveAvgPool2d, AdaptiveMaxPool2d, ",
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


@pytest.mark.usefixtures("asked_of_malloc")
def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "measure", interrupted)
    assert failure(["bench", "layers"], capsys) == (130, "torch-manualbp bench layers: interrupted")


@pytest.fixture
def asked_of_malloc(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bench layers asks of malloc, which would have it keep freed memory for all tests that come after."""
    asked: list[str] = []

    def keep_freed_memory() -> bool:
        asked.append("keep freed memory")
        return True

    monkeypatch.setattr(layers, "keep_freed_memory", keep_freed_memory)
    return asked


@pytest.mark.parametrize("options", [[], ["--return-memory", "--cpu-time"]], ids=["kept", "returned"])
def test_bench_layers_runs(
    options: list[str], asked_of_malloc: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, table = tmp_path / "out" / "layers.json", tmp_path / "layers.md"
    arguments = ["--layer", "ReLU", "--mode", "eager", "--repeats", "2", "--json", str(figures), "--markdown"]
    assert cli.main(["bench", "layers", *arguments, str(table), *options]) == 0
    assert asked_of_malloc == ([] if options else ["keep freed memory"])
    printed = capsys.readouterr().out
    assert "32×64" in printed
    assert "bounds met" in printed
    written = json.loads(figures.read_text())
    about = {"torch", "python", "machine", "processor", "threads", "products", "dtype", "repeats", "keeps freed memory"}
    assert written.keys() == about | {"rows", "clock"}
    assert written["clock"] == ("processor" if options else "wall")
    assert f"{written['clock']} time" in printed
    assert "geometric means: eager" in printed
    assert (written["torch"], written["dtype"], written["repeats"]) == (torch.__version__, "float32", 2)
    assert written["keeps freed memory"] is not bool(options)
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


def test_the_panel_has_a_layer_of_every_rule() -> None:
    shown = {case.name for case in layers.panel()}
    rows = [row for row in CATALOGUE if row.layers]
    assert [row.name for row in rows if not shown & set(row.layers.split())] == ["Identity"]  # it has no arithmetic


@pytest.mark.parametrize("case", list(layers.panel()), ids=lambda case: f"{case.layer} {case.size}")
def test_the_panel_compares_ours_with_torchs(case: layers.Case) -> None:
    for of, package in ((nn, "torch_manualbp."), (torch.nn, "torch.nn.")):
        layer: Any = case.build(of)
        name = layer.functions.__name__ + "." if case.name == "scaled_dot_product_attention" else type(layer).__module__
        assert name.startswith(package)


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


# --- derive ---------------------------------------------------------------------------------------------------------

MLP = "torch_manualbp.nn:Sequential(Linear(6, 8), ReLU(), Linear(8, 3))"
MODELS = """
import torch
from torch_manualbp import nn

class Net(torch.nn.Module):
    def __init__(self, double=False):
        super().__init__()
        self.layer = nn.Linear(6, 3, dtype=torch.float64 if double else None)

    def forward(self, x, shift=None):
        z = self.layer(x)
        return z if shift is None else z + shift

class Watching(Net):
    def forward(self, x):
        z = super().forward(x)
        return z if z.sum().item() > 0.5 else -z

class Pair(Net):
    def forward(self, x):
        return self.layer(x), x

class Inverse(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.pinv(x).mT

class Twice(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Watching(), Inverse()

    def forward(self, x):
        return self.second(self.first(x))

def make():
    return Net(double=True)

def distance(output, target):
    return ((output - target) ** 2).sum()

net, number = Net(), 3
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with these models, in the working directory."""
    (tmp_path / "models_of_a_user.py").write_text(MODELS)
    (tmp_path / "broken_models.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    yield "models_of_a_user"
    sys.modules.pop("models_of_a_user", None)


def derived(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    path = list(sys.path)
    assert cli.main(["derive", *arguments]) == 0
    assert sys.path == path
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_derive_prints_the_source_or_the_program_of_train_step(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--loss", "CrossEntropyLoss(label_smoothing=0.1)", "--optimizer", "SGD(momentum=0.9)"]
    for which in ([], ["--program"], ["--compile"]):
        printed = derived([MLP, "--input", "4,6", *options, *which], capsys)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        step = TrainStep(model, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, compile="--compile" in which)
        source = step.derive(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))
        assert printed == (step.program if which else source)
        assert source == step.source != step.program


@pytest.mark.parametrize("name", ["net", "Net", "Net(double=False)", "make"])
def test_derive_takes_a_model_its_class_or_a_function(
    name: str, models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = derived([f"{models}:{name}", "--input", "4,6"], capsys)
    assert printed.startswith('"""One training step of Net on CrossEntropyLoss with SGD.\n')
    assert ("float64" in printed) == (name == "make")


def test_derive_takes_several_inputs_a_target_and_a_loss_of_the_users_own(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--input", "4,6", "--input", "3", "--target", "1,3:float16"]
    printed = derived([f"{models}:Net", *data, "--loss", f"{models}:distance", "--optimizer", "AdamW"], capsys)
    assert "Net on distance with AdamW" in printed
    assert "def step(x1, x2, y, lr, beta1, beta2, eps, weight_decay):" in printed
    assert "(1, 3) float16" not in printed.split("def step")[0]


def test_derive_saves_a_program_that_trains_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.py"
    printed = derived([MLP, "--input", "4,6", "--loss", "MSELoss", "--output", str(path)], capsys)
    assert printed == f"{path}: {len(path.read_text(encoding='utf-8').splitlines())} lines\n"
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    step = runpy.run_path(str(path))["build"](dict(model.named_parameters()), {})
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    losses = [float(step(x, y, 0.1)) for _ in range(20)]
    assert losses[-1] < losses[0] / 2


def test_derive_colours_what_it_prints_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    pty = pytest.importorskip("pty", reason="there are no terminals of its own on this system")
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "torch_manualbp", "derive", MLP, "--input", "4,6"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "40"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=its_end, env=environment) as process:
        os.close(its_end)
        written = b""
        with contextlib.suppress(OSError):  # which Linux raises at the end
            while read := os.read(terminal, 4096):
                written += read
    os.close(terminal)
    assert process.returncode == 0
    shown = written.decode().replace("\r\n", "\n")
    assert "\x1b[" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == derived([MLP, "--input", "4,6"], capsys)


def test_derive_ends_quietly_where_nobody_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert cli.main(["derive", MLP, "--input", "4,6"]) == 0


REFUSED = {
    "nowhere:Net": "argument model: nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
    "broken_models:Net": "argument model: broken_models cannot be imported: ZeroDivisionError: division by zero",
    "Net": "argument model: 'Net' is not of the form package.module:name",
    "{}:": "argument model: '{}:' is not of the form package.module:name",
    "{}:Nett": "argument model: Nett raises NameError: name 'Nett' is not defined",
    "{}:Net(": "argument model: Net( raises SyntaxError: '(' was never closed",
    "{}:number": "argument model: {}:number is of class int, and not a torch.nn.Module",
    "{}:distance": "argument model: {}:distance() raises TypeError: distance() missing 2 required positional arguments",
    "{}:Pair": "argument --target: it is needed, as the model returns a tuple",
    "{}:net --input 4;6": "argument --input: '4;6' is no shape, such as 64,784 or 64:int64",
    "{}:net --target 4:int63": "argument --target: 'int63' is no dtype of torch, such as float32 or int64",
    "{}:net --loss MSELos": "argument --loss: MSELos raises NameError: name 'MSELos' is not defined",
    "{}:net --loss {}:number": "argument --loss: {}:number is of class int, and not a function of (output, target)",
    "{}:net --optimizer SDG": "argument --optimizer: SDG raises NameError: name 'SDG' is not defined",
    "{}:net --optimizer SGD(mu=1)": "argument --optimizer: SGD(mu=1) raises TypeError: ",
    "{}:net --optimizer LBFGS": "optimizer is LBFGS (",
}
IMPOSSIBLE = {
    "{}:net --input 4,7": "{}:net and CrossEntropyLoss do not take 4,6:float32, 4,7:float32: ",
    "{}:net --target 5:int64": "{}:net and CrossEntropyLoss do not take 4,6:float32 and a target 5:int64: ",
    "{}:Watching": "no step can be derived, because of one place: the model itself (models_of_a_user.py:17): ",
}


@pytest.mark.parametrize("arguments", [*REFUSED, *IMPOSSIBLE])
def test_derive_says_in_one_line_what_is_wrong(arguments: str, models: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, *others = arguments.replace("{}", models).split()
    status, line = failure(["derive", model, "--input", "4,6", *others], capsys)
    said = (REFUSED | IMPOSSIBLE)[arguments].replace("{}", models)
    assert line.startswith(f"torch-manualbp derive: {said}")
    assert status == (2 if arguments in REFUSED else 1)


def test_derive_lists_every_place_that_cannot_be_derived(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["derive", f"{models}:Twice", "--input", "4,6"]) == 1
    first, *places = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"torch-manualbp derive: no step can be derived, because of \d places:", first)
    assert [place.partition(" (")[0] for place in places] == ["  first", "  second"]
    assert all(re.search(r" \(models_of_a_user\.py:\d+\): ", place) for place in places)
