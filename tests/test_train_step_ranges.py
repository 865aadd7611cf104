"""One program serves a range of sizes: numbers are stock's at each; what is not one but for sizes stays apart."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_manualbp import TrainStep, nn
from torch_manualbp.derive import deriving, ranges
from torch_manualbp.derive import step as step_module

SIZES = (12, 17, 31, 9, 24, 17, 5, 40, 9, 12)


class Attention(torch.nn.Module):
    """A block of a transformer, on sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(11, 8), nn.Embedding(64, 8)
        self.norm, self.qkv, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        n, length = tokens.shape
        z = self.embedding(tokens) + self.positions(torch.arange(length))
        q, k, v = (t.view(n, length, 2, 4).transpose(1, 2) for t in self.qkv(self.norm(z)).chunk(3, -1))
        a = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.head(z + a.transpose(1, 2).reshape(n, length, 8)).transpose(1, 2)
        return out


class Branching(torch.nn.Module):
    """It does another thing from 20 samples on."""

    def __init__(self, power: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.fc(x)
        if self.power:
            return z * (x.shape[0] % 5 + 1)
        return z * 2 if x.shape[0] > 20 else z


def of_images(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 6), torch.randn(size, 3)


def of_text(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(11, (3, size)), torch.randint(11, (3, size))


def of_batches(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(11, (size, 7)), torch.randint(11, (size, 7))


def network() -> torch.nn.Module:
    layers = nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.GELU(), nn.Dropout(0.2), nn.Linear(4, 3)
    return torch.nn.Sequential(*layers)


CASES: dict[str, tuple[Callable[[], torch.nn.Module], Any, Callable[[int], tuple[Tensor, Tensor]]]] = {
    "a mean over samples": (network, nn.MSELoss(), of_images),
    "lengths of text": (Attention, nn.CrossEntropyLoss(), of_text),
    "batches of text": (Attention, nn.CrossEntropyLoss(), of_batches),
}


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that programs are derived for, one by one."""
    derived: list[tuple[int, ...]] = []
    as_it_is = deriving.derived_program

    def counted(*args: Any, **kwargs: Any) -> Any:
        derived.append(tuple(args[3].shape))
        return as_it_is(*args, **kwargs)

    monkeypatch.setattr(step_module, "derived_program", counted)
    return derived


def trained(model: torch.nn.Module, loss: Any, data: Any, sizes: Any = SIZES, **options: Any) -> TrainStep:
    """A step that has run on data of these sizes, with the numbers of stock at each."""
    stock = copy.deepcopy(model)
    step = TrainStep(model, loss, torch.optim.AdamW(model.parameters(), lr=0.01), **options)
    optimizer = torch.optim.AdamW(stock.parameters(), lr=0.01)
    for i, size in enumerate(sizes):
        x, y = data(size)
        torch.manual_seed(i)
        C = step(x, y)
        torch.manual_seed(i)
        optimizer.zero_grad()
        expected = loss(stock(x), y)
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(C, expected.detach(), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(dict(model.state_dict()), dict(stock.state_dict()), rtol=1e-9, atol=1e-11)
    return step


@pytest.mark.parametrize("case", CASES)
def test_two_derived_programs_are_those_of_all_sizes(case: str, derivations: list[Any]) -> None:
    make, loss, data = CASES[case]
    trained(make(), loss, data)
    assert 2 <= len(derivations) <= 4  # where two sizes happen to be one, as of 3 × 12 tokens, there is another program


@pytest.mark.parametrize("options", [{"clip_norm": 0.1}, {"accumulate": 2}, {"keep_deltas": True, "keep_layers": True}])
def test_with_options(options: dict[str, Any], derivations: list[Any]) -> None:
    model, data = network(), of_images
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), **options)
    stock = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), **options, check="every")
    for size in SIZES:  # the second derives for every size
        x, y = data(size)
        state = copy.deepcopy(model.state_dict())
        torch.manual_seed(0)
        C = step(x, y)
        after = copy.deepcopy(model.state_dict())
        model.load_state_dict(state)
        torch.manual_seed(0)
        assert C.item() == pytest.approx(stock(x, y).item(), rel=1e-12)
        if "accumulate" not in options:
            torch.testing.assert_close(dict(model.state_dict()), dict(after), rtol=1e-11, atol=1e-12)
        for name, delta in step.deltas.items():
            torch.testing.assert_close(delta, stock.deltas[name])
    assert len(derivations) < 2 * len(set(SIZES))


@pytest.mark.parametrize("power", [False, True])
def test_a_forward_that_does_another_thing_at_some_sizes_has_its_own_numbers(
    power: bool, derivations: list[Any]
) -> None:
    trained(Branching(power), nn.MSELoss(), of_images)
    assert len(derivations) > 2


def test_a_program_that_has_other_numbers_is_not_run(monkeypatch: pytest.MonkeyPatch, derivations: list[Any]) -> None:
    """The size that a mean divides by is planted wrong in the program of all sizes."""
    as_it_is = ranges._Text.generic

    def planted(text: Any) -> list[str]:
        return [line.replace(f"tensor((3 * {ranges.N}", f"tensor((3.003 * {ranges.N}") for line in as_it_is(text)]

    monkeypatch.setattr(ranges._Text, "generic", planted)
    trained(network(), nn.MSELoss(), of_images)
    assert len(derivations) == len(set(SIZES))


def test_programs_and_formulas_are_those_of_the_size(derivations: list[Any]) -> None:
    step = trained(network(), nn.MSELoss(), of_images, SIZES[:4], keep_output=True)
    assert len(derivations) == 2
    texts = step.program, step.source
    other = TrainStep(step.model, step.loss, step.optimizer, keep_output=True)
    other.derive(*of_images(SIZES[3]))
    assert texts == (other.program, other.source)


def test_all_sizes_compute_in_one_memory() -> None:
    step = trained(Attention(), nn.CrossEntropyLoss(), of_text, range(4, 44))
    storages = {}
    for entry in step._programs:
        for cell in (entry.derived.step.__closure__ or ()) if entry.derived.step is not None else ():
            if isinstance(cell.cell_contents, Tensor):
                storage = cell.cell_contents.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    alone = TrainStep(step.model, step.loss, step.optimizer)
    alone.derive(*of_text(43))
    own = {}
    for cell in alone._programs[-1].derived.step.__closure__:
        if isinstance(cell.cell_contents, Tensor):
            storage = cell.cell_contents.untyped_storage()
            own[storage.data_ptr()] = storage.nbytes()
    assert len(step._programs) == 40
    assert sum(storages.values()) < 2 * sum(own.values())


def test_a_warning_comes_where_each_size_is_derived_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "APART", 3)
    model = Branching(power=True)
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    for size in (5, 6, 12):
        step(*of_images(size))
    with pytest.warns(UserWarning, match="3 programs were derived for data that differ in sizes alone"):
        step(*of_images(18))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(*of_images(24))
        step(*of_images(11))
