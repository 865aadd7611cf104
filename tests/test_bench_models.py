"""``torch-manualbp bench step --panel models``: that every row is trained alike, that the products are those of a stock
step, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import failure
from torch.utils.flop_counter import FlopCounterMode

from torch_manualbp import cli
from torch_manualbp.bench import model_step, models
from torch_manualbp.bench.memory import Peak
from torch_manualbp.bench.model_cases import MODEL_VARIANTS, MODELS, ModelCase, _images, _tokens, starts
from torch_manualbp.bench.model_step import ModelRow, figures
from torch_manualbp.bench.products import products_of

SMALL = {
    "micro-gpt": {},
    "nanogpt": {"build": lambda: models.GPT(13, 12, 24, 3, 2), "batch": _tokens(13, 2, 12)},
    "llama": {"build": lambda: models.Llama(13, 12, 24, 3, 2), "batch": _tokens(13, 2, 12)},
    "lenet": {"batch": _images(4, 1, 28, 28)},
    "resnet18": {"build": lambda: models.ResNet18(4), "batch": _images(8, 3, 16, 16)},
    "lstm": {
        "build": lambda: models.LSTMClassifier(20, 8),
        "batch": lambda g: (torch.randint(20, (4, 6), generator=g), torch.randint(2, (4,), generator=g)),
        "recurrent": 6,
    },
    "tabular": {},
    "ppo": {},
    "mlp-elu": {"batch": _images(16, 256)},
}
"""The rows of the panel, as small as they are what they are."""


def small(name: str) -> ModelCase:
    case = next(case for case in MODELS if case.name == name)
    return replace(case, **SMALL[name])  # type: ignore[arg-type]


def test_the_panel() -> None:
    assert [case.name for case in MODELS] == [
        *("micro-gpt", "nanogpt", "gpt-384", "gpt2", "llama", "lenet", "resnet18", "lstm", "tabular", "ppo"),
        *("mlp-tanh", "mlp-elu", "mlp-silu"),
    ]


@pytest.mark.parametrize("name", SMALL)
def test_every_row_trains_as_stock_does(name: str) -> None:
    case = small(name)
    change = None
    for variant in starts(case, ["eager", "derived", "numpy"]):
        _, _, its_change = model_step._started(case, variant, change)
        change = its_change if change is None else change
    assert change is not None
    assert change.norm() > 0


def test_another_training_gets_no_time() -> None:
    """The planted mistake: another learning rate."""
    case = small("ppo")
    _, _, change = model_step._started(replace(case, momentum=True), "eager", None)
    with pytest.raises(RuntimeError, match="its weights move otherwise"):
        model_step._started(case, "derived", change)


@pytest.mark.parametrize("name", ["nanogpt", "llama", "lenet", "resnet18", "tabular", "ppo"])
def test_the_products_are_those_of_a_stock_step(name: str) -> None:
    case = small(name)
    model, (x, y) = case.model(), case.batches()[0]

    def once() -> None:
        case.loss(model(*x) if isinstance(x, tuple) else model(x), y).backward()

    products = products_of(once)
    flops = []
    for do in (once, lambda: [product() for product in products]):
        with FlopCounterMode(display=False) as counter:
            do()
        flops.append(counter.get_total_flops())
    if name in ("nanogpt", "llama"):  # whose attention the counter leaves out: 7 products of 2 blocks, half of 6 heads
        flops[0] += 7 * 2 * 3 * 2 * 12 * 12 * 8
    assert flops[0] == flops[1] > 0


def test_the_products_of_an_lstm() -> None:
    running = MODEL_VARIANTS["products"][1](small("lstm"))
    with FlopCounterMode(display=False) as counter:
        running.step()
    T, B, n = 6, 4, 8
    assert counter.get_total_flops() >= 3 * 2 * T * B * 4 * n * 2 * n


def test_half_of_attention_is_left_out_where_it_is_causal() -> None:
    q = torch.randn(1, 4, 8, 4, requires_grad=True)
    counts = []
    for is_causal in (False, True):

        def once(is_causal: bool = is_causal) -> None:
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=is_causal).sum().backward()

        products = products_of(once)
        with FlopCounterMode(display=False) as counter:
            for product in products:
                product()
        counts.append(counter.get_total_flops())
    assert counts == [7 * 2 * 4 * 8 * 8 * 4, 7 * 4 * 8 * 8 * 4]


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, tables = tmp_path / "models.json", tmp_path / "models.md"
    arguments = ["--panel", "models", "--network", "ppo", "micro-gpt", "--rounds", "1", "--threads", "1"]
    variants = ["--variants", "eager", "derived", "numpy", "products"]
    files = ["--json", str(written), "--markdown", str(tables)]
    assert cli.main(["bench", "step", *arguments, *variants, *files, "--cpu-time"]) == 0
    rows = json.loads(written.read_text())["rows"]
    assert [row["name"] for row in rows] == ["micro-gpt", "ppo"]
    assert rows[0]["times"].keys() == {"eager", "derived", "numpy", "products"}
    assert rows[1]["times"].keys() == {"eager", "derived", "products"}
    assert rows[0]["ratios"].keys() == {"ours / stock", "ours / numpy", "ours / products", "stock / products"}
    assert min(*rows[0]["times"].values(), *rows[0]["first"].values()) > 0
    assert "| ppo | ours / products | " in tables.read_text()
    assert "AMD" in tables.read_text() or "CPU" in tables.read_text() or ", AVX" in tables.read_text()
    assert "ours / stock" in capsys.readouterr().err


def test_names_the_model_that_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = failure(["bench", "step", "--panel", "models", "--network", "nanogtp"], capsys)
    assert status == 2
    assert line == "torch-manualbp bench step: argument --network: no model 'nanogtp'; near it: nanogpt"


def test_memory_is_held_against_stock_beyond_what_is_kept() -> None:
    row = ModelRow("gpt-384", "", memory={"eager": Peak(100, 900, 700), "derived": Peak(100, 900, 540)})
    assert [(value, bound) for _, value, bound in figures(row)] == [(0.6, 0.6)]


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    row = ModelRow("ppo", "")
    case = next(case for case in MODELS if case.name == "ppo")
    model_step._add_memory(row, case, ["derived", "products"])
    assert row.memory.keys() == {"derived"}
    assert row.memory["derived"].parameters == 4 * sum(p.numel() for p in case.model().parameters())
