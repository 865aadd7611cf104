"""Layers in their surroundings: what people do with a layer of ``torch.nn``, done with ours and held to torch's.

``LAYERS`` has every class of ``torch_manualbp.nn`` that is ours with its torch twin and the inputs of a call,
``CHECKS`` the claims: each is a function of a :class:`Layer` that raises AssertionError where the layer breaks it, or
:class:`~torch_manualbp.verify.contract.DoesNotApply` with the reason. ``print(surroundings_matrix())`` shows all.
"""

from torch_manualbp.verify.surroundings.check import Check, run
from torch_manualbp.verify.surroundings.layers import LAYERS, Layer, compare, layers, ours, results
from torch_manualbp.verify.surroundings.matrix import CHECKS, surroundings_matrix

__all__ = [
    "CHECKS",
    "LAYERS",
    "Check",
    "Layer",
    "compare",
    "layers",
    "ours",
    "results",
    "run",
    "surroundings_matrix",
]
