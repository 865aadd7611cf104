"""A check of a layer, and how it is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_manualbp.verify.contract.case import DoesNotApply
from torch_manualbp.verify.contract.check import Outcome

if TYPE_CHECKING:
    from torch_manualbp.verify.surroundings.layers import Layer

__all__ = ["Check", "run"]


@dataclass(frozen=True)
class Check:
    """One thing that a layer owes: a function that raises AssertionError where a layer breaks it, or
    :class:`~torch_manualbp.verify.contract.DoesNotApply`."""

    name: str
    function: Callable[[Layer], None]

    @property
    def about(self) -> str:
        """What is owed, in a sentence or two."""
        return " ".join((self.function.__doc__ or "").split())

    def __str__(self) -> str:
        return self.name


def run(check: Check, layer: Layer) -> Outcome:
    """Run one check on one layer, from the same random state every time. Whatever it raises is a failure."""
    about = layer.class_name, layer.name, check.name
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # torch's own, of prototypes and of what is deprecated
            torch.manual_seed(0)
            check.function(layer)
    except DoesNotApply as why:
        return Outcome(*about, "pass" if why.partly else "does not apply", why.reasons)
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        prefix = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Outcome(*about, "fail", (prefix + "".join(first),))
    return Outcome(*about, "pass")
