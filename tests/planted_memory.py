"""``torch_manualbp.bench.memory`` with steps that take known amounts of memory: run in the place of the module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch

from torch_manualbp.bench import memory
from torch_manualbp.bench.networks import Case
from torch_manualbp.bench.variants import VARIANTS, Running

WEIGHT, HELD = 40 << 20, 50 << 20


def start(when: str, case: Case) -> Running:
    """A step that holds ``HELD`` bytes for good, takes them the first time alone, or takes them each time."""
    weight = torch.ones(WEIGHT // 4)
    held: list[torch.Tensor] = []

    def takes() -> torch.Tensor:
        more = torch.ones(HELD // 4) if when == "each" or not held else torch.ones(())
        held.append(more if when == "always" else torch.ones(()))
        return more

    return Running(takes, [weight], [])


PLANTED: dict[str, Callable[[Case], Running]] = {when: partial(start, when) for when in ("always", "first", "each")}

if __name__ == "__main__":
    VARIANTS.update({when: (when, started) for when, started in PLANTED.items()})
    memory._main(*sys.argv[1:])
