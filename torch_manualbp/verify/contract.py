"""What every rule owes, a check for each claim, on each of its samples.

A rule is held to it by being listed in a catalogue, ours or one's own::

    from torch_manualbp.verify import contract_matrix

    print(contract_matrix([Operation(MyRule, the_same_in_torch_operations, samples)]))

``CHECKS`` are the claims in the order of the matrix's columns; each is held against a :class:`Case`, a rule with one of
its samples.
"""

from __future__ import annotations

from functools import partial

import torch

from torch_manualbp.catalogue import Operation
from torch_manualbp.verify.case import Case, case_of, cases, gradients, leaves, upstream_for
from torch_manualbp.verify.check import Check, DoesNotApply, named, run
from torch_manualbp.verify.claims import layout, memory, order, special, structure, tangents, transforms, values
from torch_manualbp.verify.claims.memory import bytes_kept
from torch_manualbp.verify.trial import EPS, assert_same
from torch_manualbp.verify.trial import EXACT as EXACT_ULPS

__all__ = [
    "CHECKS",
    "EXACT",
    "Case",
    "Check",
    "DoesNotApply",
    "assert_same",
    "bytes_kept",
    "case_of",
    "cases",
    "check",
    "check_of_exemption",
    "gradients",
    "leaves",
    "run",
    "upstream_for",
]

EXACT = EXACT_ULPS * EPS
"""Largest difference, relative to the tensor's largest number or 1, that float64 may show against the torch twin."""

LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SINGLE = {"float32": torch.float32}
DOUBLE = {"float64": torch.float64}

CHECKS: tuple[Check, ...] = (
    Check("first derivatives", values.exact),
    Check("second derivatives", partial(order.second_derivatives_agree, upstream_needs_gradient=True)),
    Check(
        "second derivatives, constant upstream", partial(order.second_derivatives_agree, upstream_needs_gradient=False)
    ),
    Check("complex numbers", values.complex_numbers),
    Check("raw backward", structure.raw_backward),
    Check("gradcheck", values.passes_gradcheck),
    Check("gradgradcheck", values.passes_gradgradcheck),
    Check("no upstream", order.no_upstream),
    Check("one tensor in two places", order.two_places),
    Check("forward mode", order.forward_mode),
    Check("Jacobians", transforms.jacobians_agree),
    Check("Hessians", transforms.hessians_agree),
    Check("tangents", tangents.tangents_agree),
    Check("Hessian-vector products", tangents.hessian_vector_products_agree),
    Check("vmap", transforms.vmapped),
    Check("per-sample gradients", transforms.per_sample_gradients),
    Check("torch.compile", transforms.compiled, slow=True),
    Check("torch.compile, inductor", transforms.compiled_to_machine_code, slow=True),
    Check("ranks 0 to 5", layout.every_rank),
    Check("empty batch", layout.empty_batches),
    Check("zero features", layout.zero_features),
    Check("strided inputs", layout.strided_inputs),
    Check("channels last", layout.channels_last),
    Check("strided upstream", layout.strided_upstream),
    Check("bytes kept", memory.keeps_no_more_than_torch),
    Check("frozen arguments", structure.frozen),
    Check("changes in place", memory.changes_in_place),
    Check("checkpointing", memory.checkpointing),
    Check("saved-tensor hooks", memory.hooks),
    *Check.each("accuracy", values.is_as_accurate_as_torch, SINGLE | LOW),
    *Check.each("one rounding", values.rounds_once, LOW),
    *Check.each("special values", special.special_pairs, DOUBLE | SINGLE | LOW),
    Check("NaN", special.nan_spreads),
    Check("infinities", special.infinities_spread),
    *Check.each("autocast", transforms.autocast, LOW),
    Check("meta device", transforms.runs_on_the_meta_device),
    Check("fake tensors", transforms.runs_on_fake_tensors),
)
"""What a rule owes, in the order of the columns of the matrix."""


def check(name: str) -> Check:
    """The check of this name."""
    return next((c for c in CHECKS if c.name == name), None) or named(CHECKS, name)[0]


def check_of_exemption(entry: Operation, key: str) -> Check:
    """The check that a key of ``entry.exempt`` speaks of: its name, or its name, a comma and what part of it."""
    of_key = [c for c in CHECKS if key == c.name or key.startswith(f"{c.name}, ")]
    if not of_key:
        raise ValueError(f"{entry.name} is exempt from {key!r}, which is no check")
    return max(of_key, key=lambda c: len(c.name))
