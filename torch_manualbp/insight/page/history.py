"""The statistics of a run: what they are called, and whether a history has the form that the page takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CHARTS", "STATISTICS", "Chart", "Moment", "Statistic", "checked", "layers_in", "statistics_in"]


@dataclass(frozen=True)
class Statistic:
    """How a statistic of a layer is headed and explained."""

    title: str
    meaning: str
    is_share: bool = False


def _quantiles(of: str, meaning: str) -> list[Statistic]:
    return [Statistic(f"{of} {p} %", f"{p} % of the entries of {meaning} are smaller") for p in (5, 50, 95)]


def _family(name: str, norm: str, norm_title: str, norm_meaning: str, of: str, meaning: str) -> dict[str, Statistic]:
    q05, q50, q95 = _quantiles(of, meaning)
    return {
        f"{name}_{norm}": Statistic(norm_title, norm_meaning),
        f"{name}_q05": q05,
        f"{name}_q50": q50,
        f"{name}_q95": q95,
    }


STATISTICS: dict[str, Statistic] = {
    **_family("delta", "norm", "‖δ‖", "the length of δ = ∂C/∂z, all samples", "|δ|", "|δ|"),
    **_family("grad", "norm", "‖∂C/∂W‖", "the length of the weights' gradient", "|∂C/∂W|", "|∂C/∂W|"),
    **_family("update", "ratio", "‖ΔW‖ / ‖W‖", "how far a step moves the weights", "|ΔW|/|W|", "|ΔW| / |W|"),
    "dead": Statistic("dead", "the share of units that let no gradient through for any sample", is_share=True),
    "saturated": Statistic("saturated", "the share of entries whose f'(z) is next to nothing", is_share=True),
    "noise_scale": Statistic("noise scale", "tr Σ / |G|²: the batch size at which gradient and noise are alike"),
}
"""By name, in the order of the columns; others come after them under their own names."""


@dataclass(frozen=True)
class Chart:
    """What is drawn of each layer: a dot, and from one quantile to another a band with the median in it."""

    title: str
    meaning: str
    dot: str
    dot_title: str
    band: tuple[str, str, str] | None = None
    second: str | None = None
    second_title: str = ""


CHARTS = (
    Chart("Local gradients δ", "δ = ∂C/∂z", "delta_norm", "‖δ‖", ("delta_q05", "delta_q50", "delta_q95")),
    Chart("Gradients of the weights", "∂C/∂W = δᵀ a", "grad_norm", "‖∂C/∂W‖", ("grad_q05", "grad_q50", "grad_q95")),
    Chart(
        "Updates next to the weights", "|ΔW| / |W|", "update_ratio", "‖ΔW‖ / ‖W‖",
        ("update_q05", "update_q50", "update_q95"),
    ),
    Chart("Dead and saturated units", "shares of all", "dead", "dead", second="saturated", second_title="saturated"),
    Chart("Noise scale", "tr Σ / |G|²", "noise_scale", "noise scale"),
)  # fmt: skip


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
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(f"{where}['step']: it is a whole number, and not {step!r:.60}")
    if not isinstance(layers, Mapping) or not all(isinstance(layer, Mapping) for layer in layers.values()):
        raise ValueError(f"{where}['layers']: it is a dictionary of dictionaries, and not {layers!r:.60}")
    found = {
        str(name): {str(what): _number(v, f"{where}['layers'][{name!r}][{what!r}]") for what, v in layer.items()}
        for name, layer in layers.items()
    }
    loss, noise = (_number(entry.get(what), f"{where}[{what!r}]") for what in ("loss", "noise_scale"))
    return Moment(step, found, loss, noise)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        return math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: it is a number or None, and not {value!r:.60}") from None


def _kind(value: Any) -> str:
    return type(value).__name__


def layers_in(moments: Sequence[Moment]) -> list[str]:
    """The names of all layers, in the order in which they come."""
    return list(dict.fromkeys(name for moment in moments for name in moment.layers))


def statistics_in(moments: Sequence[Moment]) -> list[str]:
    """The statistics that there are: those that have a title in its order, then the others."""
    found = {what for moment in moments for layer in moment.layers.values() for what in layer}
    return [what for what in STATISTICS if what in found] + sorted(found - STATISTICS.keys())
