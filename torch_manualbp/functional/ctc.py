"""The loss of labels without times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from torch_manualbp import rules
from torch_manualbp.functional.call import in_full_precision, overridable
from torch_manualbp.rules.recording import recorder

__all__ = ["ctc_loss"]

INTEGERS = (torch.int32, torch.int64)


@overridable
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """C_n = −log of the probability of all paths that say the labels, with
    :class:`~torch_manualbp.rules.ConnectionistTemporalClassification`; as :func:`torch.nn.functional.ctc_loss`.

    The gradient is that of this loss. torch's is another where the exponentials of ``log_probs`` do not sum to 1, and
    the same behind the log_softmax that makes them.
    """
    given = log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity
    if not _fit(*given[:5]) or reduction not in ("none", "mean", "sum"):
        return torch_functional.ctc_loss(*given)  # type: ignore[arg-type] # says what is wrong
    T, S = (_as_tensor(lengths, log_probs) for lengths in (input_lengths, target_lengths))
    if log_probs.dim() == 2:
        y, s = targets.reshape(1, targets.numel()), log_probs.unsqueeze(1)
        C = _run(s, y, T.reshape(1), S.reshape(1), blank, reduction, zero_infinity)
        return C.squeeze(0) if reduction == "none" else C
    y = targets if targets.dim() == 2 else _padded(targets, S, target_lengths)
    return _run(log_probs, y, T, S, blank, reduction, zero_infinity)


def _run(*args: Any) -> Tensor:
    C: Tensor = in_full_precision(rules.ConnectionistTemporalClassification, *args)
    return C


def _fit(log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, blank: int) -> bool:
    """Whether they are what torch takes; by the shapes alone where a call is traced, and no lengths can be read."""
    if not isinstance(log_probs, Tensor) or not isinstance(targets, Tensor) or targets.dtype not in INTEGERS:
        return False
    if log_probs.dim() not in (2, 3) or targets.dim() not in (1, 2) or not 0 <= blank < log_probs.shape[-1]:
        return False
    if log_probs.dtype not in (torch.float32, torch.float64) and not torch.is_autocast_enabled(log_probs.device.type):
        return False
    times, samples = log_probs.shape[0], log_probs.shape[1] if log_probs.dim() == 3 else 1
    if not times or not samples or (log_probs.dim() == 2 and targets.dim() != 1):
        return False
    lengths = _numbers(input_lengths), _numbers(target_lengths)
    if None in lengths:
        return log_probs.dim() == 2 or targets.dim() == 2
    of_input, of_target = lengths
    most = targets.shape[1] if targets.dim() == 2 else targets.numel()
    fits = len(of_input) == len(of_target) == samples and (targets.dim() == 1 or len(targets) == samples)
    fits = fits and all(0 <= n <= times for n in of_input) and all(0 <= n <= most for n in of_target)
    return fits and (targets.dim() == 2 or sum(of_target) == targets.numel() or log_probs.dim() == 2)


def _numbers(lengths: Any) -> Any:
    """The lengths as integers, or None where they cannot be read."""
    if not isinstance(lengths, Tensor):
        return list(lengths)
    if lengths.dtype not in INTEGERS or lengths.dim() > 1:
        return [-1]
    is_traced = (
        torch.compiler.is_compiling() or recorder() is not None or lengths.is_meta or type(lengths) is not Tensor
    )
    return None if is_traced else lengths.reshape(lengths.numel()).tolist()


def _as_tensor(lengths: Any, log_probs: Tensor) -> Tensor:
    """A tensor of their own, since the caller may change his before backward; of numbers, which torch keeps as such,
    it takes no more memory than their result does."""
    dtype = torch.int64 if isinstance(lengths, Tensor) else torch.int32
    made = torch.as_tensor(lengths, dtype=dtype, device=log_probs.device)
    return made.clone() if made is lengths else made


def _padded(targets: Tensor, S: Tensor, lengths: Any) -> Tensor:
    """Labels of all samples behind each other, with a row for each sample."""
    most = max(_numbers(lengths))
    begin = (S.cumsum(0) - S).unsqueeze(1)
    places = begin + torch.arange(most, device=targets.device)
    return (
        targets[places.clamp(max=max(targets.numel() - 1, 0))] if targets.numel() else targets.new_zeros(len(S), most)
    )
