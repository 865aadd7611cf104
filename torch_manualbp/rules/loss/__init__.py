"""The rules of the losses: s is the network's output, y the target, C the cost.

The loss C_i of each entry or sample is reduced to C: ``"none"`` keeps the C_i, ``"sum"`` adds them, ``"mean"`` divides
the sum by n. The upstream gradient g = ∂(what follows)/∂C is mostly 1; it has the shape of C: () after a reduction, the
shape of the C_i without.
"""

from torch_manualbp.rules.loss.classification import CrossEntropy, CrossEntropyProbabilities, cross_entropy_gradient
from torch_manualbp.rules.loss.regression import MeanSquaredError, squared_error_gradient

__all__ = [
    "CrossEntropy",
    "CrossEntropyProbabilities",
    "MeanSquaredError",
    "cross_entropy_gradient",
    "squared_error_gradient",
]
