"""The products that a step is made of, found in a stock step, and made alone: into memory that is there."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from torch_manualbp._torch import TorchDispatchMode
from torch_manualbp.kernels.products import onednn_linear

__all__ = ["products_of"]

Product = Callable[[], Any]


class _Seen(TorchDispatchMode):
    """What is called below autograd."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func._schema.name.removeprefix("aten::"), args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Memory:
    """Tensors of shapes and strides, of numbers that are no special ones: one for all operands that are alike."""

    def __init__(self) -> None:
        self._operands: dict[Any, Tensor] = {}
        self._results: dict[Any, Tensor] = {}

    def operand(self, t: Tensor) -> Tensor:
        key = (*t.shape,), t.stride()
        if key not in self._operands:
            # of what is expanded, such as the gradient of a sum, a product reads all the same
            self._operands[key] = torch.empty_strided(t.shape, t.stride()).normal_(std=0.1)
        return self._operands[key]

    def result(self, *shape: int) -> Tensor:
        return self._results.setdefault(shape, torch.empty(shape))


def products_of(once: Callable[[], None], recurrent: int = 0, best: bool = False) -> list[Product]:
    """The products of ``once``, in their order: of matrices, convolutions with their transposes and correlations, those
    of attention, of which a causal one has half, and those of an LSTM of so many time steps.

    Args:
        best: of each product of matrices take the faster of torch's own kernel and oneDNN's.
    """
    seen = _Seen()
    with seen:
        once()
    memory = _Memory()
    products: list[Product] = []
    for name, args, kwargs in seen.calls:
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            a, b = args[-2:] if name in ("mm", "bmm") else args[1:3]
            products.append(_of_matrices(memory, a, b, best))
        elif name == "convolution":
            operands = [memory.operand(t) for t in args[:2]]
            products.append(_called(torch.ops.aten.convolution, *operands, None, *args[3:]))
        elif name == "convolution_backward":
            operands = [memory.operand(t) for t in args[:3]]
            wanted = [*args[10][:2], False]
            products.append(_called(torch.ops.aten.convolution_backward, *operands, None, *args[4:10], wanted))
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            products += _of_attention(memory, args[:3], _causal(args, kwargs, 4), backward=False)
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            products += _of_attention(memory, args[1:4], _causal(args, kwargs, 7), backward=True)
        elif name == "mkldnn_rnn_layer":
            products += _of_lstm(memory, args[0], args[1], args[2], recurrent, best)
    return products


def _causal(args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> bool:
    return bool(kwargs.get("is_causal", args[place] if len(args) > place else False))


def _called(function: Any, *args: Any) -> Product:
    return lambda: function(*args)


def _of_matrices(memory: _Memory, a: Tensor, b: Tensor, best: bool = False) -> Product:
    a, b = memory.operand(a), memory.operand(b)
    if a.dim() == 3:
        out = memory.result(a.shape[0], a.shape[1], b.shape[2])
        return lambda: torch.bmm(a, b, out=out)
    out = memory.result(a.shape[0], b.shape[1])
    by_torch: Product = lambda: torch.mm(a, b, out=out)  # noqa: E731
    if not best or onednn_linear is None:
        return by_torch
    by_onednn: Product = lambda: onednn_linear(a, b.t(), None, "none", [], "")  # noqa: E731
    return min((by_torch, by_onednn), key=_seconds)


def _seconds(product: Product) -> float:
    """The least of three."""
    product()
    times = []
    for _ in range(3):
        start = perf_counter()
        product()
        times.append(perf_counter() - start)
    return min(times)


def _of_attention(memory: _Memory, qkv: tuple[Tensor, ...], is_causal: bool, backward: bool) -> list[Product]:
    """S = q kᵀ and P v; backward S once more, Pᵀ ∂C/∂o, ∂C/∂o vᵀ, ∂C/∂S k, ∂C/∂Sᵀ q: of half of the heads if causal."""
    q, k, _ = qkv
    count = q.shape[0] * q.shape[1]
    count = max(count // 2, 1) if is_causal else count
    L, S, size = q.shape[2], k.shape[2], q.shape[3]
    of_queries, of_keys = torch.empty(count, L, size), torch.empty(count, S, size)
    pairs = torch.empty(count, L, S)
    made = [(of_queries, of_keys.mT), (pairs, of_keys)]
    if backward:
        made = [made[0], (pairs.mT, of_queries), made[0], (pairs, of_keys), (pairs.mT, of_queries)]
    return [_of_matrices(memory, a, b) for a, b in made]


def _of_lstm(memory: _Memory, x: Tensor, W_x: Tensor, W_h: Tensor, T: int, best: bool) -> list[Product]:
    """x W_xᵀ of all time steps at once, h W_hᵀ of each; backward δ W_h of each, and δ W_x, δᵀ x, δᵀ h of all."""
    rows, n, m = x.numel() // x.shape[-1], x.shape[-1], W_h.shape[1]
    batch = rows // T
    xs, deltas, hs = torch.empty(rows, n), torch.empty(rows, 4 * m), torch.empty(rows, m)
    h, delta = torch.empty(batch, m), torch.empty(batch, 4 * m)
    once = [(xs, W_x.t())], [(deltas, W_x), (deltas.t(), xs), (deltas.t(), hs)]
    forward, backward = ([_of_matrices(memory, a, b, best) for a, b in pairs] for pairs in once)
    return [
        *forward,
        *[_of_matrices(memory, h, W_h.t(), best)] * T,
        *[_of_matrices(memory, delta, W_h, best)] * T,
        *backward,
    ]
