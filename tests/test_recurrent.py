"""Recurrent layers and cells: every course of theirs is torch's, and so is the step derived of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from ordinary import one_of_each
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from torch_manualbp import TrainStep, explain, nn

KINDS = ("LSTM", "GRU", "RNN")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.4},
    "without bias": {"bias": False, "num_layers": 2},
    "projected": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
    "rectified": {"nonlinearity": "relu", "bidirectional": True},
}
ONLY = {"projected": "LSTM", "rectified": "RNN"}
COURSES = ("batch", "with states", "one sample", "packed", "packed, not sorted")
CASES = [(kind, about) for kind in KINDS for about in OPTIONS if ONLY.get(about, kind) == kind]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def pair(kind: str, **options: Any) -> list[Any]:
    theirs = getattr(torch_nn, kind)(3, 4, **options).double()
    ours = getattr(nn, kind)(3, 4, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


def called(layer: Any, course: str) -> list[Tensor]:
    """The outputs, their gradients, and the next random number."""
    torch.manual_seed(3)
    x, directions = randn(5, 5, 3).requires_grad_(), layer.num_layers * (2 if layer.bidirectional else 1)
    h = randn(directions, 5, layer.proj_size or 4, seed=1).requires_grad_()
    c = randn(directions, 5, 4, seed=2).requires_grad_()
    states = (h, c) if isinstance(layer, torch_nn.LSTM) else h
    lengths = [5, 4, 4, 2, 1] if course == "packed" else [2, 5, 1, 4, 4]
    packed = pack_padded_sequence(x, lengths, batch_first=layer.batch_first, enforce_sorted=course == "packed")
    args: dict[str, tuple[Any, ...]] = {"batch": (x,), "with states": (x, states), "one sample": (x[0],)}
    results = layer(*args.get(course, (packed, states)))
    found = [t for t in tree_leaves(results) if isinstance(t, Tensor) and t.is_floating_point()]
    learning = [x, h, c, *layer.parameters()]
    cost = torch.stack([(t * randn(*t.shape, seed=9)).sum() for t in found]).sum()
    gradients = torch.autograd.grad(cost, learning, allow_unused=True)
    return [*found, *(torch.zeros(()) if g is None else g for g in gradients), torch.rand(1)]


@pytest.mark.parametrize(
    ("case", "course"),
    one_of_each([(case, course) for case in CASES for course in COURSES], lambda case, course: [case[0], course]),
)
def test_every_course_is_torchs(case: tuple[str, str], course: str) -> None:
    for mine, torchs in zip(*(called(layer, course) for layer in pair(case[0], **OPTIONS[case[1]])[::-1]), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-12, atol=1e-12)
        assert mine.stride() == torchs.stride() or not mine.dim()


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_refuses_is_refused_in_its_words(kind: str) -> None:
    x, wrong = randn(5, 2, 3), (randn(2, 2, 4), randn(2, 2, 4))
    states = wrong if kind == "LSTM" else wrong[0]
    for args in ((randn(5, 2, 2),), (randn(3),), (x.float(),), (x, states), (x[0], states)):
        said = []
        for layer in pair(kind):
            with pytest.raises((ValueError, RuntimeError)) as raised:
                layer(*args)
            said.append((type(raised.value), str(raised.value)))
        assert said[0] == said[1]


class Classifier(torch_nn.Module):
    """A recurrent layer, what it makes of the last time, and a dropout of whole channels."""

    def __init__(self, namespace: Any, kind: str, **options: Any) -> None:
        super().__init__()
        self.recurrent = getattr(namespace, kind)(3, 4, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.drop, self.alpha = namespace.Dropout1d(0.3), namespace.AlphaDropout(0.2)
        self.head = namespace.Linear(directions * (options.get("proj_size") or 4), 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.recurrent(self.drop(x))
        last: Tensor = output[:, -1] if self.recurrent.batch_first else output[-1]
        result: Tensor = self.head(self.alpha(last))
        return result


class Unrolled(torch_nn.Module):
    """A cell, time by time."""

    def __init__(self, namespace: Any, kind: str) -> None:
        super().__init__()
        self.cell, self.head = getattr(namespace, kind)(3, 4), namespace.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for x_t in x:
            state = self.cell(x_t, state)
        result: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return result


def same_steps(model: torch_nn.Module, x: Tensor, target: Tensor) -> None:
    twin, loss = copy.deepcopy(model), torch_nn.CrossEntropyLoss()
    step = TrainStep(model, loss, torch.optim.Adam(model.parameters(), lr=0.01))
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
    for n in range(3):
        torch.manual_seed(n)
        cost = step(x, target)
        torch.manual_seed(n)
        optimizer.zero_grad()
        right = loss(twin(x), target)
        right.backward()
        optimizer.step()
        torch.testing.assert_close(cost.detach(), right.detach(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("namespace", [torch_nn, nn], ids=["torch.nn", "ours"])
@pytest.mark.parametrize(("kind", "about"), one_of_each(CASES, lambda kind, about: [kind]))
def test_a_derived_step_is_torchs(kind: str, about: str, namespace: Any) -> None:
    model = Classifier(namespace, kind, **OPTIONS[about]).double()
    same_steps(model, randn(5, 5, 3), torch.arange(5) % 3)


@pytest.mark.parametrize("namespace", [torch_nn, nn], ids=["torch.nn", "ours"])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_a_derived_step_of_cells_is_torchs(kind: str, namespace: Any) -> None:
    same_steps(Unrolled(namespace, kind).double(), randn(4, 5, 3), torch.arange(5) % 3)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("layer", [torch_nn.GRU, nn.GRU, torch_nn.LSTM])
def test_a_step_of_packed_sequences_is_stocks(layer: Any, is_sorted: bool) -> None:
    class Packs(torch_nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = layer(3, 4, batch_first=True, bidirectional=not is_sorted)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=is_sorted)
            output, _ = self.recurrent(packed)
            padded, n = pad_packed_sequence(output, batch_first=True, total_length=5)
            return padded.sum(1) / n.unsqueeze(1)

    model = Packs().double()
    twin = copy.deepcopy(model)
    optimizer, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    step = TrainStep(model, torch_nn.CrossEntropyLoss(), optimizer)
    for lengths in ([4, 1], [3, 2], [4, 1]):
        x = torch.randn(2, 4, 3).double(), torch.tensor(lengths if is_sorted else lengths[::-1])
        y = torch.tensor([0, 1])
        C = step(x, y)
        theirs.zero_grad()
        expected = torch_nn.functional.cross_entropy(twin(*x), y)
        expected.backward()
        theirs.step()
        torch.testing.assert_close(C, expected.detach())
    torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert len(step._programs) == 2


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_a_weight_of_a_gate_is_explained(name: str) -> None:
    """Numbers that multiply and add up to autograd's."""
    torch.manual_seed(0)
    model = Classifier(torch_nn, "LSTM").double().eval()
    index = (6, 1)[: 1 if "bias" in name else 2]
    loss, x, y = torch_nn.CrossEntropyLoss(), randn(3, 2, 3), torch.tensor([0, 2])
    explanation = explain(model, loss, x, y, f"recurrent.{name}", index, samples=100)
    assert abs(explanation.difference) < 1e-15 < abs(explanation.autograd)
    products = [math.prod(factor.value for factor in sample.factors) for sample in explanation.samples]
    assert math.isclose(math.fsum(products), explanation.autograd, rel_tol=1e-12)
