"""See the backpropagation.

- :func:`local_gradients`: z, a, δ and ∂C/∂a of every layer, out of ordinary training code
- :func:`explain`: why the gradient of one weight is what it is, factor by factor
- :func:`picture`: a small network drawn with its numbers
- :func:`report`: a page to look at, with a small network drawn and the statistics of a large one
- :class:`RunStatistics`: what becomes of every layer in a run, measured every so many steps
- :func:`draw`: its figures
"""

from torch_manualbp.insight.explanation import Explanation, explain
from torch_manualbp.insight.figures import draw
from torch_manualbp.insight.local import local_gradients
from torch_manualbp.insight.page import report
from torch_manualbp.insight.page.data import NotDrawableError
from torch_manualbp.insight.picture import Picture, picture
from torch_manualbp.insight.record import Call, Layer, LocalGradients, NotReachedError
from torch_manualbp.insight.run import RunStatistics
from torch_manualbp.insight.statistics import STATISTICS, Summary, summary

__all__ = [
    "STATISTICS",
    "Call",
    "Explanation",
    "Layer",
    "LocalGradients",
    "NotDrawableError",
    "NotReachedError",
    "Picture",
    "RunStatistics",
    "Summary",
    "draw",
    "explain",
    "local_gradients",
    "picture",
    "report",
    "summary",
]
