"""The checks by name, in the order in which they run and stand in the report."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial

import torch

from torch_manualbp.verify.checks import composition, kinks, memory, order, reference, special, structure, values
from torch_manualbp.verify.checks.check import Check, Trial

__all__ = ["CHECKS", "Check", "Trial", "chosen"]

CHECKS: tuple[Check, ...] = (
    Check("structure", structure.raw_structure, on_all=True),
    Check("values, float64", values.exact_values, on_all=True),
    Check("values, float32", partial(values.rounded_values, dtype=torch.float32), on_all=True),
    Check("values, float16", partial(values.rounded_values, dtype=torch.float16), on_all=True),
    Check("values, bfloat16", partial(values.rounded_values, dtype=torch.bfloat16), on_all=True),
    Check("frozen tensors", structure.frozen_leaves),
    Check("unused outputs", order.unused_outputs),
    Check("finite differences", reference.finite_differences),
    Check("adjoint identity", reference.adjoint_identity),
    Check("linearity", order.linearity),
    Check("additivity", order.additivity),
    Check("second order", order.second_order),
    Check("kinks", kinks.kinks),
    Check("special values", special.special_inputs),
    Check("randomness", memory.randomness),
    Check("saved tensors", memory.saved_tensors),
    Check("layout", composition.layouts),
    Check("empty batch", composition.empty_batch),
    Check("vmap", composition.vmapped),
    Check("functorch", composition.functorch),
    Check("checkpoint", composition.checkpointing),
    Check("autocast", composition.autocast),
    Check("compile", composition.compiled, slow=True),
)


def chosen(names: Sequence[str] | str | None, left_out: Sequence[str] | str = ()) -> tuple[Check, ...]:
    """The checks of these names, by default all that are not slow; ``"values"`` is all whose name starts so.

    Raises:
        ValueError: no check has such a name.
    """
    wanted = [c for c in CHECKS if not c.slow] if names is None else _named(names)
    without = _named(left_out)
    return tuple(check for check in CHECKS if check in wanted and check not in without)


def _named(names: Sequence[str] | str) -> list[Check]:
    found: list[Check] = []
    for name in [names] if isinstance(names, str) else names:
        of_name = [c for c in CHECKS if c.name == name or c.name.startswith(f"{name}, ")]
        if not of_name:
            all_names = [c.name for c in CHECKS]
            words = dict.fromkeys([*all_names, *(n.split(",")[0] for n in all_names)])
            near = difflib.get_close_matches(name, words, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(all_names)}"
            raise ValueError(f"no check is named {name!r}: {advice}")
        found += of_name
    return found
