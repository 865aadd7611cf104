"""Every function of ``torch_manualbp.functional``, on every sample of its rule, in forward mode by all ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from torch_manualbp import functional, rules
from torch_manualbp.catalogue import CATALOGUE, Operation
from torch_manualbp.kernels.dispatch import LARGE_ELEMENTS
from torch_manualbp.verify import contract
from torch_manualbp.verify.claims import tangents
from torch_manualbp.verify.contract import Case


def _gaussian(F: ModuleType, r: Tensor, v: Tensor, full: bool, reduction: str) -> Tensor:
    return F.gaussian_nll_loss(r, torch.zeros_like(r), v.expand(r.shape) if r.dim() else v, full, reduction=reduction)


def _triplet(F: ModuleType, x: Tensor, y: Tensor, z: Tensor | None, margin: float, reduction: str) -> Tensor:
    shape = torch.broadcast_shapes(x.shape, y.shape)
    swap, z = z is not None, torch.zeros_like(y) if z is None else z
    vectors = [t.expand(shape).unsqueeze(-1) for t in (x, y, z)]
    return F.triplet_margin_loss(*vectors, margin=max(margin, 0.1), swap=swap, reduction=reduction)


Call = Callable[..., Tensor]
FUNCTIONS: dict[str, tuple[type[rules.Rule], Call]] = {
    "linear": (rules.Linear, lambda F, *args: F.linear(*args)),
    "bilinear": (rules.Bilinear, lambda F, *args: F.bilinear(*args)),
    "identity": (rules.Identity, lambda F, z: F.identity(z) if F is functional else z.clone()),
    "celu": (rules.CELU, lambda F, z, alpha: F.celu(z, alpha)),
    "elu": (rules.ELU, lambda F, z, alpha: F.elu(z, alpha)),
    "gelu": (rules.GELU, lambda F, z: F.gelu(z) + F.gelu(z, approximate="tanh")),
    "glu": (rules.GLU, lambda F, z, dim: F.glu(z, dim)),
    "hardshrink": (rules.Hardshrink, lambda F, z, lambd: F.hardshrink(z, lambd)),
    "hardsigmoid": (rules.Hardsigmoid, lambda F, z: F.hardsigmoid(z) if F is functional else F.relu6(z + 3) / 6),
    "hardtanh": (rules.Hardtanh, lambda F, z, low, high: F.hardtanh(z, low, high)),
    "hardswish": (rules.Hardswish, lambda F, z: F.hardswish(z) if F is functional else z * F.relu6(z + 3) / 6),
    "leaky_relu": (rules.LeakyReLU, lambda F, z, slope: F.leaky_relu(z, slope)),
    "log_softmax": (rules.LogSoftmax, lambda F, z, dim: F.log_softmax(z, dim)),
    "logsigmoid": (rules.LogSigmoid, lambda F, z: F.logsigmoid(z)),
    "mish": (rules.Mish, lambda F, z: F.mish(z)),
    "prelu": (rules.PReLU, lambda F, z, w: F.prelu(z, w)),
    "relu": (rules.ReLU, lambda F, z: F.relu(z)),
    "relu6": (rules.ReLU6, lambda F, z: F.relu6(z)),
    "rrelu": (rules.LeakyReLU, lambda F, z, slope: F.rrelu(z, slope, max(2 * slope, slope))),
    "selu": (rules.SELU, lambda F, z: F.selu(z)),
    "sigmoid": (rules.Sigmoid, lambda F, z: F.sigmoid(z)),
    "silu": (rules.SiLU, lambda F, z: F.silu(z)),
    "softmax": (rules.Softmax, lambda F, z, dim: F.softmax(z, dim)),
    "softmin": (rules.Softmin, lambda F, z, dim: F.softmin(z, dim)),
    "softplus": (rules.Softplus, lambda F, z, beta, threshold: F.softplus(z, beta, threshold)),
    "softshrink": (rules.Softshrink, lambda F, z, lambd: F.softshrink(z, lambd)),
    "softsign": (rules.Softsign, lambda F, z: F.softsign(z)),
    "tanh": (rules.Tanh, lambda F, z: F.tanh(z)),
    "tanhshrink": (rules.Tanh, lambda F, z: F.tanhshrink(z)),
    "threshold": (rules.Threshold, lambda F, z, theta, value: F.threshold(z, theta, value)),
    "l1_loss": (rules.MeanSquaredError, lambda F, s, y, reduction: F.l1_loss(s, y, reduction=reduction)),
    "smooth_l1_loss": (
        rules.SmoothAbsoluteError,
        lambda F, s, y, beta, reduction: F.smooth_l1_loss(s, y, beta=beta, reduction=reduction),
    ),
    "huber_loss": (rules.Huber, lambda F, s, y, delta, reduction: F.huber_loss(s, y, reduction, delta)),
    "mse_loss": (rules.MeanSquaredError, lambda F, s, y, reduction: F.mse_loss(s, y, reduction=reduction)),
    "cross_entropy": (
        rules.CrossEntropy,
        lambda F, s, y, w, ignored, reduction, epsilon: F.cross_entropy(
            s, y, w, ignore_index=ignored, reduction=reduction, label_smoothing=epsilon
        ),
    ),
    "nll_loss": (
        rules.NegativeLogLikelihood,
        lambda F, s, y, w, ignored, reduction: F.nll_loss(s, y, w, ignore_index=ignored, reduction=reduction),
    ),
    "gaussian_nll_loss": (rules.GaussianNegativeLogLikelihood, _gaussian),
    "poisson_nll_loss": (
        rules.PoissonNegativeLogLikelihood,
        lambda F, s, y, log_input, full, eps, reduction: F.poisson_nll_loss(
            s, y, log_input, full, eps=eps, reduction=reduction
        ),
    ),
    "kl_div": (
        rules.KullbackLeiblerDivergence,
        lambda F, s, y, log_target, reduction: F.kl_div(
            s, y, reduction="sum" if reduction == "mean" else reduction, log_target=log_target
        ),
    ),
    "binary_cross_entropy": (
        rules.BinaryCrossEntropy,
        lambda F, s, y, w, reduction: F.binary_cross_entropy(s, y, w, reduction=reduction),
    ),
    "binary_cross_entropy_with_logits": (
        rules.BinaryCrossEntropyWithLogits,
        lambda F, s, y, w, p, reduction: F.binary_cross_entropy_with_logits(s, y, w, reduction=reduction, pos_weight=p),
    ),
    "hinge_embedding_loss": (
        rules.HingeEmbedding,
        lambda F, s, y, margin, reduction: F.hinge_embedding_loss(s, y, margin, reduction=reduction),
    ),
    "soft_margin_loss": (
        rules.SoftMargin,
        lambda F, s, y, reduction: F.soft_margin_loss(s, y, reduction=reduction),
    ),
    "margin_ranking_loss": (
        rules.MarginRanking,
        lambda F, d, y, margin, reduction: F.margin_ranking_loss(
            d.expand(torch.broadcast_shapes(d.shape, y.shape)),
            torch.zeros(torch.broadcast_shapes(d.shape, y.shape), dtype=d.dtype),
            y.expand(torch.broadcast_shapes(d.shape, y.shape)),
            margin,
            reduction=reduction,
        ),
    ),
    "multi_margin_loss": (
        rules.MultiMargin,
        lambda F, s, y, p, margin, w, reduction: F.multi_margin_loss(s, y, p, margin, w, reduction=reduction),
    ),
    "multilabel_margin_loss": (
        rules.MultiLabelMargin,
        lambda F, s, y, reduction: F.multilabel_margin_loss(s, y, reduction=reduction),
    ),
    "multilabel_soft_margin_loss": (
        rules.MultiLabelSoftMargin,
        lambda F, s, y, w, reduction: F.multilabel_soft_margin_loss(s, y, w, reduction=reduction),
    ),
    "cosine_embedding_loss": (
        rules.CosineEmbedding,
        lambda F, u, v, y, margin, reduction: F.cosine_embedding_loss(u, v, y, margin, reduction=reduction),
    ),
    "triplet_margin_loss": (rules.TripletMargin, _triplet),
    "triplet_margin_with_distance_loss": (rules.VectorNorm, lambda F, d, p: _with_distance(F, d)),
}


def _with_distance(F: ModuleType, d: Tensor) -> Tensor:
    return F.triplet_margin_with_distance_loss(d, 2 * d + 1, -d, margin=0.5, swap=True, reduction="none")


def cases_of(name: str) -> list[Case]:
    rule, call = FUNCTIONS[name]
    (entry,) = (e for e in CATALOGUE if e.rule is rule)
    function = type(name, (), {"apply": staticmethod(lambda *args: call(functional, *args))})

    def twin(*args: Any) -> Tensor:
        return call(F, *args)

    second = entry.twin_for_second
    of_function: Operation = replace(entry, rule=function, twin=twin, twin_for_second=second, exempt={})
    return list(contract.cases([of_function]))


def test_every_function_is_here_or_in_a_row_whose_rule_is_held_to_the_same() -> None:
    of_rows = {name for entry in CATALOGUE for name in entry.functions.split()}
    older = {name for name in functional.__all__ if not hasattr(torch.nn.functional, name)}  # than the function
    assert set(FUNCTIONS) <= set(functional.__all__) <= set(FUNCTIONS) | of_rows | (older & {"linear_cross_entropy"})


def module_of(name: str) -> list[str]:
    """A function of each module in an ordinary run, where the contract goes through the rules."""
    return [inspect.unwrap(getattr(functional, name)).__module__]


@pytest.mark.parametrize("name", one_of_each(FUNCTIONS, module_of))
def test_tangents_and_products_are_those_of_reverse_mode(name: str) -> None:
    ran = 0
    for case in cases_of(name):
        try:
            tangents.tangents_agree(case)
            tangents.hessian_vector_products_agree(case)
        except contract.DoesNotApply:
            continue
        ran += 1
    assert ran


@pytest.mark.parametrize("name", ["relu", "hardswish", "logsigmoid", "softplus", "elu", "gelu", "tanh"])
def test_large_tensors_are_traced(name: str) -> None:
    """make_fx's tracing holds no number that a short cut could read."""
    z = torch.linspace(-2, 2, 2 * LARGE_ELEMENTS, dtype=torch.float64)

    def gradient(library: Any) -> Callable[[Tensor], Tensor]:
        def of(z: Tensor) -> Tensor:
            leaf = z.detach().requires_grad_()
            return torch.autograd.grad(getattr(library, name)(leaf).square().sum(), leaf)[0]

        return of

    graph = make_fx(gradient(functional))(z)
    torch.testing.assert_close(graph(3 * z), gradient(F)(3 * z), rtol=1e-6, atol=1e-6)
