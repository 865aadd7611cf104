"""The chain of one weight: ``torch_manualbp.explain(model, loss, x, y, "fc2.weight", (1, 1))``.

The mathematics: ``local`` (derivatives between entries), ``chain`` (the products that a weight is in), ``graph``,
``paths`` and ``routes`` (what lies between it and C). The words: ``names``, ``origins`` and ``story``, which make a
:class:`Explanation`; ``document`` puts that in order, and ``text``, ``markdown`` and ``webpage`` write it.
"""

from torch_manualbp.insight.explanation.explain import explain
from torch_manualbp.insight.explanation.result import Explanation, Factor, MatrixChain, MatrixFactor, Path, Sample

__all__ = ["Explanation", "Factor", "MatrixChain", "MatrixFactor", "Path", "Sample", "explain"]
