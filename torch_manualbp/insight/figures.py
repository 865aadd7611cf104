"""The statistics of a run as a figure of matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_manualbp._extras import require
from torch_manualbp._files import check_writable, whole_file
from torch_manualbp.insight.page.charts import FLAT

__all__ = ["draw", "refuse_path", "save"]

MOST_IN_LEGEND = 12
"""Layers; of more the first and the last are named."""


def draw(history: Sequence[Mapping[str, Any]], path: str | Path | None = None) -> Any:
    """A figure of matplotlib of four: ‖∂C/∂W‖ by layer and step, |δ| by layer, ‖ΔW‖ / ‖W‖, dead and saturated units.
    A notebook displays it; it is saved to ``path`` if given, whose suffix says the format.

    Args:
        history: of :class:`~torch_manualbp.insight.RunStatistics` or of ``lightning.GradientFlow``.

    Raises:
        ImportError: matplotlib is missing; the message gives the command that installs it.
        OSError: the file cannot be written; what was there before is there still.
        ValueError: the suffix of ``path`` is that of no format.
    """
    if path is not None:
        refuse_path(path)
    require("matplotlib.figure", "plots")
    from torch_manualbp.insight.run_figure import RunFigure

    # Without pyplot, which would keep the figure in a global list and choose a backend for the whole process.
    figure: Any = RunFigure(figsize=(11, 7.5), layout="constrained")
    colormap = require("matplotlib", "plots").colormaps["plasma"]
    layers = list(dict.fromkeys(layer for entry in history for layer in entry["layers"]))
    colors = {layer: colormap(0.7 * i / max(len(layers) - 1, 1)) for i, layer in enumerate(layers)}
    gradients, deltas, updates, units = figure.subplots(2, 2).flat
    lines = _over_steps(gradients, history, colors, "grad_norm")
    gradients.set(title="Gradient norm", ylabel="‖∂C/∂W‖")
    _over_layers(deltas, history, layers)
    deltas.set(title="Local gradients", ylabel="|δ|: 5 %, median, 95 %")
    _over_steps(updates, history, colors, "update_ratio")
    updates.set(title="Update of the weights", ylabel="‖ΔW‖ / ‖W‖")
    for axes in (gradients, deltas, updates):
        _scale(axes)
    _over_steps(units, history, colors, "dead")
    _over_steps(units, history, colors, "saturated", linestyle="--")
    units.set(title="Dead (—) and saturated (– –) units", ylabel="share", ylim=(-0.02, 1.02))
    for axes in (gradients, updates, units):
        axes.set_xlabel("step")
    if lines:
        shown = lines if len(lines) <= MOST_IN_LEGEND else [lines[0], lines[-1]]
        figure.legend(handles=shown, title="layer", loc="outside right upper")
    if path is not None:
        save(figure, path)
    return figure


def save(figure: Any, path: str | Path) -> None:
    """Save a figure of matplotlib in the format of the suffix, as a whole file; missing folders are made."""
    path = _file(path)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=_format(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(picture.getbuffer())


def refuse_path(path: str | Path) -> None:
    """Say before hours of training that no figure can be saved there.

    Raises:
        ImportError: matplotlib is missing; the message gives the command that installs it.
        OSError: the file cannot be written.
        ValueError: its suffix is that of no format.
    """
    path = _file(path)
    known = require("matplotlib.figure", "plots").Figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise ValueError(f"{path}: {path.suffix!r} is the suffix of no figure; there are {', '.join(sorted(known))}")
    check_writable(path, make_folder=True)


def _file(path: str | Path) -> Path:
    """Without a suffix it is a PNG, as for matplotlib."""
    return Path(path) if Path(path).suffix else Path(f"{path}.png")


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def _over_steps(axes: Any, history: Any, colors: Mapping[str, Any], name: str, linestyle: str = "-") -> list[Any]:
    """A line for each layer that has the statistic."""
    lines = []
    for layer, color in colors.items():
        points = [(e["step"], e["layers"][layer][name]) for e in history if name in e["layers"].get(layer, {})]
        if points:
            marker = "o" if len(points) == 1 else None  # a line of one point is not seen
            lines += axes.plot(
                *zip(*points, strict=True), color=color, label=layer, linewidth=1, linestyle=linestyle, marker=marker
            )
    return lines


def _scale(axes: Any) -> None:
    """By order of magnitude, where zeros are gaps; what is of one order of magnitude has an axis that begins at 0."""
    values = [v for line in axes.lines for v in line.get_ydata() if v is not None and 0 < v < math.inf]
    if not values or max(values) < FLAT * min(values):
        axes.set_ylim(0, 1.25 * max(values, default=0.8))
    else:
        axes.set_yscale("log", nonpositive="mask")


def _over_layers(axes: Any, history: Any, layers: Sequence[str]) -> None:
    """The quantiles of |δ| of the first and the last measurement, in the order of the forward."""
    entries = [history[0], history[-1]] if len(history) > 1 else history
    shown = [layer for layer in layers if any("delta_q95" in entry["layers"].get(layer, {}) for entry in entries)]
    quantiles = [
        [[entry["layers"].get(layer, {}).get(f"delta_{q}", math.nan) for layer in shown] for q in ("q05", "q50", "q95")]
        for entry in entries
    ]
    # Zeros, which ReLU lets come, have no logarithm: bands from 0 begin at the lower edge.
    positive = [value for of_entry in quantiles for line in of_entry for value in line if value > 0]
    floor = min(positive, default=1.0) / 2
    for entry, (low, middle, high), color in zip(entries, quantiles, ("tab:gray", "tab:red"), strict=False):
        low, high = ([floor if value == 0 else value for value in line] for line in (low, high))
        places = range(len(shown))
        axes.plot(places, middle, color=color, marker="o", markersize=3, linewidth=1, label=f"step {entry['step']}")
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    layers = shown
    step = -(-len(layers) // MOST_IN_LEGEND) if layers else 1
    axes.set_xticks(range(0, len(layers), step), layers[::step], rotation=30, ha="right")
    if history:
        axes.legend()
