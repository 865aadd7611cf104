"""Layers in their surroundings: what people do with a layer of ``torch.nn``, done with ours and held to torch's.

``LAYERS`` has every class of ``torch_manualbp.nn`` that is ours with its torch twin and the inputs of a call,
``CHECKS`` the claims: each is a function of a :class:`Layer` that raises AssertionError where the layer breaks it, or
:class:`DoesNotApply` with the reason. ``print(surroundings_matrix())`` shows all of both.
"""

from torch_manualbp.verify.surroundings.layers import LAYERS, Layer, compare, layers, ours, results
from torch_manualbp.verify.surroundings.matrix import CHECKS, Matrix, surroundings_matrix
from torch_manualbp.verify.surroundings.outcome import Check, DoesNotApply, Outcome, run

__all__ = [
    "CHECKS",
    "LAYERS",
    "Check",
    "DoesNotApply",
    "Layer",
    "Matrix",
    "Outcome",
    "compare",
    "layers",
    "ours",
    "results",
    "run",
    "surroundings_matrix",
]
