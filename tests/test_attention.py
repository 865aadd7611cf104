"""Attention: what the contract and PyTorch's databases do not ask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_manualbp
from torch_manualbp import functional, kernels
from torch_manualbp.catalogue import Make
from torch_manualbp.kernels.dispatch import plain
from torch_manualbp.rules.attention import attended, attention_gradients, bits_of

make = Make()


def run(function: Any, *tensors: Tensor | None, **options: Any) -> list[Tensor]:
    """The output and the gradients of all that learn, and a random number drawn after them."""
    leaves = [t if t is None else t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
    torch.manual_seed(3)
    o = function(*leaves, **options)
    gradients = torch.autograd.grad(o, [t for t in leaves if t is not None and t.requires_grad], torch.ones_like(o))
    return [o.detach(), *gradients, torch.rand(1)]


CALLS: dict[str, tuple[tuple[Tensor | None, ...], dict[str, Any]]] = {
    "four dimensions": ((make(2, 3, 5, 4), make(2, 3, 6, 4), make(2, 3, 6, 4)), {}),
    "groups": ((make(2, 6, 5, 4), make(2, 3, 6, 4), make(2, 3, 6, 4)), {"enable_gqa": True, "is_causal": True}),
    "groups, mask": (
        (make(2, 6, 5, 4), make(2, 3, 6, 4), make(2, 3, 6, 4), make(2, 6, 5, 6)),
        {"enable_gqa": True, "dropout_p": 0.3},
    ),
    "groups, one mask": (
        (make(2, 6, 5, 4), make(2, 2, 6, 4), make(2, 2, 6, 4), make(2, 1, 5, 6) > 0),
        {"enable_gqa": True, "scale": 0.3},
    ),
    "broadcast": ((make(2, 3, 5, 4), make(3, 6, 4), make(1, 1, 6, 4)), {}),
    "nothing passes": ((make(5, 4), make(6, 4), make(6, 3)), {"dropout_p": 1.0}),
    "nobody is there": ((make(2, 0, 4), make(2, 6, 4), make(2, 6, 3)), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_torchs(name: str) -> None:
    tensors, options = CALLS[name]
    results = [run(f.scaled_dot_product_attention, *tensors, **options) for f in (functional, F)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_dropout_draws_as_torch_does(p: float, dtype: torch.dtype) -> None:
    """What is drawn after it is the same, too."""
    tensors = (make(2, 3, 64, 8).to(dtype), make(2, 3, 67, 8).to(dtype), make(2, 3, 67, 8).to(dtype))
    ours = run(functional.scaled_dot_product_attention, *tensors, dropout_p=p)
    theirs = run(F.scaled_dot_product_attention, *tensors, dropout_p=p)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert torch.equal(ours[-1], theirs[-1])


@pytest.mark.parametrize(
    "call",
    [
        ((make(5, 4), make(6, 3), make(6, 3)), {}),
        ((make(5, 4), make(6, 4).float(), make(6, 4)), {}),
        ((make(4), make(6, 4), make(6, 4)), {}),
        ((make(5, 4), make(6, 4), make(6, 4), make(3, 6)), {}),
        ((make(5, 4), make(6, 4), make(6, 4), make(5, 6)), {"is_causal": True}),
        ((make(5, 4), make(6, 4), make(6, 4)), {"dropout_p": 1.5}),
        ((make(2, 5, 5, 4), make(2, 3, 6, 4), make(2, 3, 6, 4)), {"enable_gqa": True}),
    ],
    ids=["features", "dtypes", "dimensions", "mask", "two masks", "p", "groups"],
)
def test_refuses_what_torch_refuses(call: Any) -> None:
    messages = []
    for function in (functional.scaled_dot_product_attention, F.scaled_dot_product_attention):
        with pytest.raises((RuntimeError, ValueError)) as raised:
            function(*call[0], **call[1])
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


class SelfAttention(nn.Module):
    def __init__(self, n: int = 8, heads: int = 2, **options: Any) -> None:
        super().__init__()
        self.heads, self.options = heads, options
        # Without a bias: that of the keys has no influence, and AdamW makes whole steps of what rounding says it has.
        self.qkv, self.proj = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, n = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(n, dim=2))
        if self.options.get("enable_gqa"):
            k, v = k[:, :1], v[:, :1]
        o = F.scaled_dot_product_attention(q, k, v, **self.options)
        out: Tensor = self.proj(o.transpose(1, 2).reshape(batch, length, n))
        return out


def assert_derives(model: nn.Module, inputs: tuple[Tensor, ...], y: Tensor, steps: int = 3) -> Any:
    """A derived step is stock's, at 1e-12, from the same random state."""
    stock, loss = copy.deepcopy(model), nn.MSELoss()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, stock)]
    step = torch_manualbp.TrainStep(model, loss, optimizers[0])
    for i in range(steps):
        torch.manual_seed(i)
        step(inputs, y)
        torch.manual_seed(i)
        optimizers[1].zero_grad()
        loss(stock(*inputs), y).backward()
        optimizers[1].step()
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    return step


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "causal, dropout": {"is_causal": True, "dropout_p": 0.2},
    "groups": {"enable_gqa": True, "scale": 0.4},
    "mask": {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril(1)},
    "mask of numbers": {"attn_mask": torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_derived_step_is_autograds(name: str) -> None:
    torch.manual_seed(0)
    assert_derives(SelfAttention(**OPTIONS[name]).double(), (make(3, 6, 8),), make(3, 6, 8))


def _transformer(namespace: Any, **options: Any) -> nn.Module:
    options = {"batch_first": True, "dropout": 0.1, **options}
    layer: nn.Module = namespace.TransformerEncoderLayer(8, 2, 16, **options)
    return layer


@pytest.mark.parametrize("namespace", [nn, torch_manualbp.nn], ids=["torch.nn", "torch_manualbp.nn"])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}], ids=str)
def test_a_derived_step_of_an_encoder_layer_is_autograds(namespace: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert_derives(_transformer(namespace, bias=False, **options).double(), (make(3, 6, 8),), make(3, 6, 8))


class Block(nn.Module):
    """A GPT's block, of embeddings to scores, by the layers of a namespace."""

    def __init__(self, namespace: Any) -> None:
        super().__init__()
        self.tokens, self.places = namespace.Embedding(11, 8), namespace.Embedding(6, 8)
        self.attend = namespace.MultiheadAttention(8, 2, dropout=0.1, bias=False, batch_first=True)
        self.norm1, self.norm2 = namespace.LayerNorm(8), namespace.LayerNorm(8)
        self.mlp = nn.Sequential(namespace.Linear(8, 32), namespace.GELU(), namespace.Linear(32, 8), nn.Dropout(0.1))
        self.head = namespace.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        z = self.norm1(x)
        x = x + self.attend(z, z, z, attn_mask=mask, is_causal=True, need_weights=False)[0]
        scores: Tensor = self.head(x + self.mlp(self.norm2(x)))
        return scores


@pytest.mark.parametrize("namespace", [nn, torch_manualbp.nn], ids=["torch.nn", "torch_manualbp.nn"])
def test_a_derived_step_of_a_gpts_block_is_autograds(namespace: Any) -> None:
    torch.manual_seed(0)
    assert_derives(Block(namespace).double(), (make.indices(11, 3, 6),), make(3, 6, 5), steps=5)


MASKS: dict[str, Any] = {
    "none": {},
    "of keys": {"key_padding_mask": make.indices(3, 2, 6) == 0},
    "of pairs": {"attn_mask": make.indices(3, 5, 6) == 0},
    "of heads and keys": {"attn_mask": make(4, 5, 6), "key_padding_mask": make(2, 6)},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.2}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 3, "vdim": 5, "bias": False}],
    ids=str,
)
def test_multi_head_attention_is_torchs(options: dict[str, Any], need_weights: bool, masks: dict[str, Any]) -> None:
    query, key = make(5, 2, 4), make(6, 2, options.get("kdim", 4))
    value = make(6, 2, 5) if "vdim" in options else key
    results = []
    for namespace in (nn, torch_manualbp.nn):
        torch.manual_seed(0)
        layer = namespace.MultiheadAttention(4, 2, **options).double()
        o, P = layer(query, key, value, need_weights=need_weights, **masks)
        gradients = torch.autograd.grad(
            o.square().sum() + (P.square().sum() if need_weights else 0), [*layer.parameters()]
        )
        results.append([o.detach(), P if P is None else P.detach(), *gradients, torch.rand(1)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_in_evaluation_without_gradients_torchs_fast_path_runs() -> None:
    torch.manual_seed(0)
    layer, x = _transformer(torch_manualbp.nn).eval(), torch.randn(3, 6, 8)
    expected = layer(x)
    with torch.no_grad(), torch.profiler.profile() as profile:
        o = layer(x)
    assert any("_transformer_encoder_layer_fwd" in event.key for event in profile.key_averages())
    torch.testing.assert_close(o, expected)


def test_a_transformer_of_ours_is_of_our_layers() -> None:
    model, stock = (namespace.Transformer(8, 2, 1, 1, 16, batch_first=True) for namespace in (torch_manualbp.nn, nn))
    assert list(model.state_dict()) == list(stock.state_dict())
    ours = {type(module).__name__ for module in model.modules() if type(module).__module__.startswith("torch_manualbp")}
    assert {"TransformerEncoderLayer", "MultiheadAttention", "Linear", "LayerNorm"} <= ours


SHAPES = (((2, 3, 37, 4), (2, 3, 29, 4)), ((2, 3, 2, 20, 4), (2, 3, 1, 41, 4)), ((33, 4), (33, 4)))
KINDS = ("none", "booleans", "numbers", "one row", "of heads", "one column")


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("is_causal", "drops"), [(False, False), (True, True), (True, False)])
def test_blocks_of_queries_give_what_all_at_once_give(
    shapes: Any, kind: str, is_causal: bool, drops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.attention, "FEW_PAIRS", 0)
    monkeypatch.setattr(kernels.attention, "BLOCK_PAIRS", 64)
    (*batch, L, E), (*_, S, _) = shapes[0], shapes[1]
    q, k, v = make(*shapes[0]), make(*shapes[1]), make(*shapes[1][:-1], 5)
    masks = {
        "none": None,
        "booleans": make(*batch, L, S) > -0.5,
        "numbers": make(L, S),
        "one row": make(*batch[:1], *[1] * max(len(batch) - 1, 0), 1, S),
        "of heads": make(*batch[1:], L, S),
        "one column": make(L, 1),
    }
    M, bits = masks[kind], bits_of(make(*batch, L, S) > -0.5) if drops else None
    args, about = (q, k, v, M, bits), (E**-0.5, is_causal, 0.3)
    o, lse = plain(attended)(*args, *about)
    needs = (True, True, True, M is not None and M.dtype != torch.bool)
    of_backward = (make(*o.shape), None, *args, lse, *about, needs)
    expected = [o, lse, *plain(attention_gradients)(*of_backward)]
    found = [*kernels.attention.attended_in_blocks(*args, *about)]
    found += kernels.attention.attention_gradients_in_blocks(*of_backward)
    for ours, right in zip(found, expected, strict=True):
        assert (ours is None) == (right is None)
        if ours is not None:
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)
