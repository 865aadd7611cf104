"""A training loss that is NaN or infinite stops the training and says where it comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_runs import WITHOUT_LIGHTNINGS_ADVICE, batches, same, trainer
from torch import Tensor

from torch_manualbp import nn
from torch_manualbp.lightning import ManualBackpropModule, NonFiniteLossError
from torch_manualbp.lightning.nonfinite import cause_of_nonfinite_loss

pytestmark = WITHOUT_LIGHTNINGS_ADVICE


def network() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


class OverflowAtStepTwo(pl.Callback):
    """Lets the weights of a middle layer grow so large that its output overflows, and notes the parameters."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                pl_module.model[0].bias.fill_(20)
                pl_module.model[2].weight.fill_(3e38)
            self.parameters = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def test_names_step_value_and_layer_and_leaves_the_parameters(tmp_path: Path) -> None:
    module, overflow = ManualBackpropModule(network(), nn.MSELoss()), OverflowAtStepTwo()
    with pytest.raises(NonFiniteLossError) as caught:
        trainer(tmp_path, callbacks=[overflow]).fit(module, batches(torch.randn(40, 3), torch.randn(40, 2)))
    layer = "model.2 (torch_manualbp.nn.linear.Linear)"
    expected = (
        rf"the loss is (nan|inf) at global step 2: the first layer whose output is not finite is {re.escape(layer)}"
    )
    assert re.fullmatch(expected, str(caught.value))
    assert isinstance(caught.value, FloatingPointError)
    assert all(parameter.isfinite().all() for parameter in overflow.parameters.values())
    assert same(dict(module.named_parameters()), overflow.parameters)


def cause(model: Any, inputs: Tensor, target: Tensor, loss: Any = None) -> str:
    loss = loss or nn.MSELoss()
    state = torch.get_rng_state()
    assert not loss(model(inputs), target).isfinite()
    return cause_of_nonfinite_loss(model, loss, inputs, target, state)


def test_blames_the_batch() -> None:
    bad, good = torch.tensor([[1.0, torch.nan, 2.0]]), torch.ones(1, 2)
    assert cause(network(), bad, good) == "the batch's inputs already hold NaN or infinity; look at the data"
    assert (
        cause(network(), torch.ones(1, 3), good / 0)
        == "the batch's target already hold NaN or infinity; look at the data"
    )


def test_blames_a_parameter() -> None:
    model = network()
    torch.nn.init.constant_(model[2].bias, torch.nan)
    assert cause(model, torch.ones(1, 3), torch.ones(1, 2)).startswith(
        "the parameter model.2.bias holds NaN or infinity;"
    )


def test_blames_the_loss() -> None:
    model = nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 1e30)
    answer = cause(model, torch.ones(1, 3), torch.ones(1, 2))
    assert answer == "model's output is finite, and MSELoss of it is not"


class Reciprocal(torch.nn.Module):
    """Infinite where dropout drops; outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        return 1 / self.drop(torch.ones_like(self.norm(inputs)))


@pytest.mark.parametrize("seed", range(10))
def test_drops_what_the_step_dropped_and_disturbs_nothing(seed: int) -> None:
    """Nothing is dropped in every fourth run: the search has to draw the step's random numbers again."""
    model: Any = nn.Sequential(Reciprocal(), nn.ReLU())
    inputs, target = torch.randn(2, 3), torch.ones(2, 3)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    while model(inputs).isfinite().all():
        state = torch.get_rng_state()
    before, batches_seen = torch.get_rng_state(), model[0].norm.num_batches_tracked.clone()
    answer = cause_of_nonfinite_loss(model, nn.MSELoss(), inputs, target, state)
    assert answer == f"the first layer whose output is not finite is model.0 ({__name__}.Reciprocal)"
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model[0].norm.num_batches_tracked, batches_seen)
    assert not model[0]._forward_hooks


def test_a_model_that_cannot_be_copied_is_still_reported() -> None:
    model = network()
    model.kept = model(torch.ones(1, 3))  # which holds a graph
    answer = cause(model, torch.full((1, 3), 3e38), torch.ones(1, 2), lambda s, y: s.sum() / 0)
    assert answer.startswith("its layer was not found, as running a copy of model raised RuntimeError: Only Tensors")
