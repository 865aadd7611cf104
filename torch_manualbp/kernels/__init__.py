"""How formulas are evaluated: as they stand, in cache-sized blocks, compiled, or by kernels that a measurement earned.

A kernel computes what a formula of :mod:`torch_manualbp.rules` says, and is held to it by tests. Without this package
the rules are as right, and slower on large tensors.
"""

from torch_manualbp.kernels import (
    ahead,
    attention,
    attention_steps,
    convolution,
    ctc,
    dispatch,
    elementwise,
    embedding,
    losses,
    norm,
    products,
    projected,
    recurrent,
    softmax,
)
from torch_manualbp.kernels.compiled import compile_formulas
from torch_manualbp.kernels.products import use_onednn
from torch_manualbp.rules.rule import evaluate_by

__all__ = [
    "ahead",
    "attention",
    "attention_steps",
    "compile_formulas",
    "convolution",
    "ctc",
    "elementwise",
    "embedding",
    "losses",
    "norm",
    "products",
    "projected",
    "recurrent",
    "softmax",
    "use_onednn",
]

evaluate_by(dispatch.dispatch)
