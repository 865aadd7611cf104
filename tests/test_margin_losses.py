"""The losses of margins and distances do what torch's functions do, beyond what the contract of each rule says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from ordinary import one_of_each
from torch import Tensor

from torch_manualbp import functional, nn, rules
from torch_manualbp.kernels import blocks, losses
from torch_manualbp.rules.loss.embedding import vector_norm_gradient
from torch_manualbp.rules.loss.margin import multi_label_margin_counts
from torch_manualbp.verify import contract

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def signs(*shape: int) -> Tensor:
    return torch.where(torch.arange(math.prod(shape)).view(shape) % 3 == 0, 1.0, -1.0).double()


x, y, z = randn(6, 5, seed=1), randn(6, 5, seed=2), randn(6, 5, seed=3)
classes = torch.arange(6) % 5
lists = torch.tensor(
    [[0, 2, -1, 1, 1], [-1] * 5, [4, 4, 0, -1, 3], [1, -1, -1, -1, -1], [0, 1, 2, 3, 4], [3, 2, -1, 0, 0]]
)
CALLS: dict[str, Call] = {
    "cosine": ("cosine_embedding_loss", (x, y, signs(6)), {"margin": -0.2}),
    "cosine of one pair": ("cosine_embedding_loss", (x[0], y[0], signs(1)[0]), {}),
    "cosine, one against many": ("cosine_embedding_loss", (x, y[:1], signs(6)), {}),
    "cosine, integers as targets": ("cosine_embedding_loss", (x, y, signs(6).long()), {"margin": 0.5}),
    "ranking": ("margin_ranking_loss", (x, y, signs(6, 5)), {"margin": 0.5}),
    "ranking, broadcast": ("margin_ranking_loss", (x[:, :1], y[:1], signs(1, 1)), {}),
    "ranking of numbers": ("margin_ranking_loss", (x[0, 0], y[0, 0], signs(1)[0]), {"margin": 2.0}),
    "ranking, integers as targets": ("margin_ranking_loss", (x, y, signs(6, 5).long()), {"margin": 0.5}),
    "ranking by any target": ("margin_ranking_loss", (x, y, z), {"margin": 0.5}),
    "many labels": ("multilabel_margin_loss", (x, lists), {}),
    "many labels of one sample": ("multilabel_margin_loss", (x[0], lists[0]), {}),
    "soft": ("multilabel_soft_margin_loss", (3 * x, y.sigmoid()), {}),
    "soft, large scores": ("multilabel_soft_margin_loss", (200 * x, (y > 0).double()), {}),
    "soft, integers as targets": ("multilabel_soft_margin_loss", (x, (y > 0).long()), {}),
    "soft with weights": ("multilabel_soft_margin_loss", (x, y.sigmoid(), z[0].exp()), {}),
    "soft, one target for all": ("multilabel_soft_margin_loss", (x, y[:1].sigmoid()), {}),
    "soft, three dimensions": ("multilabel_soft_margin_loss", (x.view(2, 3, 5), y.view(2, 3, 5).sigmoid()), {}),
    "soft, targets with a dimension more": ("multilabel_soft_margin_loss", (x[0], y.sigmoid()), {}),
    "soft of one sample": ("multilabel_soft_margin_loss", (x[0], y[0].sigmoid()), {}),
    "margin": ("multi_margin_loss", (x, classes), {}),
    "margin, squared": ("multi_margin_loss", (x, classes), {"p": 2, "margin": 0.3, "weight": z[0].exp()}),
    "margin of one sample": ("multi_margin_loss", (x[0], classes[0]), {"margin": 0.3}),
    "margin of one sample, one target": ("multi_margin_loss", (x[0], classes[:1]), {"p": 2}),
    "margin, one class for one sample": ("multi_margin_loss", (x[:1], classes[:1]), {}),
    "triplet": ("triplet_margin_loss", (x, y, z), {}),
    "triplet, swap": ("triplet_margin_loss", (x, y, z), {"swap": True, "margin": 0.5}),
    "triplet, p=1": ("triplet_margin_loss", (x, y, z), {"p": 1, "margin": 3.0}),
    "triplet, p=3": ("triplet_margin_loss", (x, y, z), {"p": 3, "eps": 0.1}),
    "triplet, p=∞": ("triplet_margin_loss", (x, y, z), {"p": math.inf}),
    "triplet of one": ("triplet_margin_loss", (x[0], y[0], z[0]), {"margin": 4.0}),
    "triplet, broadcast": ("triplet_margin_loss", (x, y[:1], z), {"swap": True}),
    "triplet at no distance": ("triplet_margin_loss", (x, x.clone(), x.clone()), {"eps": 0.0, "swap": True}),
    "triplet of complex numbers": ("triplet_margin_loss", (torch.complex(x, y), y * 1j, torch.complex(z, x)), {}),
    "distance": ("triplet_margin_with_distance_loss", (x, y, z), {}),
    "distance, swap": ("triplet_margin_with_distance_loss", (x, y, z), {"swap": True, "margin": 0.5}),
    "own distance": (
        "triplet_margin_with_distance_loss",
        (x, y, z),
        {"distance_function": lambda a, b: 1 - torch_functional.cosine_similarity(a, b), "swap": True},
    ),
    "torch's distance": (
        "triplet_margin_with_distance_loss",
        (x, y, z),
        {"distance_function": nn.PairwiseDistance(p=1, eps=0.1), "margin": 3.0},
    ),
    "torch's distance that keeps its dimension": (
        "triplet_margin_with_distance_loss",
        (x, y, z),
        {"distance_function": nn.PairwiseDistance(keepdim=True)},
    ),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def outcome(module: Any, call: Call, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[Tensor, ...]:
    """The loss and the gradients that it gives; None where torch gives none."""
    name, args, kwargs = call
    leaves = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    leaves = [
        a.to(dtype).requires_grad_() if a.is_floating_point() else a.requires_grad_(a.is_complex()) for a in leaves
    ]
    kwargs = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in {**kwargs, **more}.items()}
    loss = getattr(module, name)(*leaves, **kwargs)
    upstream = contract.upstream_for(loss).to(loss.dtype)
    grads = torch.autograd.grad(loss, [a for a in leaves if a.requires_grad], upstream, allow_unused=True)
    return loss.detach(), *(torch.tensor(math.pi) if g is None else g for g in grads)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@every_call
def test_same_numbers(call: Call, reduction: str) -> None:
    ours, theirs = outcome(functional, call, reduction=reduction), outcome(torch_functional, call, reduction=reduction)
    for i, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        contract.assert_same(actual, expected, f"result {i}")


@every_call
def test_keeps_no_more_than_torch(call: Call) -> None:
    """Whole losses, of as many rules as they take."""
    name, args, kwargs = call
    kept = []
    for module in (functional, torch_functional):
        bound = [a.clone().requires_grad_(i == 0 or a.is_floating_point()) for i, a in enumerate(args)]
        if name == "multilabel_soft_margin_loss" and len(bound) == 3:
            bound[2].requires_grad_(False)
        kept.append(contract.bytes_kept(lambda *a, m=module: getattr(m, name)(*a, **kwargs), bound))
    assert kept[0] <= kept[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_call
def test_autocast(call: Call, dtype: torch.dtype) -> None:
    results = []
    for module in (functional, torch_functional):
        with torch.autocast("cpu", dtype):
            results.append(outcome(module, call, torch.bfloat16 if "distance" not in str(call[2]) else torch.float32))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        atol = 16 * torch.finfo(torch.bfloat16).eps * max(1.0, theirs.abs().nan_to_num().max().item())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize(
    "call",
    [
        ("cosine_embedding_loss", (x, y, signs(6, 5)), {}),
        ("cosine_embedding_loss", (x[0], y[0], signs(6)), {}),
        ("cosine_embedding_loss", (x, y[:, :2], signs(6)), {}),
        ("cosine_embedding_loss", (x, y, signs(6)), {"reduction": "average"}),
        ("margin_ranking_loss", (x, y, signs(6)), {}),
        ("margin_ranking_loss", (x, y[:, :2], signs(6, 5)), {}),
        ("margin_ranking_loss", (x, y, signs(6, 5) > 0), {}),
        ("margin_ranking_loss", (x, y, signs(6, 5)), {"reduction": "average"}),
        ("margin_ranking_loss", (x + 1j, y, signs(6, 5)), {}),
        ("margin_ranking_loss", ([1.0], y, signs(6, 5)), {}),
        ("multilabel_margin_loss", (x, lists[:, :3]), {}),
        ("multilabel_margin_loss", (x, lists.double()), {}),
        ("multilabel_margin_loss", (x, lists + 4), {}),
        ("multilabel_margin_loss", (x.bfloat16(), lists), {}),
        ("multilabel_margin_loss", (x, lists), {"reduction": "average"}),
        ("multilabel_soft_margin_loss", (x, y[:, :3]), {}),
        ("multilabel_soft_margin_loss", (x, y > 0), {}),
        ("multilabel_soft_margin_loss", (x[0, 0], y[0, 0]), {}),
        ("multilabel_soft_margin_loss", (x, y), {"reduction": "average"}),
        ("multilabel_soft_margin_loss", (classes, classes), {}),
        ("multilabel_soft_margin_loss", (x, y), {"weight": x[0, :3]}),
        ("multi_margin_loss", (x, classes + 1), {}),
        ("multi_margin_loss", (x, classes[:4]), {}),
        ("multi_margin_loss", (x, classes.double()), {}),
        ("multi_margin_loss", (x.half(), classes), {}),
        ("multi_margin_loss", (x, classes), {"p": 3}),
        ("multi_margin_loss", (x, classes), {"weight": x}),
        ("multi_margin_loss", (x, classes), {"weight": x[0, :3]}),
        ("multi_margin_loss", (x, classes), {"weight": x[0].clone().requires_grad_()}),
        ("multi_margin_loss", (x.view(6, 5, 1), classes), {}),
        ("triplet_margin_loss", (x, y, z[0]), {}),
        ("triplet_margin_loss", (x, y, z[:, :2]), {}),
        ("triplet_margin_loss", (x, y, z), {"margin": 0.0}),
        ("triplet_margin_loss", (x, y, z), {"reduction": "average"}),
        ("triplet_margin_loss", (x, [1.0], z), {}),
        ("triplet_margin_with_distance_loss", (x, y, z), {"margin": -1.0}),
        ("triplet_margin_with_distance_loss", (x, y, z), {"reduction": "average"}),
        ("triplet_margin_with_distance_loss", (x, y, z[0]), {}),
    ],
    ids=lambda call: call[0],
)
def test_same_errors(call: Call) -> None:
    name, args, kwargs = call
    raised = []
    for module in (functional, torch_functional):
        leaves = [
            a.detach().clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
        ]
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the one to expect is torch's
            getattr(module, name)(*leaves, **kwargs)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@every_call
def test_same_warnings(call: Call) -> None:
    if call[0] == "triplet_margin_with_distance_loss":
        pytest.skip("torch's function has no legacy flags")
    results = []
    for module in (functional, torch_functional):
        with pytest.warns(UserWarning, match="reduction='sum'"):
            results.append(outcome(module, call, size_average=False))
    for actual, expected in zip(*results, strict=True):
        contract.assert_same(actual, expected, "result")


def test_integers_are_left_to_torch() -> None:
    a, b = torch.arange(6).view(3, 2), torch.ones(3, 2, dtype=torch.long)
    for args in ((a, b, b), (b, a, -b)):
        for reduction in ("none", "sum", "mean"):
            ours, theirs = (m.margin_ranking_loss(*args, reduction=reduction) for m in (functional, torch_functional))
            assert torch.equal(ours, theirs)
            assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("name", ["multi_margin_loss", "multi_margin_loss p=2", "multilabel_soft_margin_loss"])
def test_blocks_of_rows(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large tensors, cut in blocks of rows that do not divide them, and with as many gradients at once."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 15)
    s = randn(rows, 1003)
    target: Any = (
        torch.arange(rows) % 1003 if name.startswith("multi_margin") else (randn(rows, 1003, seed=4) > 0).double()
    )
    name, *squared = name.split()
    kwargs: dict[str, Any] = {"p": 2} if squared else {}
    for reduction in ("none", "mean"):
        ours, theirs = (
            outcome(module, (name, (s, target), {**kwargs, "reduction": reduction}))
            for module in (functional, torch_functional)
        )
        for actual, expected in zip(ours, theirs, strict=True):
            contract.assert_same(actual, expected, "result")
    leaf = s.clone().requires_grad_()
    loss = getattr(functional, name)(leaf, target, **kwargs)
    several = torch.autograd.grad(
        loss, leaf, torch.tensor([1.0, 2.0]).double(), is_grads_batched=True, retain_graph=True
    )
    (one,) = torch.autograd.grad(loss, leaf)
    assert torch.allclose(several[0], torch.stack([one, 2 * one]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("labels", [1, 5, losses.FEW_LABELS - 1, losses.FEW_LABELS, losses.FEW_LABELS + 1, 80])
def test_both_ways_to_count(labels: int) -> None:
    """In sorted order and label by label the count is the same, with ties, repeats, ±∞ and NaN among the scores."""
    generator = torch.Generator().manual_seed(labels)
    s = torch.randint(-3, 4, (7, 80), generator=generator).double() / 2
    s[0, 3], s[1, 4], s[2, 5], s[3, :40] = math.inf, -math.inf, math.nan, 0.0
    y = torch.randint(80, (7, 80), generator=generator)
    y[:, labels:] = -1
    y[4, 0] = -1
    for t, row in enumerate((0, 1, 2)):
        y[row, 0] = 3 + t  # the odd score is a label's; in the last sample it is not
    s[6, 1:4], s[6, y[6, :labels]] = torch.tensor([math.inf, -math.inf, math.nan]).double(), 0.25
    expected = _counted_pair_by_pair(s, y)
    assert torch.equal(multi_label_margin_counts(s, y), expected)
    counts = losses.counts_label_by_label(s, y)
    assert counts is NotImplemented if labels > losses.FEW_LABELS else torch.equal(counts, expected)
    assert expected.abs().sum() > 0


def _counted_pair_by_pair(s: Tensor, y: Tensor) -> Tensor:
    c = torch.zeros_like(s)
    for n, row in enumerate(y.tolist()):
        labels = row[: row.index(-1)] if -1 in row else row
        for t in labels:
            for k in set(range(s.shape[1])) - set(labels):
                if 1 - s[n, t] + s[n, k] > 0:
                    c[n, k] += 1
                    c[n, t] -= 1
    return c


@pytest.mark.parametrize("name", ["multi_margin_loss", "multilabel_margin_loss"])
def test_where_torch_has_no_second_derivative(name: str) -> None:
    """A gradient penalty through the loss trains: the Hessian is that of the loss written out."""
    s, target = randn(6, 5, seed=9).requires_grad_(), classes if name == "multi_margin_loss" else lists
    kwargs: dict[str, Any] = {"p": 2} if name == "multi_margin_loss" else {}
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (ds,) = torch.autograd.grad(getattr(functional, name)(s * factor, target, **kwargs), s, create_graph=True)
    (penalty,) = torch.autograd.grad(ds.square().sum(), factor)
    h = 1e-5
    both = []
    for f in (2.0 + h, 2.0 - h):
        (ds,) = torch.autograd.grad(getattr(torch_functional, name)(s * f, target, **kwargs), s)
        both.append(ds.square().sum())
    assert penalty.item() == pytest.approx(((both[0] - both[1]) / (2 * h)).item(), rel=1e-6)
    (ds,) = torch.autograd.grad(getattr(torch_functional, name)(s * factor, target, **kwargs), s, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        ds.square().sum().backward()


def test_at_the_kinks() -> None:
    """Exactly at the margin, where distances are equal, and at a vector of zeros the gradients are torch's."""
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    labels = torch.tensor([[0, -1], [1, -1]])
    calls: list[Call] = [
        ("margin_ranking_loss", (one, zero, one), {"margin": 1.0, "reduction": "none"}),
        ("multi_margin_loss", (torch.tensor([[1.0, 0.0]]), torch.tensor([0])), {}),
        ("multi_margin_loss", (torch.tensor([[1.0, 0.0]]), torch.tensor([0])), {"p": 2}),
        ("multilabel_margin_loss", (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels), {}),
        ("cosine_embedding_loss", (one, one.clone(), -one[0]), {"margin": 1.0}),
        ("cosine_embedding_loss", (zero, one, one[0]), {}),
        ("triplet_margin_loss", (zero, one, torch.tensor([[2.0, 0.0], [0.0, 2.0]])), {"swap": True, "eps": 0.0}),
        ("triplet_margin_loss", (zero, zero.clone(), one), {"margin": math.sqrt(2.0), "eps": 0.0, "p": 1.5}),
        ("triplet_margin_loss", (zero, zero.clone(), one), {"margin": 2.0, "eps": 0.0, "p": 1}),
        ("multilabel_soft_margin_loss", (zero, one), {}),
    ]
    for call in calls:
        for actual, expected in zip(
            outcome(functional, call, torch.float32), outcome(torch_functional, call, torch.float32), strict=True
        ):
            contract.assert_same(actual, expected, str(call[:1] + call[2:]), tolerance=1e-7)


def test_the_norm_that_counts() -> None:
    """p = 0 counts the entries that are not 0: a constant, of which torch gives no gradient at all."""
    d = torch.tensor([[1.0, 0.0, -2.0]], requires_grad=True)
    D = rules.VectorNorm.apply(d, 0.0)
    assert torch.equal(D, torch.tensor([2.0]))
    assert torch.equal(torch.autograd.grad(D, d)[0], torch.zeros(1, 3))


def test_the_second_derivative_of_a_norm_at_zero_is_a_number() -> None:
    d = torch.zeros(2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(rules.VectorNorm.apply(d, 2.0).sum(), d, create_graph=True)
    assert torch.equal(torch.autograd.grad(first.sum(), d)[0], torch.zeros(2, 3))
    gradient = vector_norm_gradient(torch.tensor([3.0, 4.0]), torch.tensor(5.0), 2.0, torch.tensor(10.0))
    assert torch.equal(gradient, torch.tensor([6.0, 8.0]))


@pytest.mark.parametrize("name", ["multilabel_soft_margin_loss", "margin_ranking_loss"])
def test_forward_over_forward_at_zero(name: str) -> None:
    """There torch differentiates the forward itself, which must have its derivatives at the zeros that it splits at."""
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    args = (one,) if name == "multilabel_soft_margin_loss" else (one, one)
    results = []
    for module in (functional, torch_functional):
        function: Callable[..., Tensor] = getattr(module, name)
        results.append(torch.func.jacfwd(torch.func.jacfwd(lambda s, f=function: f(s, *args)))(zero))
    contract.assert_same(results[0], results[1], "Hessian")


def test_hooks_of_a_distance_module_run() -> None:
    distance, seen = nn.PairwiseDistance(), []
    handle = distance.register_forward_hook(lambda *_: seen.append(1))
    nn.TripletMarginWithDistanceLoss(distance_function=distance)(x, y, z)
    assert len(seen) == 2
    handle.remove()
    loss = nn.TripletMarginWithDistanceLoss(distance_function=distance)(x.clone().requires_grad_(), y, z)
    assert loss.grad_fn is not None
    assert loss.grad_fn.next_functions[0][0].name() == "VectorNormBackward"


@pytest.mark.parametrize("name", ["triplet_margin_loss", "cosine_embedding_loss", "margin_ranking_loss"])
def test_one_tensor_in_two_places(name: str) -> None:
    third = {"triplet_margin_loss": y, "cosine_embedding_loss": -signs(6), "margin_ranking_loss": signs(6, 5)}[name]
    for compiled in (False, True):
        torch._dynamo.reset()
        grads = []
        for module in (functional, torch_functional):
            leaf = x.clone().requires_grad_()

            def twice(t: Tensor, module: Any = module) -> Tensor:
                return getattr(module, name)(t, t, third, margin=0.5)

            run = torch.compile(twice, fullgraph=True, backend="aot_eager") if compiled else twice
            grads.append(torch.autograd.grad(run(leaf), leaf)[0])
        contract.assert_same(grads[0], grads[1], "gradient")


@pytest.mark.parametrize(
    "call", one_of_each([pytest.param(call, id=name) for name, call in CALLS.items()], lambda call: [call[0]])
)
def test_compiles(call: Call) -> None:
    """torch.compile(fullgraph=True) takes the whole function."""
    torch._dynamo.reset()
    name, args, kwargs = call
    leaves = [a.clone().requires_grad_(not a.dtype.is_signed or a.is_floating_point() or a.is_complex()) for a in args]
    if any(a.is_complex() for a in args):
        pytest.skip("inductor's tracing of complex numbers warns; the rules are compiled by the contract")
    compiled = torch.compile(lambda *a: getattr(functional, name)(*a, **kwargs), fullgraph=True, backend="aot_eager")
    contract.assert_same(compiled(*leaves), getattr(functional, name)(*leaves, **kwargs), "loss")


@every_call
def test_meta_tensors(call: Call) -> None:
    name, args, kwargs = call
    grads = []
    for device in ("meta", "cpu"):
        leaves = [a.to(device, copy=True).requires_grad_(a.is_floating_point() or a.is_complex()) for a in args]
        leaf = leaves[0].detach().requires_grad_()
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        loss = getattr(functional, name)(leaf, *leaves[1:], reduction="none", **moved)
        grads.append(torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0])
    assert grads[0].is_meta
    assert grads[0].shape == grads[1].shape


def test_forward_mode_of_a_multi_margin_without_dimensions() -> None:
    """A number is one sample of one class."""
    s, y = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0)
    tangent = torch.func.jvp(lambda s: functional.multi_margin_loss(s, y), (s,), (torch.ones_like(s),))[1]
    assert torch.equal(tangent, torch.zeros((), dtype=torch.float64))


def test_pairs_that_are_far_enough_apart_hear_nothing() -> None:
    """Not from an upstream gradient of NaN either."""
    u, v = x.detach().requires_grad_(), y.detach()
    da = torch.full((6,), torch.nan, dtype=x.dtype)
    far = functional.cosine_embedding_loss(u, v, -torch.ones(6), 0.999, reduction="none")
    assert not torch.autograd.grad(far, u, da)[0].any()
