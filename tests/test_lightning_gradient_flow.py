"""GradientFlow measures, logs, keeps and draws the gradient norm of every layer."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE, batches, trainer
from matplotlib import pyplot
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision

from torch_manualbp import nn
from torch_manualbp.lightning import GradientFlow, ManualBackpropModule
from torch_manualbp.lightning.gradient_flow import gradient_norms

pytestmark = WITHOUT_LIGHTNINGS_ADVICE

PNG = b"\x89PNG"


def train(folder: Path, flow: GradientFlow, **settings: Any) -> list[dict[str, float]]:
    """Five steps of two layers that learn, at a rate of 0, and one that is frozen. Returns the norms of each step."""
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    model[3].requires_grad_(False)
    module = ManualBackpropModule(model, nn.MSELoss(), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    data = batches(torch.randn(40, 3), torch.randn(40, 2))
    trainer(folder, callbacks=[flow], limit_val_batches=0, **settings).fit(module, data)
    norms = []
    for inputs, target in data:
        module.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), target).backward()
        first = (model[0].weight.grad ** 2).sum() + (model[0].bias.grad ** 2).sum()
        norms.append({"model.0": math.sqrt(first), "model.2": math.sqrt((model[2].weight.grad ** 2).sum())})
    return norms


def test_keeps_the_norm_of_every_layer_that_learns(tmp_path: Path) -> None:
    flow = GradientFlow()
    norms = train(tmp_path, flow, log_every_n_steps=1)
    assert [step for step, _ in flow.history] == [0, 1, 2, 3, 4]
    assert [measured for _, measured in flow.history] == [pytest.approx(expected, rel=1e-5) for expected in norms]


def test_logs_at_the_trainers_interval(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, "logs", "")
    norms = train(tmp_path, GradientFlow(), logger=logger, log_every_n_steps=2)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gradient_norm/model.0"]]
    assert [int(row["step"]) for row in rows] == [1, 3]
    for row in rows:
        logged = {layer: float(row[f"gradient_norm/{layer}"]) for layer in ("model.0", "model.2")}
        assert logged == pytest.approx(norms[int(row["step"])], rel=1e-5)
        assert "gradient_norm/model.3" not in row


def test_saves_the_figure_when_training_ends(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "flow.png"
    flow = GradientFlow(path)
    train(tmp_path, flow, log_every_n_steps=1)
    assert path.read_bytes().startswith(PNG)
    (axes,) = flow.figure().axes
    assert [line.get_label() for line in axes.lines] == ["model.0", "model.2"]
    assert [float(y) for y in axes.lines[1].get_ydata()] == [norms["model.2"] for _, norms in flow.history]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "gradient norm", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model.0", "model.2"]
    assert pyplot.get_fignums() == []


def test_a_figure_of_no_training_at_all(tmp_path: Path) -> None:
    GradientFlow().figure(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(PNG)


def test_measures_sparse_and_low_precision_gradients() -> None:
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()  # twice 1: (2, 2), and (1, 1)
    assert gradient_norms(embedding) == pytest.approx({"": math.sqrt(10)})
    layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float16)
    layer.weight.grad = torch.full_like(layer.weight, 60000)  # whose square is beyond float16
    assert gradient_norms(layer) == pytest.approx({"": 60000.0}, rel=1e-3)


def test_without_matplotlib_says_so_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    GradientFlow()
    with pytest.raises(ImportError, match=r'^matplotlib is not installed; .* pip install "torch-manualbp\[plots\]"$'):
        GradientFlow("flow.png")


def test_measures_what_an_amp_scaler_has_unscaled(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    flow = GradientFlow()
    norms = train(tmp_path, flow, log_every_n_steps=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert [measured for _, measured in flow.history] == [pytest.approx(expected, rel=1e-2) for expected in norms]
