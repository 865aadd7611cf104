"""Random changes between steps: a derived step equals stock, or says in words that it cannot, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sequence_kinds import KINDS
from sequence_models import Spec
from sequences import TABLE_OPTIMIZERS, Change, Plan, described, failure, find_seed, run, sequence, shrink

from torch_manualbp import TrainStep

QUICK, ALL, CHUNKS = 20, 5000, 50


@pytest.mark.parametrize("chunk", range(4))
def test_sequences(chunk: int) -> None:
    hold(range(chunk, QUICK, 4))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_5000_sequences(chunk: int) -> None:
    hold(range(chunk, ALL, CHUNKS))


def hold(seeds: range) -> None:
    """Fail with what is wrong of the first of these sequences that is wrong."""
    texts = (failure(seed) for seed in seeds)
    text = next((text for text in texts if text), "")
    assert not text, text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_single_kinds(kind: str) -> None:
    for optimizer in TABLE_OPTIMIZERS:
        spec, plan, outcome = find_seed(kind, optimizer)
        assert outcome.status != "failed", described(spec, plan, outcome)


# ------------------------------------------------------------------------------------------------- the instrument


def outcomes(count: int) -> Iterator[tuple[str, int]]:
    """What becomes of the first sequences, and how many changes each of them has."""
    for seed in range(count):
        outcome = run(*sequence(seed))
        yield outcome.status, sum(outcome.applied.values())


@pytest.mark.slow
def test_most_sequences_run_to_their_end() -> None:
    found = list(outcomes(20))
    assert sum(status == "equal" for status, _ in found) > 14
    assert sum(changes for _, changes in found) > 60


def test_a_sequence_is_the_same_each_time() -> None:
    assert sequence(3) == sequence(3)
    assert run(*sequence(3)) == run(*sequence(3))


def test_what_is_missed_is_told_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose learning rate is that of its first call."""

    class Stale(TrainStep):
        def __call__(self, inputs: object, target: object) -> object:  # type: ignore[override]
            kept = self.__dict__.setdefault("kept", [group["lr"] for group in self.optimizer.param_groups])
            now = [group["lr"] for group in self.optimizer.param_groups]
            for group, lr in zip(self.optimizer.param_groups, kept, strict=True):
                group["lr"] = lr
            try:
                return super().__call__(inputs, target)
            finally:
                for group, lr in zip(self.optimizer.param_groups, now, strict=True):
                    group["lr"] = lr

    monkeypatch.setattr("sequence_models.TrainStep", Stale)
    plan: Plan = [
        [],
        [Change("an activation is inserted", 1)],
        [Change("zero_grad", 2), Change("another learning rate", 3)],
        [Change("garbage is collected", 4)],
    ]
    spec, shrunk, outcome = shrink(Spec(0, optimizer="momentum", features=frozenset({"gain"})), plan)
    assert "off by" in outcome.message
    assert [change.kind for changes in shrunk for change in changes] == ["another learning rate"]
    assert spec.is_sequential
    assert spec.optimizer == "SGD"
