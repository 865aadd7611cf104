"""The report page: one HTML file that shows a backpropagation."""

from torch_manualbp.insight.page.make import report

__all__ = ["report"]
