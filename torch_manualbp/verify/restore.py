"""A target is left as it was found, and left when its time is over."""

from __future__ import annotations

import contextlib
import functools
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp._torch import pytree
from torch_manualbp.verify.check import BudgetSpentError

__all__ = ["modules_in", "stopped_after", "undisturbed"]


@contextlib.contextmanager
def undisturbed(*values: Any) -> Iterator[None]:
    """Gradients are on; and afterwards random numbers are as they were before, and in all modules and tensors that the
    values hold or close over, gradients, buffers and modes."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    of_python = random.getstate()
    numpy: Any = sys.modules.get("numpy.random")
    of_numpy = None if numpy is None else numpy.get_state()
    modules = list(modules_in(values))
    tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
    tensors += [p for module in modules for p in module.parameters()]
    gradients = [(t, t.grad, None if t.grad is None else t.grad.clone()) for t in tensors if t.is_leaf]
    buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers()]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        random.setstate(of_python)
        if of_numpy is not None:
            numpy.set_state(of_numpy)
        with torch.no_grad():
            for tensor, gradient, numbers in gradients:
                tensor.grad = gradient
                if gradient is not None and numbers is not None:
                    gradient.copy_(numbers)
            for buffer, numbers in buffers:
                buffer.copy_(numbers)
        for part, mode in modes:
            part.training = mode


def modules_in(*values: Any) -> Iterator[Module]:
    """The modules that are among some values, and in what callables close over, are bound to or name."""
    seen: set[int] = set()
    waiting = list(pytree.tree_leaves(values))
    while waiting and len(seen) < 1000:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Module):
            yield value
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif hasattr(value, "__self__") and not isinstance(value.__self__, type(sys)):
            waiting.append(value.__self__)
            waiting.append(getattr(value, "__func__", None))
        elif hasattr(value, "__code__"):
            for cell in value.__closure__ or ():
                with contextlib.suppress(ValueError):  # it is empty yet
                    waiting.append(cell.cell_contents)
            named = vars(sys.modules.get(value.__module__, sys)) if value.__module__ else {}
            waiting += [named[n] for n in value.__code__.co_names if isinstance(named.get(n), Module)]


@contextlib.contextmanager
def stopped_after(deadline: float | None) -> Iterator[None]:
    """What runs past the deadline is interrupted by :class:`BudgetSpentError`, once and then every second, in the main
    thread, where no other timer is set; a kernel is left when it returns."""
    can = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if deadline is None or not can or signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise BudgetSpentError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.perf_counter(), 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
