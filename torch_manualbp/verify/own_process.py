"""Verification in a process of its own: ended where a kernel does not return, outlived where one crashes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from torch_manualbp.verify.report import ERROR, LEFT_OUT, VALUE, Report, Row

__all__ = ["Seen", "in_own_process"]

Seen = Callable[[Row], None]
"""Is told each row as soon as it is found."""

GRACE_S = 2.0
"""Seconds beyond the budget after which the process is ended."""


def in_own_process(verification: Callable[[Seen], Report], name: str, budget_s: float) -> Report:
    """The report of a verification that runs in a fork of this process; or, where that does not end in time or ends
    without one, what it had found until then.

    Raises:
        ValueError: this system has no fork, or a GPU is in use, which no fork can take over.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_initialized():
        raise ValueError("own_process: it takes a system with fork, and no GPU in use")
    start = time.perf_counter()
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(verification, there), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads: the child makes none
        process.start()
    there.close()
    rows: list[Row] = []
    try:
        while here.poll(max(start + budget_s + GRACE_S - time.perf_counter(), 0.0)):
            what, content = here.recv()
            if what == "report":
                return content
            if what == "error":
                raise content
            rows.append(content)
        rows.append(Row("", "", LEFT_OUT, hint="the budget of time is spent: its process was ended"))
    except EOFError:
        process.join()
        rows.append(Row("", "", ERROR, hint=f"its process ended {_how(process.exitcode)}", kind=VALUE))
    finally:
        process.kill()
        process.join()
        here.close()
    return Report(name, tuple(rows), time.perf_counter() - start)


def _run(verification: Callable[[Seen], Report], there: Any) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not here
    try:
        report = verification(lambda row: there.send(("row", row)))
        there.send(("report", report))
    except Exception as error:
        try:
            there.send(("error", error))
        except Exception:  # it cannot be pickled
            there.send(("error", ValueError(f"{type(error).__name__}: {error}")))
    finally:
        there.close()


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        return f"by {signal.Signals(-status).name}"
    return f"with status {status}"
