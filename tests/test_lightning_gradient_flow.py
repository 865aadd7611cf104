"""GradientFlow measures, logs, keeps and draws what becomes of every layer."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE, batches, trainer
from matplotlib import pyplot
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins import MixedPrecision
from torch.nn import Module
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack

from torch_manualbp import nn
from torch_manualbp.insight import STATISTICS
from torch_manualbp.lightning import GradientFlow, ManualBackpropModule

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

PNG = b"\x89PNG"
LAYERS = ("model.0", "model.2")


def network() -> Any:
    """Two layers that learn, and one that is frozen, through which gradients go back."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    return model


def train(folder: Path, flow: GradientFlow, lr: float = 0.0, **settings: Any) -> list[dict[str, float]]:
    """Five steps, at a rate of 0, so that the norm of ∂C/∂W of each can be told afterwards, which is returned."""
    model = network()
    module = ManualBackpropModule(model, nn.MSELoss(), lambda parameters: torch.optim.SGD(parameters, lr=lr))
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    trainer(folder, callbacks=[flow], limit_val_batches=0, **settings).fit(module, data)
    norms = []
    for inputs, target in data:
        module.zero_grad()
        F.mse_loss(model(inputs), target).backward()
        norms.append(norms_of(module))
    return norms


def norms_of(module: Module) -> dict[str, float]:
    """‖∂C/∂W‖ of the layers, as ``.grad`` has it."""
    grads = {name: module.get_parameter(f"{name}.weight").grad for name in LAYERS}
    return {name: grad.norm().item() for name, grad in grads.items() if grad is not None}


def grad_norms(flow: GradientFlow) -> list[dict[str, float]]:
    return [{layer: entry["layers"][layer]["grad_norm"] for layer in LAYERS} for entry in flow.history]


def hooks(module: Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_keeps_the_statistics_of_every_layer(tmp_path: Path) -> None:
    flow = GradientFlow()
    norms = train(tmp_path, flow, log_every_n_steps=1)
    assert [entry["step"] for entry in flow.history] == [0, 1, 2, 3, 4]
    assert grad_norms(flow) == [pytest.approx(expected, rel=1e-5) for expected in norms]
    numbers = flow.history[0]["layers"]
    assert list(numbers) == ["model.0", "model.2", "model.3"]
    assert set(numbers["model.0"]) == set(STATISTICS)
    assert numbers["model.0"]["update_ratio"] == 0
    assert "delta_norm" in numbers["model.3"]


def rows_of(logger: CSVLogger) -> list[dict[str, str]]:
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["gradient_flow/model.0/grad_norm"]]


def test_logs_at_the_trainers_interval(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", "")
    norms = train(tmp_path, GradientFlow(), logger=logger, log_every_n_steps=2)
    rows = rows_of(logger)
    assert [int(row["step"]) for row in rows] == [1, 3]
    for row in rows:
        logged = {layer: float(row[f"gradient_flow/{layer}/grad_norm"]) for layer in LAYERS}
        assert logged == pytest.approx(norms[int(row["step"])], rel=1e-5)


@pytest.mark.parametrize("every", [None, 2])
def test_logs_to_csv_and_tensorboard_alike(every: int | None, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table, board = CSVLogger(tmp_path, "logs", ""), TensorBoardLogger(tmp_path, "board", "")
    flow = GradientFlow(every_n_steps=every)
    train(tmp_path, flow, 0.1, logger=[table, board], log_every_n_steps=2 if every is None else 5)
    events = EventAccumulator(board.log_dir)
    events.Reload()
    rows = rows_of(table)
    names = [name for name in rows[0] if name.startswith("gradient_flow/")]
    assert "gradient_flow/noise_scale" in names
    assert len(names) > 30
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("gradient_flow/")} == set(names)
    for name in names:
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(int(row["step"]), float(row[name])) for row in rows]
        assert scalars == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert [int(row["step"]) for row in rows] == [1, 3]


def test_stays_off_the_progress_bar(tmp_path: Path) -> None:
    class Watching(pl.Callback):
        seen: ClassVar[set[str]] = set()

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            self.seen.update(trainer.progress_bar_metrics)

    watching = Watching()
    run = trainer(tmp_path, callbacks=[GradientFlow(), watching], limit_val_batches=0, log_every_n_steps=1)
    run.fit(
        ManualBackpropModule(network(), nn.MSELoss()),
        batches(torch.randn(40, 3), torch.randn(40, 2)),
    )
    assert any(name.startswith("gradient_flow/") for name in run.callback_metrics)
    assert not any(name.startswith("gradient_flow/") for name in watching.seen | set(run.progress_bar_metrics))


@pytest.mark.parametrize("engine", ["autograd", "derived"])
def test_training_is_the_same_to_the_last_bit(engine: str, tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [GradientFlow(every_n_steps=2)]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 2))
        module = ManualBackpropModule(model, nn.MSELoss(), engine=engine)
        data = batches(torch.randn(40, 3), torch.randn(40, 2))
        trainer(tmp_path, callbacks=callbacks, limit_val_batches=0, gradient_clip_val=0.1).fit(module, data)
        ends.append([p.detach().clone() for p in model.parameters()])
        assert hooks(module) == 0
    assert all(map(torch.equal, *ends))


def test_batches_that_are_accumulated_are_one_step(tmp_path: Path) -> None:
    for engine in ("autograd", "derived"):
        flow = GradientFlow(every_n_steps=1)
        torch.manual_seed(0)
        model = network()
        module = ManualBackpropModule(model, nn.MSELoss(), lambda p: torch.optim.SGD(p, lr=0.0), engine=engine)
        data = batches(torch.randn(40, 3), torch.randn(40, 2))
        trainer(tmp_path, callbacks=[flow], limit_val_batches=0, accumulate_grad_batches=2).fit(module, data)
        assert [entry["step"] for entry in flow.history] == [0, 1, 2]
        module.zero_grad()
        for inputs, target in itertools.islice(data, 2):
            (F.mse_loss(model(inputs), target) / 2).backward()
        assert grad_norms(flow)[0] == pytest.approx(norms_of(module), rel=1e-5), engine


class Adversarial(pl.LightningModule):
    """Two networks with an optimizer each, by manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        first, second = optimizers
        x = batch[0]
        first.zero_grad()
        self.manual_backward(F.softplus(-self.d(x)).mean() + F.softplus(self.d(self.g(x).detach())).mean())
        first.step()
        second.zero_grad()
        self.manual_backward(F.softplus(-self.d(self.g(x))).mean())
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.d, self.g)]


def test_manual_optimization(tmp_path: Path) -> None:
    module, flow = Adversarial(), GradientFlow(every_n_steps=2)
    logger = CSVLogger(tmp_path, "logs", "")
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    trainer(tmp_path, callbacks=[flow], limit_val_batches=0, logger=logger, log_every_n_steps=5).fit(module, data)
    assert [entry["step"] for entry in flow.history] == [1, 3]
    for entry in flow.history:
        assert list(entry["layers"]) == ["d.0", "d.2", "g"]
        assert all(numbers["update_ratio"] > 0 for numbers in entry["layers"].values())
    assert hooks(module) == 0


def test_logs_what_belongs_to_the_step(tmp_path: Path) -> None:
    flow, logger = GradientFlow(), CSVLogger(tmp_path, "logs", "")
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    fit = trainer(tmp_path, callbacks=[flow], limit_val_batches=0, logger=logger, log_every_n_steps=3)
    fit.fit(Adversarial(), data)  # a batch is two of its global steps
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = {int(row["step"]): float(row["gradient_flow/g/grad_norm"]) for row in csv.DictReader(file)}
    measured = {entry["step"]: entry["layers"]["g"]["grad_norm"] for entry in flow.history}
    assert list(measured) == [2]
    assert logged == pytest.approx(measured)


def test_saves_the_figures_when_training_ends(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "flow.png"
    flow = GradientFlow(path)
    train(tmp_path, flow, 0.1, log_every_n_steps=1)
    assert path.read_bytes().startswith(PNG)
    figure = flow.figure()
    gradients, deltas, updates, units = figure.axes
    assert [line.get_label() for line in gradients.lines] == ["model.0", "model.2", "model.3"]
    assert [float(y) for y in gradients.lines[1].get_ydata()] == [norms["model.2"] for norms in grad_norms(flow)]
    assert [a.get_yscale() for a in figure.axes] == ["log", "log", "log", "linear"]
    assert [text.get_text() for text in deltas.get_xticklabels()] == ["model.0", "model.2", "model.3"]
    assert [line.get_label() for line in deltas.lines] == ["step 0", "step 4"]
    assert len(updates.lines) == 3
    assert len(units.lines) == 2  # dead and saturated, of the one layer with an activation
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["model.0", "model.2", "model.3"]
    assert pyplot.get_fignums() == []


def test_a_figure_of_no_training_at_all(tmp_path: Path) -> None:
    GradientFlow().figure(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(PNG)


def test_measures_sparse_gradients(tmp_path: Path) -> None:
    class Embedded(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 2, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.embedding(torch.tensor([1, 1, 3])).sum()  # twice 1: (2, 2), and (1, 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    flow = GradientFlow(every_n_steps=1)
    trainer(tmp_path, callbacks=[flow]).fit(Embedded(), batches(torch.randn(8, 3), torch.randn(8, 2)))
    assert flow.history[0]["layers"]["embedding"]["grad_norm"] == pytest.approx(math.sqrt(10))


def test_without_matplotlib_says_so_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    GradientFlow()
    with pytest.raises(ImportError, match=r'^matplotlib is not installed; .* pip install "torch-manualbp\[plots\]"$'):
        GradientFlow("flow.png")


def test_measures_what_an_amp_scaler_has_unscaled(tmp_path: Path) -> None:
    plain, scaled = GradientFlow(), GradientFlow()
    torch.manual_seed(0)
    train(tmp_path, plain, log_every_n_steps=1)
    torch.manual_seed(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms = train(tmp_path, scaled, log_every_n_steps=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert grad_norms(scaled) == [pytest.approx(expected, rel=1e-2) for expected in norms]
    for entry, expected in zip(scaled.history, plain.history, strict=True):
        for layer in LAYERS:
            delta_norm = expected["layers"][layer]["delta_norm"]
            assert entry["layers"][layer]["delta_norm"] == pytest.approx(delta_norm, rel=1e-2)


def test_leaves_nothing_hooked_after_an_exception(tmp_path: Path) -> None:
    class Stops(pl.Callback):
        def on_before_backward(self, *args: Any) -> None:
            raise ZeroDivisionError

    module = ManualBackpropModule(network(), nn.MSELoss())
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[GradientFlow(every_n_steps=1), Stops()], limit_val_batches=0).fit(
            module, batches(torch.randn(8, 3), torch.randn(8, 2))
        )
    assert hooks(module) == 0
    assert torch.overrides._get_current_function_mode_stack() == []


class Regression(pl.LightningModule):
    """Somebody's own module, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.factor = network(), torch.nn.Parameter(torch.ones(2))

    def forward(self, x: Any) -> Any:
        return self.model(x) * self.factor

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def test_leaves_nothing_hooked_after_an_epoch_that_is_cut_short(tmp_path: Path) -> None:
    class Cut(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module, flow = Cut(), GradientFlow()
    before = len(_get_current_function_mode_stack())
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    fit = trainer(tmp_path, callbacks=[flow], limit_val_batches=0, log_every_n_steps=1)
    fit.fit(module, data)
    assert [entry["step"] for entry in flow.history] == [0, 1]
    assert hooks(module) == 0
    assert len(_get_current_function_mode_stack()) == before


def test_parameters_of_the_module_itself_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", "")
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    settings: dict[str, Any] = {"logger": logger, "limit_val_batches": 0, "log_every_n_steps": 1}
    trainer(tmp_path, callbacks=[GradientFlow()], **settings).fit(Regression(), data)
    assert float(rows_of(logger)[0]["gradient_flow/module/grad_norm"]) > 0


def test_refuses_a_compiled_module(tmp_path: Path) -> None:
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    fit = trainer(tmp_path, callbacks=[GradientFlow()], limit_val_batches=0)
    compiled: Any = torch.compile(Regression(), backend="eager")
    with pytest.raises(ValueError, match=r"the LightningModule is compiled, .*: fit the module that it is of"):
        fit.fit(compiled, data)


def test_refuses_a_compiled_model(tmp_path: Path) -> None:
    compiled: Any = torch.compile(network())
    module = ManualBackpropModule(compiled, nn.MSELoss())
    with pytest.raises(ValueError, match="module model is compiled, and its layers do not run one by one"):
        trainer(tmp_path, callbacks=[GradientFlow()]).fit(module, batches(torch.randn(8, 3), torch.randn(8, 2)))


def test_bad_interval() -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0: it takes a number of at least 1, or None"):
        GradientFlow(every_n_steps=0)
