"""Tables whose rows integers name: what the contract and PyTorch's databases do not ask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn

import torch_manualbp
from torch_manualbp import functional, nn
from torch_manualbp.catalogue import Make

make = Make()
index, table = make.indices(6, 4, 5), make(7, 3)


def gradient(function: Any, W: Tensor, **options: Any) -> Tensor:
    W = W.clone().requires_grad_()
    a = function(index, W, **options)
    (dW,) = torch.autograd.grad(a, W, torch.ones_like(a))
    return dW


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_by_frequency_every_row_is_divided_by_how_often_it_is_named_itself(mode: str) -> None:
    """torch's kernel divides by how often another row is named."""
    W, counts = make(7, 3), torch.bincount(index.flatten(), minlength=7).clamp(min=1).unsqueeze(1)
    plain = gradient(functional.embedding_bag, W, mode=mode)
    by_frequency = gradient(functional.embedding_bag, W, mode=mode, scale_grad_by_freq=True)
    torch.testing.assert_close(by_frequency, plain / counts, rtol=1e-12, atol=0)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_last_bag_ends_at_the_last_offset(mode: str, dtype: torch.dtype, padding: int | None) -> None:
    """torch's kernels have what comes after it in the last bag or not, by dtype and padding."""
    i, ends = torch.tensor([0, 1, 2, 3, 4, 5, 6]), torch.tensor([0, 2, 2, 5])
    results = []
    for function, of in ((functional.embedding_bag, i), (torch.nn.functional.embedding_bag, i[:5])):
        W = table.to(dtype).requires_grad_()
        a = function(of, W, ends, mode=mode, include_last_offset=True, padding_idx=padding)
        results.append((a, *torch.autograd.grad(a, W, torch.arange(1, 10, dtype=dtype).reshape(3, 3))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["embedding", "embedding_bag"])
def test_long_rows_are_scaled_in_place_of_the_weight_before_they_are_read(name: str) -> None:
    results = []
    for module in (functional, torch.nn.functional):
        W = table.clone().requires_grad_()
        a = getattr(module, name)(index, W, max_norm=0.8, norm_type=1.0)
        results.append((W.detach(), a.detach(), *torch.autograd.grad(a.sum(), W)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["embedding", "embedding_bag"])
def test_sparse_gradients_are_torchs(name: str) -> None:
    assert gradient(getattr(functional, name), table, sparse=True).is_sparse
    assert gradient(getattr(torch.nn.functional, name), table, sparse=True).is_sparse


@pytest.mark.parametrize("namespace", [torch_nn, nn], ids=["torch.nn", "torch_manualbp.nn"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}], ids=str)
def test_a_derived_step_is_autograds(namespace: Any, options: dict[str, Any]) -> None:
    model = torch_nn.Sequential(namespace.Embedding(6, 5, **options), torch_nn.Tanh(), torch_nn.Linear(5, 3)).double()
    assert_derives(model, index, make(4, 5, 3))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_derived_step_of_bags_is_autograds(mode: str) -> None:
    model = torch_nn.Sequential(torch_nn.EmbeddingBag(6, 5, mode=mode), torch_nn.Linear(5, 3)).double()
    assert_derives(model, index, make(4, 3))


def assert_derives(model: torch_nn.Module, x: Tensor, y: Tensor) -> None:
    stock, loss = copy.deepcopy(model), torch_nn.MSELoss()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, stock)]
    step = torch_manualbp.TrainStep(model, loss, optimizers[0])
    for _ in range(3):
        step(x, y)
        optimizers[1].zero_grad()
        loss(stock(x), y).backward()
        optimizers[1].step()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}], ids=str)
def test_what_a_step_cannot_do_is_refused_by_name(options: dict[str, Any]) -> None:
    model = torch_nn.Sequential(torch_nn.Embedding(6, 3, **options)).double()
    step = torch_manualbp.TrainStep(model, torch_nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"embedding with (sparse|max_norm)="):
        step(index, make(4, 5, 3))
