"""The statistics of a run: what they are called, and whether a history has the form that the page takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch_manualbp._text import visible
from torch_manualbp.insight.statistics import STATISTICS

__all__ = ["CHARTS", "EXPLAINED", "SHARES", "Chart", "Moment", "checked", "layers_in", "statistics_in", "title_of"]

SHARES = ("dead", "saturated")


@dataclass(frozen=True)
class Chart:
    """What is drawn of each layer: a dot, and from one quantile to another a band with the median in it."""

    title: str
    meaning: str
    dot: str
    band: tuple[str, str, str] | None = None
    second: str | None = None

    @property
    def names(self) -> list[str]:
        """The statistics in it."""
        return [self.dot, *(self.band or ()), *([self.second] if self.second else [])]


CHARTS = (
    Chart("Local gradients δ", "δ = ∂C/∂z", "delta_norm", ("delta_q05", "delta_q50", "delta_q95")),
    Chart("Gradients of the weights", "∂C/∂W = δᵀ a", "grad_norm", ("grad_q05", "grad_q50", "grad_q95")),
    Chart("Updates next to the weights", "|Δw| / |w|", "update_ratio", ("update_q05", "update_q50", "update_q95")),
    Chart("Dead and saturated units", "shares of all", "dead", second="saturated"),
    Chart("Noise scale", "tr Σ / |G|²", "noise_scale"),
)


EXPLAINED = {
    "delta_norm": "how strongly C answers to the layer's z: where it shrinks from layer to layer, gradients vanish",
    "grad_norm": "how strongly C answers to the weights",
    "update_ratio": "how far a step moves the weights, next to their size; 0.001 is usual",
    "dead": "the share of units with f'(z) = 0 on every sample: nothing comes back through them, so they do not learn",
    "saturated": "the share of the z at which f is almost flat, |f'(z)| below 5 % of its maximum: little comes back",
    "noise_scale": "tr Σ / |G|², how much gradients of single samples differ: a batch much larger gains little; "
    "∞ where they differ too much to see G at all",
}
"""What the columns that a reader needs say."""


@dataclass(frozen=True)
class Moment:
    """The statistics at one step."""

    step: int
    layers: Mapping[str, Mapping[str, float | None]]
    loss: float | None = None
    noise_scale: float | None = None


def checked(history: Any) -> list[Moment]:
    """The history in the order of its steps.

    Raises:
        ValueError: it is of another form; the message says where.
    """
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise ValueError(f"history: it is a list with an entry for each step, and not of class {_kind(history)}")
    return sorted((_moment(entry, f"history[{i}]") for i, entry in enumerate(history)), key=lambda m: m.step)


def _moment(entry: Any, where: str) -> Moment:
    if not isinstance(entry, Mapping) or "step" not in entry or "layers" not in entry:
        raise ValueError(
            f'{where}: it is {{"step": …, "layers": {{name: {{statistic: number}}}}}}, and not {entry!r:.60}'
        )
    step, layers = entry["step"], entry["layers"]
    if isinstance(step, bool) or not isinstance(step, Integral):
        raise ValueError(f"{where}['step']: it is a whole number, and not {step!r:.60}")
    if not isinstance(layers, Mapping) or not all(isinstance(layer, Mapping) for layer in layers.values()):
        raise ValueError(f"{where}['layers']: it is a dictionary of dictionaries, and not {layers!r:.60}")
    found = {
        visible(str(name)): {
            visible(str(what)): _number(v, f"{where}['layers'][{name!r}][{what!r}]") for what, v in layer.items()
        }
        for name, layer in layers.items()
    }
    loss, noise = (_number(entry.get(what), f"{where}[{what!r}]") for what in ("loss", "noise_scale"))
    return Moment(int(step), found, loss, noise)


def _number(value: Any, where: str) -> float | None:
    try:
        if isinstance(value, bool):
            raise TypeError
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: it is a number or None, and not {value!r:.60}") from None


def _kind(value: Any) -> str:
    return type(value).__name__


def layers_in(moments: Sequence[Moment]) -> list[str]:
    """The names of all layers, in the order in which they come."""
    return list(dict.fromkeys(name for moment in moments for name in moment.layers))


def statistics_in(moments: Sequence[Moment]) -> list[str]:
    """The statistics that there are: ours in their order, then the others."""
    found = {what for moment in moments for layer in moment.layers.values() for what in layer}
    return [what for what in STATISTICS if what in found] + sorted(found - STATISTICS.keys())


def title_of(what: str) -> str:
    """What a statistic is called: one that is not ours by its own name."""
    return STATISTICS[what].title if what in STATISTICS else what
