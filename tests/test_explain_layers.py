"""Weights of attention, of convolutions, of embeddings and of gates, one by one, next to autograd."""

from __future__ import annotations

import itertools
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_manualbp
from torch_manualbp.insight.explanation import Explanation
from torch_manualbp.rules import Convolution, Convolved


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Projected(nn.Module):
    """Attention of two heads, of single projections."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 2)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2))
        return out


class First(nn.Module):
    """The first of what a layer returns, and of several inputs the same."""

    def __init__(self, layer: nn.Module, times: int = 1, **options: Any) -> None:
        super().__init__()
        self.layer, self.times, self.options = layer, times, options

    def forward(self, x: Tensor) -> Any:
        return self.layer(*[x] * self.times, **self.options)[0]


class Masked(Projected):
    """A mask that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.options["attn_mask"] = self.mask = nn.Parameter(torch.randn(3, 3).double())


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))


def embedded(embedding: nn.Module) -> nn.Module:
    return nn.Sequential(embedding, nn.Linear(4, 2), nn.Tanh())


WORDS = torch.tensor([[1, 2, 1], [3, 1, 0]])
MASK = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, tuple[int, ...]]] = {
    "query projection": (Projected, lambda: randn(2, 3, 4), "q_proj.weight", (1, 2)),
    "causal": (lambda: Projected(is_causal=True), lambda: randn(2, 3, 4), "q_proj.weight", (3, 0)),
    "masked": (lambda: Projected(attn_mask=MASK), lambda: randn(2, 3, 4), "k_proj.weight", (1, 2)),
    "a mask that learns": (Masked, lambda: randn(2, 3, 4), "mask", (1, 2)),
    "dropout": (lambda: Projected(dropout_p=0.4), lambda: randn(2, 3, 4), "k_proj.bias", (1,)),
    "value": (Projected, lambda: randn(2, 3, 4), "v_proj.weight", (2, 2)),
    "in_proj": (
        lambda: First(nn.MultiheadAttention(4, 2, batch_first=True), 3, need_weights=False),
        lambda: randn(2, 3, 4),
        "layer.in_proj_weight",
        (1, 2),
    ),
    "in_proj, weights asked for": (
        lambda: First(nn.MultiheadAttention(4, 2), 3),
        lambda: randn(2, 3, 4),
        "layer.in_proj_bias",
        (5,),
    ),
    "Conv1d": (
        lambda: images(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Tanh()),
        lambda: randn(2, 2, 6),
        "0.weight",
        (1, 1, 0),
    ),
    "Conv2d": (
        lambda: images(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 2, stride=2, dilation=2)),
        lambda: randn(2, 2, 5, 5),
        "0.weight",
        (3, 0, 0, 2),
    ),
    "Conv2d's bias": (lambda: images(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), lambda: randn(3, 2, 3, 3), "0.bias", (2,)),
    "Conv3d": (lambda: images(nn.Conv3d(1, 2, 2)), lambda: randn(1, 1, 2, 3, 3), "0.weight", (1, 0, 0, 1, 1)),
    "ConvTranspose1d": (
        lambda: images(nn.ConvTranspose1d(2, 2, 3, stride=2)),
        lambda: randn(2, 2, 3),
        "0.weight",
        (1, 0, 2),
    ),
    "Embedding": (lambda: embedded(nn.Embedding(5, 4)), lambda: WORDS, "0.weight", (1, 2)),
    "padding": (lambda: embedded(nn.Embedding(5, 4, 0)), lambda: WORDS, "0.weight", (0, 2)),
    "by frequency": (
        lambda: embedded(nn.Embedding(5, 4, scale_grad_by_freq=True)),
        lambda: WORDS,
        "0.weight",
        (1, 2),
    ),
    "LSTM": (lambda: First(nn.LSTM(3, 2, batch_first=True)), lambda: randn(2, 3, 3), "layer.weight_hh_l0", (2, 1)),
    "LSTM's input": (lambda: First(nn.LSTM(3, 2)), lambda: randn(3, 2, 3), "layer.weight_ih_l0", (7, 1)),
    "LSTM, two layers and ways": (
        lambda: First(nn.LSTM(3, 2, 2, bidirectional=True)),
        lambda: randn(3, 2, 3),
        "layer.weight_hh_l0_reverse",
        (5, 1),
    ),
    "LSTM, projected": (
        lambda: First(nn.LSTM(3, 3, proj_size=2)),
        lambda: randn(3, 2, 3),
        "layer.weight_hr_l0",
        (1, 2),
    ),
    "LSTM's bias": (lambda: First(nn.LSTM(3, 2)), lambda: randn(3, 2, 3), "layer.bias_ih_l0", (3,)),
    "GRU": (lambda: First(nn.GRU(3, 2)), lambda: randn(3, 2, 3), "layer.weight_hh_l0", (4, 1)),
    "GRU's input": (lambda: First(nn.GRU(3, 2)), lambda: randn(3, 2, 3), "layer.weight_ih_l0", (1, 1)),
    "RNN": (lambda: First(nn.RNN(3, 2, nonlinearity="relu")), lambda: randn(3, 2, 3), "layer.weight_hh_l0", (1, 1)),
    "LayerNorm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        lambda: randn(2, 3),
        "0.weight",
        (1, 1),
    ),
    "LayerNorm's w": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), lambda: randn(2, 3), "1.weight", (1,)),
}


def explained(name: str, **options: int) -> tuple[nn.Module, Tensor, Explanation]:
    torch.manual_seed(0)
    make, inputs, weight, index = CASES[name]
    model, x = make().double(), inputs()
    model(x)  # has the shapes of lazy layers
    return model, x, torch_manualbp.explain(model, square, x, None, weight, index, **options)


def square(output: Tensor, target: None) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("name", CASES)
def test_the_terms_are_products_and_add_up_to_autograds_number(name: str) -> None:
    _, _, e = explained(name, samples=40, paths=40)
    assert e.count >= 1 or e.value == 0
    size = float(e.products.abs().sum())
    assert abs(e.value - e.autograd) <= 1e-12 * max(size, 1e-3)
    for sample in e.samples:
        assert math.isclose(math.prod(f.value for f in sample.factors), sample.value, rel_tol=1e-12, abs_tol=1e-18)
    for path in e.paths:
        assert math.isclose(math.prod(f.value for f in path.factors), path.value, rel_tol=1e-12, abs_tol=1e-18)
    if len(e.paths) == e.count_nonzero_paths:
        assert math.isclose(math.fsum(path.value for path in e.paths), e.searched_value, rel_tol=1e-10, abs_tol=1e-15)
    assert e.symbol.text in str(e)


def test_blocks_of_a_gpt_and_of_a_resnet_weight_by_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "blocks.py"))["main"](tmp_path)
    printed = capsys.readouterr().out
    assert [len(of_block) for of_block in found.values()] == [16, 6]
    for e in itertools.chain(*found.values()):
        assert abs(e.difference) <= 1e-12 * float(e.products.abs().sum())
        assert f"{e.name}{list(e.index)}: {e.value:.6g}" in printed
    assert (tmp_path / "resnet" / "conv2.weight.html").exists()


def test_a_query_goes_through_its_scores_and_their_weights() -> None:
    given, x, e = explained("query projection")
    model: Any = given
    letters = " ".join(neuron.text for neuron in e.paths[0].neurons)
    assert all(f" {letter}_" in letters for letter in ("S", "P", "o"))
    with torch.no_grad():
        q, k = (p(x).unflatten(-1, (2, 2)).transpose(1, 2) for p in (model.q_proj, model.k_proj))
        P = torch.softmax(q @ k.mT / math.sqrt(2), -1)
    at = {f.symbol.text: f.value for path in e.paths for f in path.factors}
    slopes = [value for text, value in at.items() if text.startswith("∂P")]
    rows = P.reshape(-1, 3)
    right = torch.diag_embed(rows) - rows.unsqueeze(-1) * rows.unsqueeze(-2)
    assert slopes
    assert all((right - slope).abs().min() < 1e-12 for slope in slopes)


def test_a_weight_of_a_gate_goes_through_its_slope_and_what_it_lets_in() -> None:
    model, x, e = explained("LSTM")
    lstm: Any = model.layer
    path = next(p for p in e.paths if p.place.startswith("time 3"))
    factors = {f.symbol.text: f.value for f in path.factors}
    with torch.no_grad():
        _, (h, c) = lstm(x[:, :2])
        z = x[:, 2] @ lstm.weight_ih_l0.t() + h[0] @ lstm.weight_hh_l0.t() + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, f, g, o = z.chunk(4, 1)
        c3 = torch.sigmoid(f) * c[0] + torch.sigmoid(i) * torch.tanh(g)
    n = int(path.place[-1]) - 1
    right = {
        "h_2^layer,t=2": h[0, n, 1],
        "f'(z_f_1^layer,t=3)": torch.sigmoid(f[n, 0]) * (1 - torch.sigmoid(f[n, 0])),
        "c_1^layer,t=2": c[0, n, 0],
        "f'(c_1^layer,t=3)": 1 - torch.tanh(c3[n, 0]) ** 2,
        "o_1^layer,t=3": torch.sigmoid(o[n, 0]),
    }
    for symbol, value in right.items():
        assert math.isclose(factors[symbol], float(value), rel_tol=1e-12), symbol


def test_a_weight_of_a_kernel_meets_the_input_under_it() -> None:
    _, x, e = explained("Conv1d")
    sample = next(s for s in e.samples if s.place == "sample 2, position 3")  # z(3), stride 2, padding 1, u = 0
    assert sample.factors[-1].symbol.text == "x_24"
    assert sample.factors[-1].value == x[1, 1, 2 * 2 - 1]
    assert e.count == 4  # not where the window lies on the padding


def test_a_layer_norms_jacobian_is_written_out() -> None:
    model, x, e = explained("LayerNorm")
    assert isinstance(model, nn.Sequential)
    (factor,) = (f for f in e.chains[0].factors if "LayerNorm" in f.origin.text)
    with torch.no_grad():
        z = model[0](x)
    sigma = (z.var(1, unbiased=False) + 1e-5).sqrt()
    z_hat = (z - z.mean(1, keepdim=True)) / sigma[:, None]
    assert "diag w (I − 1/n − ẑ ẑᵀ/n) / σ, n = 4" in factor.origin.text
    n = int(e.searched[0][-1]) - 1
    assert f"σ = {float(sigma[n]):.12g}" in factor.origin.text
    right = (torch.eye(4) - 1 / 4 - z_hat[n][:, None] * z_hat[n] / 4) / sigma[n]
    assert factor.numbers is not None
    assert torch.allclose(factor.numbers, right[:, 1], rtol=1e-12, atol=1e-12)


def test_a_sample_is_the_first_number_where_time_comes_first() -> None:
    _, _, e = explained("in_proj", samples=100)
    assert {s.place for s in e.samples} == {f"sample {n}, position {t}" for n in (1, 2) for t in (1, 2, 3)}


@pytest.mark.parametrize(("dimensions", "stride", "padding", "dilation", "groups"), [
    (1, (1,), (0,), (1,), 1), (1, (2,), (1,), (1,), 2), (1, (3,), (2,), (2,), 1), (2, (2, 1), (1, 0), (1, 2), 2),
])  # fmt: skip
def test_a_convolutions_jacobian(dimensions: int, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    a, W = randn(2, 2, *(5, 4)[:dimensions]), randn(4, 2 // groups, *(3, 2)[:dimensions])
    options = stride, padding, dilation, groups
    jacobian = Convolution.jacobian
    assert isinstance(jacobian, Convolved)

    def convolved(a: Tensor, W: Tensor) -> Tensor:
        return Convolution.forward(a, W, None, *options)

    z = convolved(a, W)
    by_a, by_W = (t.reshape(z.numel(), -1) for t in torch.autograd.functional.jacobian(convolved, (a, W)))
    p, q, value = jacobian.by_input(a, W, z, options, torch.arange(a.numel()))
    assert torch.equal(torch.zeros_like(by_a).index_put((q, p), value), by_a)
    entries = [jacobian.weight_entry(a, W, z, options, i, j) for i, j in zip(p.tolist(), q.tolist(), strict=True)]
    assert torch.equal(W.reshape(-1)[entries], value)
    for entry in range(W.numel()):
        q, value = jacobian.by_weight(a, W, z, options, entry)
        assert torch.equal(torch.zeros_like(by_W[:, entry]).index_put((q,), value), by_W[:, entry])
        inputs = [jacobian.input_entry(a, W, z, options, j, entry) for j in q.tolist()]
        assert torch.equal(a.reshape(-1)[inputs], value)
    for o, (n, x) in itertools.product(range(4), enumerate(z.unbind(0))):
        q, ones = jacobian.by_bias(z, options, o)
        assert ones.eq(1).all()
        assert set(range(n * x.numel() + o * x[0].numel(), n * x.numel() + (o + 1) * x[0].numel())) <= set(q.tolist())
