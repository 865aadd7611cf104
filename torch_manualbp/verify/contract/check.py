"""The checks by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from torch_manualbp.catalogue import Operation
from torch_manualbp.verify.contract import derivatives, layout, memory, precision, surroundings, tangents, transforms
from torch_manualbp.verify.contract.case import Case, DoesNotApply

__all__ = ["CHECKS", "Check", "Outcome", "check", "check_of_exemption", "run"]

LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Check:
    """One thing that a rule owes: a function that raises AssertionError where a case breaks it, or
    :class:`~torch_manualbp.verify.contract.DoesNotApply`."""

    name: str
    function: Callable[[Case], None]
    slow: bool = False
    """Whether a matrix runs it on the first sample of each rule alone, unless all are asked for."""

    @property
    def about(self) -> str:
        """What is owed, in a sentence or two."""
        function = self.function.func if isinstance(self.function, partial) else self.function
        return " ".join((function.__doc__ or "").split())

    def __call__(self, case: Case) -> None:
        """Run on a case, unless the catalogue has a reason why not."""
        if reason := case.exempt(self.name) or case.exempt(self.name, case.sample):
            raise DoesNotApply(reason)
        self.function(case)

    def __str__(self) -> str:
        return self.name


def _in(function: Callable[..., None], name: str, dtypes: Mapping[str, torch.dtype]) -> tuple[Check, ...]:
    return tuple(Check(f"{name}, {about}", partial(function, dtype=dtype)) for about, dtype in dtypes.items())


CHECKS: tuple[Check, ...] = (
    Check("first derivatives", derivatives.equals_twin),
    Check("second derivatives", partial(derivatives.second_derivatives_equal_twins, upstream_needs_gradient=True)),
    Check(
        "second derivatives, constant upstream",
        partial(derivatives.second_derivatives_equal_twins, upstream_needs_gradient=False),
    ),
    Check("complex numbers", derivatives.equals_twin_for_complex_numbers),
    Check("raw backward", derivatives.raw_backward_is_well_formed),
    Check("gradcheck", derivatives.passes_gradcheck),
    Check("gradgradcheck", derivatives.passes_gradgradcheck),
    Check("no upstream", derivatives.takes_no_upstream),
    Check("one tensor in two places", derivatives.adds_up_over_two_places),
    Check("forward mode", derivatives.forward_mode_equals_reverse_mode),
    Check("Jacobians", transforms.jacobians_agree),
    Check("Hessians", transforms.hessians_agree),
    Check("tangents", tangents.tangents_agree),
    Check("Hessian-vector products", tangents.hessian_vector_products_agree),
    Check("vmap", transforms.vmaps),
    Check("per-sample gradients", transforms.maps_per_sample_gradients),
    Check("torch.compile", transforms.compiles_with_our_backward, slow=True),
    Check("torch.compile, inductor", transforms.compiles_to_machine_code, slow=True),
    Check("ranks 0 to 5", layout.takes_every_rank),
    Check("empty batch", layout.takes_empty_batches),
    Check("zero features", layout.takes_zero_features),
    Check("strided inputs", layout.inputs_may_have_any_strides),
    Check("channels last", layout.inputs_may_be_channels_last),
    Check("strided upstream", layout.upstream_may_have_any_strides),
    Check("bytes kept", memory.keeps_no_more_than_torch),
    Check("frozen arguments", memory.frozen_arguments_change_nothing),
    Check("changes in place", memory.allows_changes_in_place),
    Check("checkpointing", memory.works_under_checkpointing),
    Check("saved-tensor hooks", memory.works_under_hooks),
    *_in(precision.is_as_accurate_as_torch, "accuracy", {"float32": torch.float32, **LOW}),
    *_in(precision.rounds_once, "one rounding", LOW),
    *_in(
        precision.treats_special_values_as_torch,
        "special values",
        {"float64": torch.float64, "float32": torch.float32, **LOW},
    ),
    Check("NaN", precision.nan_spreads_as_in_torch),
    Check("infinities", precision.infinities_spread_as_in_torch),
    *_in(surroundings.autocasts_as_torch, "autocast", LOW),
    Check("meta device", surroundings.runs_on_the_meta_device),
    Check("fake tensors", surroundings.runs_on_fake_tensors),
)
"""What a rule owes, in the order of the columns of the matrix."""


def check(name: str) -> Check:
    """The check of this name."""
    for candidate in CHECKS:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no check is named {name!r}; there are: {', '.join(c.name for c in CHECKS)}")


def check_of_exemption(entry: Operation, key: str) -> Check:
    """The check that a key of ``entry.exempt`` speaks of: its name, or its name, a comma and what part of it."""
    named = [c for c in CHECKS if key == c.name or key.startswith(f"{c.name}, ")]
    if not named:
        raise ValueError(f"{entry.name} is exempt from {key!r}, which is no check")
    return max(named, key=lambda c: len(c.name))


@dataclass(frozen=True)
class Outcome:
    """What one check found on one sample of one rule."""

    rule: str
    sample: str
    check: str
    verdict: str
    """"pass", "fail" or "does not apply"."""
    reasons: tuple[str, ...] = ()
    """Why it failed; why it, or with "pass" a part of it, does not apply."""


def run(check: Check, case: Case) -> Outcome:
    """Run one check on one case, from the same random state every time. Whatever it raises is a failure."""
    about = case.entry.name, case.sample, check.name
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # torch's own, of prototypes and of shapes that broadcast
            torch.manual_seed(0)
            check(case)
    except DoesNotApply as why:
        return Outcome(*about, "pass" if why.partly else "does not apply", why.reasons)
    except Exception as error:
        first: Sequence[str] = str(error).strip().splitlines()[:1]
        prefix = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Outcome(*about, "fail", (prefix + "".join(first),))
    return Outcome(*about, "pass")
