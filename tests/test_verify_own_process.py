"""A verification in a process of its own ends in time whatever the target does, and says what it had found."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_manualbp.verify import verify, verify_model
from torch_manualbp.verify.report import ERROR, LEFT_OUT


def never_returns(z: Tensor) -> None:
    """As a kernel does that waits for itself: no signal reaches Python."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(3600)


def crashes(z: Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square(before: Callable[[Tensor], Any], factor: float = 2.0) -> type[Function]:
    class Square(Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            if z.dtype == torch.float16:
                before(z)
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx: Any, da: Tensor) -> Tensor:
            (z,) = ctx.saved_tensors
            return factor * z * da

    return Square


def test_the_report_is_the_same_as_here() -> None:
    function, z = square(lambda z: None), torch.randn(4, 5)
    here, there = (verify(function, z, own_process=own, checks="values") for own in (False, True))
    assert there.rows == here.rows
    assert there.ok


def test_a_forward_that_does_not_return_is_left() -> None:
    start = time.perf_counter()
    report = verify(square(never_returns, 3.0), torch.randn(4, 5), own_process=True, budget_s=4)
    assert time.perf_counter() - start < 30
    assert report.rows[-1].verdict == LEFT_OUT
    assert "its process was ended" in report.rows[-1].hint
    assert "1.5 times the right one" in report.failures[0].hint


def test_a_kernel_that_crashes_is_a_finding() -> None:
    report = verify(square(crashes), torch.randn(4, 5), own_process=True)
    assert report.rows[-1].verdict == ERROR
    assert "SIGKILL" in report.failures[0].hint
    assert report.verdict == "wrong"


def test_what_is_refused_is_refused_from_there() -> None:
    with pytest.raises(ValueError, match="no tensor that needs a gradient"):
        verify(square(lambda z: None), torch.arange(3), own_process=True)


def test_a_model_has_one_as_well() -> None:
    report = verify_model(
        torch.nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2), torch.nn.MSELoss(), own_process=True
    )
    assert report.ok, report


@pytest.mark.parametrize("targets", [(2, 4), (7,)], ids=["padded", "in a row"])
def test_torchs_ctc_is_given_no_index_that_it_reads_past_its_memory_with(targets: tuple[int, ...]) -> None:
    scores = torch.randn(8, 2, 5).log_softmax(-1)
    labels = torch.arange(torch.Size(targets).numel()).reshape(targets) % 4 + 1
    report = verify(
        torch.nn.CTCLoss(), scores, labels, (8, 8), (4, 3), checks=["sizes", "options"], own_process=True, budget_s=60
    )
    assert "its process ended" not in str(report)
