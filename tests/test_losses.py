"""What the losses do beyond the contract: large tensors in blocks, conventions at kinks, dtypes, odd arguments."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from ordinary import one_of_each
from torch import Tensor

from torch_manualbp import functional, rules
from torch_manualbp.catalogue import Make
from torch_manualbp.kernels import blocks
from torch_manualbp.verify import contract

BLOCK = 1 << 17
ROWS, COLUMNS = 3 * BLOCK // 1000, 1000


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", BLOCK)


def _large() -> dict[str, tuple[str, tuple[Tensor, ...], dict[str, Any]]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    s, y = normal(ROWS, COLUMNS), normal(ROWS, COLUMNS)
    signs, p, q = torch.where(y > 0, 1.0, -1.0), s.sigmoid(), y.sigmoid()
    row, column = q[0] + 0.5, q[:, :1] + 0.5
    classes = torch.randint(COLUMNS, (ROWS,), generator=generator)
    return {
        "l1": ("l1_loss", (s, y), {}),
        "l1 of columns": ("l1_loss", (s.t(), y.t()), {}),
        "smooth l1": ("smooth_l1_loss", (s, y), {"beta": 0.7}),
        "huber": ("huber_loss", (s, y), {"delta": 0.7}),
        "mse": ("mse_loss", (s, y), {}),
        "mse of a strided output": ("mse_loss", (normal(COLUMNS, ROWS).t(), y), {}),
        "gaussian": ("gaussian_nll_loss", (s, y, q + 0.1), {}),
        "gaussian of rows": ("gaussian_nll_loss", (s, y, column), {"full": True}),
        "poisson": ("poisson_nll_loss", (s, 3 * q), {"full": True}),
        "divergence": ("kl_div", (s, q), {}),
        "divergence, broadcast": ("kl_div", (s, q[0]), {}),
        "divergence of logarithms": ("kl_div", (s, y), {"log_target": True}),
        "binary": ("binary_cross_entropy", (p, q), {}),
        "binary, at the ends": ("binary_cross_entropy", (p.round(), q), {}),
        "binary, weighted": ("binary_cross_entropy", (p, q, row), {}),
        "logits": ("binary_cross_entropy_with_logits", (s, q), {}),
        "logits, weighted": ("binary_cross_entropy_with_logits", (s, q, column), {"pos_weight": row}),
        "hinge": ("hinge_embedding_loss", (s, signs), {"margin": 0.5}),
        "hinge, neither sign": ("hinge_embedding_loss", (s, y), {"margin": 0.5}),
        "hinge with an infinity": ("hinge_embedding_loss", (torch.where(s > 4, torch.inf, s), signs), {}),
        "hinge with integers": ("hinge_embedding_loss", (s, signs.long()), {}),
        "soft margin": ("soft_margin_loss", (s, signs), {}),
        "likelihood": ("nll_loss", (s, classes), {}),
        "cross-entropy": ("cross_entropy", (s, classes), {}),
    }


LARGE = _large()


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(
    ("name", "reduction"), one_of_each(itertools.product(LARGE, ["none", "sum", "mean"]), lambda *kinds: kinds)
)
def test_large_tensors(name: str, reduction: str) -> None:
    """In blocks the numbers are those of torch in float64, to the rounding of the dtype."""
    function, args, options = LARGE[name]
    output = args[0].detach().requires_grad_()
    wide = [a.double() if a.is_floating_point() else a for a in args]
    wide[0] = args[0].detach().double().requires_grad_()
    loss = getattr(functional, function)(output, *args[1:], reduction=reduction, **options)
    reference = getattr(torch_functional, function)(*wide, reduction=reduction, **options)
    upstream = contract.upstream_for(loss)
    gradients = torch.autograd.grad(loss, output, upstream) + torch.autograd.grad(reference, wide[0], upstream.double())
    torch.testing.assert_close(loss.double(), reference, rtol=2e-5, atol=2e-6 if reduction != "sum" else 1)
    if "ends" not in name:  # where the divisor is 10⁻¹² and all digits cancelled
        scale = gradients[1].abs().max().item()
        torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_large_tensors_in_low_precision_are_rounded_once(dtype: torch.dtype) -> None:
    s, y = (torch.randn(2 * BLOCK + 5, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    s.requires_grad_()
    (ds,) = torch.autograd.grad(functional.smooth_l1_loss(s, y, reduction="sum", beta=0.3), s)
    exact = ((s.double() - y.double()) / 0.3).clamp(-1, 1)
    assert ((ds.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() * 0.51).all()


def test_probabilities_out_of_range_are_refused_in_large_tensors_too() -> None:
    p = torch.rand(2 * BLOCK)
    p[-1] = 1.5
    for arguments in ((p, p.clamp(max=1)), (p.clamp(max=1), p)):
        assert _outcome(functional, *arguments) == _outcome(torch_functional, *arguments)


def _outcome(module: Any, p: Tensor, q: Tensor) -> str:
    try:
        return str(module.binary_cross_entropy(p, q) > 0)
    except RuntimeError as error:
        return str(error)


KINKS: dict[str, tuple[str, list[float], list[float], dict[str, Any]]] = {
    "l1": ("l1_loss", [1, 1, -1], [1, 1, -1], {}),
    "smooth l1 at β": ("smooth_l1_loss", [1.5, 0.5, 1], [1, 1, 1], {"beta": 0.5}),
    "smooth l1, β = 0": ("smooth_l1_loss", [1.5, 0.5, 1], [1, 1, 1], {"beta": 0.0}),
    "huber at Δ": ("huber_loss", [1.5, 0.5, 1], [1, 1, 1], {"delta": 0.5}),
    "binary": ("binary_cross_entropy", [0, 1, 0, 1, 0.5], [0, 1, 1, 0, 1], {}),
    "divergence from 0": ("kl_div", [-1, -2, 0], [0.5, 1, 0.1], {"reduction": "sum"}),
    "poisson, y ≤ 1": ("poisson_nll_loss", [1, 2, 3], [0.5, 1, 1.5], {"full": True}),
    "hinge at the margin": ("hinge_embedding_loss", [1, 1, 1, 0], [1, -1, 0, -1], {}),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_torchs(name: str) -> None:
    function, output, target, options = KINKS[name]
    results = []
    for module in (functional, torch_functional):
        s, y = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (output, target))
        loss = getattr(module, function)(s, y, **options)
        results.append([loss, *torch.autograd.grad(loss, [s] if "hinge" in name else [s, y])])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, name)


def test_where_ours_is_finite_and_torch_is_not() -> None:
    s = torch.tensor([-200.0, 200.0], requires_grad=True)
    y = torch.tensor([1.0, -1.0])
    (ds,) = torch.autograd.grad(functional.soft_margin_loss(s, y, reduction="sum"), s)
    assert torch.equal(ds, -y)
    counts = torch.zeros(2, requires_grad=True)
    loss = functional.poisson_nll_loss(torch.ones(2), counts, full=True, reduction="sum")
    assert torch.equal(torch.autograd.grad(loss, counts)[0], torch.full((2,), -1.0))


@pytest.mark.parametrize("variance", [(5, 4), (5, 1), (5,), None])
def test_a_variance_below_eps_takes_the_gradient_of_eps(variance: tuple[int, ...] | None) -> None:
    results = []
    for module in (functional, torch_functional):
        make = Make()
        s, y = make(5, 4).requires_grad_(), make(5, 4).requires_grad_()
        v: Any = 0.3 if variance is None else (make(*variance).abs() * 0.5).requires_grad_()
        inputs = [s, y] if variance is None else [s, y, v]
        loss = module.gaussian_nll_loss(s, y, v, eps=0.4, full=True)
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), inputs)  # type: ignore[arg-type]
        results.append([loss, *first, *second])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "gaussian")


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_poisson_of_complex_numbers(reduction: str) -> None:
    results = []
    for module in (functional, torch_functional):
        make = Make(torch.complex128)
        s, y = make(5).requires_grad_(), make(5).requires_grad_()
        loss = module.poisson_nll_loss(s, y, reduction=reduction)
        results.append([loss, *torch.autograd.grad(loss, [s, y], contract.upstream_for(loss))])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "complex")


PAIRS = [
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "poisson_nll_loss",
    "kl_div",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "hinge_embedding_loss",
    "soft_margin_loss",
    "gaussian_nll_loss",
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float64")], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_dtypes(name: str, autocast: bool, dtypes: tuple[str, str]) -> None:
    """Of outputs and gradients, with autocast and without, wherever torch has them."""
    results = []
    for module in (functional, torch_functional):
        make = Make()
        s, y = (make(5, 4).sigmoid().to(getattr(torch, dtype)).requires_grad_(i == 0) for i, dtype in enumerate(dtypes))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            others = (y, (y + 0.5)) if name == "gaussian_nll_loss" else (y,)
            try:
                loss = getattr(module, name)(s, *others)
                (ds,) = torch.autograd.grad(loss, s)
            except RuntimeError as error:
                if module is functional:
                    continue
                pytest.skip(f"torch has no gradient here: {error}")
        results.append((loss, ds))
    assert len(results) == 2, "torch takes this"
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01 * theirs.abs().max().item())


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", ["l1_loss", "huber_loss"])
def test_weighted(name: str, reduction: str) -> None:
    if "weight" not in torch_functional.l1_loss.__code__.co_varnames:
        pytest.skip("this torch has no weights for these losses")
    tensors = [torch.rand(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for module in (functional, torch_functional):
        loss = getattr(module, name)(tensors[0], tensors[1], weight=tensors[2], reduction=reduction)
        results.append([loss, *torch.autograd.grad(loss.sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "weighted")


def _warnings_of(call: Callable[[], Tensor]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return sorted({str(w.message) for w in caught})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("l1_loss", {}),
        ("l1_loss", {"reduce": False}),
        ("smooth_l1_loss", {}),
        ("huber_loss", {}),
        ("mse_loss", {"size_average": False}),
        ("kl_div", {}),
        ("kl_div", {"reduction": "batchmean"}),
        ("kl_div", {"size_average": False}),
        ("poisson_nll_loss", {"reduce": False}),
        ("hinge_embedding_loss", {"size_average": True}),
        ("soft_margin_loss", {"reduce": True}),
    ],
)
def test_warnings_are_torchs(name: str, options: dict[str, Any]) -> None:
    s, y = torch.ones(5, 4), torch.ones(4)
    ours = _warnings_of(lambda: getattr(functional, name)(s, y, **options))
    assert ours == _warnings_of(lambda: getattr(torch_functional, name)(s, y, **options))


def test_forward_mode_holds_weights_constant() -> None:
    s, y, w = torch.randn(5, 4), torch.rand(5, 4), torch.ones(4)

    def cost(w: Tensor) -> Tensor:
        return rules.BinaryCrossEntropyWithLogits.apply(s, y, w, None, "none")

    tangent = torch.func.jvp(cost, (w,), (w,))[1]
    assert torch.equal(tangent, torch.zeros(5, 4))


def test_compiled_huber_and_smooth_l1_take_and_refuse_what_torch_does() -> None:
    s, y = torch.randn(5), torch.zeros(5)
    with pytest.raises(RuntimeError, match="non-positive"):
        torch.compile(lambda s: functional.huber_loss(s, y, delta=-1.0), backend="eager")(s)
    for beta in (0.3, 1e9, float("inf")):
        loss = torch.compile(lambda s, beta=beta: functional.smooth_l1_loss(s, y, beta=beta), backend="eager")(s)
        torch.testing.assert_close(loss, torch_functional.smooth_l1_loss(s, y, beta=beta))


COMPLEX = torch.ones(5, 4, dtype=torch.complex64)
BLOCKS = torch.full((600, 1000), 0.5)
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "bce without a target": ("binary_cross_entropy", (torch.ones(5, 4), None)),
    "hinge without a target": ("hinge_embedding_loss", (torch.ones(5, 4), None)),
    "hinge of a number": ("hinge_embedding_loss", (torch.ones(5, 4), 1.0)),
    "logits without a target": ("binary_cross_entropy_with_logits", (torch.ones(5, 4), None)),
    "logits of complex": ("binary_cross_entropy_with_logits", (torch.ones(5, 4), COMPLEX)),
    "soft margin of complex": ("soft_margin_loss", (torch.ones(5, 4), COMPLEX)),
    "gaussian of complex": ("gaussian_nll_loss", (COMPLEX, COMPLEX, 1.0)),
    "cross-entropy of complex": ("cross_entropy", (COMPLEX, torch.ones(5, 4))),
    "large bce shapes": ("binary_cross_entropy", (BLOCKS, BLOCKS[0])),
    "large logits shapes": ("binary_cross_entropy_with_logits", (BLOCKS, BLOCKS[0])),
}


@pytest.mark.parametrize(("name", "args"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_torchs_words(name: str, args: tuple[Any, ...]) -> None:
    said = []
    for module in (functional, torch_functional):
        fresh = [a.clone().requires_grad_(i == 0) if isinstance(a, Tensor) else a for i, a in enumerate(args)]
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the one to expect is torch's
            getattr(module, name)(*fresh)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_classes_where_every_sample_is_ignored(name: str, reduction: str) -> None:
    results = []
    for module in (functional, torch_functional):
        s = torch.empty(5, 0, requires_grad=True)
        loss = getattr(module, name)(s, torch.zeros(5, dtype=torch.long), ignore_index=0, reduction=reduction)
        results.append([loss.detach(), *torch.autograd.grad(loss.sum(), s)])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, name)


@pytest.mark.parametrize("name", ["l1_loss", "gaussian_nll_loss"])
@pytest.mark.parametrize("real", [0, 1])
def test_a_real_argument_beside_complex_ones_warns_of_nothing(name: str, real: int) -> None:
    """Its gradient is the real part, as autograd takes it; a plain cast would warn of the imaginary part."""
    args = [torch.randn(4, dtype=torch.complex128) for _ in range(2)]
    args[real] = args[real].real.clone()
    args += [torch.rand(4, dtype=torch.float64)] if name == "gaussian_nll_loss" else []
    results = []
    for module in (functional, torch_functional):
        leaves = [a.clone().requires_grad_() for a in args]
        loss = getattr(module, name)(*leaves)
        results.append(torch.autograd.grad(loss, leaves, torch.ones_like(loss)))
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "gradient")


def test_soft_margin_of_complex_scores_takes_no_gradient() -> None:
    s, y = torch.ones(3, dtype=torch.complex64, requires_grad=True), torch.ones(3, dtype=torch.complex64)
    messages = []
    for module in (functional, torch_functional):
        with pytest.raises(RuntimeError, match="complex") as caught:
            module.soft_margin_loss(s, y)
        messages.append(str(caught.value))
        assert not module.soft_margin_loss(s.detach(), y).requires_grad
    assert messages[0] == messages[1]
