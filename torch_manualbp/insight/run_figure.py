"""The class of :func:`torch_manualbp.insight.draw`'s figures. Importing it loads matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from torch_manualbp import _html

__all__ = ["RunFigure"]

SCREEN_DPI = 80
"""The image has twice as many, as fine screens have."""


class RunFigure(Figure):
    """A figure of matplotlib. A notebook displays it as an image, without pyplot, too."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, dpi=2 * SCREEN_DPI, format="png")
        return image.getvalue()

    def _repr_html_(self) -> str:
        titles = ", ".join(axes.get_title() for axes in self.axes)
        width = SCREEN_DPI * self.get_figwidth()
        return _html.section(_html.image(self._repr_png_(), f"The statistics of a run: {titles}", width))
