"""A signal at a random moment of a step leaves all of before or all of after, and nothing of the deriving."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from interruptions import OPTIONS, WAYS, Interrupted, interrupt_deriving, interrupt_updates
from ordinary import one_of_each
from sequence_models import FOLDED, OPTIMIZERS

from torch_manualbp import TrainStep, nn

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="signal.setitimer, which tells when to interrupt, is of Unix"
)


@pytest.fixture(autouse=True)
def _grad_mode() -> Iterator[None]:
    """A context of torch's own that is interrupted at its end stays on, which is not to be the next test's."""
    yield
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates(optimizer: str) -> None:
    found = interrupt_updates(optimizer, 8)
    assert found["interrupted"] == 8


@pytest.mark.parametrize(
    ("options", "way"),
    one_of_each(itertools.product([name for name in OPTIONS if name != "-"], WAYS), lambda *kinds: kinds),
)
def test_updates_with_options(options: str, way: str) -> None:
    assert interrupt_updates("AdamW", 6, way, options)["interrupted"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_1000_updates(optimizer: str, way: str) -> None:
    found = interrupt_updates(optimizer, 1000 if way == "alarm" else 200, way)
    assert found["new"] > 0
    assert found["old"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [name for name in OPTIONS if name != "-"])
@pytest.mark.parametrize("optimizer", ["momentum", "amsgrad", "RMSprop"])
def test_200_updates_with_options(optimizer: str, options: str) -> None:
    interrupt_updates(optimizer, 200, "alarm", options)


@pytest.mark.parametrize("way", one_of_each(WAYS, lambda way: ["way"]))
def test_deriving(way: str) -> None:
    assert interrupt_deriving(12, way)["interrupted"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_deriving_500_times(optimizer: str, way: str) -> None:
    interrupt_deriving(500, way, optimizer)


# ------------------------------------------------------------------------------------------------- the instrument


def test_a_mixture_is_told() -> None:
    """An optimizer whose step is Python's takes its time between two parameters."""

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:  # without no_grad, which an interruption might leave on
                        p.data.sub_(group["lr"] * p.grad)
                    for _ in range(1000):
                        pass

    class Unprotected(TrainStep):
        """A step without the lock on signals."""

        def __call__(self, inputs: Any, target: Any) -> Any:
            self.optimizer.zero_grad()
            C = self.loss(self.model(inputs), target)
            C.backward()
            self.optimizer.step()
            return C.detach()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPTIMIZERS, "slow", lambda groups: Slow(groups, lr=0.05))
        patch.setattr("interruptions.TrainStep", Unprotected)
        with pytest.raises(Interrupted, match="mixture"):
            interrupt_updates("slow", 200)


def test_signals_reach_their_handlers_once() -> None:
    model = nn.Linear(4, 4).double()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(3, 4, dtype=torch.float64)
    step(x, x)
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, frame: came.append(n)) for number in (signal.SIGUSR1,)}
    done = threading.Event()

    def send() -> None:
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.002)
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    while not done.is_set():
        step(x, x)
    thread.join()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert 1 <= len(came) <= 50


@pytest.mark.parametrize("optimizer", FOLDED)
def test_handlers_are_those_of_before(optimizer: str) -> None:
    model = nn.Linear(4, 4).double()
    step = TrainStep(model, nn.MSELoss(), OPTIMIZERS[optimizer](model.parameters()))
    before = [signal.getsignal(number) for number in signal.Signals]
    for i in range(3):
        x = torch.full((3, 4), float(i), dtype=torch.float64)
        step(x, x)
        assert [signal.getsignal(number) for number in signal.Signals] == before
