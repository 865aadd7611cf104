"""What each family keeps for backward, tensor by tensor, at shapes whose sizes all differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torch_manualbp import functional as F
from torch_manualbp import nn

Kept = list[tuple[tuple[int, ...], torch.dtype]]

x = torch.randn(64, 32, requires_grad=True)
images = torch.randn(2, 3, 8, 10, requires_grad=True)
FLOAT = torch.float32


def kept(function: Callable[[], Tensor], *parameters: Tensor) -> Kept:
    """Shapes and dtypes of what is kept besides parameters, each piece of memory once."""
    found = {}
    known = {t.untyped_storage().data_ptr() for t in parameters}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = (tuple(t.shape), t.dtype)
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        output = function()
    assert output.requires_grad
    return sorted((found[at] for at in found.keys() - known), key=str)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU])
def test_a_block_of_linear_layers(activation: type[torch.nn.Module]) -> None:
    """x and what comes between: one tensor, where f' follows from a, which the second layer keeps; else z and a."""
    block = torch.nn.Sequential(nn.Linear(32, 48), activation(), nn.Linear(48, 16))
    of_output = activation in (nn.ReLU, nn.Tanh, nn.Sigmoid)
    between = [((64, 48), FLOAT)] * (1 if of_output else 2)
    assert kept(lambda: block(x), *block.parameters()) == [((64, 32), FLOAT), *between]


@pytest.mark.parametrize(
    ("layer", "numbers"),
    [
        (nn.LayerNorm(32), [((64, 1), FLOAT)] * 2),
        (nn.RMSNorm(32), [((64, 1), FLOAT)]),
        (nn.GroupNorm(3, 3), [((2, 3), FLOAT)] * 2),
        (nn.BatchNorm2d(3), [((1, 3, 1, 1), FLOAT)] * 2),
        (nn.InstanceNorm2d(3), [((2, 3, 1, 1), FLOAT)] * 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm(layer: torch.nn.Module, numbers: Kept) -> None:
    """Its input, and one or two numbers for what is normalised together."""
    z = x if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) else images
    assert kept(lambda: layer(z), *layer.parameters()) == sorted([(tuple(z.shape), FLOAT), *numbers], key=str)


@pytest.mark.parametrize("pool", [lambda: F.max_pool2d(images, 2), lambda: F.adaptive_max_pool2d(images, (4, 5))])
def test_a_max_pool_keeps_no_int64(pool: Callable[[], Tensor]) -> None:
    """Where the largest was: two bytes an output, where a channel has fewer than 2¹⁵ entries."""
    assert kept(pool) == [((2, 3, 4, 5), torch.int16)]


def test_a_max_pool_of_large_images_keeps_int32() -> None:
    large = torch.randn(1, 1, 256, 256, requires_grad=True)
    assert kept(lambda: F.max_pool2d(large, 2)) == [((1, 1, 128, 128), torch.int32)]


def test_dropout_keeps_no_numbers() -> None:
    """A byte for each entry, or for each channel, and nothing of the input."""
    assert kept(lambda: F.dropout(images, 0.3)) == [((2, 3, 8, 10), torch.bool)]
    assert kept(lambda: F.dropout2d(images, 0.3)) == [((2, 3, 1, 1), torch.bool)]
    assert kept(lambda: F.alpha_dropout(images, 0.3, True)) == [((2, 3, 8, 10), torch.bool)]


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_attention_keeps_no_pairs(p: float, has_mask: bool) -> None:
    """q, k, v, one number a query; of a dropout a bit for each pair; of a mask what was given."""
    T, S, n = 40, 48, 6
    q, k, v = (torch.randn(1, 2, rows, n, requires_grad=True) for rows in (T, S, S))
    M = torch.randn(T, S, requires_grad=True) if has_mask else None
    found = kept(lambda: F.scaled_dot_product_attention(q, k, v, M, p), *(() if M is None else (M,)))
    of_dropout = [((1, 2, T, S // 8), torch.uint8)] if p else []
    expected = [((1, 2, T), FLOAT), ((1, 2, T, n), FLOAT), *[((1, 2, S, n), FLOAT)] * 2, *of_dropout]
    assert found == sorted(expected, key=str)
