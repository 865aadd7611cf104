"""Dead and saturated units, by the slope f'(z) of the activations that act on each entry alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import AnyBatchNorm, AnyConvolution, AnyInstanceNorm
from torch_manualbp.catalogue.called import OfModule
from torch_manualbp.insight.record import Call

__all__ = ["dead_and_saturated", "of_this_process", "spread", "unit_dim"]

CHANNELS_SECOND = (AnyBatchNorm, torch.nn.GroupNorm)

SATURATED = 0.05
"""A share of the activation's greatest slope."""

SLOPES = 1 << 14
"""Numbers, of at least 16 samples, that the share of saturated units is estimated from."""

Function = Callable[[Tensor], Tensor]


def dead_and_saturated(
    layers: Mapping[str, Sequence[Call]], unit_dims: Mapping[str, int]
) -> Iterator[tuple[str, str, Tensor]]:
    """(layer, ``"dead"`` or ``"saturated"``, share) of the layers that such an activation follows.

    ::

        dead        share of units with f'(z) = 0 on every sample
        saturated   share of z with |f'(z)| < 5 % of the greatest |f'|, of evenly spread samples

    Args:
        layers: the calls of each.
        unit_dims: the dimension of z that a layer's units lie along.
    """
    calls = [(name, call) for name, of_layer in layers.items() for call in of_layer if _has_slope(call)]
    zs = [of_this_process(call.z) for _, call in calls]
    few = [spread(z, max(SLOPES // max(z[:1].numel(), 1), 16)) for z in zs]
    found = _slopes([(call.f, z) for (_, call), z in zip(calls, few, strict=True)])
    there = [i for i, slope in enumerate(found) if slope is not None]
    calls, zs, few = [calls[i] for i in there], [zs[i] for i in there], [few[i] for i in there]
    slopes = [slope for slope in found if slope is not None]
    learns = [_learning_units(slope, unit_dims[name]) for (name, _), slope in zip(calls, slopes, strict=True)]
    # Some of the others may learn from a sample that was left out.
    again = [i for i in range(len(calls)) if few[i] is not zs[i] and not learns[i].all()]
    for i, slope in zip(again, _slopes([(calls[i][1].f, zs[i]) for i in again]), strict=True):
        if slope is not None:
            learns[i] = _learning_units(slope, unit_dims[calls[i][0]])
    for name in dict.fromkeys(name for name, _ in calls):
        own = [i for i, (other, _) in enumerate(calls) if other == name]
        if len({learns[i].shape for i in own}) == 1:  # otherwise they are no units, as of somebody's own convolution
            yield name, "dead", 1 - torch.stack([learns[i] for i in own]).any(0).float().mean()
        limits = [(i, SATURATED * _greatest_slope(calls[i][1].f, few[i], slopes[i])) for i in own]
        yield name, "saturated", torch.stack([(slopes[i] < limit).float().mean() for i, limit in limits]).mean()


def of_this_process(t: Tensor) -> Tensor:
    """The share of this process of a tensor that is spread over several, which takes no exchange with the others."""
    if type(t) is Tensor or not hasattr(t, "to_local"):  # as DTensor has, whose import takes long
        return t
    share: Tensor = t.to_local()
    return share


def spread(t: Tensor, n: int) -> Tensor:
    """At most n of its samples, evenly spread."""
    return t[:: -(-t.shape[0] // n)] if t.dim() > 1 and t.shape[0] > n else t


def unit_dim(module: Module) -> int:
    """The dimension of a layer's z that its units lie along."""
    if isinstance(module, AnyConvolution):
        return -1 - len(module.kernel_size)  # from the end, as there may be no batch
    if isinstance(module, AnyInstanceNorm):
        return -module._get_no_batch_dim()
    return 1 if isinstance(module, CHANNELS_SECOND) else -1


def _has_slope(call: Call) -> bool:
    is_real = isinstance(call.z, Tensor) and call.z.is_floating_point()
    return call.f is not None and is_real and call.z.numel() > 0


def _slopes(items: Sequence[tuple[Any, Tensor]]) -> list[Tensor | None]:
    """|f'(z)| of each (f, z), None where f acts on more than each entry alone; those of one f at once, since a call
    takes longer than its numbers."""
    groups: dict[Any, list[int]] = {}
    for i, (f, z) in enumerate(items):
        groups.setdefault((f, z.dtype, z.device) if _is_known(f) else i, []).append(i)
    slopes: list[Tensor | None] = [None for _ in items]
    for group in groups.values():
        f, z = items[group[0]]
        if len(group) == 1:
            slopes[group[0]] = _slope_of_module(f, z) if isinstance(f, OfModule) else _slope(f, z)
            continue
        flat = _slope(f, torch.cat([items[i][1].flatten() for i in group]))
        for i, part in zip(group, flat.split([items[i][1].numel() for i in group]), strict=True):
            slopes[i] = part.view(items[i][1].shape)
    return slopes


def _slope(f: Function, z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(f(z).sum(), z)
    return slope.abs()


def _slope_of_module(f: OfModule, z: Tensor) -> Tensor | None:
    """Of somebody's own module, if it acts on each entry alone and draws no random numbers: then a sign before the
    upstream gradient of an entry is the sign of its own gradient, and of nothing else."""
    signs = torch.ones_like(z)
    signs.view(-1)[torch.arange(z.numel(), device=z.device).mul(0.6180339887).frac() < 0.5] = -1  # in no rhythm
    try:
        with torch.random.fork_rng([z.device] if z.is_cuda else []), torch.enable_grad():
            z = z.detach().requires_grad_()
            a, again = f(z), f(z)
            (slope,) = torch.autograd.grad(a.sum(), z)
            (signed,) = torch.autograd.grad((again * signs).sum(), z)
    except Exception:  # whatever it raises on a part of the samples: it has run on them all, and training goes on
        return None
    is_of_entries = a.equal(again) and torch.allclose(signed, signs * slope, rtol=1e-3, equal_nan=True)
    return slope.abs() if is_of_entries else None


def _learning_units(slope: Tensor, unit_dim: int) -> Tensor:
    """Which units let anything through, on any sample."""
    others = [d for d in range(slope.dim()) if d != unit_dim % slope.dim()] if slope.dim() else []
    return (slope != 0).any(others) if others else slope != 0


def _greatest_slope(f: Any, z: Tensor, slope: Tensor) -> Tensor:
    """The greatest slope of the activation between -8 and 8, where all of torch's have theirs."""
    return _greatest_known_slope(f, z.dtype, z.device) if _is_known(f) else slope.max()


def _is_known(f: Any) -> bool:
    """Whether its options are numbers; PReLU's slopes, and what else somebody's own activation holds, are not."""
    try:
        hash(f)
    except TypeError:
        return False
    return not isinstance(f, OfModule) and not any(isinstance(option, Tensor) for option in f.options)


@functools.lru_cache(maxsize=256)
def _greatest_known_slope(f: Function, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _slope(f, torch.linspace(-8, 8, 1601, dtype=dtype, device=device)).max()
