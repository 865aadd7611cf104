"""Steps that a signal interrupts at a random moment: parameters and state are all of before, or all of after.

::

    python tests/interruptions.py --count 1000                # each optimizer, and each way of interrupting
    python tests/interruptions.py --count 1000 AdamW SGD      # these
    python tests/interruptions.py --count 1000 --deriving     # the first call, in which the step is derived

An interrupted step is done once more if nothing of it is there, and the training then has to be that of a copy that
nobody interrupts.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sequence_models import OPTIMIZERS
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive.effects import has_global_hooks

WAYS = ("alarm", "Ctrl-C", "three signals", "any line")
"""A handler of SIGALRM that raises, os.kill(SIGINT) from another thread, a user who presses Ctrl-C repeatedly, and a
SIGINT at a call, a line or a return of Python's, each as likely as the others: those between two calls of torch take no
time, and are hardly met by a clock."""

OPTIONS: dict[str, dict[str, Any]] = {
    "-": {},
    "clip_norm": {"clip_norm": 0.1},
    "accumulate": {"accumulate": 2},
    "skip_nonfinite": {"skip_nonfinite": True},
    "keep_output": {"keep_output": True, "keep_deltas": True},
    "checked often": {"check": "every", "check_every": 2},
}


ROUNDING = 1e-12
"""Two copies differ by this at most: products of matrices depend on where in memory they are. An update is 1e-4."""


class Interrupted(Exception):
    """What is wrong after an interruption."""


# ------------------------------------------------------------------------------------------------- signals


class Signal:
    """A signal that comes some time after the beginning of a block, and raises KeyboardInterrupt in it."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.is_armed = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_armed:
            raise KeyboardInterrupt

    def longest(self, call: Callable[[], Any]) -> float:
        """The seconds that a call takes, or the events."""
        if self.way == "any line":
            counted = itertools.count()

            def trace(*_: Any) -> Any:
                next(counted)
                return trace

            sys.settrace(trace)
            call()
            sys.settrace(None)
            return next(counted)
        began = time.perf_counter()
        call()
        return 1.3 * (time.perf_counter() - began)

    def interrupts(self, call: Callable[[], Any], delay: float) -> tuple[bool, Any]:
        """Call it. Returns whether it was interrupted, and what it returned."""
        result, is_interrupted = None, False
        number = signal.SIGALRM if self.way == "alarm" else signal.SIGINT
        before = signal.signal(number, self._handle)
        presses = self.way in ("Ctrl-C", "three signals")
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-6 if presses else switch)  # so that the thread that presses has its turn in time
        gate = threading.Lock()  # opened when the thread has started, whose own locks a signal may come between
        thread = threading.Thread(target=self._press, args=(gate, delay)) if presses else None
        if thread is not None:
            gate.acquire()
            thread.start()
        try:
            self.is_armed = True
            if thread is not None:
                gate.release()
            elif self.way == "alarm":
                signal.setitimer(signal.ITIMER_REAL, delay)
            else:
                sys.settrace(self._trace(round(delay)))
            result = call()
            self.is_armed = False
        except KeyboardInterrupt:
            is_interrupted = True
        while True:
            try:
                self.is_armed = False
                sys.settrace(None)
                signal.setitimer(signal.ITIMER_REAL, 0)
                if thread is not None:
                    thread.join()
                break
            except KeyboardInterrupt:  # the next of several
                is_interrupted = True
        sys.setswitchinterval(switch)
        if signal.getsignal(number) != self._handle:
            raise Interrupted(f"the handler of the signal is {signal.getsignal(number)} afterwards")
        signal.signal(number, before)
        return is_interrupted, result

    def _trace(self, at: int) -> Any:
        counted = itertools.count()

        def trace(*_: Any) -> Any:
            if next(counted) == at:
                signal.raise_signal(signal.SIGINT)
            return trace

        return trace

    def _press(self, gate: threading.Lock, delay: float) -> None:
        gate.acquire()
        for _ in range(3 if self.way == "three signals" else 1):
            time.sleep(delay)
            if self.is_armed:
                os.kill(os.getpid(), signal.SIGINT)


# ------------------------------------------------------------------------------------------------- what there is


def model_of(seed: int, size: int = 24) -> Module:
    """Linear layers large enough for an update that takes its time, a frozen one, and a dropout."""
    seed_(seed)
    model = torch.nn.Sequential(
        nn.Linear(size, size), nn.Tanh(), torch.nn.Linear(size, 2 * size), torch.nn.GELU(), torch.nn.Dropout(0.1),
        nn.Linear(2 * size, size, bias=False), torch.nn.ReLU(), nn.Linear(size, size),
    )  # fmt: skip
    return model.double()


def step_of(optimizer: str, options: str, seed: int = 0, size: int = 24) -> TrainStep:
    """A step of two groups."""
    model = model_of(seed, size)
    parameters = list(model.parameters())
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.02}]
    return TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](groups), **OPTIONS[options])


def data(i: int, size: int = 24) -> tuple[Tensor, Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(i)
    return tuple(torch.randn(8, size, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def seed_(number: int) -> None:
    """torch.manual_seed without its millisecond for devices that are not there."""
    torch.default_generator.manual_seed(number)


def numbers_of(step: TrainStep) -> dict[str, Any]:
    """Parameters, and all of the optimizer's state by the parameter's name, which parameters have any included."""
    names = {p: name for name, p in step.model.named_parameters()}
    found: dict[str, Any] = {name: p.detach().clone() for p, name in names.items()}
    for p, of_p in step.optimizer.state.items():
        found[f"state of {names[p]}"] = sorted(of_p)  # type: ignore[index]
        for key, x in of_p.items():
            found[f"{key} of {names[p]}"] = x.clone() if isinstance(x, Tensor) else x  # type: ignore[index]
    return found


def _is_same(a: Any, b: Any, rtol: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b) if rtol == 0 else torch.allclose(a, b, rtol=rtol, atol=rtol)
    return type(a) is type(b) and a == b


def differing(now: dict[str, Any], other: dict[str, Any], rtol: float = 0.0) -> list[str]:
    """The names of what differs."""
    return [name for name in {**now, **other} if not _is_same(now.get(name), other.get(name), rtol)]


# ------------------------------------------------------------------------------------------------- updates


def interrupt_updates(
    optimizer: str, count: int, way: str = "alarm", options: str = "-", seed: int = 0
) -> Counter[str]:
    """Interrupt so many steps at random moments.

    Raises:
        Interrupted: one of them left a mixture, or the training went on otherwise than the copy's.
    """
    rng = random.Random(seed)
    ours, copied = step_of(optimizer, options), step_of(optimizer, options)
    for step in (ours, copied):
        for i in range(2 * step.accumulate):
            seed_(i)
            step(*data(i))
    window, signal_, found = ours.accumulate, Signal(way), Counter[str]()
    twin, outside = copy.deepcopy(ours), surroundings()
    for k in range(9):  # beyond the runs at which it is compared
        twin(*data(k))
    longest = min(signal_.longest(lambda: [twin(*data(k)) for k in range(window)]) for _ in range(3))
    i = 2 * window
    while found["interrupted"] < count and found["calls"] < 40 * count:
        found["calls"] += 1

        def steps(step: TrainStep, i: int = i) -> Any:
            C = None
            for k in range(window):
                seed_(i + k)
                C = step(*data(i + k))
            return C

        before = numbers_of(ours)
        expected = steps(copied)
        after = numbers_of(copied)
        is_interrupted, C = signal_.interrupts(lambda: steps(ours), rng.uniform(0, longest))
        _hold_surroundings(outside, f"interruption {found['interrupted'] + 1}")
        now = numbers_of(ours)
        is_old, is_new = not differing(now, before), not differing(now, after, ROUNDING)
        if not (is_old or is_new):
            raise Interrupted(
                f"interruption {found['interrupted'] + 1} leaves a mixture: of before are all but "
                f"{differing(now, before)[:6]}, of after all but {differing(now, after, ROUNDING)[:6]}"
            )
        if not is_interrupted and (is_old or not torch.allclose(C, expected, rtol=ROUNDING)):
            raise Interrupted("a step that nobody interrupted is not the copy's")
        found["interrupted"] += is_interrupted
        found["old" if is_old else "new"] += is_interrupted
        if is_old:
            if window > 1:
                ours.reset()  # a window that was interrupted between two calls begins anew
            C = steps(ours)
            if differing(numbers_of(ours), after, ROUNDING) or not torch.allclose(C, expected, rtol=ROUNDING):
                different = differing(numbers_of(ours), after, ROUNDING)
                raise Interrupted(f"the interrupted step, made once more, is not the copy's: {different[:6]}")
        i += window
    return found


# ------------------------------------------------------------------------------------------------- deriving


def surroundings() -> dict[str, Any]:
    """What deriving may touch beside the model, and has to leave as it found it."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return {
        "torch.autograd.Function.apply": torch.autograd.Function.__dict__.get("apply"),
        "Module.__call__": Module.__call__,
        "Module.__getattr__": Module.__getattr__,
        "sys.getprofile": sys.getprofile(),
        "sys.gettrace": sys.gettrace(),
        "threading.getprofile": threading.getprofile(),
        "global hooks": has_global_hooks(),
        "function modes": _get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "is_grad_enabled": torch.is_grad_enabled(),
        "is_inference_mode_enabled": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "threads": threading.active_count(),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGALRM": signal.getsignal(signal.SIGALRM),
    }


def _hold_surroundings(before: dict[str, Any], after: str) -> None:
    changed = [f"{name}: {x!r:.80} for {before[name]!r:.80}" for name, x in surroundings().items() if x != before[name]]
    if changed:
        for mode in reversed(surroundings()["dispatch modes"][len(before["dispatch modes"]) :]):
            mode.__exit__(None, None, None)  # or all that comes later would be wrong, too
        raise Interrupted(f"after {after} other than before: {'; '.join(changed)}")


def model_without_numbers(model: Module) -> list[Any]:
    """The names, hooks, modes and objects of a model."""
    found: list[Any] = []
    for path, module in model.named_modules():
        hooks = {name: len(x) for name, x in vars(module).items() if "hooks" in name and isinstance(x, dict)}
        found.append((path, type(module), module.training, list(vars(module)), hooks))
    for name, p in model.named_parameters():
        hooked = bool(p._backward_hooks or p._post_accumulate_grad_hooks)
        found.append((name, id(p), p.requires_grad, hooked, p.grad_fn))
    return found


def rules() -> Iterator[tuple[Any, Any]]:
    """Each class of rules, and what it has for ``apply``."""
    todo: list[Any] = [torch.autograd.Function]
    for cls in todo:
        todo += cls.__subclasses__()
        yield cls, cls.__dict__.get("apply")


def interrupt_deriving(count: int, way: str = "alarm", optimizer: str = "AdamW", seed: int = 0) -> Counter[str]:
    """Interrupt the first call of so many steps at random moments.

    Raises:
        Interrupted: something of the deriving is left, or the step cannot go on as its copy does.
    """
    rng = random.Random(seed)
    size = 6
    copied = step_of(optimizer, "-", size=size)
    seed_(1)
    expected = copied(*data(0, size))
    after, drawn_after = numbers_of(copied), torch.get_rng_state()
    found, signal_ = Counter[str](), Signal(way)
    longest = signal_.longest(lambda: step_of(optimizer, "-", size=size)(*data(0, size)))
    apply = dict(rules())
    while found["interrupted"] < count and found["calls"] < 40 * count:
        found["calls"] += 1
        ours = step_of(optimizer, "-", size=size)
        model, outside, before = model_without_numbers(ours.model), surroundings(), numbers_of(ours)
        seed_(1)
        drawn = torch.get_rng_state()
        is_interrupted, _ = signal_.interrupts(lambda: ours(*data(0, size)), rng.uniform(0, longest))  # noqa: B023
        found["interrupted"] += is_interrupted
        now = numbers_of(ours)
        is_old, is_new = not differing(now, before), not differing(now, after, ROUNDING)
        if not (is_old or is_new):
            raise Interrupted(f"a mixture: of before are all but {differing(now, before)[:6]}")
        found["old" if is_old else "new"] += is_interrupted
        _hold_surroundings(outside, f"interruption {found['interrupted']}")
        changed = [f"apply of {cls.__name__}" for cls, x in rules() if apply.get(cls, x) is not x]
        if changed:
            raise Interrupted(f"after interruption {found['interrupted']} other than before: {changed}")
        if model_without_numbers(ours.model) != model:
            pairs = zip(model, model_without_numbers(ours.model), strict=False)
            raise Interrupted(f"the model is another: {next(((a, b) for a, b in pairs if a != b), 'more of it')}")
        if is_old and not torch.equal(torch.get_rng_state(), drawn):
            found["random numbers drawn of a step not made"] += 1
        if is_new and not torch.equal(torch.get_rng_state(), drawn_after):
            raise Interrupted("torch's random state is not the one after the step")
        if is_old:
            seed_(1)
            C = ours(*data(0, size))
            if differing(numbers_of(ours), after, ROUNDING) or not torch.allclose(C, expected, rtol=ROUNDING):
                raise Interrupted("the step, made once more, is not the copy's")
        _derive_elsewhere(size)
    return found


def _derive_elsewhere(size: int) -> None:
    """Another thread finds no lock that is held."""
    done: list[Tensor] = []
    thread = threading.Thread(target=lambda: done.append(step_of("SGD", "-", size=size)(*data(0, size))), daemon=True)
    thread.start()
    thread.join(60)
    if not done:
        raise Interrupted("another thread cannot derive any more")


@contextmanager
def no_more_signals() -> Iterator[None]:
    """Whatever happens, no alarm comes after the block."""
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("optimizers", nargs="*", default=list(OPTIMIZERS), help="their names")
    parser.add_argument("--count", type=int, default=100, help="interruptions of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--options", nargs="*", default=["-"], choices=list(OPTIONS))
    parser.add_argument("--deriving", action="store_true", help="interrupt the first call")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    wrong = 0
    for optimizer in ["AdamW", "SGD"] if asked.deriving else asked.optimizers:
        for way in asked.ways:
            for options in ["-"] if asked.deriving else asked.options:
                try:
                    if asked.deriving:
                        text = str(dict(interrupt_deriving(asked.count, way, optimizer, asked.seed)))
                    else:
                        text = str(dict(interrupt_updates(optimizer, asked.count, way, options, asked.seed)))
                except Interrupted as error:
                    text, wrong = f"WRONG: {error}", wrong + 1
                print(f"{optimizer:22} {way:14} {options:15} {text}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
