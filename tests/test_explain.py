"""``explain``: the numbers of the article, and chains whose product is autograd's gradient in networks of all kinds."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from explained import (
    ACTIVATIONS,
    ARTICLE_GRADIENTS,
    TOLERANCES,
    Functional,
    Residual,
    article,
    check,
    random_network,
)
from ordinary import one_of_each
from torch import Tensor, nn
from torch.nn import functional as F

import torch_manualbp
from torch_manualbp import Rule, explain
from torch_manualbp.catalogue import FAMILIES
from torch_manualbp.insight.explanation import Explanation


def entries(parameter: Tensor) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, parameter.shape)))


# --- The article ---


def listed(name: str, index: tuple[int, ...]) -> str:
    known: Any = ARTICLE_GRADIENTS[name]
    for i in index:
        known = known[i]
    return str(known)


def places(number: str) -> float:
    """Half a unit of the last digit that is written."""
    return 0.5 * 10.0 ** -len(number.partition(".")[2])


@pytest.mark.parametrize("layers", [nn, torch_manualbp.nn], ids=["stock", "ours"])
@pytest.mark.parametrize("name", ARTICLE_GRADIENTS)
def test_every_gradient_of_the_article(name: str, layers: Any) -> None:
    model, x, y = article(layers)
    for index in entries(model.get_parameter(name)):
        e = explain(model, nn.MSELoss(), x, y, name, index)
        known = listed(name, index)
        assert abs(e.value - float(known)) <= places(known) + 1e-12
        assert abs(e.difference) < 1e-15
        check(e)


A11 = {
    "∂C/∂a_2⁽³⁾": -2.416224644170193 * -0.9,  # 2 (s − y) w_12⁽³⁾
    "f'(z_2⁽³⁾)": 0.632493224884 * (1 - 0.632493224884),
    "a_2⁽²⁾": 0.450166002688,
}


def test_the_chain_of_row_A11() -> None:
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1))
    assert [factor.symbol.text for factor in e.factors] == list(A11)
    for factor, known in zip(e.factors, A11.values(), strict=True):
        assert abs(factor.value - known) < 5e-12
    assert e.symbol.text == "w_22⁽²⁾"
    assert abs(e.cost - 1.45953538277) < 5e-12
    head, slope, activation = (factor.origin.text for factor in e.factors)
    assert head == "δ⁽⁴⁾ w_12⁽³⁾ = -2.41622464417 · (-0.9)"
    assert slope == "act2: Sigmoid, f'(z) = a (1 − a); z_2⁽³⁾ = 0.542927754725, a_2⁽³⁾ = 0.632493224884"
    assert activation == "act1: Sigmoid, a = σ(z) = 1 / (1 + exp(−z)); z_2⁽²⁾ = -0.2"


NUMBERS_OF_A11 = ("0.227548375798", "1.45953538277", "-2.41622464417", "0.632493224884", "0.542927754725")


@pytest.mark.parametrize("form", ["text", "markdown", "html", "json"])
def test_the_numbers_of_row_A11_in_every_form(form: str) -> None:
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1))
    written = {"text": str(e), "markdown": e.to_markdown(), "html": e.to_html(), "json": e.to_json()}[form]
    if form == "json":
        read = json.loads(written)
        assert abs(read["value"] - 0.227548375798) < 5e-13
        assert abs(read["cost"] - 1.45953538277) < 5e-12
        assert abs(read["chains"][0]["factors"][0]["numbers"][0] + 2.41622464417) < 5e-12
    else:
        assert [number for number in NUMBERS_OF_A11 if number not in written] == []
        assert written.count("0.450166002688") >= 2  # a_2⁽²⁾


def test_a_deep_weight_is_a_product_of_matrices_and_a_sum_of_paths() -> None:
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc1.weight", (1, 3))
    (chain,) = e.chains
    symbols = [factor.symbol.text for factor in chain.factors]
    assert symbols == ["∂C/∂s", "W⁽³⁾", "diag f'(z⁽³⁾)", "W⁽²⁾[:, 2]", "f'(z_2⁽²⁾)", "x_4"]
    delta3 = chain.factors[2].up_to_here
    assert delta3 is not None
    torch.testing.assert_close(
        delta3, torch.tensor([-0.42241159927, 0.505476589613], dtype=delta3.dtype), atol=5e-12, rtol=0
    )
    assert e.count_paths == 2
    assert [path.neurons[3].text for path in e.paths] == ["z_2⁽³⁾", "z_1⁽³⁾"]
    assert abs(sum(path.value for path in e.paths) - e.value) < 1e-15


# --- Every activation, every loss ---


@pytest.mark.parametrize("seed", one_of_each(range(4), lambda seed: ["random network"]))
@pytest.mark.parametrize(
    "activation", [f"{name}, {i}" for name, those in ACTIVATIONS.items() for i in range(len(those))]
)
def test_chains_are_the_gradient_in_random_networks_of_every_activation(activation: str, seed: int) -> None:
    name, i = activation.split(", ")
    model, x, out = random_network(ACTIVATIONS[name][int(i)], seed)
    y = torch.randn(*x.shape[:-1], out, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in model.named_parameters():
        flat = int(torch.randint(parameter.numel(), (), generator=generator))
        index = tuple(int(n) for n in torch.unravel_index(torch.tensor(flat), parameter.shape))
        check(explain(model, nn.MSELoss(), x, y, parameter_name, index), TOLERANCES.get(name, 1e-12))


def outputs_of(width: int = 3, batch: int = 4) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, width)).double()
    return model, torch.randn(batch, 3, dtype=torch.float64)


CLASSES = torch.tensor([0, 2, 1, 2])
ANY = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
SIGNS = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
SHARES = torch.tensor([[0.2, 0.3, 0.5]] * 4, dtype=torch.float64)


def gaussian(s: Tensor, y: Tensor) -> Tensor:
    return F.gaussian_nll_loss(s[:, :1], y[:, :1], F.softplus(s[:, 1:2]))


LOSSES: dict[str, tuple[Any, Tensor]] = {  # that these are all rules is tested below
    "AbsoluteError": (nn.L1Loss(), ANY),
    "SmoothAbsoluteError": (nn.SmoothL1Loss(beta=0.3), ANY),
    "Huber": (nn.HuberLoss(delta=0.4), ANY),
    "MeanSquaredError": (nn.MSELoss(reduction="sum"), ANY),
    "CrossEntropy": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "CrossEntropyProbabilities": (nn.CrossEntropyLoss(), SHARES),
    "NegativeLogLikelihood": (lambda s, y: F.nll_loss(F.log_softmax(s, -1), y), CLASSES),
    "GaussianNegativeLogLikelihood": (gaussian, ANY),
    "PoissonNegativeLogLikelihood": (nn.PoissonNLLLoss(), ANY.abs()),
    "KullbackLeiblerDivergence": (lambda s, y: F.kl_div(F.log_softmax(s, -1), y, reduction="batchmean"), SHARES),
    "BinaryCrossEntropy": (lambda s, y: F.binary_cross_entropy(s.sigmoid(), y), ANY.abs()),
    "BinaryCrossEntropyWithLogits": (nn.BCEWithLogitsLoss(), ANY.abs()),
    "HingeEmbedding": (lambda s, y: F.hinge_embedding_loss(s[:, 0], y), SIGNS),
    "SoftMargin": (lambda s, y: F.soft_margin_loss(s[:, 0], y), SIGNS),
    "VectorNorm": (lambda s, y: F.triplet_margin_loss(s, y, -y), ANY),
    "TripletMargin": (lambda s, y: F.triplet_margin_loss(s, y, y * y, swap=True), ANY),
    "CosineEmbedding": (lambda s, y: F.cosine_embedding_loss(s, s * ANY, y), SIGNS),
    "MarginRanking": (lambda s, y: F.margin_ranking_loss(s[:, 0], s[:, 1], y), SIGNS),
    "MultiLabelMargin": (nn.MultiLabelMarginLoss(), torch.tensor([[0, -1, -1], [2, 1, -1], [1, 0, -1], [2, -1, 0]])),
    "MultiLabelSoftMargin": (nn.MultiLabelSoftMarginLoss(), ANY.abs().round()),
    "MultiMargin": (nn.MultiMarginLoss(p=2), CLASSES),
}

OWN = {
    "written out": (lambda s, y: ((s - y) * (s - y)).sum(-1).mean(), ANY),
    "of several parts": (lambda s, y: (s * y).mean() + 0.1 * (s * s).sum() / s.numel(), ANY),
    "of log softmax": (lambda s, y: -(s.log_softmax(-1) * y).sum() / len(s), SHARES),
    "not reduced by the rule": (lambda s, y: F.mse_loss(s, y, reduction="none").mean(), ANY),
}


def test_every_loss_of_the_catalogue_is_here() -> None:
    assert sorted(LOSSES) == sorted(
        entry.name for family in ("losses", "losses of margins") for entry in FAMILIES[family]
    )


@pytest.mark.parametrize("name", [*LOSSES, *OWN])
def test_chains_are_the_gradient_with_every_loss(name: str) -> None:
    loss, y = {**LOSSES, **OWN}[name]
    model, x = outputs_of()
    for parameter, index in (("0.weight", (2, 1)), ("0.bias", (0,)), ("2.weight", (0, 3)), ("2.bias", (1,))):
        e = explain(model, loss, x, y, parameter, index)
        check(e)
        assert e.count == 4


# --- Networks of all kinds ---


class Tied(nn.Module):
    """One weight in two layers, and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.end = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.two(torch.tanh(self.one(x))))
        return self.end(torch.tanh(self.one(x)))


class Attention(nn.Module):
    """Positions that see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.end = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Any:
        shares = torch.softmax(self.q(x) @ self.k(x).transpose(-2, -1) / 3**0.5, -1)
        return self.end(shares @ self.v(x))


class Pair(nn.Module):
    """A bilinear layer of two inputs, of which one is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.both, self.scale = nn.Linear(2, 3), nn.Bilinear(3, 2, 2), nn.Parameter(torch.ones(2))

    def forward(self, u: Tensor, v: Tensor) -> Any:
        return self.both(F.silu(self.into(u)), v) * self.scale


class Several(nn.Module):
    """Parts that are cut, joined, turned and used again."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.end = nn.Linear(3, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        a, b = torch.tanh(self.fc(x)).chunk(2, -1)
        return self.end(torch.cat([a * b, a - b, b], -1))


class Odd(nn.Module):
    """A weight that is a vector, a bias that all share, and much that is neither layer nor activation."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(1))
        self.w = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Any:
        h = F.linear(x, self.W, self.b)
        s = torch.stack([h, 2 * h], 1).mean(1)
        u, v, _ = s[:, [0, 2, 0]].unbind(-1)
        share = F.linear(x, self.w).sigmoid() * u / (1 + v.square())
        return share.unsqueeze(-1).expand(-1, 2) - s.sum(-1, keepdim=True)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], tuple[int, ...]]] = {
    "tied and reused": (Tied, lambda: randn(4, 3), (4, 2)),
    "attention": (Attention, lambda: randn(2, 4, 3), (2, 4, 3)),
    "of odd operations": (Odd, lambda: randn(4, 2), (4, 2)),
    "bilinear": (Pair, lambda: (randn(3, 2), randn(3, 2)), (3, 2)),
    "cut and joined": (Several, lambda: randn(3, 3), (3, 2)),
    "residual and shared": (lambda: Residual(3, nn.SiLU(), times=3, dropout=0.4), lambda: randn(3, 3), (3, 3)),
    "one sample without a dimension": (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()), lambda: randn(3), (2,)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), lambda: randn(3, 2, 3), (3, 2)),
    "squeezed": (
        lambda: nn.Sequential(nn.Linear(3, 1), Functional(torch.squeeze, -1)),
        lambda: randn(3, 3),
        (3,),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_chains_are_the_gradient_in_networks_of_all_kinds(name: str) -> None:
    torch.manual_seed(3)
    make, inputs, shape = NETWORKS[name]
    model, x, y = make().double(), inputs(), randn(*shape)
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        for index in entries(parameter)[:: max(parameter.numel() // 4, 1)]:
            e = explain(model, nn.MSELoss(), x, y, parameter_name, index)
            check(e)
            for form in (str(e), e.to_markdown(), e.to_html(), e.to_json()):
                assert form


def test_reused_layers_are_a_sum_over_their_uses() -> None:
    torch.manual_seed(0)
    e = explain(Tied().double(), nn.MSELoss(), randn(2, 3), randn(2, 2), "two.weight", (1, 1), samples=9)
    assert [sample.place for sample in e.samples] == [
        f"use {use} of 3, sample {sample}" for use in (1, 2, 3) for sample in (1, 2)
    ]


def test_the_mask_of_a_dropout_is_a_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    e = explain(model, nn.MSELoss(), randn(6, 3), randn(6, 1), "0.weight", (2, 0), samples=6)
    masks = [factor.value for sample in e.samples for factor in sample.factors if factor.symbol.text == "r_3^2"]
    assert len(masks) == 6
    assert set(masks) == {0.0, 2.0}
    check(e)
    check(explain(model.eval(), nn.MSELoss(), randn(6, 3), randn(6, 1), "0.weight", (2, 0)))


def test_a_learnt_slope_and_a_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU(), nn.Linear(2, 1)).double()
    e = explain(model, nn.MSELoss(), randn(4, 2), randn(4, 1), "1.weight", (0,))
    assert "∂C/∂w = Σ ∂C/∂a min(z, 0)" in e.factors[-1].origin.text
    check(e)
    e = explain(model, nn.MSELoss(), randn(4, 2), randn(4, 1), "0.bias", 1)
    assert e.factors[-1].symbol.text == "1"
    assert e.factors[-1].value == 1
    check(e)


def test_a_parameter_of_the_loss_itself() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))

        def forward(self, s: Tensor, y: Tensor) -> Tensor:
            return ((s - y) * (s - y) * self.scale).mean()

    model = nn.Sequential(nn.Linear(3, 2)).double()
    e = explain(model, Weighted(), randn(3, 3), randn(3, 2), "loss.scale", (1,))
    assert e.count == 3
    check(e)


def test_a_rule_of_the_users_own_without_a_jvp() -> None:
    class Cube(Rule):
        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z * z * z

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            (z,) = ctx.saved_tensors
            return 3 * z * z * da

    torch.manual_seed(0)
    for width in (3, 90):  # few entries, and more than rows are taken for
        model = nn.Sequential(nn.Linear(2, width), Functional(Cube.apply), nn.Linear(width, 2)).double()
        check(explain(model, nn.MSELoss(), randn(2, 2), randn(2, 2), "0.weight", (1, 1)))


def test_a_loss_that_holds_the_weight_as_well() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).double()
    weight = model.get_parameter("0.weight")

    def loss(s: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(s, y) + 0.5 * (weight * weight).sum()

    check(explain(model, loss, randn(3, 3), randn(3, 2), "0.weight", (1, 2)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).to(dtype)
    x, y = torch.randn(5, 3).to(dtype), torch.randn(5, 2).to(dtype)
    for name, index in (("0.weight", (1, 1)), ("2.bias", (0,))):
        e = explain(model, nn.MSELoss(), x, y, name, index)
        assert abs(e.difference) <= tolerance * float(e.products.abs().sum())


def test_samples_that_are_not_shown_are_summed_up() -> None:
    torch.manual_seed(0)
    model, x = outputs_of(batch=20)
    e = explain(model, nn.MSELoss(), x, torch.zeros(20, 3).double(), "0.weight", (0, 0), samples=3)
    assert (e.count, len(e.samples), e.count_hidden) == (20, 3, 17)
    strongest = e.products.abs().sort(descending=True).values[:3]
    assert [abs(sample.value) for sample in e.samples] == strongest.tolist()
    assert sum(sample.value for sample in e.samples) + e.rest == pytest.approx(e.value, rel=1e-14)
    assert "the other 17" in str(e)
    assert " paths of the 3 strongest terms" in str(e)


def test_what_is_not_a_chain_has_the_names_of_its_modules() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Residual(3, nn.ReLU()), nn.Linear(3, 1)).double()
    e = explain(model, nn.MSELoss(), randn(1, 3), randn(1, 1), "1.first.weight", (1, 2))
    assert e.symbol.text == "w_23^1.first"
    assert e.symbol.latex == r"w_{23}^{\mathrm{1.first}}"
    assert {n.text: what for n, what in e.legend}["w_23^1.first"] == "1.first.weight[1, 2]"


# --- What remains ---


def test_nothing_remains_changed() -> None:
    torch.manual_seed(0)
    model, x, y = article()
    model.add_module("drop", nn.Dropout(0.5))
    model.register_buffer("seen", torch.zeros(1))
    model.get_parameter("fc1.weight").grad = torch.full((2, 4), 7, dtype=torch.float64)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random, version = torch.get_rng_state(), model.get_parameter("fc2.weight")._version
    explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.get_parameter("fc2.weight")._version == version
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    grad = model.get_parameter("fc1.weight").grad
    assert grad is not None
    assert grad.eq(7).all()
    assert model.get_parameter("fc2.weight").grad is None
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_cannot_be_copied_is_run_itself() -> None:
    model, x, y = article(torch_manualbp.nn)
    model.lock = threading.Lock()  # type: ignore[assignment]
    before = [type(module) for module in model.modules()]
    assert abs(explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1)).difference) < 1e-15
    assert [type(module) for module in model.modules()] == before


def test_under_no_grad_and_inference_mode() -> None:
    model, x, y = article()
    with torch.no_grad():
        assert abs(explain(model, nn.MSELoss(), x, y, "fc2.weight", (1, 1)).difference) < 1e-15
    with torch.inference_mode():
        e = explain(model, nn.MSELoss(), x.clone(), y.clone(), "fc2.weight", (1, 1))
    assert abs(e.difference) < 1e-15


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = (
        "import sys, torch_manualbp; a = [m for m in sys.modules if 'insight' in m]; "
        "torch_manualbp.explain; print(a, 'torch_manualbp.insight.explanation' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


# --- The forms ---


def explained() -> Explanation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), Residual(3, nn.Softmax(-1), dropout=0.2), nn.Linear(3, 2)).double()
    return explain(model, nn.CrossEntropyLoss(), randn(8, 3), torch.tensor([0, 1] * 4), "0.weight", (1, 2))


FORMULA = re.compile(r"\$`([^`]+)`\$")
ODD = r"a_b c|d·e`f`$g$#{h}\\"
"""A name of a module, with what means something in Markdown or LaTeX."""


def oddly_named() -> Explanation:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module(ODD, nn.Linear(3, 3))
    model.add_module("&lt;", Residual(3, nn.ReLU()))
    return explain(model.double(), nn.MSELoss(), randn(2, 3), randn(2, 3), f"{ODD}.weight", (1, 2))


@pytest.mark.parametrize("of", [explained, oddly_named])
def test_markdown_is_well_formed(of: Callable[[], Explanation]) -> None:
    written = of().to_markdown()
    fences = re.findall(r"^```(.*)$", written, flags=re.MULTILINE)
    assert fences[::2] == ["math"] * (len(fences) // 2)
    for line in re.sub(r"```math\n.*?```", "", written, flags=re.DOTALL).splitlines():
        for formula in FORMULA.findall(line):
            assert formula == formula.strip(), line
            assert "|" not in formula, line
            assert formula.replace(r"\{", "").count("{") == formula.replace(r"\}", "").count("}"), line
        assert not re.search(r"(?<!\\)[$`_]", FORMULA.sub("", line)), line
    tables = re.findall(r"(?:^\|.*\n)+", written, flags=re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert not re.search(r"(?<!\\)&lt;", written)


@pytest.mark.parametrize("of", [explained, oddly_named])
def test_the_formulas_are_latex(of: Callable[[], Explanation]) -> None:
    """As far as matplotlib, which reads much of it, can tell."""
    mathtext = pytest.importorskip("matplotlib.mathtext").MathTextParser("path")
    written = of().to_markdown()
    formulas = set(FORMULA.findall(written))
    for line in re.findall(r"^(.*) &= (.*?)(?: \\\\)?$", written, flags=re.MULTILINE):
        formulas |= set(filter(None, line))
    assert len(formulas) > 25
    for formula in formulas:
        mathtext.parse(f"${formula}$".replace(r"\&", "+"))  # \& is LaTeX, but not known there


def test_columns_of_text_allow_for_wide_letters() -> None:
    model = nn.Sequential()
    model.add_module("层", nn.Linear(2, 2))
    model.add_module("b", Residual(2, nn.Tanh()))
    e = explain(model.double(), nn.MSELoss(), randn(1, 2), randn(1, 2), "层.weight", (0, 0))
    text = str(e).replace("层", "##")  # as wide as it is
    lines = text[text.index("The symbols") :].splitlines()[1:]
    starts = {line.rindex(what.replace("层", "##")) for line, (_, what) in zip(lines, e.legend, strict=True)}
    assert len(starts) == 1


def test_a_column_of_a_matrix_is_in_the_legend() -> None:
    model, x, y = article()
    e = explain(model, nn.MSELoss(), x, y, "fc1.weight", (0, 2))
    assert {n.text: what for n, what in e.legend}["W⁽²⁾[:, 1]"] == "column 1 of W⁽²⁾, counted from 1"
    assert "W⁽²⁾[:, 1]" in e.chains[0].factors[3].symbol.text


def test_letters_are_variables_in_html() -> None:
    model, x, y = article()
    page = explain(model, nn.MSELoss(), x, y, "fc1.weight", (0, 2)).to_html()
    assert "The cost is <var>C</var> = 1.45953538277." in page
    assert "<var>s</var> = -0.208112322085, <var>y</var> = 1" in page
    assert "<var>s</var> → <var>C</var></td>" in page


def test_html_needs_nothing_from_outside_and_escapes_names() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("<b>&", nn.Linear(2, 2))
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Any:
            return self._modules["<b>&"](x) * self.scale  # type: ignore[misc]

    e = explain(Odd().double(), nn.MSELoss(), randn(2, 2), randn(2, 2), "<b>&.weight", (0, 1))
    page = e.to_html()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    assert "color-scheme: light dark" in page
    assert page.startswith("<!DOCTYPE html>")
    snippet = e._repr_html_()
    assert snippet.startswith("<section")
    notebook, github = e._repr_markdown_(), e.to_markdown()
    assert "`" in github
    assert "`" not in notebook
    assert notebook.count("$$") == 2 * github.count("```math")
    assert notebook.replace("$", "") == github.replace("```math", "").replace("```", "").replace("`", "").replace(
        "$", ""
    )


def test_json_reads_back() -> None:
    e = explained()
    read = json.loads(e.to_json())
    assert read == e.as_dict()
    assert read["value"] == e.value
