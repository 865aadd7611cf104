"""Branches on numbers that libraries leave out for tracers, and numbers that are the same at each step."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from step_cases import CLASSES, FEATURES, Pair, data
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.nn import Module

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive.tracers import Asked


@pytest.fixture(autouse=True)
def distributions_look_at_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do until torch._dynamo is imported."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


def is_tracing() -> bool:
    """As libraries have it."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


class Through(Module):
    """fc, then a function of its output and the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.function(self.fc(x), x))
        return out


def _masked(h: Tensor, x: Tensor) -> Tensor:
    mask = x[:, :1] > -100
    if not is_tracing() and mask.all():
        return h
    return h * mask


def _checked(h: Tensor, x: Tensor) -> Tensor:
    if not is_tracing() and x.abs().max() > 100:
        raise ValueError("too large")
    return h


def _with_formulas_of_its_own(h: Tensor, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * 2)(h) if is_tracing() else h * 2


def _built_mask(h: Tensor, x: Tensor) -> Tensor:
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[0] = mask[0] & True
    if mask.all() or mask.sum().item() != 21:
        return h
    return h @ mask.to(h.dtype) * (torch.arange(6)[mask.diagonal()].sum().item() + len(torch.arange(6)[mask[2]]))


FINE = {"a mask": _masked, "a check": _checked, "a built mask": _built_mask}


@pytest.mark.parametrize("case", FINE)
def test_what_is_left_out_or_fixed_may_be_read(case: str) -> None:
    pair = Pair(Through(FINE[case]))
    for i in range(3):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        pair.check()
    assert not torch.compiler.is_compiling()


def test_a_tracer_s_own_formulas_are_not_taken_where_no_numbers_are_read() -> None:
    model = Through(_with_formulas_of_its_own)
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert "z_fc * 2" in step.derive(*data(0, torch.float32))


def _written_mask(h: Tensor, x: Tensor) -> Tensor:
    mask = torch.ones(6, dtype=torch.bool)
    mask[0] = x[0, 0] > 0
    return h if mask.all() else h * 2


def _random_mask(h: Tensor, x: Tensor) -> Tensor:
    return h if torch.rand_like(x).sum() > 5 else h * 2


def _mask_like_data(h: Tensor, x: Tensor) -> Tensor:
    return h if x.new_tensor([x[0, 0], 1.0])[0] > 0 else h * 2


READ = {
    "a mask that is written": _written_mask,
    "a random mask": _random_mask,
    "of the data's numbers": _mask_like_data,
    "no question": lambda h, x: h if x.sum() > 0 else h * 2,
}


@pytest.mark.parametrize("case", READ)
def test_what_changes_from_step_to_step_and_is_read_is_a_matter_of_the_program(case: str) -> None:
    model = Through(READ[case])
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert "expect(bool(" in step.derive(*data(0, torch.float32))
    assert not torch.compiler.is_compiling()
    assert Distribution._validate_args


class Asking(threading.Thread):
    """Another thread, whose answer is a shape."""

    def run(self) -> None:
        self.heard = is_tracing()


def _asks_elsewhere(h: Tensor, x: Tensor) -> Tensor:
    if is_tracing() or x.sum() > 1e9:
        other = Asking()
        other.start()
        other.join()
        return h * (1 + other.heard)
    return h


def test_other_threads_hear_of_no_tracer() -> None:
    pair = Pair(Through(_asks_elsewhere))
    ours, expected = pair.advance(*data(0))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_distributions_are_made_without_their_checks() -> None:
    def draws(h: Tensor, x: Tensor) -> Tensor:
        return h + Normal(x, 2.0).rsample()

    pair = Pair(Through(draws))
    for i in range(3):
        ours, expected = pair.advance(*data(i))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert Distribution._validate_args


def test_threads_that_derive_at_a_time_leave_torch_as_it_was() -> None:
    before = torch.compiler.is_compiling, Distribution._validate_args
    first, second = Asked(says=True), Asked(says=False)
    with first:
        thread = threading.Thread(target=second.__enter__)
        thread.start()
        thread.join()
        assert torch.compiler.is_compiling()
    assert not torch.compiler.is_compiling()  # this thread has none of its own any more
    assert Distribution._validate_args is False
    second.__exit__(None, None, None)
    assert (torch.compiler.is_compiling, Distribution._validate_args) == before
