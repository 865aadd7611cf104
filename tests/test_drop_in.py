"""Changing ``from torch import nn`` to ``from torch_manualbp import nn`` changes no number, name, pickle or error."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch import nn as torch_nn

import torch_manualbp
from torch_manualbp import functional, nn
from torch_manualbp.verify import contract, surroundings
from torch_manualbp.verify.surroundings import Layer, results

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
OURS = surroundings.ours()

every_layer = pytest.mark.parametrize("layer", surroundings.layers(), ids=str)


@every_layer
def test_same_numbers(layer: Layer) -> None:
    for dtype in (torch.float64, torch.float32):
        ours, theirs = layer.pair(dtype)
        of_ours, of_theirs = (results(m, layer.inputs(dtype)) for m in (ours, theirs))
        # In float32 torch's own gradients of a whole Transformer are off by up to 9 ε of 1, and ours by 16.
        digits = 16 if type(ours) is nn.Transformer else 4
        tolerance = max(layer.tolerance, digits * torch.finfo(dtype).eps)
        surroundings.compare(of_ours, of_theirs, tolerance)


@every_layer
def test_same_signatures_of_classes(layer: Layer) -> None:
    ours, theirs = layer.pair()
    assert type(ours).__name__ == type(theirs).__name__
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert list(inspect.signature(ours.forward).parameters) == list(inspect.signature(theirs.forward).parameters)


def network(nn: Any) -> torch_nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Identity(), nn.Linear(8, 8), nn.Sigmoid()]
    built: torch_nn.Module = nn.Sequential(*layers, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    return built


def test_a_network_trains_to_the_same_parameters() -> None:
    ours, theirs = network(nn).double(), network(torch_nn).double()
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))
    for model, loss in ((ours, nn.CrossEntropyLoss()), (theirs, torch_nn.CrossEntropyLoss())):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(50):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


BUILTINS = {  # whose signatures stand in their documentation
    "adaptive_avg_pool1d": "(input, output_size)",
    "avg_pool1d": "(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)",
    **{
        f"avg_pool{d}d": "(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
        "divisor_override=None)"
        for d in (2, 3)
    },
    "bilinear": "(input1, input2, weight, bias=None)",
    "channel_shuffle": "(input, groups)",
    **{f"conv{d}d": "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)" for d in (1, 2, 3)},
    **{
        f"conv_transpose{d}d": "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)"
        for d in (1, 2, 3)
    },
    "cosine_similarity": "(x1, x2, dim=1, eps=1e-08)",
    "gelu": "(input, *, approximate='none')",
    "hardshrink": "(input, lambd=0.5)",
    "linear": "(input, weight, bias=None)",
    "logsigmoid": "(input)",
    "pairwise_distance": "(x1, x2, p=2.0, eps=1e-06, keepdim=False)",
    "pdist": "(input, p=2.0)",
    "pixel_shuffle": "(input, upscale_factor)",
    "pixel_unshuffle": "(input, downscale_factor)",
    "prelu": "(input, weight)",
    "scaled_dot_product_attention": "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, "
    "scale=None, enable_gqa=False)",
    "softplus": "(input, beta=1.0, threshold=20.0)",
    "softshrink": "(input, lambd=0.5)",
}


@pytest.mark.parametrize("name", [name for name in functional.__all__ if hasattr(torch_functional, name)])
def test_same_signatures(name: str) -> None:
    ours = inspect.signature(getattr(functional, name))
    if name in BUILTINS:
        plain = [p.replace(annotation=inspect.Parameter.empty) for p in ours.parameters.values()]
        assert str(inspect.Signature(plain)) == BUILTINS[name]
        return
    # The signature of a pooling with or without indices is (*args, **kwargs), that of the one with them its own.
    with_indices = getattr(torch_functional, f"{name}_with_indices", None)
    theirs = inspect.signature(with_indices or getattr(torch_functional, name))
    added = set(ours.parameters) - set(theirs.parameters)  # an older torch has no weights for all losses
    assert added <= ({"weight"} if TORCH < (2, 10) else set())
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values() if p.name not in added] == [
        (p.name, p.default, p.kind) for p in theirs.parameters.values()
    ]


x54, y5 = torch.ones(5, 4), torch.zeros(5, dtype=torch.long)
BAD_CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "features": ("linear", (x54, torch.ones(3, 5), torch.ones(3)), {}),
    "bias": ("linear", (x54, torch.ones(3, 4), torch.ones(2)), {}),
    "dtype of the weight": ("linear", (x54, torch.ones(3, 4, dtype=torch.float64)), {}),
    "integers": ("linear", (y5, torch.ones(3, 5)), {}),
    "no tensor": ("linear", ([1.0], torch.ones(3, 1)), {}),
    "relu of a list": ("relu", ([1.0],), {}),
    "relu of bools": ("relu", (torch.tensor([True]),), {}),
    "relu of complex": ("relu", (torch.ones(2, dtype=torch.complex64),), {}),
    "relu of a leaf in place": ("relu", (torch.ones(2, requires_grad=True), True), {}),
    "mse shapes": ("mse_loss", (torch.ones(5, 4), torch.ones(5, 4, 2)[..., :0]), {}),
    "mse reduction": ("mse_loss", (x54, x54), {"reduction": "average"}),
    "mse of complex": ("mse_loss", (x54.to(torch.complex64), x54.to(torch.complex64)), {}),
    "mse of integers": ("mse_loss", (y5, y5), {}),
    "mse weight's shape": ("mse_loss", (x54, x54), {"weight": torch.ones(4)}),
    "mse weighted reduction": ("mse_loss", (x54, x54), {"weight": x54, "reduction": "average"}),
    "l1 shapes": ("l1_loss", (torch.ones(5, 4), torch.ones(5, 4, 2)[..., :0]), {}),
    "l1 reduction": ("l1_loss", (x54, x54), {"reduction": "average"}),
    "l1 weight's shape": ("l1_loss", (x54, x54), {"weight": torch.ones(4)}),
    "l1 weighted reduction": ("l1_loss", (x54, x54), {"weight": x54, "reduction": "average"}),
    "l1 without tensors": ("l1_loss", ([1.0], [2.0]), {}),
    "l1 of bools": ("l1_loss", (x54 > 0, x54 > 0), {}),
    "mean l1 of integers": ("l1_loss", (y5, y5), {}),
    "smooth l1 reduction": ("smooth_l1_loss", (x54, x54), {"reduction": "average"}),
    "smooth l1 beta": ("smooth_l1_loss", (x54, x54), {"beta": -1.0}),
    "smooth l1 of complex": ("smooth_l1_loss", (x54.to(torch.complex64), x54.to(torch.complex64)), {}),
    "smooth l1 without tensors": ("smooth_l1_loss", ([1.0], [2.0]), {}),
    "huber delta": ("huber_loss", (x54, x54), {"delta": 0.0}),
    "huber reduction": ("huber_loss", (x54, x54), {"reduction": "average"}),
    "huber weight's shape": ("huber_loss", (x54, x54), {"weight": torch.ones(4)}),
    "nll class": ("nll_loss", (x54, y5 + 4), {}),
    "nll number of targets": ("nll_loss", (x54, y5[:3]), {}),
    "nll reduction": ("nll_loss", (x54, y5), {"reduction": "average"}),
    "nll target of floats": ("nll_loss", (x54, y5.float()), {}),
    "nll weight's shape": ("nll_loss", (x54, y5), {"weight": torch.ones(3)}),
    "nll weight that learns": ("nll_loss", (x54, y5), {"weight": torch.ones(4, requires_grad=True)}),
    "gaussian negative variance": ("gaussian_nll_loss", (x54, x54, -x54), {}),
    "gaussian negative number": ("gaussian_nll_loss", (x54, x54, -1.0), {}),
    "gaussian variance's shape": ("gaussian_nll_loss", (x54, x54, torch.ones(3)), {}),
    "gaussian variance's shape by two": ("gaussian_nll_loss", (x54, x54, torch.ones(1, 1)), {}),
    "gaussian reduction": ("gaussian_nll_loss", (x54, x54, x54), {"reduction": "average"}),
    "gaussian integer variance": ("gaussian_nll_loss", (x54, x54, 1), {}),
    "poisson reduction": ("poisson_nll_loss", (x54, x54), {"reduction": "average"}),
    "poisson shapes": ("poisson_nll_loss", (x54, x54[:3]), {}),
    "kl reduction": ("kl_div", (x54, x54), {"reduction": "average"}),
    "kl of integers": ("kl_div", (y5, y5), {"reduction": "sum"}),
    "kl of complex": ("kl_div", (x54.to(torch.complex64), x54.to(torch.complex64)), {"reduction": "sum"}),
    "bce shapes": ("binary_cross_entropy", (x54, x54[:3]), {}),
    "bce out of range": ("binary_cross_entropy", (2 * x54, x54), {}),
    "bce reduction": ("binary_cross_entropy", (x54, x54), {"reduction": "average"}),
    "bce weight that learns": ("binary_cross_entropy", (x54, x54, torch.ones(4, requires_grad=True)), {}),
    "bce of integers": ("binary_cross_entropy", (y5, y5), {}),
    "logits shapes": ("binary_cross_entropy_with_logits", (x54, x54[:3]), {}),
    "logits reduction": ("binary_cross_entropy_with_logits", (x54, x54), {"reduction": "average"}),
    "logits weight that learns": (
        "binary_cross_entropy_with_logits",
        (x54, x54),
        {"pos_weight": torch.ones(4, requires_grad=True)},
    ),
    "logits pos_weight's shape": ("binary_cross_entropy_with_logits", (x54, x54), {"pos_weight": torch.ones(3)}),
    "hinge reduction": ("hinge_embedding_loss", (x54, x54), {"reduction": "average"}),
    "hinge shapes": ("hinge_embedding_loss", (x54, x54[:3]), {}),
    "soft margin reduction": ("soft_margin_loss", (x54, x54), {"reduction": "average"}),
    "soft margin target that learns": ("soft_margin_loss", (x54, torch.ones(5, 4, requires_grad=True)), {}),
    "soft margin without tensors": ("soft_margin_loss", ([1.0], [1.0]), {}),
    "mse without tensors": ("mse_loss", ([1.0], [2.0]), {}),
    "class out of range": ("cross_entropy", (x54, y5 + 4), {}),
    "negative class": ("cross_entropy", (x54, y5 - 1), {}),
    "number of targets": ("cross_entropy", (x54, y5[:3]), {}),
    "target of floats": ("cross_entropy", (x54, y5.float()), {}),
    "probabilities as integers": ("cross_entropy", (x54, x54.long()), {}),
    "probabilities with ignore_index": ("cross_entropy", (x54, x54), {"ignore_index": 1}),
    "number of weights": ("cross_entropy", (x54, y5), {"weight": torch.ones(3)}),
    "dtype of the weights": ("cross_entropy", (x54, y5), {"weight": torch.ones(4).double()}),
    "weight that learns": ("cross_entropy", (x54, y5), {"weight": torch.ones(4, requires_grad=True)}),
    "smoothing": ("cross_entropy", (x54, y5), {"label_smoothing": 1.5}),
    "reduction": ("cross_entropy", (x54, y5), {"reduction": "average"}),
    "scores without classes": ("cross_entropy", (torch.tensor(1.0), torch.tensor(0)), {}),
    "scores as a list": ("cross_entropy", ([1.0], y5), {}),
    "target as a list": ("cross_entropy", (x54, [1]), {}),
    "projected class out of range": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5 + 3), {}),
    "projected features": ("linear_cross_entropy", (x54, torch.ones(3, 5), y5), {}),
    "projected bias": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5), {"linear_bias": torch.ones(4)}),
    "projected input's dimensions": ("linear_cross_entropy", (x54[None], torch.ones(3, 4), y5), {}),
    "projected dtype": ("linear_cross_entropy", (x54, torch.ones(3, 4).double(), y5), {}),
    "projected weights": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5), {"weight": torch.ones(4)}),
    "projected reduction": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5), {"reduction": "average"}),
    "projected smoothing": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5), {"label_smoothing": 1.5}),
    "projected target of floats": ("linear_cross_entropy", (x54, torch.ones(3, 4), y5.float()), {}),
    "projected probabilities with ignore_index": (
        "linear_cross_entropy",
        (x54, torch.ones(3, 4), torch.ones(5, 3)),
        {"ignore_index": 1},
    ),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(("name", "args", "kwargs"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_same_errors(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], learns: bool) -> None:
    if not hasattr(torch_functional, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")

    def outcome(function: Callable[..., Tensor]) -> tuple[type[BaseException], str]:
        fresh = [
            a.detach().clone().requires_grad_(learns or a.requires_grad)
            if isinstance(a, Tensor) and a.is_floating_point()
            else a
            for a in args
        ]
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the one to expect is torch's
            function(*fresh, **kwargs)
        return caught.type, str(caught.value)

    assert outcome(getattr(functional, name)) == outcome(getattr(torch_functional, name))


def test_same_warnings() -> None:
    wide, narrow = torch.ones(5, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    for module in (functional, torch_functional):
        with pytest.warns(UserWarning, match="target size"):
            loss = module.mse_loss(wide, narrow)
        with pytest.warns(UserWarning, match="target size"):
            reverse = module.mse_loss(narrow, wide)
        for cost in (loss, reverse):
            d_wide, d_narrow = torch.autograd.grad(cost, [wide, narrow])
            assert torch.equal(d_wide, torch.full((5, 4), 0.1))
            assert torch.equal(d_narrow, torch.full((4,), -0.5))
        with pytest.warns(UserWarning, match="reduction='sum'"):
            module.mse_loss(narrow, narrow, size_average=False)
        with pytest.warns(UserWarning, match="reduction='none'"):
            module.cross_entropy(wide, y5, reduce=False)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weighted_mse(reduction: str) -> None:
    tensors = [torch.rand(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for module in (functional, torch_functional):
        loss = module.mse_loss(tensors[0], tensors[1], weight=tensors[2], reduction=reduction)
        results.append([loss, *torch.autograd.grad(loss.sum(), tensors)])
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "weighted")


def test_bias_of_each_position() -> None:
    """torch's linear broadcasts a bias of several dimensions, outside vmap."""
    with torch.no_grad():
        try:
            torch_functional.linear(torch.ones(2, 5, 4), torch.ones(3, 4), torch.ones(5, 3))
        except RuntimeError as error:
            pytest.skip(f"this torch refuses: {error}")
    args = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 4), (3, 4), (5, 3))]
    for ours, theirs in zip(
        contract.gradients(functional.linear, args), contract.gradients(torch_functional.linear, args), strict=True
    ):
        contract.assert_same(ours, theirs, "gradient")


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.int64),
        (torch.float32, torch.bool),
    ],
)
def test_mse_of_mixed_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    results = []
    for module in (functional, torch_functional):
        s = torch.arange(4.0, dtype=dtypes[0]).requires_grad_()
        y = torch.ones(4, dtype=dtypes[1])
        loss = module.mse_loss(s, y)
        try:
            results.append((loss, *torch.autograd.grad(loss, s)))
        except RuntimeError as error:
            if module is functional:
                raise
            pytest.skip(f"this torch has no gradient here: {error}")
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "mixed dtypes")


@pytest.mark.parametrize("weighted", [True, False])
def test_cross_entropy_where_every_sample_is_ignored(weighted: bool) -> None:
    results = []
    for module in (functional, torch_functional):
        s = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = module.cross_entropy(s, y5, weight=torch.ones(4) if weighted else None, ignore_index=0)
        results.append((loss.detach(), *torch.autograd.grad(loss, s)))
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "all ignored")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, -0.1, float("nan")])
@pytest.mark.parametrize("ignored", [0, -100])
def test_odd_weights_and_targets_of_cross_entropy(smoothing: float, ignored: int) -> None:
    """An infinite weight of an ignored class, targets of bytes, a smoothing that torch takes for none."""
    results = []
    for module in (functional, torch_functional):
        s = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weight = torch.tensor([float("inf"), 1.0, 2.0], dtype=torch.float64) if smoothing == 0 else None
        y = torch.tensor([0 if ignored == 0 else 1, 1, 2], dtype=torch.uint8 if smoothing == 0 else torch.long)
        loss = module.cross_entropy(s, y, weight=weight, ignore_index=ignored, label_smoothing=smoothing)
        results.append((loss.detach(), *torch.autograd.grad(loss, s)))
    for ours, theirs in zip(*results, strict=True):
        contract.assert_same(ours, theirs, "odd arguments")


def test_per_sample_gradients_of_a_weighted_smoothed_mean() -> None:
    s, y, weight = torch.randn(6, 4), torch.arange(6) % 4, torch.rand(4) + 0.5
    results = []
    for module in (functional, torch_functional):

        def cost(s: Tensor, y: Tensor, module: Any = module) -> Tensor:
            return module.cross_entropy(s, y, weight=weight, label_smoothing=0.1)

        results.append(torch.func.vmap(torch.func.grad(cost))(s, y))
    contract.assert_same(results[0], results[1], "per-sample gradients", tolerance=1e-6)


def test_the_second_derivative_of_relu_is_zero_and_there() -> None:
    z = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    (da,) = torch.autograd.grad(functional.relu(z).sum(), z, create_graph=True)
    da.pow(2).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros(3))


def test_per_sample_gradients_inside_compile() -> None:
    torch._dynamo.reset()

    def per_sample(W: Tensor, x: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda W, x: functional.relu(functional.linear(x, W)).sum())
        return torch.func.vmap(gradient, (None, 0))(W, x)

    W, x = torch.randn(3, 4), torch.randn(5, 4)
    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(W, x), per_sample(W, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_traces() -> None:
    model = network(nn)
    traced = torch.jit.trace(model, (torch.ones(2, 4),))
    assert torch.equal(traced(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_ragged_and_sparse_tensors_are_left_to_torch() -> None:
    ragged = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    layer = nn.Linear(4, 3)
    layer(ragged).values().sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 5.0))
    sparse = torch.eye(3).to_sparse().requires_grad_()
    assert functional.relu(sparse).is_sparse


@pytest.mark.parametrize("function", ["linear", "mse_loss", "cross_entropy"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_same_tensor_in_two_places(function: str, compiled: bool) -> None:
    """Both places add to the gradient, also under torch.compile, which refuses such a call of a bare Function."""
    torch._dynamo.reset()
    grads = []
    for module in (functional, torch_functional):
        x = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        run = _twice(getattr(module, function))
        run = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
        grads.append(torch.autograd.grad(run(x).sum(), x)[0])
    contract.assert_same(grads[0], grads[1], "gradient")


def _twice(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast(dtype: torch.dtype, compiled: bool) -> None:
    """Outputs and gradients have torch's dtypes and its numbers to the rounding of the autocast dtype."""
    torch._dynamo.reset()
    results = []
    for module in (nn, torch_nn):
        model, loss = network(module), module.CrossEntropyLoss()
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", dtype):
            scores = run(x)
            cost = loss(scores, torch.arange(16) % 3) + module.MSELoss()(scores, torch.ones(16, 3, dtype=dtype))
        results.append((scores.detach(), cost.detach(), *torch.autograd.grad(cost, [x, *model.parameters()])))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * torch.finfo(dtype).eps * theirs.abs().max().item())


def test_autocast_leaves_float64_to_torchs_error() -> None:
    args = torch.ones(5, 4, dtype=torch.float64), torch.ones(3, 4)
    messages = []
    for function in (functional.linear, torch_functional.linear):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError) as caught:
            function(*args)
        messages.append(str(caught.value).split(":")[0])
    assert messages[0] == messages[1]


def test_backward_inside_autocast() -> None:
    grads = []
    for module in (nn, torch_nn):
        model = network(module)
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.ones(8, 4)).float().square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_relu_in_place_changes_its_input() -> None:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    z = x * 1
    a = functional.relu(z, inplace=True)
    assert a is z
    assert torch.equal(z, torch.tensor([0.0, 2.0]))
    (dx,) = torch.autograd.grad(a.sum(), x)
    assert torch.equal(dx, torch.tensor([0.0, 1.0]))
    doubled = torch.func.vmap(torch.func.grad(lambda x: functional.relu(x * 2, inplace=True)))
    assert torch.equal(doubled(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4)])
def test_what_linear_returns_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    grads = []
    for module in (nn, torch_nn):
        torch.manual_seed(0)
        model = torch_nn.Sequential(module.Linear(4, 3), module.ReLU(inplace=True)).double()
        model(torch.ones(shape, dtype=torch.float64)).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs)


def test_identity_returns_its_very_input() -> None:
    x = torch.ones(3, requires_grad=True) * 1
    assert nn.Identity(54, unused=0.1)(x) is x
    y = functional.identity(x)
    y.relu_()  # a tensor of its own, which may be changed in place
    assert y is not x


def test_without_gradients_nothing_is_recorded() -> None:
    model = network(nn)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not model(torch.ones(2, 4)).requires_grad
    assert not model.requires_grad_(False)(torch.ones(2, 4)).requires_grad


def test_meta_device_and_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = network(nn).to("meta")
    x = torch.ones(5, 4, device="meta")
    loss = functional.cross_entropy(model(x), torch.zeros(5, dtype=torch.long, device="meta"))
    loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert network(nn)(torch.ones(5, 4)).shape == (5, 3)


class Tagged(torch.Tensor):
    """A tensor subclass with torch's default behaviour: results carry the subclass."""


def test_tensor_subclasses() -> None:
    x = torch.ones(5, 4).as_subclass(Tagged)
    weight = torch.ones(3, 4, requires_grad=True)
    output = functional.mse_loss(functional.relu(functional.linear(x, weight)), torch.zeros(5, 3))
    assert type(output) is Tagged
    assert torch.autograd.grad(output, weight)[0].shape == (3, 4)


def test_symbolic_tracing() -> None:
    model = network(nn)
    traced = torch.fx.symbolic_trace(model)
    assert any(node.target is functional.linear for node in traced.graph.nodes)
    assert torch.equal(traced(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_export_runs_the_forward() -> None:
    model = network(nn)
    exported = torch.export.export(model, (torch.ones(2, 4),))
    assert torch.equal(exported.module()(torch.ones(2, 4)), model(torch.ones(2, 4)))


def test_a_tensor_that_escaped_a_functorch_transform() -> None:
    escaped: list[Tensor] = []

    def square(x: Tensor) -> Tensor:
        escaped.append(x)
        return (x * x).sum()

    torch.func.grad(square)(torch.ones(5, 4))
    assert functional.linear(escaped[0], torch.ones(3, 4)).shape == (5, 3)


def test_nn_hands_on_the_rest_of_torch_nn() -> None:
    for name in vars(torch_nn):
        if not name.startswith("_") and name[0].isupper():
            assert hasattr(nn, name), name
            assert (getattr(nn, name) is getattr(torch_nn, name)) == (name not in OURS), name
    assert nn.init is torch_nn.init
    assert nn.functional is functional
    assert functional.one_hot is torch_functional.one_hot
    with pytest.raises(
        AttributeError, match=r"neither torch_manualbp\.functional nor torch\.nn\.functional has a 'nope'"
    ):
        _ = functional.nope


def test_import_loads_nothing_heavy() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import torch_manualbp;"
        "print([m for m in sorted(set(sys.modules) - before) if not m.startswith(('torch_manualbp', 'torch.'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", result.stdout
    assert torch_manualbp.__version__
