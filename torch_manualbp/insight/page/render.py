"""The page: plain data into templates, everything that it needs in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torch_manualbp._version import __version__
from torch_manualbp.insight.page import charts
from torch_manualbp.insight.page.history import EXPLAINED, Moment, layers_in, statistics_in, title_of
from torch_manualbp.insight.page.numbers import RAISED, for_script, shown
from torch_manualbp.insight.statistics import STATISTICS

if TYPE_CHECKING:
    from torch_manualbp.verify.report import Report

__all__ = ["render"]

PACKAGE = "torch_manualbp.insight.page"
OF_NETWORK = ("model.js", "drawing.js", "panel.js", "controls.js")
NUMERIC = ("error in ulp", "torch's", "relative")
"""Columns of the verification report whose cells sort as numbers."""


def render(
    *,
    title: str,
    about: Sequence[str],
    notes: Sequence[str],
    network: Mapping[str, Any] | None,
    moments: Sequence[Moment],
    are_folded: bool,
    verification: Report | None,
    sequence: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML.

    Args:
        about: what is said below the title, such as the optimizer.
        notes: why something is not shown.
        are_folded: whether the statistics of the layers are seen at a click only.
        network: what :func:`~torch_manualbp.insight.page.data.network_data` gives, for a network that can be drawn.
        sequence: what :func:`~torch_manualbp.insight.page.sequence.sequence_data` gives, for one with attention.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"shown": shown, "for_script": for_script, "raised": lambda n: str(n).translate(RAISED)}
    scripts = ("numbers.js", *(OF_NETWORK if network else ()), "tables.js")
    page: str = environment.get_template("page.html").render(
        title=title,
        about=about,
        notes=notes,
        network=network,
        sequence=sequence,
        layers=_table_of_layers(moments) if moments else None,
        charts=charts.by_layer(moments) if moments else [],
        lines=charts.by_step(moments),
        are_folded=are_folded,
        verification=None if verification is None else _table_of_report(verification),
        style=Markup("\n".join(_own(name) for name in ("style.css", *(("network.css",) if network else ())))),
        script=Markup("\n".join(_own(name) for name in scripts)),
        data=_json({"network": network}),
        version=__version__,
    )
    return page


def _own(name: str) -> str:
    return files(PACKAGE).joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _json(data: Any) -> Markup:
    """JSON that may stand within a script: nothing in it ends the script or begins a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _table_of_layers(moments: Sequence[Moment]) -> dict[str, Any]:
    """A row for each layer with what the last step says of it, and small lines of the way there."""
    found = statistics_in(moments)
    columns = [
        (title_of(what), STATISTICS[what].meaning if what in STATISTICS else "", _is_detail(what)) for what in found
    ]
    rows = []
    for i, name in enumerate(layers_in(moments)):
        values = {what: [m.layers.get(name, {}).get(what) for m in moments] for what in found}
        cells = [(values[what][-1], charts.sparkline(values[what]), _is_detail(what)) for what in found]
        rows.append({"number": i + 1, "name": name, "cells": cells})
    last = moments[-1]
    explained = [(title_of(what), EXPLAINED[what]) for what in found if what in EXPLAINED]
    return {
        "columns": columns,
        "rows": rows,
        "explained": explained,
        "step": last.step,
        "steps": len(moments),
        "loss": last.loss,
        "noise_scale": last.noise_scale,
    }


def _is_detail(what: str) -> bool:
    """Whether it is a quantile, which the charts show, too."""
    return what in STATISTICS and what not in EXPLAINED


def _table_of_report(report: Report) -> dict[str, Any]:
    columns, cells = report.table()
    kinds = ["number" if c in NUMERIC else c if c in ("tensor", "verdict", "hint") else "" for c in columns]
    return {
        "columns": list(zip(columns, kinds, strict=True)),
        "rows": [list(zip(line, kinds, strict=True)) for line in cells],
        "ok": report.ok,
        "sign": report.sign,
        "summary": report.summary(),
        "notes": report.notes,
    }
