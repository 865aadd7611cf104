"""The report page: one HTML file that shows a backpropagation."""

from torch_manualbp.insight.page.report import report

__all__ = ["report"]
