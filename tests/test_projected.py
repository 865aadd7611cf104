"""Linear + cross-entropy whose gradients are made in forward: the same numbers, as few bytes, and the rule itself for
whatever asks more than one backward pass does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as torch_functional

from torch_manualbp import functional as F
from torch_manualbp.kernels import ahead, dispatch, projected
from torch_manualbp.rules.loss import projected as rules

N, D, K = 24, 3, 11
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum, biased": {"reduction": "sum", "linear_bias": True},
    "weighted, smoothed, one ignored": {"weight": True, "label_smoothing": 0.2, "ignore_index": 3, "linear_bias": True},
    "probabilities": {"y": "probabilities", "linear_bias": True},
    "probabilities, weighted, smoothed": {
        "y": "probabilities",
        "weight": True,
        "label_smoothing": 0.1,
        "reduction": "sum",
    },
}


@pytest.fixture(autouse=True)
def small_sizes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 samples, the last one of other shapes than the formula's."""
    monkeypatch.setattr(projected, "FEW_SCORES", 1)
    monkeypatch.setattr(ahead, "BLOCK_SCORES", 8 * K)
    monkeypatch.setattr(ahead, "LEAST_SAMPLES", 7)


def arguments(dtype: torch.dtype, y: str = "indices", **options: Any) -> tuple[list[Tensor], dict[str, Any]]:
    torch.manual_seed(1)
    x, W, b = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((N, D), (K, D), (K,)))
    target = torch.randint(K, (N,)) if y == "indices" else torch.randn(N, K).softmax(1).to(dtype)
    if options.pop("linear_bias", False):
        options["linear_bias"] = b
    if options.pop("weight", False):
        options["weight"] = torch.rand(K).to(dtype)
    return [x, W, target], options


def loss_and_gradients(args: list[Tensor], options: dict[str, Any], factor: float = 1.0) -> list[Tensor]:
    learning = [t for t in (*args, options.get("linear_bias")) if isinstance(t, Tensor) and t.requires_grad]
    C = F.linear_cross_entropy(*args, **options)
    return [C.detach(), *torch.autograd.grad(C * factor if factor != 1 else C, learning)]


def is_ahead(C: Tensor) -> bool:
    node = C.grad_fn
    while node is not None and "Ahead" not in node.name():
        node = next((parent for parent, _ in node.next_functions), None)
    return node is not None


def by_the_rule(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ahead, "_suits", lambda *_: False)
    patch.setattr(dispatch, "LARGE", {})


@pytest.mark.parametrize("factor", [1.0, -3.0])
@pytest.mark.parametrize("frozen", ["none", "x", "W"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_numbers_are_the_rule_s(name: str, frozen: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    args, options = arguments(torch.float64, **OPTIONS[name])
    if frozen != "none":
        args["xW".index(frozen)].requires_grad_(False)
    assert is_ahead(F.linear_cross_entropy(*args, **options))
    ours = loss_and_gradients(args, options, factor)
    by_the_rule(monkeypatch)
    torch.testing.assert_close(ours, loss_and_gradients(args, options, factor), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_low_precision_is_rounded_once(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    args, options = arguments(dtype, **OPTIONS[name])
    ours = loss_and_gradients(args, options, 3.0)
    by_the_rule(monkeypatch)
    wide = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in args]
    of_wide = {
        k: v.detach().double().requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v
        for k, v in options.items()
    }
    plain, exact = loss_and_gradients(args, options, 3.0), loss_and_gradients(wide, of_wide, 3.0)
    for mine, formula, right in zip(ours, plain, exact, strict=True):
        ulp = torch.finfo(dtype).eps * right.abs().max()
        bound = max(2 * float((formula - right).abs().max()), 4 * float(ulp) if dtype == torch.float32 else float(ulp))
        assert mine.dtype == formula.dtype
        assert (mine - right).abs().max() <= bound


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    args, options = arguments(torch.float64)
    C = F.linear_cross_entropy(*args, **options)
    first = torch.autograd.grad(C, args[:2], retain_graph=True)
    expected = [t.clone() for t in first]
    for t in first:
        t.mul_(7)  # whoever has a gradient may write over it
    C.backward(retain_graph=True)
    (2 * C).backward()
    for t, g in zip(args[:2], expected, strict=True):
        torch.testing.assert_close(t.grad, 3 * g, rtol=1e-14, atol=1e-15)


def test_a_weight_that_is_used_twice_adds_both_gradients() -> None:
    (x, W, y), _ = arguments(torch.float64)
    loss = [F.linear_cross_entropy(x, W, y), (W**2).sum()]
    sum(loss).backward()  # type: ignore[union-attr]
    dW = torch.autograd.grad(F.linear_cross_entropy(x, W, y), W)[0]
    torch.testing.assert_close(W.grad, dW + 2 * W, rtol=1e-13, atol=1e-14)


def test_what_changes_in_between_is_refused() -> None:
    (x, W, y), _ = arguments(torch.float64)
    C = F.linear_cross_entropy(x, W, y)
    with torch.no_grad():
        W.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        C.backward()


def test_more_than_a_backward_pass_is_the_rule_s() -> None:
    """Second derivatives, forward mode, batches of gradients, torch.func, samples one by one, and no gradient."""
    (x, W, y), _ = arguments(torch.float64)

    def C(x: Tensor, W: Tensor) -> Tensor:
        return F.linear_cross_entropy(x, W, y)

    assert torch.autograd.gradgradcheck(C, (x, W))
    assert torch.autograd.gradcheck(C, (x, W), check_forward_ad=True, check_batched_grad=True)
    dx, dW = torch.autograd.grad(C(x, W), (x, W))
    for by_func in (torch.func.grad(C, (0, 1)), torch.func.jacrev(C, (0, 1)), torch.func.jacfwd(C, (0, 1))):
        torch.testing.assert_close(by_func(x, W), (dx, dW), rtol=1e-12, atol=1e-14)
    assert not is_ahead(F.linear_cross_entropy(x, W, y, reduction="none"))
    learns = torch.randn(N, K, dtype=torch.float64).softmax(1).requires_grad_()
    assert not is_ahead(F.linear_cross_entropy(x, W, learns))
    with torch.no_grad():
        assert C(x, W).grad_fn is None


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("y", ["indices", "probabilities"])
def test_without_gradients_it_is_the_rule(y: str, reduction: str) -> None:
    (x, W, target), _ = arguments(torch.float64, y)
    for n in (0, 1, N):
        expected = torch_functional.cross_entropy(torch_functional.linear(x[:n], W), target[:n], reduction=reduction)
        with torch.no_grad():
            ours = F.linear_cross_entropy(x[:n], W, target[:n], reduction=reduction)
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-12, atol=1e-14, equal_nan=True)
        again = F.linear_cross_entropy(x[:n], W, target[:n], reduction=reduction)
        torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_the_scores_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, W, y), _ = arguments(torch.float64)
    F.linear_cross_entropy(x, W, y).backward()
    monkeypatch.setattr(rules, "linear_cross_entropy_gradients", None)
    F.linear_cross_entropy(x, W, y).backward()
    with pytest.raises(TypeError):
        torch.autograd.grad(F.linear_cross_entropy(x, W, y), x, create_graph=True)


@pytest.mark.parametrize("samples", [4, N])
def test_no_more_bytes_are_kept_than_torch_s(samples: int) -> None:
    """Gradients of W that are more than the scores are not made before they are asked for."""
    (x, W, y), _ = arguments(torch.float32)
    x, y = x.detach()[:samples].clone().requires_grad_(), y[:samples]
    kept: list[dict[int, int]] = []
    for function in (F.linear_cross_entropy, lambda x, W, y: torch.nn.functional.cross_entropy(x @ W.t(), y)):
        sizes: dict[int, int] = {}

        def pack(t: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[t.data_ptr()] = t.untyped_storage().nbytes()
            return t

        with saved_tensors_hooks(pack, lambda t: t):
            C = function(x, W, y)
        assert samples == N or not is_ahead(C)
        kept.append(sizes)
        del C
    assert sum(kept[0].values()) <= sum(kept[1].values())


PEAK = """
import gc, json, torch
from torch_manualbp import functional as F
from torch_manualbp.bench.memory import _forget_peak, _peak
for factor in (1, 1, 3):
    x, W = (torch.randn(n, 512, requires_grad=True) for n in (2048, 32000))
    y = torch.randint(32000, (2048,))
    gc.collect()
    knows = _forget_peak()
    before = _peak()
    C = F.linear_cross_entropy(x, W, y)
    (C * factor if factor != 1 else C).backward()
    peak = _peak() - before
    print(json.dumps([knows, peak]))
    del x, W, y, C
"""


@pytest.mark.slow
def test_the_peak_of_a_vocabulary() -> None:
    """2048 samples, 512 features, 32,000 classes: the scores alone are 262 MB, ∂C/∂W 66 MB."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PEAK], env=environment, capture_output=True, text=True, check=True)
    _, *later = map(json.loads, done.stdout.splitlines())
    if not later[0][0]:
        pytest.skip("this system cannot forget a peak")
    assert all(0 < peak <= 150e6 for _, peak in later)
