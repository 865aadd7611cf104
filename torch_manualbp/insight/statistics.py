"""What becomes of every layer in a run: the size of δ, of ∂C/∂W and of the update, dead and saturated units, noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_manualbp.insight.local import own_parameters
from torch_manualbp.insight.noise import noise, product_norm
from torch_manualbp.insight.record import Call
from torch_manualbp.insight.units import of_this_process, spread

__all__ = ["STATISTICS", "Statistic", "Summary", "Weights", "as_numbers", "layer_statistics", "summary"]


class Statistic(NamedTuple):
    """What a statistic of a layer is called in tables, and what it is."""

    title: str
    meaning: str


STATISTICS: dict[str, Statistic] = {
    "delta_norm": Statistic("‖δ‖", "‖δ‖, δ = ∂C/∂z of all samples"),
    "delta_q05": Statistic("|δ| 5 %", "5 % of |δ| are below"),
    "delta_q50": Statistic("|δ| 50 %", "the median of |δ|"),
    "delta_q95": Statistic("|δ| 95 %", "95 % of |δ| are below"),
    "grad_norm": Statistic("‖∂C/∂W‖", "‖∂C/∂W‖, as it is before clipping"),
    "grad_q05": Statistic("|∂C/∂w| 5 %", "5 % of |∂C/∂w| are below"),
    "grad_q50": Statistic("|∂C/∂w| 50 %", "the median of |∂C/∂w|"),
    "grad_q95": Statistic("|∂C/∂w| 95 %", "95 % of |∂C/∂w| are below"),
    "update_ratio": Statistic("‖ΔW‖ / ‖W‖", "‖ΔW‖ / ‖W‖, ΔW what the step changed"),
    "update_q05": Statistic("|Δw|/|w| 5 %", "5 % of |Δw| / |w| are below"),
    "update_q50": Statistic("|Δw|/|w| 50 %", "the median of |Δw| / |w|"),
    "update_q95": Statistic("|Δw|/|w| 95 %", "95 % of |Δw| / |w| are below"),
    "dead": Statistic("dead", "share of units with f'(z) = 0 on every sample"),
    "saturated": Statistic("saturated", "share of the z with |f'(z)| below 5 % of its maximum"),
    "noise_scale": Statistic("noise scale", "tr Σ / |G|² of the per-sample gradients, over the last measurements"),
}
"""The statistics of a layer by name, in the order of the columns of a table."""

QUANTILES = (0.05, 0.5, 0.95)
SAMPLED = 1 << 9
"""Numbers that quantiles are taken of, evenly spread over the tensor: to sort a million takes as long as a step."""

NOISY_SAMPLES, NOISY_ROWS = 128, 4096
"""Samples that the noise is estimated from, and their rows in all, evenly spread over the batch."""

COMPARED = 1 << 16
"""Numbers of a weight that are compared with those before the update; of a larger one evenly spread rows."""


@dataclass(frozen=True)
class Summary:
    """A tensor in a few numbers: a ``reduce`` for :func:`~torch_manualbp.local_gradients`."""

    norm: float
    mean: float
    std: float
    q05: float
    """5 % of the absolute values are below."""
    q50: float
    q95: float
    zeros: float
    """The share of zeros."""
    nonfinite: int
    """How many numbers are NaN or infinite."""

    def __str__(self) -> str:
        return f"‖·‖ {self.norm:.4g}, |·| {self.q05:.2g} … {self.q50:.2g} … {self.q95:.2g}, {self.zeros:.0%} zeros"


def summary(t: Tensor) -> Summary:
    """The norm, mean and standard deviation of a tensor, quantiles of its absolute values (of at most 512, evenly
    spread), the share of zeros and the number of those that are not finite. Empty, they are NaN and 0."""
    t = _wide(t)
    if t.numel() == 0:
        norm, (mean, std, q05, q50, q95, zeros) = 0.0, [math.nan] * 6
    else:
        quantiles = _quantiles(_sampled(t).reshape(1, -1))[0]
        numbers = [_norm(t), t.mean(), t.std(correction=0), *quantiles, (t == 0).double().mean()]
        norm, mean, std, q05, q50, q95, zeros = torch.stack([n.double() for n in numbers]).tolist()
    return Summary(norm, mean, std, q05, q50, q95, zeros, int((~t.isfinite()).sum()))


class Weights:
    """The weights of the layers as they are now, to compare with what an update makes of them.

    Args:
        layers: names and modules; of each its ``weight``, or else its largest parameter.
    """

    def __init__(self, layers: Mapping[str, Module]) -> None:
        self.of_layers = {name: W for name, m in layers.items() if (W := weight_of(m)) is not None}
        self._before = {name: _compared(W).clone() for name, W in self.of_layers.items()}

    def updates(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """``update_ratio``, and as ``update`` the Δw / w that quantiles are to be of."""
        before = _wide(self._before[name])
        change = _wide(_compared(self.of_layers[name])) - before
        yield "update_ratio", _norm(change) / _norm(before)
        some = _sampled(change)
        # The row of a padding_idx, and what is pruned, are 0 and stay so: 0 / 0 would be the 95 % quantile.
        yield "update", (some / _sampled(before)).masked_fill(some == 0, 0).flatten()


def layer_statistics(
    calls: Sequence[Call],
    gradient: Tensor | None,
    has_bias: bool,
    is_linear: bool,
    learns: bool,
    scale: float = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """The statistics of a layer that one pass forward and back gives, as tensors of no dimension.

    Args:
        calls: those of the layer that a gradient came back to.
        gradient: ∂C/∂W; without it that of a linear layer is worked out from δ and x.
        has_bias: whether the layer has one, for the noise.
        is_linear: whether ∂C/∂W = δᵀ x.
        learns: whether it is to have noise: that of frozen weights has no part in any update.
        scale: what the loss was multiplied by.

    Yields:
        names of ``STATISTICS`` and their numbers; of the noise ``noise_trace`` and ``noise_square``, tr Σ and |G|²; as
        ``delta`` and ``grad`` the numbers that quantiles are to be of, see :func:`as_numbers`.
    """
    deltas = [_wide(call.delta) / scale if scale != 1 else _wide(call.delta) for call in calls]
    if not any(d.numel() for d in deltas):
        return
    yield "delta_norm", _norm_of_all(deltas)
    yield "delta", torch.cat([_sampled(d).flatten() for d in deltas])
    rows = _rows(calls, deltas) if is_linear else None
    square_of_all = None
    if learns and rows is not None and rows[0].dim() > 1 and rows[0].shape[0] > 1:
        some = tuple(map(_some_samples, rows))
        trace, square, of_weight = noise(some[0], some[1], has_bias)
        square_of_all = of_weight if some[0] is rows[0] else None
        if square_of_all is None:
            # δ is that of a mean over all samples; other layers, whose samples have other rows, have others left out.
            share = (rows[0].shape[0] / some[0].shape[0]) ** 2
            trace, square = trace * share, square * share
        yield "noise_trace", trace
        yield "noise_square", square
    if gradient is not None:
        gradient = _wide(gradient)
        yield "grad_norm", _norm(gradient)
        yield "grad", _sampled(gradient).flatten()
    elif rows is not None:
        square = product_norm(*rows) if square_of_all is None else square_of_all
        yield "grad_norm", square.clamp(min=0).sqrt()  # rows that cancel leave what rounding does, of either sign
        yield "grad", _some_of_product(*rows).flatten()


def weight_of(module: Module) -> Tensor | None:
    """Its ``weight``, or the largest of what a parametrization makes that of, or else its largest parameter; None of
    what is not one dense tensor of this process, or has no shape yet."""
    own = {name: p for name, p in own_parameters(module).items() if not is_lazy(p)}
    of_weight = [p for name, p in own.items() if name.split(".")[0] == "weight"]
    W = max(of_weight or own.values(), key=Tensor.numel, default=None)
    return W if W is not None and type(W.data) is Tensor and W.layout is torch.strided and W.numel() else None


def _rows(calls: Sequence[Call], deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """δ and x of the calls, one after another: of one forward they are more rows of the same samples, and of several
    more samples."""
    if any(call.is_transformed or call.is_differentiated for call in calls):
        return None  # their ∂C/∂W is another, or their samples lie elsewhere
    batches: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for call, d in zip(calls, deltas, strict=True):
        x = of_this_process(call.x) if isinstance(call.x, Tensor) else None
        if x is None or x.shape[:-1] != d.shape[:-1] or d.is_complex():
            return None
        batches.setdefault(call.batch, []).append((d, _wide(x)))
    of_batches = [_of_one_forward(pairs) for pairs in batches.values()]
    if len(of_batches) == 1:
        return of_batches[0]
    all_rows = [rows for rows in of_batches if rows is not None and rows[0].dim() > 1]
    if len(all_rows) < len(of_batches) or len({rows[0].shape[1:] for rows in all_rows}) > 1:
        return None
    return torch.cat([delta for delta, _ in all_rows]), torch.cat([x for _, x in all_rows])


def _of_one_forward(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    if len(pairs) == 1:
        return pairs[0]
    n = pairs[0][0].shape[:1].numel()
    if any(d.dim() < 2 or d.shape[0] != n for d, _ in pairs):
        return None
    delta, x = (
        torch.cat([t.reshape(n, t.shape[1:-1].numel(), t.shape[-1]) for t in tensors], 1)
        for tensors in zip(*pairs, strict=True)
    )
    return delta, x


def _some_samples(t: Tensor) -> Tensor:
    rows = t.shape[1:-1].numel()
    return spread(t, min(NOISY_SAMPLES, max(NOISY_ROWS // max(rows, 1), 2)))


def _some_of_product(delta: Tensor, x: Tensor) -> Tensor:
    """The entries of δᵀ x that ``_sampled`` would take of it."""
    delta, x = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (delta, x))
    row, column = _steps(delta.shape[1], x.shape[1])
    return delta[:, ::row].T @ x[:, ::column]


def _compared(W: Tensor) -> Tensor:
    """The numbers of a weight, or evenly spread rows of a large one."""
    W = W.detach()
    step = -(-W.numel() // COMPARED)
    return W[:: min(step, W.shape[0])] if step > 1 and W.dim() > 1 else W


def _sampled(t: Tensor) -> Tensor:
    """A grid of the numbers. Evenly spread over its memory, of a large matrix they would lie in as many pages."""
    rows = t.reshape(t.shape[:-1].numel(), t.shape[-1]) if t.dim() else t.reshape(1, 1)
    row, column = _steps(*rows.shape)
    return rows[::row, ::column]


def _steps(rows: int, columns: int) -> tuple[int, int]:
    """From one row, and from one column, of the grid to the next."""
    side = math.isqrt(SAMPLED)
    of_rows = min(rows, max(side, SAMPLED // max(columns, 1)))
    of_columns = min(columns, SAMPLED // max(of_rows, 1))
    return max(-(-rows // max(of_rows, 1)), 1), max(-(-columns // max(of_columns, 1)), 1)


def as_numbers(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, float]]:
    """The statistics of all layers, with the quantiles of what is to have them.

    What is of one size is sorted together (nine times 512 numbers take 150 µs, and one by one 500), and all comes over
    from the device at once.
    """
    numbers = {name: {k: t for k, t in of_layer.items() if t.dim() == 0} for name, of_layer in layers.items()}
    vectors = ((name, k, t) for name, of_layer in layers.items() for k, t in of_layer.items() if t.dim())
    samples = [(numbers[name], k, t) for name, k, t in vectors if t.numel()]
    for size in {t.numel() for *_, t in samples}:
        alike = [item for item in samples if item[2].numel() == size]
        of_all = _quantiles(torch.stack([_wide(t) for *_, t in alike]))
        for (of_layer, kind, _), (q05, q50, q95) in zip(alike, of_all, strict=True):
            of_layer |= {f"{kind}_q05": q05, f"{kind}_q50": q50, f"{kind}_q95": q95}
    flat = [t.double() for of_layer in numbers.values() for t in of_layer.values()]
    values = iter(torch.stack(flat).tolist() if flat else [])
    return {name: {k: next(values) for k in of_layer} for name, of_layer in numbers.items() if of_layer}


def _quantiles(rows: Tensor) -> Tensor:
    """Quantiles of the absolute values of each row, to the nearest number; NaN counts as the largest."""
    ranks = [round(q * (rows.shape[1] - 1)) for q in QUANTILES]
    return rows.abs().sort(1).values[:, ranks]


def _norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t)


def _norm_of_all(tensors: Iterable[Tensor]) -> Tensor:
    return _norm(torch.stack([_norm(t) for t in tensors]))


def _wide(t: Tensor) -> Tensor:
    """In no less than float32: the square of a float16 soon overflows."""
    t = of_this_process(t)
    t = t.coalesce().values() if t.is_sparse else t
    return t.to(torch.promote_types(t.dtype, torch.float32))
