"""``report``: write the page of a backpropagation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._files import check_writable, write_text
from torch_manualbp._text import visible
from torch_manualbp._torch import pytree
from torch_manualbp.derive.tape import NotDerivableError
from torch_manualbp.insight.layout import layout_of
from torch_manualbp.insight.page.autograd import MakesOptimizer, Step, drawing_again, step_of
from torch_manualbp.insight.page.data import NotDrawableError, network_data, shapes
from torch_manualbp.insight.page.history import checked
from torch_manualbp.insight.page.sequence import sequence_data
from torch_manualbp.insight.refusals import refuse_compiled
from torch_manualbp.insight.trace import trace

if TYPE_CHECKING:
    from torch_manualbp.verify import Report

__all__ = ["Page", "report"]


BEGINNING = "<!doctype html>"


class Page(type(Path())):  # type: ignore[misc]  # whose class is that of this system's paths
    """The path of a page, which a notebook displays in a frame."""

    def with_segments(self, *segments: Any) -> Path:
        """Its parent, and what else is made of it from Python 3.12 on, are paths and no pages."""
        return Path(*segments)

    def _repr_html_(self) -> str | None:
        from torch_manualbp import _html  # notebooks alone ask for it

        try:
            html = self.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None  # it is no longer there
        return _html.section(_html.frame(html, self.name)) if html.startswith(BEGINNING) else None


@torch.inference_mode(False)
def report(
    model: Module,
    loss: Callable[..., Tensor],
    x: Any,
    y: Any,
    path: str | Path = "report.html",
    *,
    optimizer: MakesOptimizer | None = None,
    lr: float = 0.1,
    verification: Report | bool | None = None,
    history: Any = None,
    title: str | None = None,
    samples: int = 8,
) -> Page:
    """Write a page that shows the backpropagation of ``loss(model(x), y)``: one HTML file without outside resources.

    A chain of layers of up to 200 neurons is drawn neuron by neuron, with the chain of factors of every weight and a
    slider through forward, cost, backward and update. Of a larger one, or where there is a history of a run, the page
    shows the statistics of the layers. Nothing is changed: the optimizer makes its step on copies.

    Args:
        x: a tensor, or a tuple of the model's arguments, or a mapping of them by name.
        y: what the loss takes besides the output.
        path: where the page is written; missing folders are made.
        optimizer: one of the model's parameters, or what makes one of them, such as ``partial(Adam, lr=0.01)``
            (default: SGD).
        lr: ε of the default optimizer.
        verification: what :func:`~torch_manualbp.verify_model` found, or True to run it now.
        history: the statistics of a run, a list of ``{"step": int, "layers": {name: {statistic: number or None}},
            "loss": number or None, "noise_scale": number or None}`` (default: those of this pass; where the neurons
            are drawn, they are to be opened).
        title: of the page.
        samples: so many rows of x are shown one by one; the gradients are those of all of them.

    Raises:
        ValueError: the model is compiled, the loss is not one number, or the history is of another form.
        OSError: the file cannot be written.
    """
    from torch_manualbp.insight.page.render import render  # it loads jinja2

    check_writable(path, make_folder=True)
    refuse_compiled(model)
    moments = [] if history is None else checked(history)
    if samples < 1:
        raise ValueError(f"samples: {samples} is not a number of rows from 1 on")
    x, y = pytree.tree_map_only(Tensor, lambda t: t.clone() if t.is_inference() else t, (x, y))
    name = getattr(loss, "__name__", type(loss).__name__)
    if verification is True:
        from torch_manualbp.verify import verify_model  # it takes as long as all the rest

        verification = verify_model(model, x, y, loss)
    step = step_of(model, loss, x, y, optimizer, lr)
    network, sequence, note = _network(model, loss, x, y, step, name, samples)
    about = [f"{type(model).__name__}, cost {name}", step.optimizer]
    if network is not None:
        network["layout"] = layout_of(network).as_dict()
        count, dtype = network["batch"], network["dtype"]
        about = [shapes(network), *about, f"{count} sample{'' if count == 1 else 's'}, {dtype}"]
    if not moments:
        moments = checked(step.history)
    html = render(
        title=visible(title or f"Backpropagation of {type(model).__name__}"),
        about=about,
        notes=[note] if note else [],
        network=network,
        moments=moments,
        are_folded=network is not None and not history,
        verification=verification or None,
        sequence=sequence,
    )
    page = Page(path)
    Path(page).parent.mkdir(parents=True, exist_ok=True)
    write_text(page, html)
    return page


def _network(
    model: Module, loss: Callable[..., Tensor], x: Any, y: Any, step: Step, cost: str, samples: int
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """What is drawn, or None, what is shown of attention in its place, or None, and why it is not drawn."""
    try:
        with drawing_again(model):
            passed = trace(*copy.deepcopy((model, loss)), x, y)  # batch norm would count the pass
    except NotDerivableError as error:
        places = "; ".join(f"{path or 'the model itself'}: {what}" for path, what, _ in error.problems)
        return None, None, f"It is not drawn neuron by neuron: {places}."
    try:
        return network_data(passed, step, cost=cost, samples=samples), None, ""
    except NotDrawableError as error:
        sequence = sequence_data(passed, model, loss, step.gradients)
        shown = "what its attention does, and " if sequence else ""
        return None, sequence, f"{error} Here are {shown}its layers."
