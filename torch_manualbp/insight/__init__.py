"""See the backpropagation.

- :func:`local_gradients`: z, a, δ and ∂C/∂a of every layer, out of ordinary training code
- :class:`RunStatistics`: what becomes of every layer in a run, measured every so many steps
- :func:`draw`: its figures
"""

from torch_manualbp.insight.figures import draw
from torch_manualbp.insight.local import local_gradients
from torch_manualbp.insight.record import Call, Layer, LocalGradients, NotReachedError
from torch_manualbp.insight.run import RunStatistics
from torch_manualbp.insight.statistics import STATISTICS, Summary, summary

__all__ = [
    "STATISTICS",
    "Call",
    "Layer",
    "LocalGradients",
    "NotReachedError",
    "RunStatistics",
    "Summary",
    "draw",
    "local_gradients",
    "summary",
]
