"""What a page shows of a network that is no chain of layers: attention weights, the residual stream, chains of weights.

All numbers are those of one pass, and each chain is the explanation that :func:`torch_manualbp.explain` prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup
from torch import Tensor
from torch.nn import Module

from torch_manualbp._text import visible
from torch_manualbp.insight.explanation.chain import uses_of
from torch_manualbp.insight.explanation.document import Heading, document
from torch_manualbp.insight.explanation.numbers import digits_of
from torch_manualbp.insight.explanation.story import Story
from torch_manualbp.insight.explanation.webpage import html_of
from torch_manualbp.insight.explanation.weight import find_weight
from torch_manualbp.insight.network import is_of_loss
from torch_manualbp.insight.trace import Quantity, Stage, Trace
from torch_manualbp.rules import Add, Dropout, MatMul, Multiply, Softmax

__all__ = ["sequence_data"]

MOST_POSITIONS, MOST_MAPS, MOST_STOPS, MOST_CHAINS = 24, 16, 48, 60
"""How many positions, heads, places of the residual stream and weights are shown."""


def sequence_data(
    trace: Trace, model: Module, loss: Callable[..., Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """The attention weights with ∂C/∂(them), δ of the residual stream by layer and position, and the chains of the
    strongest weights of each parameter; None where there is no attention.

    Args:
        gradients: autograd's, by the name of the parameter.
    """
    attention = [stage.output for stage in trace.stages if _is_attention(trace, stage)]
    maps = [shown for P in attention for shown in _heads(P)]
    if not maps:
        return None
    return {
        "maps": maps[:MOST_MAPS],
        "count_maps": len(maps),
        "stream": _stream(trace)[:MOST_STOPS],
        "chains": _chains(trace, model, loss, gradients),
    }


def _is_attention(trace: Trace, stage: Stage) -> bool:
    """Whether it makes weights, of positions, with which values are multiplied."""
    P = stage.output
    if stage.rule is not Softmax or is_of_loss(trace, stage) or P.gradient is None or P.tensor.dim() < 3:
        return False
    after = [later for user in P.used_by for later in _beyond(user)]
    return any(later.rule is MatMul and later.args[0].tensor.shape == P.tensor.shape for later in after)


def _beyond(stage: Stage) -> list[Stage]:
    """The stage, or what takes the output of a dropout."""
    return stage.output.used_by if stage.rule in (Dropout, Multiply) else [stage]


def _heads(P: Quantity) -> list[dict[str, Any]]:
    """The weights of each head for the first sample."""
    assert P.gradient is not None
    assert P.made_by is not None
    queries, keys = P.tensor.shape[-2:]
    n = P.tensor.shape[1] if P.tensor.dim() == 4 else 1
    values, gradients = (t.detach().reshape(-1, queries, keys)[:n] for t in (P.tensor, P.gradient))
    where = visible(P.made_by.path or "the model")
    return [
        {
            "title": where + (f", head {h + 1}" if n > 1 else ""),
            "weights": _grid(values[h], 1.0),
            "gradients": _grid(gradients[h], float(gradients.abs().max())),
            "is_cut": max(queries, keys) > MOST_POSITIONS,
        }
        for h in range(len(values))
    ]


def _grid(t: Tensor, largest: float) -> list[list[tuple[float, str, float]]]:
    """The number of each entry, its sign and how strong it is, from 0 to 1."""
    return [[_cell(value, largest) for value in row] for row in t[:MOST_POSITIONS, :MOST_POSITIONS].double().tolist()]


def _cell(value: float, largest: float) -> tuple[float, str, float]:
    share = abs(value) / largest if math.isfinite(value) and largest > 0 and math.isfinite(largest) else 0.0
    return value, "negative" if value < 0 else "positive", round(min(share, 1.0), 3)


def _stream(trace: Trace) -> list[dict[str, Any]]:
    """‖δ‖ of what each sum of two sequences makes, by position, of the first sample, from the last to the first."""
    stops = [stage for stage in trace.stages if _is_stop(trace, stage)]
    sums = {stage.output for stage in stops}
    norms = [stage.output.gradient[0].detach().double().norm(dim=-1) for stage in stops]  # type: ignore[index]
    largest = max((float(norm.max()) for norm in norms), default=0.0)
    return [
        {
            "title": " + ".join("x" if arg in sums else _made_in(arg) for arg in stage.args[:2]),
            "path": visible(stage.path),
            "norms": [_cell(value, largest) for value in norm[:MOST_POSITIONS].tolist()],
        }
        for stage, norm in reversed(list(zip(stops, norms, strict=True)))
    ]


def _is_stop(trace: Trace, stage: Stage) -> bool:
    if stage.rule is not Add or stage.output.mark is not None or is_of_loss(trace, stage):
        return False
    x = stage.output
    are_sequences = all(isinstance(arg, Quantity) for arg in stage.args[:2]) and x.tensor.dim() == 3
    return are_sequences and x.gradient is not None and stage.args[0].tensor.shape == x.tensor.shape


def _made_in(quantity: Quantity) -> str:
    """The module that made it."""
    return visible(quantity.made_by.path if quantity.made_by is not None else quantity.name) or "x"


def _chains(
    trace: Trace, model: Module, loss: Callable[..., Tensor], gradients: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """For each parameter its strongest weights, each with its explanation."""
    learnt = [(name, g) for name, g in gradients.items() if name in trace.parameters and g.numel()]
    each = max(1, min(3, MOST_CHAINS // max(len(learnt), 1)))
    found = []
    for name, g in learnt[:MOST_CHAINS]:
        weights = []
        for flat in g.detach().abs().reshape(-1).topk(min(each, g.numel())).indices.tolist():
            at = [int(i) for i in _index(flat, g.shape)]
            asked = find_weight(model, loss, name, at)
            uses = uses_of(trace, trace.parameters[name], flat)
            if not uses:
                continue
            story = Story(trace, trace.parameters[name], asked, uses, digits_of(g.dtype), None)
            e = story.told(float(g.reshape(-1)[flat]), 1, 3, 1)
            first, *rest = document(e)
            assert isinstance(first, Heading)
            weights.append({"title": Markup(first.content.html), "chain": Markup("").join(map(html_of, rest))})
        if weights:
            found.append({"name": visible(name), "shape": "×".join(map(str, g.shape)), "weights": weights})
    return found


def _index(flat: int, shape: Any) -> list[int]:
    index: list[int] = []
    for n in reversed(shape):
        flat, i = divmod(flat, n)
        index.insert(0, i)
    return index
