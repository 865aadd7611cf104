"""Mistakes planted in correct rules and in Functions as people write them: what verification must find.

Each of ``MISTAKES`` has the wrong target, its correct twin, and inputs for both; ``torch-manualbp verify --self-test``
holds :func:`~torch_manualbp.verify`, ``torch.autograd.gradcheck`` and ``torch.allclose`` against all of them. Each of
``BREACHES`` is a rule that breaks what the contract says that it owes; those of layers stand in ``.layers``.
"""

import importlib

from torch_manualbp.verify.mistakes.mistake import BREACHES, KINDS, MISTAKES, Breach, Mistake

__all__ = ["BREACHES", "KINDS", "MISTAKES", "Breach", "Mistake"]

for topic in (
    "linear",
    "convolution",
    "pooling",
    "resampling",
    "activation",
    "curves",
    "along",
    "attention",
    "embedding",
    "loss",
    "entropy",
    "margin",
    "projected",
    "norm",
    "order",
    "edges",
    "surroundings",
    "ctc",
    "recurrent",
    "structure",
    "entrywise",
    "reduction",
    "arrangement",
    "special",
    "rules",
):
    importlib.import_module(f"{__name__}.{topic}")  # which lists what stands in it
