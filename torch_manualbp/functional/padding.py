"""The borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_full_precision_on_cpu, overridable, run
from torch_manualbp.functional.windows import sizes

__all__ = ["pad"]


@overridable
def pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """A border of one number, with :class:`~torch_manualbp.rules.Pad`, or of the tensor's own entries, with
    :class:`~torch_manualbp.rules.Border`; as :func:`torch.nn.functional.pad`."""
    numbers = sizes(len(pad), pad) if isinstance(pad, Sequence) and not isinstance(pad, str) else None
    is_usual = isinstance(input, Tensor) and numbers is not None and len(pad) % 2 == 0 and len(pad) <= 2 * input.dim()
    if is_usual and numbers is not None and mode == "constant" and isinstance(value, int | float | None):
        return run(rules.Pad, input, numbers[0], 0.0 if value is None else value)
    if not is_usual or numbers is None or mode not in ("reflect", "replicate", "circular") or value is not None:
        return torch_functional.pad(input, pad, mode, value)  # which says what is wrong
    (pads,) = numbers
    is_cast = mode == "replicate" or (mode == "reflect" and len(pads) < 6)
    return (in_full_precision_on_cpu if is_cast else run)(rules.Border, input, pads, mode)
