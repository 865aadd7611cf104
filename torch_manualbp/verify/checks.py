"""What a user's target is held to, by name, in the order in which the checks run and stand in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from torch_manualbp.verify.check import Check, named
from torch_manualbp.verify.claims import (
    kinks,
    layout,
    memory,
    modes,
    operators,
    order,
    special,
    structure,
    transforms,
    values,
    varied,
)
from torch_manualbp.verify.contract import check
from torch_manualbp.verify.report import ROBUSTNESS, VALUE

__all__ = ["CHECKS", "FOR_A_MATRIX", "Check", "chosen"]

VALUES: dict[str, Any] = {"on_all": True, "compares": True, "error": VALUE}

FEWER_DIGITS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

CHECKS: tuple[Check, ...] = (
    Check("structure", structure.raw_backward, on_all=True, kind=ROBUSTNESS),
    Check("values, float64", values.exact, **VALUES),
    *(replace(c, **VALUES) for c in Check.each("values", values.rounded, FEWER_DIGITS)),
    Check("frozen tensors", structure.frozen),
    Check("unused outputs", order.unused_outputs),
    Check("finite differences", values.finite_differences),
    Check("adjoint identity", order.forward_mode),
    Check("operator", operators.opcheck, kind=ROBUSTNESS),
    Check("tangents of values", operators.tangents_of_values),
    Check("linearity", order.linearity),
    Check("additivity", order.additivity),
    Check("second order", order.second_order, kind=ROBUSTNESS),
    Check("kinks", kinks.kinks),
    Check("special values", special.special_inputs, kind=ROBUSTNESS),
    Check("randomness", memory.randomness),
    Check("saved tensors", memory.saved_tensors),
    Check("layout", layout.any_layout),
    Check("empty batch", layout.without_a_sample, kind=ROBUSTNESS),
    Check("vmap", transforms.vmapped),
    Check("functorch", transforms.functorch),
    Check("checkpoint", memory.checkpointing),
    Check("autocast", transforms.autocast),
    Check("two forwards", modes.two_forwards),
    Check("accumulated gradients", modes.accumulated),
    Check("one tensor twice", modes.one_tensor_twice),
    Check("poisoned memory", modes.poisoned_memory),
    Check("channels last", modes.channels_last),
    Check("mixed dtypes", modes.given_dtypes),
    Check("other mode", modes.in_the_other_mode, varies=True),
    Check("asked whether compiled", modes.asks_the_compiler, varies=True),
    Check("sizes", varied.other_sizes, varies=True),
    Check("dimensions", varied.other_shapes, varies=True),
    Check("options", varied.other_options, varies=True),
    Check("numbers", varied.other_numbers, varies=True),
    Check("fewer digits", varied.in_fewer_digits, varies=True),
    Check("compile", transforms.compiled, slow=True),
)

FOR_A_MATRIX: tuple[Check, ...] = CHECKS + tuple(
    check(name)
    for name in (
        *("gradcheck", "gradgradcheck", "no upstream", "one tensor in two places", "Jacobians", "Hessians", "tangents"),
        *("Hessian-vector products", "per-sample gradients", "ranks 0 to 5", "zero features", "channels last"),
        *("saved-tensor hooks", "meta device", "fake tensors"),
    )
)
"""With what else is claimed of a rule and may be asked of any target, which ``torch-manualbp matrix`` does."""


def chosen(names: Sequence[str] | str | None, left_out: Sequence[str] | str = ()) -> tuple[Check, ...]:
    """The checks of these names, by default all that are not slow; ``"values"`` is all whose name starts so.

    Raises:
        ValueError: no check has such a name.
    """
    wanted = [c for c in CHECKS if not c.slow] if names is None else named(CHECKS, names)
    without = named(CHECKS, left_out)
    return tuple(c for c in CHECKS if c in wanted and c not in without)
